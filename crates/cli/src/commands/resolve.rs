//! `orlop resolve`: from any identifier of an image or its parts to all others.

use std::collections::{BTreeSet, HashSet};

use orlop_graph::model::{Found, Model, NodeId, NodeKind};
use serde::Serialize;

use super::Context;
use crate::args::Format;
use crate::error::{Class, CliError, Result};
use crate::look::facts::Named;
use crate::look::groups::{Group, Name, concerned, diff_id, groups, meant};
use crate::look::parts::{self, Layer, Part, Parts};
use crate::look::words::called;
use crate::look::{Look, Measured, paths};
use crate::output::{self, Table, short};
use crate::paint::Tone;

/// Fewer digits than these mean no digest.
const SHORTEST: usize = 4;

/// Options of `resolve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  orlop resolve alpine           its image ID, digests, layers, diff IDs, chain IDs
  orlop resolve sha256:0123…     which images have this layer, diff ID or chain ID, and where
  orlop resolve -o wide alpine   digests whole")]
pub(crate) struct Args {
    /// A name, an image ID, any digest, a diff ID, a chain ID, a snapshot's key, a container, a lease, or the first digits
    /// of one; or a path inside an image or of this host
    #[arg(value_name = "X")]
    name: String,
}

/// `orlop.resolve/v1` (docs/lens.md).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema: &'static str,
    query: String,
    /// What it is itself; nothing if it is only named by documents.
    is: Vec<Named>,
    images: Vec<Image>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Image {
    image_id: Option<String>,
    names: Vec<Name>,
    hash_references: Vec<Name>,
    containers: Vec<Name>,
    /// Where in the image the identifier stands, if it is one of a layer.
    positions: Vec<Position>,
    targets: Vec<Part>,
}

/// A layer's place.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Position {
    manifest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
    position: usize,
    of: usize,
    /// `layer`, `diffId`, `chainId`.
    r#as: &'static str,
}

/// Runs `resolve`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    let here = &*context.store.namespace;
    let mut look = Look::around(context, &args.name).await?;
    // What only documents tell is asked of all of them.
    if look.is_part && look.model.find(&args.name).iter().any(|found| is_unpacked(&look.model, found, &args.name)) {
        look = Look::at(context, Measured::None).await?;
    }
    let model = &look.model;
    let groups = groups(model);
    let found = match paths::searched(context, &look, &args.name).await {
        Err(error) if error.class == Class::NotFound && digits(&args.name).is_some() => Err(error),
        meant => Ok(meant?),
    };
    let files = found.iter().flat_map(|meant| meant.lines(model)).collect::<Vec<_>>();
    let found = found.map(|meant| meant.found);
    let nodes: Vec<NodeId> = found.iter().flatten().map(|found| found.node).collect();
    let wanted = match &found {
        Ok(found) if !found.iter().any(|f| is_unpacked(model, f, &args.name)) => concerned(model, &groups, &nodes),
        // What only documents tell: a diff ID, a chain ID, and who has it without having unpacked it.
        _ => (0..groups.len()).collect(),
    };
    let documents = parts::read(&look, wanted.iter().flat_map(|at| groups[*at].records.clone())).await?;
    let parts = Parts::new(model, &documents, &groups);
    let mut images: Vec<(usize, Vec<Part>)> = wanted.iter().map(|at| (*at, parts.of(*at, &groups[*at]))).collect();
    let ids = match found {
        Ok(found) => {
            let in_documents = |f: &&Found| matches!(model.kind(f.node), NodeKind::Blob | NodeKind::Snapshot);
            found.iter().filter(in_documents).map(|found| meant(model, found, &args.name)).collect()
        }
        Err(error) => HashSet::from([named(&images, &args.name, error)?]),
    };
    let reached: BTreeSet<usize> = concerned(model, &groups, &nodes);
    images.retain(|(at, targets)| reached.contains(at) || targets.iter().any(|target| names(target, &ids)));
    let images: Vec<Image> = images.into_iter().map(|(at, targets)| image(model, &groups[at], targets, &ids)).collect();
    if output::is_document(context.global.output) {
        let is = nodes.iter().map(|node| Named::of(model, *node)).collect();
        let document = Document { schema: "orlop.resolve/v1", query: args.name.clone(), is, images };
        return output::document(context.global.output, &document);
    }
    if context.global.output == Format::Name {
        let names = images.iter().flat_map(|image| image.names.iter().chain(&image.hash_references));
        return output::names(names.map(|name| name.name.as_str()));
    }
    files.into_iter().try_for_each(output::line)?;
    for node in &nodes {
        output::line(Name { name: called(model, *node), ..Name::of(model, *node) }.seen_from(here))?;
    }
    if images.is_empty() {
        output::line("no image has a part in it")?;
    }
    images.iter().try_for_each(|image| print(image, here, context.global.output == Format::Wide))
}

