//! What happens if a thing is deleted.

use orlop_graph::model::{MANAGED, Model, Node, NodeId, NodeKind, Removal, Role, Why};
use orlop_oci::Kind;
use serde::Serialize;

use crate::commands::Context;
use crate::find::places::KUBERNETES;
use crate::look::words::called;
use crate::output::{count, size};

/// What happens if a thing is deleted.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Deletion {
    /// Bytes that would be given back.
    pub(crate) frees: u64,
    /// Whether it comes back by itself; absent where the question makes no sense.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) comes_back: Option<bool>,
    /// The same in words.
    pub(crate) words: Vec<String>,
}

/// How many things are named before the rest is counted.
const NAMED: usize = 3;

impl Deletion {
    pub(crate) fn of(context: &Context, model: &Model, node: NodeId, siblings: &[NodeId]) -> Self {
        let plan = matches!(model.node(node), Node::Record(_)).then(|| model.removal(&[node]));
        let frees = match &plan {
            Some(plan) => plan.freed.bytes() - plan.garbage.bytes(),
            None => model.cost(&[node]).alone.bytes(),
        };
        let mut words = Vec::new();
        let mut comes_back = None;
        match model.node(node) {
            Node::Record(_) => {
                comes_back = plan.and_then(|plan| record(context, model, node, siblings, &plan, &mut words));
            }
            Node::Blob(_) => blob(model, node, &mut words),
            Node::Snapshot(_) => snapshot(model, node, frees, &mut words),
            Node::Lease(_) => words
                .push(format!("{} at the next collection; whoever made the lease may still be at work", freed(frees))),
            Node::Ingest(_) => words.push(format!("{}; a download that used it starts anew", freed(frees))),
            Node::Container(_) => {
                words.push(format!("{}: the snapshot of its file system, with what was written to it", freed(frees)))
            }
            Node::Missing(_) => words.push("there is nothing to delete".into()),
        }
        Self { frees, comes_back, words }
    }
}

fn freed(bytes: u64) -> String {
    if bytes == 0 { "nothing is freed".into() } else { format!("{} are freed", size(bytes)) }
}

/// `a, b and 4 more`.
pub(crate) fn list(model: &Model, nodes: &[NodeId]) -> String {
    let mut words: Vec<String> = nodes.iter().take(NAMED).map(|node| called(model, *node)).collect();
    if nodes.len() > NAMED {
        words.push(format!("{} more", nodes.len() - NAMED));
    }
    let last = words.pop().unwrap_or_default();
    if words.is_empty() { last } else { format!("{} and {last}", words.join(", ")) }
}

fn record(
    context: &Context,
    model: &Model,
    node: NodeId,
    siblings: &[NodeId],
    plan: &Removal,
    words: &mut Vec<String>,
) -> Option<bool> {
    let others: Vec<NodeId> = siblings.iter().copied().filter(|other| *other != node).collect();
    let freed = freed(plan.freed.bytes() - plan.garbage.bytes());
    let with_it = plan.records.len() as u64 - 1;
    let go = if with_it == 1 { "goes" } else { "go" };
    let hashes = count(with_it, "hash reference");
    let left: Vec<NodeId> = others.iter().copied().filter(|other| !plan.records.contains(other)).collect();
    if !left.is_empty() {
        let verb = if left.len() == 1 { "names" } else { "name" };
        words.push(format!("{freed}: {} {verb} the same image", list(model, &left)));
        if with_it > 0 {
            words.push(format!("its {hashes} {go} with it if `orlop rm` removes it"));
        }
        let all = self::freed(model.cost(siblings).alone.bytes());
        words.push(format!("all {} records of the image together: {all}", siblings.len()));
    } else if with_it > 0 {
        words.push(format!("`orlop rm` takes the whole image: its {hashes} {go} with it, {freed}"));
        if !context.store.is_own() {
            words.push(
                "`ctr images rm` takes this record alone and frees nothing: the hash references keep the content"
                    .into(),
            );
        }
    } else {
        words.push(format!("{freed}: it is the only record of the image"));
    }
    if !context.store.is_own() && plan.freed.bytes() > plan.garbage.bytes() {
        words.push("these are bytes; `orlop rm --plan` counts whole blocks of the file system, a little more".into());
    }
    if model.is_pinned(node) {
        words.push("it is pinned: the kubelet never removes it, `orlop rm` only with --force".into());
    }
    if model.record_kind(node) == Kind::Digest && !others.is_empty() && !context.store.is_own() {
        words.push("pods that ask for the image by this digest find it no more, though every byte is here".into());
    }
    comes_back(context, model, node, &others, words)
}

