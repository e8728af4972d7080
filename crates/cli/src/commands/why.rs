//! `orlop why`: what keeps a thing on disk, and what would have to go for it to go.

use orlop_graph::model::{Chain, Model, Node, NodeId, NodeKind, Root};
use serde::Serialize;

use super::Context;
use crate::args::Format;
use crate::error::Result;
use crate::look::facts::{Bytes, Keeper, Named};
use crate::look::words::{abbreviated, called, name, reason, shown};
use crate::look::{Look, paths};
use crate::output::{self, count, size};

/// Options of `why`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Shows the shortest chain from each root (record, lease, container, label) down to X. All these roots are the smallest set
of removals that frees X: as long as one of them is left, it stays.

Examples:
  orlop why sha256:0123…         why is this layer still here?
  orlop why --short alpine       only what would have to go")]
pub(crate) struct Args {
    /// A name, a digest, a chain ID, a snapshot's key, or the first digits of one; or a path inside an image or of this host
    #[arg(value_name = "X")]
    name: String,
    /// Only the roots, no chains
    #[arg(long)]
    short: bool,
}

/// `orlop.why/v1` (docs/lens.md).
#[derive(Serialize)]
struct Document {
    schema: &'static str,
    things: Vec<Thing>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Thing {
    #[serde(flatten)]
    thing: Named,
    kept: bool,
    chains: Vec<Keeper>,
    /// All that has to go.
    removals: Vec<Named>,
    /// What goes with these.
    frees: Bytes,
}

/// Runs `why`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    let look = Look::around(context, &args.name).await?;
    let meant = paths::meant(context, &look, &args.name).await?;
    let nodes = meant.nodes();
    let look = look
        .measured(|model| {
            let roots: Vec<NodeId> = nodes.iter().flat_map(|node| removals(model, *node)).collect();
            let reached = model.reached(&roots);
            model.nodes(NodeKind::Snapshot).filter(|node| reached.contains(*node)).collect()
        })
        .await?
        .for_the_rest_of_the_process();
    if output::is_document(context.global.output) {
        let things = nodes.iter().map(|node| thing(&look.model, *node)).collect();
        return output::document(context.global.output, &Document { schema: "orlop.why/v1", things });
    }
    if context.global.output == Format::Name {
        let mut roots: Vec<NodeId> = nodes.iter().flat_map(|node| removals(&look.model, *node)).collect();
        roots.sort_unstable();
        roots.dedup();
        let names: Vec<String> = roots.into_iter().map(|root| name(&look.model, root)).collect();
        return output::names(names.iter().map(String::as_str));
    }
    meant.lines(&look.model).into_iter().try_for_each(output::line)?;
    // An image ID is the name of a record and the digest of a config: the same has to go for both.
    let is_record = |node: &&NodeId| look.model.kind(**node) == NodeKind::Record;
    let any_record = nodes.iter().any(|node| is_record(&node));
    let texts: Vec<String> = nodes
        .iter()
        .filter(|node| !any_record || is_record(node))
        .map(|node| text(&look.model, *node, args.short))
        .collect();
    output::print_text(&texts.join("\n"))
}

/// The thing and its copies in other namespaces: the bytes are there once. Of a record: all records of its image.
fn copies(model: &Model, node: NodeId) -> Vec<NodeId> {
    match model.node(node) {
        Node::Blob(row) => model.copies(&row.digest).collect(),
        Node::Record(row) => {
            let mut family = model.family(node);
            family.retain(|other| model.node(*other).namespace() == row.namespace);
            family
        }
        _ => vec![node],
    }
}

fn chains(model: &Model, node: NodeId) -> Vec<Chain<'_>> {
    copies(model, node).into_iter().flat_map(|copy| model.chains(copy)).collect()
}

/// The roots of all of them.
fn removals(model: &Model, node: NodeId) -> Vec<NodeId> {
    let mut roots: Vec<NodeId> = chains(model, node).into_iter().map(|chain| chain.root).collect();
    roots.sort_unstable();
    roots.dedup();
    roots
}

fn thing(model: &Model, node: NodeId) -> Thing {
    let removals = removals(model, node);
    let chains = chains(model, node);
    Thing {
        thing: Named::of(model, node),
        kept: !chains.is_empty(),
        chains: chains.iter().map(|chain| Keeper::of(model, chain)).collect(),
        frees: model.cost(&removals).alone.into(),
        removals: removals.into_iter().map(|root| Named::of(model, root)).collect(),
    }
}

fn text(model: &Model, node: NodeId, short: bool) -> String {
    let removals = removals(model, node);
    let is_record = model.kind(node) == NodeKind::Record;
    let what = if is_record { "'s image" } else { "" };
    let mut text = format!("{}{what} is kept by {}\n", called(model, node), count(removals.len() as u64, "root"));
    if removals.is_empty() {
        return format!("{} is kept by nothing: the next collection takes it\n", called(model, node));
    }
    if !short {
        for (roots, chain) in alike(chains(model, node)) {
            roots.iter().for_each(|root| text.push_str(&format!("  {}\n", called(model, *root))));
            for (depth, link) in chain.links.iter().enumerate() {
                let indent = 4 + 2 * depth;
                let reason = reason(link.why);
                // `has as config sha256:…` says already what it is.
                let what = if reason.starts_with("has as") {
                    abbreviated(&shown(model, link.node))
                } else {
                    called(model, link.node)
                };
                text.push_str(&format!("{:indent$}└ {reason} {what}\n", ""));
            }
        }
    }
    let frees = model.cost(&removals).alone;
    text.push_str(&format!(
        "\nTo free it, all of these have to go ({} with everything that only they keep):\n",
        size(frees.bytes())
    ));
    let elsewhere = model.node(node).namespace();
    for root in removals {
        let namespace = model.node(root).namespace();
        let place = if namespace == elsewhere {
            String::new()
        } else {
            format!("  in namespace {}", model.namespace(namespace))
        };
        text.push_str(&format!("  {}{place}\n", removal(model, root)));
    }
    text
}

/// Chains that differ in their root alone, together.
fn alike(chains: Vec<Chain<'_>>) -> Vec<(Vec<NodeId>, Chain<'_>)> {
    let mut groups: Vec<(Vec<NodeId>, Chain<'_>)> = Vec::new();
    for chain in chains {
        match groups.iter_mut().find(|(_, known)| !chain.links.is_empty() && known.links == chain.links) {
            Some((roots, _)) => roots.push(chain.root),
            None => groups.push((vec![chain.root], chain)),
        }
    }
    groups
}

/// What is to be removed, in a word that a command has.
fn removal(model: &Model, root: NodeId) -> String {
    let name = shown(model, root);
    match model.kind(root) {
        NodeKind::Record => format!("image record {name}"),
        NodeKind::Container => format!("container {}", abbreviated(&name)),
        NodeKind::Lease => format!("lease {name}"),
        NodeKind::Ingest => format!("write in progress {name}"),
        _ if model.root(root) == Some(Root::Owner) => format!("{}, by the containerd above", called(model, root)),
        _ => format!("label containerd.io/gc.root of {}", called(model, root)),
    }
}
