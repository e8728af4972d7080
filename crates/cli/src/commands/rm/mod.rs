//! `orlop rm`: a removal is a plan that can be seen before it is executed.

mod foreign;

pub(super) use foreign::free_bytes;

use serde::Serialize;

use super::Context;
use crate::client::pb;
use crate::error::Result;
use crate::output::{self, count, short, size};

/// Options of `rm`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Removing the last name of an image removes its hash references with it. Removing a hash reference of an image that
still has a name is futile: it comes back at once, and this command says so.

Examples:
  orlop rm --plan alpine:3.19            what would go, what stays and why
  orlop rm --execute sha256:… alpine:3.19  exactly that, or nothing if something changed meanwhile
  orlop undo                             bring the last removal back")]
pub(crate) struct Args {
    /// Names, digests or image IDs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Show the plan; change nothing
    #[arg(long, conflicts_with = "execute")]
    plan: bool,
    /// Execute only if the plan still has this hash
    #[arg(long, value_name = "HASH")]
    execute: Option<String>,
    /// Also if pinned
    #[arg(short, long)]
    force: bool,
    /// Give the space back at once; cannot be undone
    #[arg(long)]
    no_trash: bool,
}

/// A plan (contract: `--plan -o json`).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Plan {
    schema: &'static str,
    plan: String,
    freed_now: u64,
    freed_when_trash_empties: u64,
    /// Of that, what the next collection would have freed anyway; only of a store that is not Orlop's.
    #[serde(skip_serializing_if = "is_zero")]
    garbage: u64,
    records: Vec<String>,
    blobs: Vec<Blob>,
    snapshots: Vec<Snapshot>,
    returns: Vec<Reason>,
    unpullable: Vec<Reason>,
    in_use: Vec<Reason>,
    #[serde(skip_serializing_if = "String::is_empty")]
    trash: String,
}

#[derive(Debug, Serialize)]
struct Blob {
    digest: String,
    size: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Snapshot {
    chain_id: String,
    snapshotter: String,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Reason {
    name: String,
    reason: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's shape")]
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

impl From<pb::Plan> for Plan {
    fn from(plan: pb::Plan) -> Self {
        let reasons =
            |rows: Vec<pb::Reason>| rows.into_iter().map(|r| Reason { name: r.name, reason: r.reason }).collect();
        Self {
            schema: "orlop.rm/v1",
            plan: plan.plan,
            freed_now: plan.freed_now,
            freed_when_trash_empties: plan.freed_when_trash_empties,
            garbage: 0,
            records: plan.records,
            blobs: plan.blobs.into_iter().map(|b| Blob { digest: b.digest, size: b.size }).collect(),
            snapshots: plan
                .snapshots
                .into_iter()
                .map(|s| Snapshot { chain_id: s.chain_id, snapshotter: s.snapshotter, bytes: s.bytes })
                .collect(),
            returns: reasons(plan.returns),
            unpullable: reasons(plan.unpullable),
            in_use: reasons(plan.in_use),
            trash: String::new(),
        }
    }
}

/// Runs `rm`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    if !context.store.is_own() {
        return foreign(context, args).await;
    }
    let request = pb::RemoveRequest {
        names: args.names.clone(),
        plan: args.execute.clone().unwrap_or_default(),
        force: args.force,
        no_trash: args.no_trash,
    };
    if args.plan {
        let plan = Plan::from(context.clients.orlop().plan_remove(request).await?.into_inner());
        return show(context, &plan, false);
    }
    let answer = context.clients.orlop().remove(request).await?.into_inner();
    let mut plan = Plan::from(answer.executed.unwrap_or_default());
    plan.trash = answer.trash;
    show(context, &plan, true)
}

async fn foreign(context: &Context, args: &Args) -> Result<()> {
    let planned = foreign::plan(context, args).await?;
    if args.plan {
        return show(context, &planned.plan, false);
    }
    let (plan, differences) = foreign::execute(context, args, planned).await?;
    show(context, &plan, true)?;
    differences.iter().for_each(|difference| context.say(difference));
    Ok(())
}

fn show(context: &Context, plan: &Plan, done: bool) -> Result<()> {
    if output::is_document(context.global.output) {
        return output::document(context.global.output, plan);
    }
    if done {
        output::names(plan.records.iter().map(String::as_str))?;
        for text in outcome(plan) {
            context.say(text);
        }
        return Ok(());
    }
    output::print_text(&plan_text(plan, context.store.is_own()))
}

/// What people are told after a removal.
fn outcome(plan: &Plan) -> Vec<String> {
    let mut lines: Vec<String> =
        plan.returns.iter().map(|r| format!("{} is back already: {}", r.name, r.reason)).collect();
    lines.extend(plan.in_use.iter().map(|r| format!("{} stays: {}", r.name, r.reason)));
    if !plan.trash.is_empty() {
        lines.push(format!(
            "{} in the trash; `orlop undo {}` brings it back, `orlop gc --trash` gives the space back",
            size(plan.freed_when_trash_empties),
            plan.trash
        ));
    } else {
        lines.push(format!("{} freed", size(plan.freed_now)));
    }
    lines
}

fn plan_text(plan: &Plan, has_trash: bool) -> String {
    let mut lines = vec![format!("Plan {}", plan.plan), String::new(), "Records that go".into()];
    lines.extend(plan.records.iter().map(|r| format!("  {r}")));
    lines.push(format!("Content that goes: {}", count(plan.blobs.len() as u64, "blob")));
    lines.extend(plan.blobs.iter().map(|b| format!("  {}  {:>10}", short(&b.digest), size(b.size))));
    lines.push(format!("Snapshots that go: {}", plan.snapshots.len()));
    lines.extend(
        plan.snapshots.iter().map(|s| format!("  {}  {:>10}  {}", short(&s.chain_id), size(s.bytes), s.snapshotter)),
    );
    section(&mut lines, "Comes back at once", &plan.returns);
    section(&mut lines, "No registry is known to have", &plan.unpullable);
    section(&mut lines, "Stays, in use", &plan.in_use);
    lines.push(String::new());
    let (now, later) = (size(plan.freed_now), size(plan.freed_when_trash_empties));
    lines.push(if has_trash {
        format!("Freed now {now}, when the trash empties {later}")
    } else {
        format!("Freed {now}, in whole blocks of the file system")
    });
    if plan.garbage > 0 {
        lines.push(format!(
            "Of that, {} are garbage already: the next collection takes them anyway",
            size(plan.garbage)
        ));
    }
    lines.push(format!("Nothing was changed. To do exactly this: orlop rm --execute {} …", plan.plan));
    lines.push(String::new());
    lines.join("\n")
}

fn section(lines: &mut Vec<String>, title: &str, reasons: &[Reason]) {
    if !reasons.is_empty() {
        lines.push(title.to_owned());
        lines.extend(reasons.iter().map(|r| format!("  {}: {}", r.name, r.reason)));
    }
}
