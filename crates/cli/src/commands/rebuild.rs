//! `orlop repair --rebuild-metadata`: a new `meta.db` from what lies beside it. It opens no store: there is none to open.

use std::process::ExitCode;

use orlop_metadata::{Condition, Rebuilt};
use serde::Serialize;

use super::repair::Args;
use crate::args::Global;
use crate::embed;
use crate::error::{Class, CliError, Result};
use crate::find::places::KUBERNETES;
use crate::output::{self, count};
use crate::settings::Settings;
use crate::{find, holder};

/// What is nowhere but in `meta.db`.
const LOST: &str = "leases, container records, activations, writes in progress, labels of namespaces, and labels that clients gave to \
                    content";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    schema: &'static str,
    plan: bool,
    condition: &'static str,
    detail: String,
    records: usize,
    changes: usize,
    blobs: usize,
    quarantined: usize,
    snapshots: usize,
    removals: usize,
    held: Vec<Held<'a>>,
    left: &'a [String],
    moved_to: Option<&'a str>,
}

#[derive(Serialize)]
struct Held<'a> {
    namespace: &'a str,
    lease: &'a str,
    blobs: usize,
    snapshots: usize,
}

/// Runs `repair --rebuild-metadata`.
pub(crate) async fn run(global: &Global, args: &Args) -> Result<ExitCode> {
    let settings = Settings::load(global)?;
    if let Some(address) = &settings.address {
        let message =
            format!("--rebuild-metadata works on the files of a root, and {} is a server's", address.display());
        return Err(CliError::new(Class::Usage, message).hint("give --root DIR, and end the daemon that serves it"));
    }
    let root = settings.root.clone();
    if let Some(holder) = holder::find(&root)? {
        let message = format!("{} is served by process {}", root.display(), holder.pid);
        return Err(CliError::new(Class::Conflict, message).hint("end that daemon first: meta.db is its"));
    }
    if !root.is_dir() || !find::is_root(find::places::Product::Orlop, &root) {
        let message = format!("no Orlop store at {}", root.display());
        return Err(CliError::new(Class::NotFound, message).hint("--root DIR names one"));
    }
    let begun = root.clone();
    let rebuild = embed::blocking(move || embed::begin_rebuild(&begun)).await?;
    let condition = rebuild.condition().clone();
    if matches!(condition, Condition::Sound | Condition::Behind(_)) && !args.force && !args.plan {
        return Err(CliError::new(Class::Conflict, format!("{condition}: nothing was changed"))
            .hint(format!("--force rebuilds it all the same, as history.log has it; {LOST} are lost then")));
    }
    let namespace = settings.namespace.as_deref().unwrap_or(KUBERNETES);
    let rebuild = orlop_image::rebuild(rebuild, namespace).await.map_err(|error| embed::classify(&root, error))?;
    let plan = args.plan;
    let made = root.clone();
    let install = move || match plan {
        true => Ok(rebuild.rebuilt().clone()),
        false => rebuild.install().map_err(|error| embed::classify(&made, error)),
    };
    show(global, &embed::blocking(install).await?, plan)?;
    Ok(ExitCode::SUCCESS)
}

fn show(global: &Global, rebuilt: &Rebuilt, plan: bool) -> Result<()> {
    if output::is_document(global.output) {
        return output::document(global.output, &document(rebuilt, plan));
    }
    output::print_text(&text(rebuilt, plan))?;
    if !global.quiet {
        let next = match (plan, rebuilt.held.is_empty()) {
            (true, _) => "nothing was changed; `orlop repair --rebuild-metadata` does as said above",
            (false, true) => "look at it: orlop check --deep",
            (false, false) => {
                "look at it: orlop check --deep; when nothing of what is held is needed: orlop leases rm LEASE (--namespace NS), then orlop gc"
            }
        };
        eprintln!("{next}");
    }
    Ok(())
}

fn document(rebuilt: &Rebuilt, plan: bool) -> Document<'_> {
    let condition = match &rebuilt.condition {
        Condition::Sound => "sound",
        Condition::Lost(_) => "lost",
        Condition::Damaged(_) => "damaged",
        Condition::Behind(_) => "behind",
    };
    let held = rebuilt.held.iter();
    Document {
        schema: "orlop.rebuild/v1",
        plan,
        condition,
        detail: rebuilt.condition.to_string(),
        records: rebuilt.records,
        changes: rebuilt.changes,
        blobs: rebuilt.blobs,
        quarantined: rebuilt.quarantined,
        snapshots: rebuilt.snapshots,
        removals: rebuilt.removals,
        held: held
            .map(|h| Held { namespace: &h.namespace, lease: &h.lease, blobs: h.blobs, snapshots: h.snapshots })
            .collect(),
        left: &rebuilt.left,
        moved_to: rebuilt.moved_to.as_deref(),
    }
}

fn text(rebuilt: &Rebuilt, plan: bool) -> String {
    let number = |number: usize, thing: &str| count(number as u64, thing);
    let mut lines = vec![format!("{}", rebuilt.condition)];
    let mut line = |what: &str, text: String| lines.push(format!("  {what:<14} {text}"));
    let back = if plan { "would be back" } else { "is back" };
    line(back, format!("{}, {} of them", number(rebuilt.records, "record"), number(rebuilt.changes, "change")));
    line("", format!("{}, {}", number(rebuilt.blobs, "blob"), number(rebuilt.snapshots, "snapshot")));
    line("", format!("{} that can be undone", number(rebuilt.removals, "removal")));
    if rebuilt.quarantined > 0 {
        line("set aside", format!("{} of the blobs: `orlop repair --known` mends them", rebuilt.quarantined));
    }
    for held in &rebuilt.held {
        let (blobs, snapshots) = (number(held.blobs, "blob"), number(held.snapshots, "snapshot"));
        let what = format!("{blobs} and {snapshots} that no record keeps, by lease {}", held.lease);
        line("held", format!("{what} (namespace {})", held.namespace));
    }
    line("is lost", format!("{LOST}, if there were any"));
    for left in &rebuilt.left {
        line("left", left.clone());
    }
    if let Some(name) = &rebuilt.moved_to {
        line("kept", format!("the old file, as {name}"));
    }
    lines.join("\n") + "\n"
}
