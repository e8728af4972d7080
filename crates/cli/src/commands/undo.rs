//! `orlop undo`: brings a removal back from the trash.

use serde::Serialize;

use super::Context;
use crate::args::Format;
use crate::client::pb;
use crate::error::Result;
use crate::output::{self, Table, count, size, time, time_short};

/// Options of `undo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which removal; the newest if not given
    id: Option<String>,
    /// Show what can be undone; change nothing
    #[arg(short, long, conflicts_with = "id")]
    list: bool,
}

#[derive(Serialize)]
struct Trash {
    schema: &'static str,
    entries: Vec<Entry>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    id: String,
    created_at: String,
    reason: String,
    bytes: u64,
    names: Vec<String>,
}

#[derive(Serialize)]
struct Undone {
    schema: &'static str,
    names: Vec<String>,
    kept: Vec<String>,
    blobs: u64,
    snapshots: u64,
    missing: Vec<String>,
}

/// Runs `undo`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    if args.list {
        return list(context).await;
    }
    let request = pb::UndoRequest { id: args.id.clone().unwrap_or_default() };
    let answer = context.clients.orlop().undo(request).await?.into_inner();
    if output::is_document(context.global.output) {
        let undone = Undone {
            schema: "orlop.undo/v1",
            names: answer.names,
            kept: answer.kept,
            blobs: answer.blobs,
            snapshots: answer.snapshots,
            missing: answer.missing,
        };
        return output::document(context.global.output, &undone);
    }
    output::names(answer.names.iter().map(String::as_str))?;
    for name in &answer.kept {
        context.say(format!("{name} exists again and was left as it is"));
    }
    context.say(format!("brought back {} and {}", count(answer.blobs, "blob"), count(answer.snapshots, "snapshot")));
    for digest in &answer.missing {
        context.say(format!("{digest} is gone for good: pull the image again, that brings it back"));
    }
    Ok(())
}

async fn list(context: &Context) -> Result<()> {
    let entries = context.clients.orlop().list_trash(pb::ListTrashRequest {}).await?.into_inner().entries;
    if output::is_document(context.global.output) {
        let entries = entries
            .into_iter()
            .map(|e| Entry {
                created_at: time(e.created_at.as_ref()),
                id: e.id,
                reason: e.reason,
                bytes: e.bytes,
                names: e.names,
            })
            .collect();
        return output::document(context.global.output, &Trash { schema: "orlop.undo/v1", entries });
    }
    if context.global.output == Format::Name {
        return output::names(entries.iter().map(|entry| entry.id.as_str()));
    }
    let mut table = Table::new(&["ID", "WHEN", "COMMAND", "SIZE", "NAMES"]);
    for entry in &entries {
        table.row([
            entry.id.clone(),
            time_short(entry.created_at.as_ref()),
            entry.reason.clone(),
            size(entry.bytes),
            entry.names.join("\n"),
        ]);
    }
    table.print()
}
