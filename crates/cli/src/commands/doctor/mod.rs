//! `orlop doctor`: what is wrong in a store, what causes it, what it costs, and the command that mends it; `--fix` mends what
//! can lose nothing, by a plan.
//!
//! # Invariants
//! - Without `--fix --execute` nothing is changed.
//! - `--fix` by itself takes only classes that are safe ([`Class::is_safe`]); the others have to be named.
//! - A plan is executed as it was shown or not at all: everything is read again before, and what came out differently is
//!   said after.

mod deep;
mod facts;
mod mend;
mod text;
mod trees;
mod words;

use std::collections::HashSet;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use orlop_graph::model::{Class, Facts, Finding, Mend, Model, NodeId, NodeKind};
use serde::Serialize;

use super::{Context, check};
use crate::args::Format;
use crate::error::{Class as Failure, CliError, Result, report};
use crate::look::facts::{Bytes, Named};
use crate::look::{Look, Measured};
use crate::output;

/// Options of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Works on any containerd and on Orlop's own store. Exit code 5 if something is wrong. Each finding comes with its cause, what
mending gives back, and the command that mends it.

Examples:
  orlop doctor                                  what is wrong; changes nothing
  orlop doctor --deep                           hashes every blob too, and compares snapshots with their layers
  orlop doctor --fix                            shows the plan for what is safe to mend
  orlop doctor --fix --class stranded           shows the plan for one class, which is taken because it is named
  orlop doctor --fix --execute sha256:…         does exactly that, or nothing if something changed meanwhile")]
pub(crate) struct Args {
    /// Show what would be mended; with --execute, mend it
    #[arg(long)]
    fix: bool,
    /// Mend, if the plan still has this hash
    #[arg(long, value_name = "HASH", requires = "fix")]
    execute: Option<String>,
    /// Only these classes; named, --fix mends them also where something may be lost
    #[arg(
        long = "class",
        value_name = "CLASS",
        value_delimiter = ',',
        value_parser = PossibleValuesParser::new(Class::ALL.map(Class::as_str))
    )]
    classes: Vec<String>,
    /// Read every byte: digests of blobs, and files of snapshots that lost their content
    #[arg(long)]
    deep: bool,
}

impl Args {
    fn wants(&self, class: Class) -> bool {
        self.classes.is_empty() || self.is_named(class)
    }

    fn is_named(&self, class: Class) -> bool {
        self.classes.iter().any(|name| name == class.as_str())
    }
}

/// A finding with what the model does not know of it.
struct Found {
    finding: Finding,
    /// What is wrong in words, where bytes tell.
    detail: Option<String>,
    /// The digest from which a snapshot is unpacked again.
    target: Option<String>,
}

/// Everything that was found, and what it was found in.
struct Examined {
    look: Look,
    found: Vec<Found>,
    /// What `orlop check` finds, on Orlop's own store.
    checked: Vec<check::Problem>,
}

/// One problem (contract: `orlop check -o json`), with what more is known.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Problem {
    class: String,
    subject: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    detail: String,
    cause: String,
    /// What mending gives back.
    cost: Bytes,
    fix: String,
    safe: bool,
    things: Vec<Named>,
}

impl Problem {
    /// What it is about; garbage is all of a namespace's at once, which has no name.
    fn names(self) -> Vec<String> {
        match self.class == Class::Garbage.as_str() {
            true => self.things.into_iter().map(|thing| thing.name).collect(),
            false => vec![self.subject],
        }
    }
}

/// `orlop.doctor/v1` (docs/lens.md).
#[derive(Serialize)]
struct Document {
    schema: &'static str,
    store: String,
    ok: bool,
    problems: Vec<Problem>,
    /// What could not be looked at.
    unknown: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<mend::Plan>,
}

/// Runs `doctor`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let examined = examine(context, args).await?;
    if args.fix {
        return mend::run(context, args, examined).await;
    }
    let ok = examined.found.is_empty() && examined.checked.is_empty();
    match context.global.output {
        Format::Name => {
            let names: Vec<String> = problems(context, &examined).into_iter().flat_map(Problem::names).collect();
            output::names(names.iter().map(String::as_str))?;
        }
        format if output::is_document(format) => {
            output::document(format, &document(context, &examined, None))?;
        }
        _ => output::print_text(&text::all(context, &examined))?,
    }
    Ok(if ok { ExitCode::SUCCESS } else { report(&CliError::new(Failure::Verification, "problems were found")) })
}

