//! `orlop tree`: what images consist of, from the index down to snapshots, with sizes and what is shared.

use std::collections::BTreeSet;

use orlop_graph::model::NodeId;
use serde::Serialize;

use super::Context;
use crate::args::Format;
use crate::error::Result;
use crate::look::groups::{Group, Name, concerned, groups};
use crate::look::parts::{self, Blob, Layer, Part, Parts, Snapshot};
use crate::look::words::abbreviated;
use crate::look::{Look, Measured, paths};
use crate::output::{self, count, short, size};
use crate::paint::Tone;

/// Options of `tree`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  orlop tree                     every image of the namespace
  orlop tree alpine              one image
  orlop tree sha256:0123…        the images that this layer, config or snapshot is a part of")]
pub(crate) struct Args {
    /// A name, or anything else that `orlop resolve` takes [default: all images of the namespace]
    name: Option<String>,
}

/// `orlop.tree/v1` (docs/lens.md).
#[derive(Serialize)]
struct Document {
    schema: &'static str,
    images: Vec<Image>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Image {
    image_id: Option<String>,
    names: Vec<Name>,
    hash_references: Vec<Name>,
    targets: Vec<Part>,
}

impl Image {
    /// Its names; of an image that has none, what refers to it.
    fn shown(&self) -> &[Name] {
        if self.names.is_empty() { &self.hash_references } else { &self.names }
    }
}

/// Runs `tree`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    let here = &*context.store.namespace;
    let look = match &args.name {
        Some(name) => Look::around(context, name).await?,
        None => Look::at(context, Measured::None).await?,
    };
    let groups = groups(&look.model);
    let wanted = match &args.name {
        Some(name) => {
            let nodes = paths::searched(context, &look, name).await?.nodes();
            concerned(&look.model, &groups, &nodes)
        }
        None => in_namespace(&look, &groups, here),
    };
    let documents = parts::read(&look, wanted.iter().flat_map(|at| groups[*at].records.clone())).await?;
    let look = look
        .measured(|model| {
            let parts = Parts::new(model, &documents, &groups);
            let targets: Vec<Part> = wanted.iter().flat_map(|at| parts.of(*at, &groups[*at])).collect();
            targets.iter().flat_map(Part::snapshots).map(|snapshot| snapshot.node).collect()
        })
        .await?;
    let parts = Parts::new(&look.model, &documents, &groups);
    let image = |at: &usize| {
        let group = &groups[*at];
        let (names, hash_references) = group.names(&look.model);
        let image_id = group.image_id.as_ref().map(ToString::to_string);
        Image { image_id, names, hash_references, targets: parts.of(*at, group) }
    };
    let images: Vec<Image> = wanted.iter().map(image).collect();
    if output::is_document(context.global.output) {
        return output::document(context.global.output, &Document { schema: "orlop.tree/v1", images });
    }
    if let (Some(name), true) = (&args.name, images.is_empty()) {
        context.say(format!("no image has a part in {name}; `orlop explain` says what it is"));
    }
    if context.global.output == Format::Name {
        return output::names(images.iter().flat_map(Image::shown).map(|name| name.name.as_str()));
    }
    let texts: Vec<String> = images.iter().map(|image| text(image, here)).collect();
    output::print_text(&texts.join("\n"))
}

fn in_namespace(look: &Look, groups: &[Group], here: &str) -> BTreeSet<usize> {
    let model = &look.model;
    let is_here = |record: &NodeId| model.namespace(model.node(*record).namespace()) == here;
    (0..groups.len()).filter(|at| groups[*at].records.iter().any(is_here)).collect()
}

/// A line with those below it.
struct Line(String, Vec<Line>);

impl Line {
    fn write(&self, text: &mut String, indent: &str, is_last: bool) {
        text.push_str(&format!("{indent}{} {}\n", if is_last { "└─" } else { "├─" }, self.0));
        let indent = format!("{indent}{}", if is_last { "   " } else { "│  " });
        for (at, line) in self.1.iter().enumerate() {
            line.write(text, &indent, at + 1 == self.1.len());
        }
    }
}

fn text(image: &Image, here: &str) -> String {
    let mut text = String::new();
    for name in image.shown() {
        text.push_str(&format!("{}\n", Tone::Title.paint(abbreviated(&name.seen_from(here)))));
    }
    for (at, part) in image.targets.iter().enumerate() {
        line(part, here).write(&mut text, "", at + 1 == image.targets.len());
    }
    text
}

fn line(part: &Part, here: &str) -> Line {
    let mut what = part.platform.iter().map(|platform| format!("{platform}  ")).collect::<String>();
    what.push_str(&format!("{} {}", part.kind, blob(&part.blob)));
    if let Some(kind) = &part.artifact_type {
        what.push_str(&format!("  {kind}"));
    }
    if let Some(about) = &part.about {
        what.push_str(&format!("  about {}", short(about)));
    }
    if part.unreadable {
        let why = "unreadable: its bytes are no such document, or not those of its digest";
        what.push_str(&format!("  {}", Tone::Bad.paint(why)));
    }
    let mut below: Vec<Line> = part.manifests.iter().map(|part| line(part, here)).collect();
    below.extend(part.config.iter().map(|config| Line(format!("config {}", blob(config)), Vec::new())));
    let word = if part.kind == "manifest" { "layer" } else { "blob" };
    below.extend(part.layers.iter().map(|l| layer(word, l, here)));
    Line(what, below)
}

fn layer(word: &str, layer: &Layer, here: &str) -> Line {
    let diff = layer.diff_id.iter().map(|id| format!("  diff ID {}", short(id))).collect::<String>();
    let what = format!("{word} {} {}{diff}", layer.position, blob(&layer.blob));
    Line(what, layer.snapshots.iter().map(|s| Line(snapshot(s, here), Vec::new())).collect())
}

fn snapshot(snapshot: &Snapshot, here: &str) -> String {
    let bytes = snapshot.size.map_or_else(|| "size unknown".to_owned(), size);
    let place = if snapshot.namespace == here { String::new() } else { format!("  namespace {}", snapshot.namespace) };
    let shared = shared(snapshot.shared_with);
    format!("snapshot {}  {bytes}  {}{place}{shared}", short(&snapshot.key), snapshot.snapshotter)
}

fn blob(blob: &Blob) -> String {
    let absent = if blob.here { String::new() } else { format!("  {}", Tone::Warning.paint("not here")) };
    format!("{}  {}{absent}{}", short(&blob.digest), size(blob.size), shared(blob.shared_with))
}

fn shared(images: u64) -> String {
    match images {
        0 => String::new(),
        images => format!("  {}", Tone::Faint.paint(format!("shared with {}", count(images, "image")))),
    }
}
