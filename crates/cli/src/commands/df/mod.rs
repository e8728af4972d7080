//! `orlop df`: what takes how much disk.

mod lens;

use serde::Serialize;

use super::Context;
use super::images::Image;
use crate::args::Format;
use crate::client::pb;
use crate::error::Result;
use crate::look::words::abbreviated;
use crate::look::{Look, Measured, rows};
use crate::output::{self, Table, count, short, size};
use crate::paint::plain;

/// Every image.
const ALL: rows::Wanted<'static> = rows::Wanted { filters: &[], all_namespaces: true, documents: true };

/// Options of `df`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sizes are what is allocated on disk. Where the files of a containerd cannot be reached, blobs are
counted in blocks of 4 KiB, and its database is not counted.

Examples:
  orlop df --by image            what each image takes, and what of it no other image has
  orlop df --by repository       which repository costs what
  orlop df --by layer            which layers are shared, by whom
  orlop df -o json | jq .hashReferences")]
pub(crate) struct Args {
    /// Show parts instead of sums
    #[arg(long, value_name = "WHAT")]
    by: Option<By>,
}

impl Args {
    /// Whether sums are shown, of no single thing.
    pub(crate) const fn is_sums(&self) -> bool {
        self.by.is_none()
    }
}

/// By what parts are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum By {
    /// One row an image.
    Image,
    /// One row a namespace.
    Namespace,
    /// One row a repository.
    Repository,
    /// One row a layer, with the images that have it.
    Layer,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HashReferences {
    records: u64,
    content_bytes: u64,
    metadata_bytes: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DiskUsage {
    schema: &'static str,
    total: u64,
    content: u64,
    snapshots: u64,
    ingests: u64,
    trash: u64,
    quarantine: u64,
    metadata: u64,
    elsewhere: u64,
    hash_references: HashReferences,
    images: Vec<Image>,
}

/// The same of a store that is not Orlop's.
#[derive(Serialize)]
struct LensUsage<'a> {
    schema: &'static str,
    #[serde(flatten)]
    usage: &'a lens::Usage,
    images: Vec<Image>,
}

#[derive(Serialize)]
struct Layers {
    schema: &'static str,
    layers: Vec<lens::Layer>,
}

#[derive(Serialize)]
struct Parts<'a> {
    schema: &'static str,
    parts: &'a [lens::Part],
}

/// Runs `df`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    match args.by {
        Some(By::Layer) => layers(context).await,
        Some(By::Image) => images(context).await,
        Some(by) => parts(context, by).await,
        None if context.store.is_own() => own(context).await,
        None => foreign(context).await,
    }
}

async fn layers(context: &Context) -> Result<()> {
    let look = Look::at(context, Measured::None).await?;
    let layers = lens::layers(&look.model);
    if output::is_document(context.global.output) {
        return output::document(context.global.output, &Layers { schema: "orlop.df.layers/v1", layers });
    }
    if context.global.output == Format::Name {
        return output::names(layers.iter().map(|layer| layer.digest.as_str()));
    }
    let mut table = Table::new(&["LAYER", "COMPRESSED", "IMAGES", "OF"]);
    for layer in &layers {
        let images = layer.images.iter().map(|name| plain(name)).collect::<Vec<_>>().join("\n");
        table.row([short(&layer.digest), &size(layer.bytes), &layer.images.len().to_string(), &images]);
    }
    table.print()
}

#[derive(Serialize)]
struct Images {
    schema: &'static str,
    images: Vec<Image>,
}

/// What each image takes, in all namespaces; the largest first.
async fn images(context: &Context) -> Result<()> {
    let mut rows = if context.store.is_own() {
        context.clients.orlop().disk_usage(pb::DiskUsageRequest { without_images: false }).await?.into_inner().images
    } else {
        let look = Look::at(context, Measured::All).await?;
        rows::of_images(context, &look, &ALL).await?
    };
    let bytes = |row: &pb::ImageRow| row.size.as_ref().map_or(0, |size| size.shared + size.unique);
    rows.sort_by(|a, b| bytes(b).cmp(&bytes(a)).then_with(|| called(a).cmp(called(b))));
    if output::is_document(context.global.output) {
        let images = rows.into_iter().map(|row| Image::of(row, true)).collect();
        return output::document(context.global.output, &Images { schema: "orlop.df.images/v1", images });
    }
    if context.global.output == Format::Name {
        return output::names(rows.iter().map(called));
    }
    let wide = context.global.output == Format::Wide;
    let mut table = Table::new(&["IMAGE", "NAMESPACE", "COMPRESSED", "UNPACKED", "SHARED", "UNIQUE"]);
    for row in &rows {
        let sizes = row.size.unwrap_or_default();
        let name = if wide { plain(called(row)).into_owned() } else { abbreviated(&plain(called(row))) };
        let [compressed, unpacked, shared, unique] =
            [sizes.compressed, sizes.unpacked, sizes.shared, sizes.unique].map(size);
        table.row([name, row.namespace.clone(), compressed, unpacked, shared, unique]);
    }
    table.print()
}