fn document(context: &Context, examined: &Examined, plan: Option<mend::Plan>) -> Document {
    let problems = problems(context, examined);
    let gaps = &examined.look.model.inventory().gaps;
    let unknown = gaps.iter().map(|gap| format!("{}: {}", gap.what, gap.why)).collect();
    let (ok, store) = (problems.is_empty(), context.store.to_string());
    Document { schema: "orlop.doctor/v1", store, ok, problems, unknown, plan }
}

fn problems(context: &Context, examined: &Examined) -> Vec<Problem> {
    let model = &examined.look.model;
    let found = examined.found.iter().map(|found| {
        let Finding { class, subject, things, frees, .. } = &found.finding;
        Problem {
            class: class.as_str().to_owned(),
            subject: words::subject(model, found),
            namespace: model.namespace(model.node(*subject).namespace()).to_owned(),
            detail: words::detail(model, found),
            cause: words::cause(*class).to_owned(),
            cost: (*frees).into(),
            fix: words::command(context, model, found),
            safe: class.is_safe(),
            things: things.iter().map(|node| Named::of(model, *node)).collect(),
        }
    });
    let checked = examined.checked.iter().map(|problem| Problem {
        class: problem.class.clone(),
        subject: problem.subject.clone(),
        namespace: String::new(),
        detail: problem.detail.clone(),
        cause: String::new(),
        cost: Bytes::default(),
        fix: problem.fix.clone(),
        safe: false,
        things: Vec::new(),
    });
    found.chain(checked).collect()
}

/// Looks for everything that is wanted.
async fn examine(context: &Context, args: &Args) -> Result<Examined> {
    let mut look = Look::at(context, Measured::None).await?;
    // What is being pulled while lists are read one after the other looks like garbage: only what looks so twice is.
    let first = garbage(&look.model);
    if !first.is_empty() {
        look = Look::at(context, Measured::None).await?;
    }
    let facts = facts::of(context, &look).await?;
    let list = |model: &Model| findings(context, args, model, &facts, &first);
    let look = look
        .measured(|model| {
            let things: Vec<NodeId> = list(model).into_iter().flat_map(|finding| finding.things).collect();
            let reached = model.reached(&things);
            model.nodes(NodeKind::Snapshot).filter(|node| reached.contains(*node)).collect()
        })
        .await?;
    let plain = |finding| Found { finding, detail: None, target: None };
    let mut found: Vec<Found> = list(&look.model).into_iter().map(plain).collect();
    if args.wants(Class::Damaged) {
        found.extend(deep::without_files(&look));
    }
    if args.deep {
        found.extend(deep::examine(context, args, &look, &facts).await?);
    }
    let mut checked = Vec::new();
    if context.store.is_own() && args.classes.is_empty() {
        checked = check::ask(context, args.deep, "").await?.0;
    }
    Ok(Examined { look, found, checked })
}

/// What nothing keeps, by what it is called: nodes of two looks have different numbers.
fn garbage(model: &Model) -> HashSet<Named> {
    model.garbage().into_iter().map(|node| Named::of(model, node)).collect()
}

fn findings(context: &Context, args: &Args, model: &Model, facts: &Facts, before: &HashSet<Named>) -> Vec<Finding> {
    let mut found = model.findings(facts);
    found.retain(|finding| args.wants(finding.class));
    if context.store.is_own() {
        // The reconciler does the rest, and `check` looks for it.
        let by_hand = [Class::Lease, Class::Ingest, Class::OrphanSnapshot, Class::OrphanBlob];
        found.retain(|finding| by_hand.contains(&finding.class));
    }
    for finding in found.iter_mut().filter(|finding| finding.mend == Mend::Collect) {
        finding.things.retain(|node| before.contains(&Named::of(model, *node)));
        finding.frees = model.weigh_gone(finding.things.iter().copied(), &model.kept());
        if let Some(first) = finding.things.first() {
            finding.subject = *first;
        }
    }
    found.retain(|finding| !finding.things.is_empty());
    found
}
