//! Removal from a store without `orlop.v1`: the plan is made here, of everything that the store lists, and executed by
//! deletions of records that name the target they expect ([`removal`] has the race that is left).

use std::collections::BTreeSet;

use orlop_graph::model::{Model, Node, NodeId, NodeKind, Removal};

use super::{Args, Blob, Plan, Reason, Snapshot};
use crate::commands::Context;
use crate::error::{Class, CliError, Result};
use crate::find::At;
use crate::look::words::{called, name};
use crate::look::{Look, Measured, find, removal};

/// What a file takes is counted in blocks of this size where the file system cannot be asked: that of nearly all.
const BLOCK: u64 = 4096;

/// A removal, and what it was computed from.
pub(super) struct Planned {
    look: Look,
    removal: Removal,
    pub(super) plan: Plan,
}

/// Computes what the removal would do. Changes nothing.
pub(super) async fn plan(context: &Context, args: &Args) -> Result<Planned> {
    let look = Look::at(context, Measured::None).await?;
    if !look.model.inventory().gaps.is_empty() {
        let gap = &look.model.inventory().gaps[0];
        let message =
            format!("no plan: {} could not be read ({}), so what keeps things is not known", gap.what, gap.why);
        return Err(CliError::new(Class::Unavailable, message));
    }
    let asked = asked(context, &look.model, &args.names)?;
    if let Some(pinned) = asked.iter().find(|record| look.model.is_pinned(**record)).filter(|_| !args.force) {
        let message = format!("{} is pinned", called(&look.model, *pinned));
        return Err(CliError::new(Class::Conflict, message).hint("--force removes it all the same"));
    }
    let look = look.measured(|model| model.removal(&asked).snapshots).await?;
    let removal = look.model.removal(&asked);
    let plan = shown(context, &look.model, &removal);
    Ok(Planned { look, removal, plan })
}

/// Executes a plan; returns it with what came out differently.
pub(super) async fn execute(context: &Context, args: &Args, planned: Planned) -> Result<(Plan, Vec<String>)> {
    let Planned { look, removal, plan } = planned;
    if args.execute.as_ref().is_some_and(|hash| *hash != plan.plan) {
        let message = format!("the plan has changed: now it is {}", plan.plan);
        return Err(CliError::new(Class::Conflict, message).hint("look at it again: orlop rm --plan …"));
    }
    if let At::Directory(root) = &context.store.at {
        let message = format!("{} is only read: nothing is deleted in the files of a store", root.display());
        return Err(CliError::new(Class::Usage, message).hint("start its containerd and give its --address"));
    }
    let free = free_bytes(context);
    removal::delete(&context.clients, &look.model, &removal).await?;
    let freed = free.zip(free_bytes(context)).map(|(before, after)| after.saturating_sub(before));
    let after = Look::at(context, Measured::None).await?;
    let differences = compare(&look.model, &removal, &after.model, &plan, freed);
    Ok((plan, differences))
}

/// The records that are meant.
fn asked(context: &Context, model: &Model, names: &[String]) -> Result<Vec<NodeId>> {
    let mut asked = Vec::new();
    for text in names {
        let found = find(model, text, &context.store.namespace)?;
        let namespace = |node: NodeId| model.namespace(model.node(node).namespace()) == context.store.namespace;
        let record =
            found.iter().map(|f| f.node).find(|node| model.kind(*node) == NodeKind::Record && namespace(*node));
        let Some(record) = record else {
            let what = called(model, found[0].node);
            let message = format!("{text:?} is no image record of namespace {} but {what}", context.store.namespace);
            return Err(CliError::new(Class::NotFound, message).hint(format!("`orlop why {text}` says what keeps it")));
        };
        asked.push(record);
    }
    asked.sort_unstable();
    asked.dedup();
    Ok(asked)
}

