//! `orlop inspect`: everything known of one image.

use serde::Serialize;

use super::Context;
use super::images::Image;
use crate::args::Format;
use crate::client::pb;
use crate::error::{Class, CliError, Result};
use crate::output::{self, size};

/// Options of `inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
NAME is a record's name, a digest, an image ID, or the first digits of one.

Examples:
  orlop inspect alpine
  orlop inspect sha256:e5a475… -o json | jq '.documents[].body.layers'")]
pub(crate) struct Args {
    /// The image
    name: String,
}

#[derive(Serialize)]
struct Inspect {
    schema: &'static str,
    image: Image,
    documents: Vec<Document>,
    snapshots: Vec<Snapshot>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    digest: String,
    media_type: String,
    size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    platform: String,
    missing: bool,
    body: Option<serde_json::Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Snapshot {
    chain_id: String,
    snapshotter: String,
    bytes: u64,
    inodes: u64,
}

/// Runs `inspect`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    if !context.store.is_own() {
        let message = format!("inspect needs orlop.v1, which {} lacks", context.store);
        return Err(
            CliError::new(Class::Usage, message).hint(format!("orlop explain {} works on any store", args.name))
        );
    }
    let request = pb::InspectRequest { name: args.name.clone() };
    let answer = context.clients.orlop().inspect(request).await?.into_inner();
    let inspect = Inspect {
        schema: "orlop.inspect/v1",
        image: Image::of(answer.row.clone().unwrap_or_default(), true),
        documents: answer.documents.iter().map(document).collect(),
        snapshots: answer.snapshots.iter().map(snapshot).collect(),
    };
    if output::is_document(context.global.output) {
        return output::document(context.global.output, &inspect);
    }
    if context.global.output == Format::Name {
        let row = answer.row.unwrap_or_default();
        return output::names(row.names.iter().chain(&row.hash_references).map(String::as_str));
    }
    output::print_text(&text(&answer))
}

fn document(document: &pb::Document) -> Document {
    let descriptor = document.descriptor.clone().unwrap_or_default();
    Document {
        digest: descriptor.digest,
        media_type: descriptor.media_type,
        size: descriptor.size,
        platform: document.platform.clone(),
        missing: document.missing,
        body: serde_json::from_slice(&document.raw).ok(),
    }
}

fn snapshot(row: &pb::SnapshotRow) -> Snapshot {
    Snapshot {
        chain_id: row.chain_id.clone(),
        snapshotter: row.snapshotter.clone(),
        bytes: row.bytes,
        inodes: row.inodes,
    }
}

fn text(answer: &pb::InspectResponse) -> String {
    let row = answer.row.clone().unwrap_or_default();
    let sizes = row.size.unwrap_or_default();
    let mut lines = vec![format!("Image ID         {}", row.image_id), format!("Namespace        {}", row.namespace)];
    list(&mut lines, "Names", &row.names);
    list(&mut lines, "Hash references", &row.hash_references);
    list(&mut lines, "Targets", &row.targets);
    list(&mut lines, "Platforms", &row.platforms);
    lines.push(format!("Pinned           {}", if row.pinned { "yes" } else { "no" }));
    lines.push(format!(
        "Size             {} compressed, {} unpacked; {} shared with other images, {} its own",
        size(sizes.compressed),
        size(sizes.unpacked),
        size(sizes.shared),
        size(sizes.unique)
    ));
    lines.push("Documents".into());
    for document in &answer.documents {
        let descriptor = document.descriptor.clone().unwrap_or_default();
        let missing = if document.missing { "  (not here)" } else { "" };
        let platform = if document.platform.is_empty() { String::new() } else { format!("  {}", document.platform) };
        lines.push(format!(
            "  {}  {:>9}  {}{platform}{missing}",
            descriptor.digest,
            size(descriptor.size),
            descriptor.media_type
        ));
    }
    lines.push("Snapshots".into());
    for snapshot in &answer.snapshots {
        lines.push(format!("  {}  {:>9}  {}", snapshot.chain_id, size(snapshot.bytes), snapshot.snapshotter));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn list(lines: &mut Vec<String>, title: &str, values: &[String]) {
    for (n, value) in values.iter().enumerate() {
        lines.push(format!("{:<17}{value}", if n == 0 { title } else { "" }));
    }
}
