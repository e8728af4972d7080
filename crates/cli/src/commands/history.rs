//! `orlop history`: what names meant and when.

use serde::Serialize;

use super::Context;
use crate::client::pb;
use crate::error::{Class, CliError, Result};
use crate::output::{self, Table, short, time, time_short};

/// Options of `history`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
NAME@{1} is what NAME meant before its last change: `orlop tag app:1.0@{1} app:1.0 --force` rolls back.")]
pub(crate) struct Args {
    /// Only this record
    name: Option<String>,
    /// At most so many changes
    #[arg(long, default_value_t = 100)]
    limit: u32,
}

#[derive(Serialize)]
struct History {
    schema: &'static str,
    changes: Vec<Change>,
}

#[derive(Serialize)]
struct Change {
    seq: i64,
    at: String,
    actor: String,
    action: String,
    namespace: String,
    name: String,
    old: String,
    new: String,
}

/// Runs `history`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    if !context.store.is_own() {
        let message = format!("{} keeps no history of its records", context.store);
        return Err(CliError::new(Class::Usage, message)
            .hint("`orlop watch` shows what happens from now on; --root DIR shows the history of Orlop's own store"));
    }
    let request = pb::HistoryRequest { name: args.name.clone().unwrap_or_default(), limit: args.limit };
    let mut stream = context.clients.orlop().history(request).await?.into_inner();
    let mut rows = Vec::new();
    while let Some(page) = stream.message().await? {
        rows.extend(page.rows);
    }
    if let (Some(name), true) = (&args.name, rows.is_empty()) {
        let message = format!("no image {name:?} was ever in this namespace");
        return Err(CliError::new(Class::NotFound, message).hint("`orlop history` lists every change"));
    }
    if output::is_document(context.global.output) {
        let changes = rows.into_iter().map(change).collect();
        return output::document(context.global.output, &History { schema: "orlop.history/v1", changes });
    }
    let mut table = Table::new(&["WHEN", "WHO", "WHAT", "NAME", "FROM", "TO"]);
    for row in &rows {
        table.row([
            time_short(row.at.as_ref()),
            row.actor.clone(),
            row.action.clone(),
            row.name.clone(),
            short(&row.old_target).to_owned(),
            short(&row.new_target).to_owned(),
        ]);
    }
    table.print()
}

fn change(row: pb::HistoryRow) -> Change {
    Change {
        seq: row.seq,
        at: time(row.at.as_ref()),
        actor: row.actor,
        action: row.action,
        namespace: row.namespace,
        name: row.name,
        old: row.old_target,
        new: row.new_target,
    }
}
