//! `orlop images`: one row an image, or with `--all` one row a record.

use std::borrow::Cow;

use serde::Serialize;

use super::Context;
use crate::args::Format;
use crate::client::pb;
use crate::error::Result;
use crate::look::rows;
use crate::look::words::abbreviated;
use crate::output::{self, Table, short, size, time, time_short};
use crate::paint::{Tone, plain};

/// Options of `images`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Hash references (name@sha256:… and sha256:…) are further names of an image; they cost no disk. Here they are folded
into the image they name; --all lists them as ctr does.

Examples:
  orlop images --filter 'name~=calico'
  orlop images --all --filter 'labels.\"io.cri-containerd.image\"==managed'
  orlop images -o json | jq '.images[].size.unique'")]
pub(crate) struct Args {
    /// List every record, hash references too
    #[arg(short, long)]
    all: bool,
    /// containerd's filter syntax on records: name, target.digest, target.mediatype, labels.KEY with ==, !=, ~=
    #[arg(long, value_name = "F")]
    filter: Vec<String>,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

/// Sizes in bytes; what snapshots have a part in is unknown if they were not asked.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Sizes {
    compressed: u64,
    unpacked: Option<u64>,
    shared: Option<u64>,
    unique: Option<u64>,
}

impl Sizes {
    fn of(sizes: Option<pb::Sizes>, is_measured: bool) -> Self {
        let sizes = sizes.unwrap_or_default();
        let known = |bytes| is_measured.then_some(bytes);
        let (unpacked, shared, unique) = (known(sizes.unpacked), known(sizes.shared), known(sizes.unique));
        Self { compressed: sizes.compressed, unpacked, shared, unique }
    }
}

/// One image (contract: `orlop images -o json`).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Image {
    image_id: String,
    namespace: String,
    names: Vec<String>,
    hash_references: Vec<String>,
    targets: Vec<String>,
    platforms: Vec<String>,
    pinned: bool,
    incomplete: bool,
    created_at: String,
    updated_at: String,
    size: Sizes,
}

impl Image {
    pub(crate) fn of(row: pb::ImageRow, is_measured: bool) -> Self {
        Self {
            created_at: time(row.created_at.as_ref()),
            updated_at: time(row.updated_at.as_ref()),
            image_id: row.image_id,
            namespace: row.namespace,
            names: row.names,
            hash_references: row.hash_references,
            targets: row.targets,
            platforms: row.platforms,
            pinned: row.pinned,
            incomplete: row.incomplete,
            size: Sizes::of(row.size, is_measured),
        }
    }
}

#[derive(Serialize)]
struct Images {
    schema: &'static str,
    images: Vec<Image>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    digest: String,
    media_type: String,
    size: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    name: String,
    namespace: String,
    kind: String,
    target: Target,
    image_id: String,
    labels: std::collections::BTreeMap<String, String>,
    created_at: String,
    updated_at: String,
    size: u64,
    platforms: Vec<String>,
}

#[derive(Serialize)]
struct Records {
    schema: &'static str,
    records: Vec<Record>,
}

impl From<pb::RecordRow> for Record {
    fn from(row: pb::RecordRow) -> Self {
        let target = row.target.unwrap_or_default();
        Self {
            created_at: time(row.created_at.as_ref()),
            updated_at: time(row.updated_at.as_ref()),
            name: row.name,
            namespace: row.namespace,
            kind: row.kind,
            target: Target { digest: target.digest, media_type: target.media_type, size: target.size },
            image_id: row.image_id,
            labels: row.labels,
            size: row.size,
            platforms: row.platforms,
        }
    }
}

/// Runs `images`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    if args.all { records(context, args).await } else { images(context, args).await }
}

/// Rows as they will be shown: they come page by page, and nothing else of them is kept.
enum Sheet<D> {
    Table(Table),
    Names(String),
    Document(Vec<D>),
}

impl<D> Sheet<D> {
    fn new(format: Format, namespaces: bool, columns: &[&'static str], wide: &[&'static str]) -> Self {
        let mut header: Vec<&'static str> = namespaces.then_some("NAMESPACE").into_iter().collect();
        header.extend(columns);
        match format {
            Format::Name => Self::Names(String::new()),
            Format::Json | Format::Yaml => Self::Document(Vec::new()),
            Format::Wide => {
                header.extend(wide);
                Self::Table(Table::new(&header))
            }
            Format::Table => Self::Table(Table::new(&header)),
        }
    }
}

fn wanted(args: &Args, documents: bool) -> rows::Wanted<'_> {
    rows::Wanted { filters: &args.filter, all_namespaces: args.all_namespaces, documents }
}