/// Whether a record comes back, which people wonder about hash references.
fn comes_back(
    context: &Context,
    model: &Model,
    node: NodeId,
    others: &[NodeId],
    words: &mut Vec<String>,
) -> Option<bool> {
    let kind = model.record_kind(node);
    let is_hash = |node: &NodeId| model.record_kind(*node).is_hash_reference();
    let name = others.iter().find(|other| !is_hash(other));
    let managed = model.namespace(model.node(node).namespace()) == KUBERNETES;
    if !kind.is_hash_reference() {
        return None;
    }
    let (back, text) = match (context.store.is_own() && managed, name) {
        (true, Some(name)) => (true, format!("it comes back within a second: {} needs it", called(model, *name))),
        (true, None) => (false, "it does not come back: no name needs it".into()),
        (false, _) if !managed => (false, "it does not come back by itself".into()),
        (false, Some(_)) if kind == Kind::Digest => {
            (false, "it does not come back by itself; the next pull through CRI writes it again".into())
        }
        (false, Some(name)) => {
            let labelled = model.labels(*name).get(MANAGED).is_some();
            if labelled {
                (false, "it does not come back by itself: containerd writes it again at the next pull, or when a name of the image is made or changed without CRI's label".into())
            } else {
                (true, format!("it comes back when {} is changed: that name lacks CRI's label", called(model, *name)))
            }
        }
        (false, None) => (
            false,
            "it does not come back: no tag leads to the image, which was pulled by digest, or has lost its tag".into(),
        ),
    };
    words.push(text);
    Some(back)
}

fn blob(model: &Model, node: NodeId, words: &mut Vec<String>) {
    let records: Vec<NodeId> = model.keepers(node).into_iter().filter(|k| model.kind(*k) == NodeKind::Record).collect();
    if records.is_empty() {
        let keepers = model.keepers(node);
        words.push(match keepers.is_empty() {
            true => "nothing keeps it: the next collection takes it".into(),
            false => format!("only {} keeps it", list(model, &keepers)),
        });
        return;
    }
    let role = match model.role(node) {
        Role::Other => "a part",
        role => crate::look::words::role(role),
    };
    words.push(format!("on its own (`ctr content rm`) containerd does not refuse it, and {} would lack their {role}: they could not be unpacked, exported or pushed, and a pull would have to fetch it again", list(model, &records)));
    words.push("remove the images instead: it goes when the last of them has gone".into());
}

fn snapshot(model: &Model, node: NodeId, frees: u64, words: &mut Vec<String>) {
    let above: Vec<NodeId> =
        model.referrers(node).filter(|edge| matches!(edge.why, Why::Parent)).map(|edge| edge.node).collect();
    let running: Vec<NodeId> =
        model.referrers(node).filter(|edge| edge.why == Why::RootFs).map(|edge| edge.node).collect();
    if !running.is_empty() {
        words.push(format!("{} runs on it: what it has written would be lost", list(model, &running)));
    } else if !above.is_empty() {
        words.push(format!(
            "containerd refuses it while {} {} on it",
            list(model, &above),
            if above.len() == 1 { "lies" } else { "lie" }
        ));
    } else {
        words.push(freed(frees));
    }
    let images: Vec<NodeId> = model.keepers(node).into_iter().filter(|k| model.kind(*k) == NodeKind::Record).collect();
    if !images.is_empty() {
        words.push(format!("{} would have to be unpacked again before a container can start", list(model, &images)));
    }
}
