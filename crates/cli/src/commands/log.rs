//! `orlop log`: what names meant and when, who changed them, where it came from, and by what it was verified.

use serde::Serialize;

use super::Context;
use crate::args::Format;
use crate::client::pb;
use crate::error::{Class, CliError, Result};
use crate::output::{self, Table, short, time, time_short};

/// Options of `log`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
NAME@{1} is what NAME meant before its last change: `orlop tag app:1.0@{1} app:1.0 --force` rolls back.
What an image was built from `orlop history` tells.")]
pub(crate) struct Args {
    /// Only this record
    name: Option<String>,
    /// At most so many changes
    #[arg(long, default_value_t = 100)]
    limit: u32,
}

#[derive(Serialize)]
struct Log {
    schema: &'static str,
    changes: Vec<Change>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Change {
    seq: i64,
    at: String,
    actor: String,
    action: String,
    namespace: String,
    name: String,
    old: String,
    new: String,
    /// The registry's host, or mirror, that said what the name means; absent of what was not pulled.
    #[serde(skip_serializing_if = "String::is_empty")]
    host: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    verified_by: Vec<String>,
}

/// Runs `log`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    if !context.store.is_own() {
        let message = format!("{} keeps no log of its records", context.store);
        return Err(CliError::new(Class::Usage, message)
            .hint("`orlop watch` shows what happens from now on; --root DIR shows the log of Orlop's own store"));
    }
    let request = pb::HistoryRequest { name: args.name.clone().unwrap_or_default(), limit: args.limit };
    let mut stream = context.clients.orlop().history(request).await?.into_inner();
    let mut rows = Vec::new();
    while let Some(page) = stream.message().await? {
        rows.extend(page.rows);
    }
    if let (Some(name), true) = (&args.name, rows.is_empty()) {
        let message = format!("no image {name:?} was ever in this namespace");
        return Err(CliError::new(Class::NotFound, message).hint("`orlop log` lists every change"));
    }
    if output::is_document(context.global.output) {
        let changes = rows.into_iter().map(change).collect();
        return output::document(context.global.output, &Log { schema: "orlop.log/v1", changes });
    }
    if context.global.output == Format::Name {
        return output::names(rows.iter().map(|row| row.name.as_str()));
    }
    let mut table = Table::new(&["WHEN", "WHO", "WHAT", "NAME", "FROM", "TO", "HOST", "VERIFIED BY"]);
    for row in &rows {
        table.row([
            time_short(row.at.as_ref()),
            row.actor.clone(),
            row.action.clone(),
            row.name.clone(),
            short(&row.old_target).to_owned(),
            short(&row.new_target).to_owned(),
            row.host.clone(),
            row.verified_by.join(", "),
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
        host: row.host,
        verified_by: row.verified_by,
    }
}
