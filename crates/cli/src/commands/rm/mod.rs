//! `orlop rm`: a removal is a plan that can be seen before it is executed.

mod foreign;
mod own;
mod plan;

pub(super) use foreign::{FreeSpace, block_size, execute, incomplete, of_records, read};
pub(super) use own::{execute as execute_own, plan as plan_own};
use plan::Outcome;
pub(super) use plan::Plan;

use super::Context;
use crate::args::Format;
use crate::client::pb;
use crate::error::Result;
use crate::output;

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

/// Runs `rm`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    if !context.store.is_own() {
        return run_foreign(context, args).await;
    }
    let request = pb::RemoveRequest {
        names: args.names.clone(),
        plan: args.execute.clone().unwrap_or_default(),
        force: args.force,
        no_trash: args.no_trash,
        reason: String::new(),
    };
    if args.plan {
        return show(context, &plan_own(context, request).await?, false);
    }
    show(context, &execute_own(context, request).await?, true)
}

async fn run_foreign(context: &Context, args: &Args) -> Result<()> {
    let planned = foreign::of_names(context, args).await?;
    if args.plan {
        return show(context, &planned.plan, false);
    }
    let plan = execute(context, args.execute.as_deref(), "orlop rm --plan …", planned).await?;
    show(context, &plan, true)
}

fn show(context: &Context, plan: &Plan, done: bool) -> Result<()> {
    if output::is_document(context.global.output) {
        return output::document(context.global.output, plan);
    }
    if done {
        output::names(plan.records.iter().map(String::as_str))?;
        plan.say_outcome(context);
        return Ok(());
    }
    if context.global.output == Format::Name {
        return output::names(plan.records.iter().map(String::as_str));
    }
    let command = format!("orlop rm --execute {} …", plan.plan);
    let text = plan.text(context.store.is_own(), false, &command);
    output::print_text(&format!("Plan {}\n\n{text}", plan.plan))
}