fn shown(context: &Context, model: &Model, removal: &Removal) -> Plan {
    let block = block_size(context);
    let blobs: Vec<Blob> = removal.blobs.iter().filter_map(|node| blob(model, *node)).collect();
    let snapshots: Vec<Snapshot> = removal.snapshots.iter().filter_map(|node| snapshot(model, *node)).collect();
    let allocated: u64 = blobs.iter().map(|blob| blob.size.next_multiple_of(block)).sum();
    let freed = allocated + snapshots.iter().map(|snapshot| snapshot.bytes).sum::<u64>();
    let reason = |node: &NodeId, reason: &str| Reason { name: called(model, *node), reason: reason.to_owned() };
    let users = removal.in_use.iter().map(|node| match model.kind(*node) {
        NodeKind::Container => reason(node, "it uses what is removed; its file system stays"),
        _ => reason(node, "it keeps some of this until it goes itself"),
    });
    let lost = removal.unpullable.iter().map(|node| Reason {
        name: name(model, *node),
        reason: "some of it came from no registry that is known: imported or built here".into(),
    });
    Plan {
        schema: "orlop.rm/v1",
        plan: removal::hash(model, removal).to_string(),
        freed_now: freed,
        freed_when_trash_empties: freed,
        garbage: removal.garbage.bytes(),
        records: removal.records.iter().map(|node| name(model, *node)).collect(),
        blobs,
        snapshots,
        returns: Vec::new(),
        unpullable: lost.collect(),
        in_use: users.collect(),
        trash: String::new(),
    }
}

fn blob(model: &Model, node: NodeId) -> Option<Blob> {
    match model.node(node) {
        Node::Blob(row) => Some(Blob { digest: row.digest.to_string(), size: row.size }),
        _ => None,
    }
}

fn snapshot(model: &Model, node: NodeId) -> Option<Snapshot> {
    match model.node(node) {
        Node::Snapshot(row) => Some(Snapshot {
            chain_id: row.key.to_string(),
            snapshotter: row.snapshotter.to_string(),
            bytes: row.usage.unwrap_or_default().bytes,
        }),
        _ => None,
    }
}

/// What came out differently from the plan.
fn compare(before: &Model, removal: &Removal, after: &Model, plan: &Plan, freed: Option<u64>) -> Vec<String> {
    let mut differences = Vec::new();
    let there: BTreeSet<String> = after.items().map(|node| name(after, node)).collect();
    let stayed: Vec<NodeId> = removal
        .blobs
        .iter()
        .chain(&removal.snapshots)
        .copied()
        .filter(|node| there.contains(&name(before, *node)))
        .collect();
    for node in stayed.iter().take(10) {
        differences.push(format!("{} is still there: something refers to it now", called(before, *node)));
    }
    if stayed.len() > 10 {
        differences.push(format!("and {} more are still there", stayed.len() - 10));
    }
    if let Some(freed) = freed
        && freed.abs_diff(plan.freed_now) > (plan.freed_now / 100).max(1 << 20)
    {
        let (planned, freed) = (crate::output::size(plan.freed_now), crate::output::size(freed));
        differences
            .push(format!("planned were {planned}, the file system has got back {freed}: others write to it too"));
    }
    differences
}

/// Where the store's files are, if this process reaches them.
fn root(context: &Context) -> Option<&std::path::Path> {
    match &context.store.at {
        At::Directory(root) => Some(root),
        At::Socket(_) => context.store.root.as_deref().filter(|root| root.is_dir()),
    }
}

/// What the store's file system has free, if this process reaches it.
pub(in crate::commands) fn free_bytes(context: &Context) -> Option<u64> {
    let found = rustix::fs::statvfs(root(context)?).ok()?;
    Some(found.f_bfree * found.f_frsize)
}

fn block_size(context: &Context) -> u64 {
    root(context).and_then(|root| rustix::fs::statvfs(root).ok()).map_or(BLOCK, |found| found.f_bsize.max(512))
}