/// What an image is called: its first name, else a hash reference.
fn called(row: &pb::ImageRow) -> &str {
    let name = row.names.first().or_else(|| row.hash_references.first());
    name.map_or(row.image_id.as_str(), String::as_str)
}

async fn parts(context: &Context, by: By) -> Result<()> {
    let (_, usage) = lens::usage(context).await?;
    let (title, parts) = match by {
        By::Namespace => ("NAMESPACE", &usage.by_namespace),
        _ => ("REPOSITORY", &usage.by_repository),
    };
    if output::is_document(context.global.output) {
        return output::document(context.global.output, &Parts { schema: "orlop.df.parts/v1", parts });
    }
    if context.global.output == Format::Name {
        return output::names(parts.iter().map(|part| part.name.as_str()));
    }
    let mut table = Table::new(&[title, "IMAGES", "SIZE", "UNIQUE"]);
    for part in parts {
        table.row([plain(&part.name).into_owned(), part.images.to_string(), size(part.bytes), size(part.unique)]);
    }
    table.print()
}

async fn foreign(context: &Context) -> Result<()> {
    let (look, usage) = lens::usage(context).await?;
    if output::is_document(context.global.output) {
        let images = rows::of_images(context, &look, &ALL).await?.into_iter().map(|row| Image::of(row, true)).collect();
        return output::document(context.global.output, &LensUsage { schema: "orlop.df/v1", usage: &usage, images });
    }
    let mut table = Table::new(&["WHAT", "ON DISK"]);
    table.row(["content (compressed layers, manifests)", &size(usage.content)]);
    table.row(["snapshots (unpacked layers, containers' files)", &size(usage.snapshots)]);
    table.row(["writes in progress", &size(usage.ingests)]);
    let metadata = usage.metadata.map_or("unknown".to_owned(), size);
    table.row(["metadata", &metadata]);
    table.row(["total", &size(usage.total)]);
    table.print()?;
    let (hash, back) = (usage.hash_references, usage.reclaimable);
    output::line(format!(
        "\n{}: if only they went, {} would be given back",
        count(hash.records, "hash reference"),
        size(hash.content_bytes)
    ))?;
    output::line(format!(
        "reclaimable: {} garbage, {} of images without a tag and container, {} of all images without a container",
        size(back.garbage),
        size(back.untagged),
        size(back.unused)
    ))
}

async fn own(context: &Context) -> Result<()> {
    let request = pb::DiskUsageRequest { without_images: !output::is_document(context.global.output) };
    let answer = context.clients.orlop().disk_usage(request).await?.into_inner();
    if output::is_document(context.global.output) {
        return output::document(context.global.output, &json(answer));
    }
    let mut table = Table::new(&["WHAT", "ON DISK"]);
    let mut rows = vec![
        ("content (compressed layers, manifests)", answer.content),
        ("snapshots (unpacked layers)", answer.snapshots),
        ("writes in progress", answer.ingests),
        ("trash (orlop gc --trash frees it)", answer.trash),
        ("metadata", answer.metadata),
        ("total", answer.total),
    ];
    // Mostly there is none.
    if answer.quarantine > 0 {
        rows.insert(4, ("quarantine (damaged bytes that were set aside)", answer.quarantine));
    }
    for (what, bytes) in rows {
        table.row([what.to_owned(), size(bytes)]);
    }
    if answer.elsewhere > 0 {
        table.row(["  of which files elsewhere have it too", &size(answer.elsewhere)]);
    }
    table.print()?;
    let hash = answer.hash_references.unwrap_or_default();
    output::line(format!(
        "\n{} hash references: {} of content, {} of metadata",
        hash.records,
        size(hash.content_bytes),
        size(hash.metadata_bytes)
    ))
}

fn json(answer: pb::DiskUsageResponse) -> DiskUsage {
    let hash = answer.hash_references.unwrap_or_default();
    DiskUsage {
        schema: "orlop.df/v1",
        total: answer.total,
        content: answer.content,
        snapshots: answer.snapshots,
        ingests: answer.ingests,
        trash: answer.trash,
        quarantine: answer.quarantine,
        metadata: answer.metadata,
        elsewhere: answer.elsewhere,
        hash_references: HashReferences {
            records: hash.records,
            content_bytes: hash.content_bytes,
            metadata_bytes: hash.metadata_bytes,
        },
        images: answer.images.into_iter().map(|row| Image::of(row, true)).collect(),
    }
}