/// The digits of a digest or of its beginning.
fn digits(text: &str) -> Option<&str> {
    let hex = text.trim().strip_prefix("sha256:").unwrap_or(text.trim());
    Some(hex).filter(|hex| hex.len() >= SHORTEST && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether it is of an unpacked layer: such a one may belong to images that no label connects with it.
fn is_unpacked(model: &Model, found: &Found, text: &str) -> bool {
    diff_id(model, found, text).is_some() || model.kind(found.node) == NodeKind::Snapshot
}

/// All identifiers that a document has.
fn identifiers(part: &Part) -> impl Iterator<Item = &str> {
    let own = std::iter::once(&part.blob.digest).chain(part.config.iter().map(|config| &config.digest));
    let layers = part.layers.iter().flat_map(|l| std::iter::once(&l.blob.digest).chain(&l.diff_id).chain(&l.chain_id));
    own.chain(layers).map(String::as_str)
}

/// Whether a target or something below has one of these identifiers.
fn names(target: &Part, ids: &HashSet<String>) -> bool {
    target.all().into_iter().flat_map(identifiers).any(|id| ids.contains(id))
}

/// The one identifier in all documents that a text means; the error of the search in the store if there is none.
fn named(images: &[(usize, Vec<Part>)], text: &str, error: CliError) -> Result<String> {
    let hex = digits(text).unwrap_or_default().to_ascii_lowercase();
    let parts = images.iter().flat_map(|(_, targets)| targets).flat_map(Part::all);
    let begins = |id: &&str| id.strip_prefix("sha256:").is_some_and(|digits| digits.starts_with(&hex));
    let found: BTreeSet<&str> = parts.flat_map(identifiers).filter(begins).collect();
    match found.len() {
        0 => Err(error),
        1 => Ok(found.into_iter().map(str::to_owned).collect()),
        _ => {
            let all: Vec<&str> = found.into_iter().collect();
            let message = format!("{text:?} is the beginning of several: {}", all.join(", "));
            Err(CliError::new(Class::Conflict, message).hint("give more of it"))
        }
    }
}

fn image(model: &Model, group: &Group, targets: Vec<Part>, ids: &HashSet<String>) -> Image {
    let (names, hash_references) = group.names(model);
    let containers = model.users(&group.records).into_iter().map(|node| Name::of(model, node)).collect();
    let positions = targets.iter().flat_map(Part::all).flat_map(|part| positions(part, ids)).collect();
    let image_id = group.image_id.as_ref().map(ToString::to_string);
    Image { image_id, names, hash_references, containers, positions, targets }
}

fn positions(part: &Part, ids: &HashSet<String>) -> Vec<Position> {
    let mut found = Vec::new();
    for layer in &part.layers {
        let named = [("layer", Some(&layer.blob.digest)), ("diffId", layer.diff_id.as_ref())];
        for (r#as, id) in named.into_iter().chain([("chainId", layer.chain_id.as_ref())]) {
            if id.is_some_and(|id| ids.contains(id)) {
                let (manifest, platform) = (part.blob.digest.clone(), part.platform.clone());
                found.push(Position { manifest, platform, position: layer.position, of: part.layers.len(), r#as });
            }
        }
    }
    found
}

fn print(image: &Image, here: &str, wide: bool) -> Result<()> {
    output::line(format!(
        "\n{} {}",
        Tone::Kind.paint("image"),
        image.image_id.as_deref().unwrap_or("(of several platforms, or unknown)")
    ))?;
    let lists = [("name", &image.names), ("hash reference", &image.hash_references), ("container", &image.containers)];
    for (word, list) in lists {
        list.iter().try_for_each(|name| output::line(format!("  {word:<15} {}", name.seen_from(here))))?;
    }
    for place in &image.positions {
        let word = match place.r#as {
            "diffId" => "diff ID",
            "chainId" => "chain ID",
            other => other,
        };
        let (at, of, manifest) = (place.position, place.of, short(&place.manifest));
        output::line(format!("  {:<15} {word} of layer {at} of {of} of manifest {manifest}", "found as"))?;
    }
    for part in image.targets.iter().flat_map(Part::all) {
        let absent = not_here(part.blob.here);
        let platform = part.platform.iter().map(|platform| format!("  {platform}")).collect::<String>();
        output::line(format!("  {:<15} {}{platform}{absent}", part.kind, part.blob.digest))?;
        if let Some(config) = &part.config {
            let absent = not_here(config.here);
            output::line(format!("  {:<15} {}{absent}", "config", config.digest))?;
        }
        if !part.layers.is_empty() {
            table(&part.layers, wide).print()?;
        }
    }
    Ok(())
}

fn not_here(here: bool) -> String {
    if here { String::new() } else { format!("  {}", Tone::Warning.paint("not here")) }
}

fn table(layers: &[Layer], wide: bool) -> Table {
    let cut = |id: &str| if wide { id.to_owned() } else { short(id).to_owned() };
    let or_dash = |id: &Option<String>| id.as_deref().map_or_else(|| "-".to_owned(), cut);
    let mut table = Table::new(&["LAYER", "DIGEST", "HERE", "DIFF ID", "CHAIN ID", "UNPACKED BY"]);
    for layer in layers {
        let unpacked: Vec<String> =
            layer.snapshots.iter().map(|s| format!("{} in {}", s.snapshotter, s.namespace)).collect();
        table.row([
            layer.position.to_string(),
            cut(&layer.blob.digest),
            if layer.blob.here { "yes".to_owned() } else { Tone::Warning.paint("no").to_string() },
            or_dash(&layer.diff_id),
            or_dash(&layer.chain_id),
            if unpacked.is_empty() { "-".to_owned() } else { unpacked.join(", ") },
        ]);
    }
    table
}
