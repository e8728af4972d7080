//! Removal from a store without `orlop.v1`: the plan is made here, of everything that the store lists, and executed by
//! deletions of records that name the target they expect ([`removal`] has the race that is left).

use std::collections::BTreeSet;

use orlop_graph::model::{Gap, Model, Node, NodeId, NodeKind, Removal};

use super::plan::{Blob, Reason, Snapshot};
use super::{Args, Outcome, Plan};
use crate::commands::Context;
use crate::error::{Class, CliError, Result};
use crate::find::At;
use crate::look::words::{called, name};
use crate::look::{Look, Measured, find, removal};

/// What a file takes is counted in blocks of this size where the file system cannot be asked: that of nearly all.
const BLOCK: u64 = 4096;

/// A removal, and what it was computed from.
pub(in crate::commands) struct Planned {
    look: Look,
    removal: Removal,
    pub(in crate::commands) plan: Plan,
    space: FreeSpace,
}

/// Reads everything that decides what a removal does.
///
/// # Errors
/// If a list cannot be read: what keeps things would not be known.
pub(in crate::commands) async fn read(context: &Context) -> Result<Look> {
    let look = Look::at(context, Measured::None).await?;
    match look.model.inventory().gaps.first() {
        Some(gap) => Err(incomplete(gap)),
        None => Ok(look),
    }
}

/// There is no plan without a list of what keeps things.
pub(in crate::commands) fn incomplete(gap: &Gap) -> CliError {
    let Gap { what, why } = gap;
    let message = format!("no plan: {what} could not be read ({why}), so what keeps things is not known");
    CliError::new(Class::Unavailable, message)
        .hint("nothing was changed: mend what the server says is wrong, and try again")
}

/// Computes what a removal of names would do. Changes nothing.
pub(super) async fn of_names(context: &Context, args: &Args) -> Result<Planned> {
    let look = read(context).await?;
    let asked = asked(context, &look.model, &args.names)?;
    if let Some(pinned) = asked.iter().find(|record| look.model.is_pinned(**record)).filter(|_| !args.force) {
        let message = format!("{} is pinned", called(&look.model, *pinned));
        return Err(CliError::new(Class::Conflict, message).hint("--force removes it all the same"));
    }
    of_records(context, look, &asked).await
}

/// The same of records.
pub(in crate::commands) async fn of_records(context: &Context, look: Look, asked: &[NodeId]) -> Result<Planned> {
    let space = FreeSpace::now(context);
    let look = look.measured(|model| model.removal(asked).snapshots).await?;
    let removal = look.model.removal(asked);
    let plan = shown(context, &look.model, &removal);
    Ok(Planned { look, removal, plan, space })
}

/// Executes a plan, if it still has the hash that was given; returns it with what came of it. `again` is the command that
/// shows it anew.
pub(in crate::commands) async fn execute(
    context: &Context,
    hash: Option<&str>,
    again: &str,
    planned: Planned,
) -> Result<Plan> {
    let Planned { look, removal, mut plan, space } = planned;
    if hash.is_some_and(|hash| hash != plan.plan) {
        let message = format!("the plan has changed: now it is {}", plan.plan);
        return Err(CliError::new(Class::Conflict, message).hint(format!("look at it again: {again}")));
    }
    if let At::Directory(root) = &context.store.at {
        let message = format!("{} is only read: nothing is deleted in the files of a store", root.display());
        return Err(CliError::new(Class::Usage, message).hint("start its containerd and give its --address"));
    }
    let before = FreeSpace::now(context);
    removal::delete(&context.clients, &look.model, &removal).await?;
    let freed = before.given_back(context);
    let after = Look::at(context, Measured::None).await?;
    let mut outcome = Outcome::measured(plan.freed_now, freed, space.moved_until(&before));
    outcome.differences.splice(..0, compare(&look.model, &removal, &after.model));
    plan.outcome = Some(outcome);
    Ok(plan)
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
        reason: "it was imported or made here: no registry is known to have it".into(),
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
        unpullable: lost.collect(),
        in_use: users.collect(),
        ..Plan::default()
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
fn compare(before: &Model, removal: &Removal, after: &Model) -> Vec<String> {
    let mut differences = Vec::new();
    let there: BTreeSet<(String, String)> = after.items().map(|node| place(after, node)).collect();
    let planned = removal.blobs.iter().chain(&removal.snapshots).copied();
    let stayed: Vec<NodeId> = planned.filter(|node| there.contains(&place(before, *node))).collect();
    for node in stayed.iter().take(10) {
        differences.push(format!("{} is still there: something refers to it now", called(before, *node)));
    }
    if stayed.len() > 10 {
        differences.push(format!("and {} more are still there", stayed.len() - 10));
    }
    differences
}

/// What tells a thing from others on disk: of a blob its digest, whoever has it; of a snapshot also who has it.
fn place(model: &Model, node: NodeId) -> (String, String) {
    let owner = match model.node(node) {
        Node::Snapshot(row) => format!("{} {}", model.namespace(row.namespace), row.snapshotter),
        _ => String::new(),
    };
    (owner, name(model, node))
}

/// Where the store's files are, if this process reaches them.
fn root(context: &Context) -> Option<&std::path::Path> {
    match &context.store.at {
        At::Directory(root) => Some(root),
        At::Socket(_) => context.store.root.as_deref().filter(|root| root.is_dir()),
    }
}

/// What a store's file system has free at a moment, if this process reaches it.
#[derive(Debug, Clone, Copy)]
pub(in crate::commands) struct FreeSpace {
    /// Bytes that are free.
    bytes: Option<u64>,
    /// Of those, bytes that are not reserved for the system.
    pub(in crate::commands) available: Option<u64>,
    /// Bytes that it has in all.
    pub(in crate::commands) of: Option<u64>,
}

impl FreeSpace {
    pub(in crate::commands) fn now(context: &Context) -> Self {
        let found = root(context).and_then(|root| rustix::fs::statvfs(root).ok());
        let bytes =
            |blocks: fn(&rustix::fs::StatVfs) -> u64| found.as_ref().map(|found| blocks(found) * found.f_frsize);
        Self {
            bytes: bytes(|found| found.f_bfree),
            available: bytes(|found| found.f_bavail),
            of: bytes(|found| found.f_blocks),
        }
    }

    /// Bytes that have become free since.
    pub(in crate::commands) fn given_back(&self, context: &Context) -> Option<u64> {
        let (before, after) = self.bytes.zip(Self::now(context).bytes)?;
        Some(after.saturating_sub(before))
    }

    /// By how much others have changed it from one moment to another.
    fn moved_until(&self, later: &Self) -> u64 {
        self.bytes.zip(later.bytes).map_or(0, |(before, after)| before.abs_diff(after))
    }
}

/// The size of the file system's blocks.
pub(in crate::commands) fn block_size(context: &Context) -> u64 {
    root(context).and_then(|root| rustix::fs::statvfs(root).ok()).map_or(BLOCK, |found| found.f_bsize.max(512))
}