async fn images(context: &Context, args: &Args) -> Result<()> {
    let format = context.global.output;
    let columns = ["NAME", "IMAGE ID", "COMPRESSED", "UNPACKED", "UNIQUE", "UPDATED"];
    let wide = ["SHARED", "PLATFORMS", "HASH REFERENCES", "TARGET"];
    let mut sheet = Sheet::new(format, args.all_namespaces, &columns, &wide);
    let mut show = |row: pb::ImageRow, is_measured: bool| match &mut sheet {
        Sheet::Names(names) => {
            let without_tag = row.hash_references.iter().find(|name| row.names.is_empty() && name.contains('@'));
            row.names.iter().chain(without_tag).for_each(|name| output::push_name(names, name));
        }
        Sheet::Document(images) => images.push(Image::of(row, is_measured)),
        Sheet::Table(table) => {
            let sizes = Sizes::of(row.size, is_measured);
            table.row(image_cells(&row, &sizes, format == Format::Wide, args.all_namespaces));
        }
    };
    if context.store.is_own() {
        let request = pb::ListImagesRequest { filters: args.filter.clone(), all_namespaces: args.all_namespaces };
        let mut stream = context.clients.orlop().list_images(request).await?.into_inner();
        while let Some(page) = stream.message().await? {
            page.rows.into_iter().for_each(|row| show(row, true));
        }
    } else {
        let documents = !matches!(format, Format::Table | Format::Name);
        let (rows, is_measured) = rows::images(context, &wanted(args, documents)).await?;
        rows.into_iter().for_each(|row| show(row, is_measured));
    }
    match sheet {
        Sheet::Names(names) => output::print_text(&names),
        Sheet::Document(images) => output::document(format, &Images { schema: "orlop.images/v1", images }),
        Sheet::Table(table) => table.print(),
    }
}

/// What an image without a tag is called: by its digest, if a record says so.
fn untagged(hash_references: &[String]) -> Cow<'_, str> {
    let name = hash_references.iter().find(|name| name.contains('@'));
    name.map_or(Cow::Borrowed("<none>"), |name| abbreviated(name).into())
}

fn image_cells<'r>(row: &'r pb::ImageRow, sizes: &Sizes, wide: bool, namespaces: bool) -> Vec<Cow<'r, str>> {
    let or_dash = |bytes: Option<u64>| bytes.map_or(Cow::Borrowed("-"), |bytes| size(bytes).into());
    let mut names = match row.names.as_slice() {
        [] => untagged(&row.hash_references),
        [name] => plain(name),
        names => Cow::Owned(names.iter().map(|name| plain(name)).collect::<Vec<_>>().join("\n")),
    };
    if row.incomplete {
        names += "  (incomplete)";
    }
    if row.pinned {
        names += "  (pinned)";
    }
    let mut cells: Vec<Cow<'_, str>> = Vec::with_capacity(11);
    cells.extend(namespaces.then_some(row.namespace.as_str().into()));
    cells.extend([
        names,
        short(&row.image_id).trim_start_matches("sha256:").into(),
        size(sizes.compressed).into(),
        or_dash(sizes.unpacked),
        or_dash(sizes.unique),
        time_short(row.updated_at.as_ref()).into(),
    ]);
    if wide {
        let targets: Vec<&str> = row.targets.iter().map(|t| short(t)).collect();
        cells.extend([
            or_dash(sizes.shared),
            row.platforms.join(",").into(),
            row.hash_references.len().to_string().into(),
            targets.join("\n").into(),
        ]);
    }
    cells
}

async fn records(context: &Context, args: &Args) -> Result<()> {
    let format = context.global.output;
    let columns = ["REF", "KIND", "TYPE", "DIGEST", "SIZE", "PLATFORMS"];
    let wide = ["IMAGE ID", "LABELS", "UPDATED"];
    let mut sheet = Sheet::new(format, args.all_namespaces, &columns, &wide);
    let brief = matches!(format, Format::Table | Format::Name);
    let mut show = |row: pb::RecordRow| match &mut sheet {
        Sheet::Names(names) => output::push_name(names, &row.name),
        Sheet::Document(records) => records.push(Record::from(row)),
        Sheet::Table(table) => table.row(record_cells(&row, format == Format::Wide, args.all_namespaces)),
    };
    if context.store.is_own() {
        let (filters, all_namespaces) = (args.filter.clone(), args.all_namespaces);
        let request = pb::ListRecordsRequest { filters, all_namespaces, brief };
        let mut stream = context.clients.orlop().list_records(request).await?.into_inner();
        while let Some(page) = stream.message().await? {
            page.rows.into_iter().for_each(&mut show);
        }
    } else {
        rows::records(context, &wanted(args, format != Format::Name)).await?.into_iter().for_each(show);
    }
    match sheet {
        Sheet::Names(names) => output::print_text(&names),
        Sheet::Document(records) => output::document(format, &Records { schema: "orlop.images/v1", records }),
        Sheet::Table(table) => table.print(),
    }
}

/// A record's kind; hash references can be passed over.
fn kind_cell(kind: &str) -> Cow<'_, str> {
    match kind {
        "digest" | "id" => Tone::Faint.paint(kind).to_string().into(),
        _ => kind.into(),
    }
}

fn record_cells(row: &pb::RecordRow, wide: bool, namespaces: bool) -> Vec<Cow<'_, str>> {
    let target = row.target.as_ref();
    let platforms = match row.platforms.as_slice() {
        [platform] => Cow::Borrowed(platform.as_str()),
        platforms => platforms.join(",").into(),
    };
    let mut cells: Vec<Cow<'_, str>> = Vec::with_capacity(10);
    cells.extend(namespaces.then_some(row.namespace.as_str().into()));
    cells.extend([
        plain(&row.name),
        kind_cell(&row.kind),
        target.map_or("", |t| &t.media_type).into(),
        target.map_or("", |t| &t.digest).into(),
        size(row.size).into(),
        platforms,
    ]);
    if wide {
        let labels: Vec<String> = row.labels.iter().map(|(k, v)| plain(&format!("{k}={v}")).into_owned()).collect();
        let updated = time_short(row.updated_at.as_ref());
        cells.extend([row.image_id.as_str().into(), labels.join(",").into(), updated.into()]);
    }
    cells
}
