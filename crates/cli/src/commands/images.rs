//! `orlop images`: one row an image, or with `--all` one row a record.

use serde::Serialize;

use super::Context;
use crate::args::Format;
use crate::client::pb;
use crate::error::Result;
use crate::output::{self, Table, short, size, time, time_short};

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

/// Sizes in bytes.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Sizes {
    compressed: u64,
    unpacked: u64,
    shared: u64,
    unique: u64,
}

impl From<Option<pb::Sizes>> for Sizes {
    fn from(sizes: Option<pb::Sizes>) -> Self {
        let s = sizes.unwrap_or_default();
        Self { compressed: s.compressed, unpacked: s.unpacked, shared: s.shared, unique: s.unique }
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

impl From<pb::ImageRow> for Image {
    fn from(row: pb::ImageRow) -> Self {
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
            size: row.size.into(),
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

async fn images(context: &Context, args: &Args) -> Result<()> {
    let request = pb::ListImagesRequest { filters: args.filter.clone(), all_namespaces: args.all_namespaces };
    let mut stream = context.clients.orlop().list_images(request).await?.into_inner();
    let mut rows = Vec::new();
    while let Some(page) = stream.message().await? {
        rows.extend(page.rows);
    }
    match context.global.output {
        Format::Name => output::names(rows.iter().flat_map(|r| r.names.iter().map(String::as_str))),
        Format::Json | Format::Yaml => {
            let images = rows.into_iter().map(Image::from).collect();
            output::document(context.global.output, &Images { schema: "orlop.images/v1", images })
        }
        Format::Table | Format::Wide => image_table(&rows, context.global.output == Format::Wide, args.all_namespaces),
    }
}

fn image_table(rows: &[pb::ImageRow], wide: bool, namespaces: bool) -> Result<()> {
    let mut header = vec!["NAME", "IMAGE ID", "COMPRESSED", "UNPACKED", "UNIQUE", "UPDATED"];
    if wide {
        header.extend(["SHARED", "PLATFORMS", "HASH REFERENCES", "TARGET"]);
    }
    if namespaces {
        header.insert(0, "NAMESPACE");
    }
    let mut table = Table::new(&header);
    for row in rows {
        let mut cells = image_cells(row);
        if wide {
            let sizes = row.size.unwrap_or_default();
            let targets: Vec<&str> = row.targets.iter().map(|t| short(t)).collect();
            cells.extend([
                size(sizes.shared),
                row.platforms.join(","),
                row.hash_references.len().to_string(),
                targets.join("\n"),
            ]);
        }
        if namespaces {
            cells.insert(0, row.namespace.clone());
        }
        table.row(cells);
    }
    table.print()
}

fn image_cells(row: &pb::ImageRow) -> Vec<String> {
    let sizes = row.size.unwrap_or_default();
    let mut names = if row.names.is_empty() { "<none>".to_owned() } else { row.names.join("\n") };
    if row.incomplete {
        names.push_str("  (incomplete)");
    }
    if row.pinned {
        names.push_str("  (pinned)");
    }
    vec![
        names,
        short(&row.image_id).trim_start_matches("sha256:").to_owned(),
        size(sizes.compressed),
        size(sizes.unpacked),
        size(sizes.unique),
        time_short(row.updated_at.as_ref()),
    ]
}

async fn records(context: &Context, args: &Args) -> Result<()> {
    let request = pb::ListRecordsRequest { filters: args.filter.clone(), all_namespaces: args.all_namespaces };
    let mut stream = context.clients.orlop().list_records(request).await?.into_inner();
    let mut rows = Vec::new();
    while let Some(page) = stream.message().await? {
        rows.extend(page.rows);
    }
    match context.global.output {
        Format::Name => output::names(rows.iter().map(|r| r.name.as_str())),
        Format::Json | Format::Yaml => {
            let records = rows.into_iter().map(Record::from).collect();
            output::document(context.global.output, &Records { schema: "orlop.images/v1", records })
        }
        Format::Table | Format::Wide => record_table(&rows, context.global.output == Format::Wide, args.all_namespaces),
    }
}

fn record_table(rows: &[pb::RecordRow], wide: bool, namespaces: bool) -> Result<()> {
    let mut header = vec!["REF", "KIND", "TYPE", "DIGEST", "SIZE", "PLATFORMS"];
    if wide {
        header.extend(["IMAGE ID", "LABELS", "UPDATED"]);
    }
    if namespaces {
        header.insert(0, "NAMESPACE");
    }
    let mut table = Table::new(&header);
    for row in rows {
        let target = row.target.clone().unwrap_or_default();
        let mut cells = vec![
            row.name.clone(),
            row.kind.clone(),
            target.media_type,
            target.digest,
            size(row.size),
            row.platforms.join(","),
        ];
        if wide {
            let labels: Vec<String> = row.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            cells.extend([row.image_id.clone(), labels.join(","), time_short(row.updated_at.as_ref())]);
        }
        if namespaces {
            cells.insert(0, row.namespace.clone());
        }
        table.row(cells);
    }
    table.print()
}
