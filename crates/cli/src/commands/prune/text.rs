//! A policy's plan in words.

use super::Args;
use super::document::{Chosen, Kept, Pruned, REASONS};
use crate::args::Format;
use crate::commands::Context;
use crate::output::{count, size};

/// How many images are named for a reason before the rest is counted; `-o wide` names all.
const NAMED: usize = 5;

/// What would go, and what would not.
pub(super) fn plan(context: &Context, args: &Args, pruned: &Pruned) -> String {
    let mut lines = vec![format!("Plan {}", pruned.plan.plan), String::new()];
    lines.push(format!("{}, the least recently used first", images(pruned.chosen.len(), "go", "goes")));
    let names: Vec<String> = pruned.chosen.iter().map(|chosen| chosen.image.called()).collect();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    lines.extend(pruned.chosen.iter().zip(names).map(|(image, name)| chosen(image, &name, width)));
    lines.extend(short_of(pruned));
    lines.extend(kept(context, pruned));
    let command = format!("{} --execute {}", args.command(), pruned.plan.plan);
    let is_wide = context.global.output == Format::Wide;
    lines.push(String::new());
    lines.push(pruned.plan.text(context.store.is_own() && !args.no_trash, !is_wide, &command));
    lines.join("\n")
}

/// That nothing goes, and why.
pub(super) fn nothing(context: &Context, args: &Args, pruned: &Pruned) -> String {
    let namespace = &pruned.namespace;
    let mut lines = vec![match (pruned.policy.free, pruned.kept.is_empty()) {
        (_, true) => format!("Nothing to prune: namespace {namespace} has no image"),
        (Some(0), _) if args.until_free.is_some() => "Nothing to prune: that much is free already".to_owned(),
        _ => format!("Nothing to prune in namespace {namespace}"),
    }];
    lines.extend(kept(context, pruned));
    lines.push(String::new());
    lines.join("\n")
}

fn images(number: usize, several: &str, one: &str) -> String {
    format!("{} {}", count(number as u64, "image"), if number == 1 { one } else { several })
}

fn chosen(chosen: &Chosen, name: &str, width: usize) -> String {
    let last = chosen.last_use.as_ref().map_or_else(
        || "nothing tells when it was used".to_owned(),
        |last| format!("last used {}: {}", last.at, last.told()),
    );
    format!("  {name:<width$}  {:>10}  {last}", size(chosen.frees))
}

/// That everything that may go is not enough.
fn short_of(pruned: &Pruned) -> Option<String> {
    let all: u64 = pruned.chosen.iter().map(|chosen| chosen.frees).sum();
    let wanted = pruned.policy.free.filter(|wanted| all < *wanted)?;
    Some(format!("That is less than the {} that were asked for: nothing else may go", size(wanted)))
}

/// What stays, by reason.
fn kept(context: &Context, pruned: &Pruned) -> Vec<String> {
    if pruned.kept.is_empty() {
        return Vec::new();
    }
    let all = if context.global.output == Format::Wide { usize::MAX } else { NAMED };
    let mut lines = vec![String::new(), images(pruned.kept.len(), "stay", "stays")];
    for (reason, words) in REASONS {
        let of_it: Vec<&Kept> = pruned.kept.iter().filter(|kept| kept.reason == reason).collect();
        if of_it.is_empty() {
            continue;
        }
        let mut names: Vec<String> = of_it.iter().take(all).map(|kept| kept.image.called()).collect();
        if of_it.len() > all {
            names.push(format!("{} more", of_it.len() - all));
        }
        lines.push(format!("  {words}: {}", names.join(", ")));
    }
    lines
}
