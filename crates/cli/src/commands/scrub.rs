//! `orlop scrub`.

use std::process::ExitCode;

use serde::Serialize;

use super::Context;
use crate::args::Format;
use crate::client::pb;
use crate::error::{Class, CliError, Result, report};
use crate::output::{self, Table, count, size};

/// Options of `scrub`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Reads every blob and sets aside what is damaged, and compares the files of unpacked layers with the digests that were recorded when
they were unpacked; `orlop repair --known` mends both. A pass that was stopped, by Ctrl-C or a power cut, goes on where it was. A daemon does the same by itself ([scrub] in the configuration).
Exit code 5 if something is damaged.

Examples:
  orlop scrub
  orlop scrub --limit 50MiB       at most 50 MiB a second")]
pub(crate) struct Args {
    /// At most so much a second: 500KiB, 20MiB, 1GB
    #[arg(long, value_name = "SIZE", value_parser = limit)]
    limit: Option<u64>,
    /// Begin anew, even if an earlier pass was stopped
    #[arg(long)]
    anew: bool,
}

/// A size; none would be no limit.
fn limit(text: &str) -> std::result::Result<u64, String> {
    match super::prune::read::size(text)? {
        0 => Err("expected at least 1B".to_owned()),
        bytes => Ok(bytes),
    }
}

#[derive(Serialize)]
struct Found {
    subject: String,
    fault: String,
    detail: String,
    quarantine: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema: &'static str,
    ok: bool,
    found: Vec<Found>,
    blobs: u64,
    bytes: u64,
    snapshots: u64,
    snapshot_bytes: u64,
    unrecorded: u64,
    damaged: u64,
}

/// Runs `scrub`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    use pb::scrub_response::Event;
    let request = pb::ScrubRequest { bytes_per_second: args.limit.unwrap_or_default(), anew: args.anew };
    let mut stream = context.clients.orlop().scrub(request).await?.into_inner();
    let (mut found, mut summary) = (Vec::new(), None);
    while let Some(answer) = stream.message().await? {
        match answer.event {
            Some(Event::Found(row)) => found.push(Found {
                subject: row.subject,
                fault: row.fault,
                detail: row.detail,
                quarantine: (!row.quarantine.is_empty()).then_some(row.quarantine),
            }),
            Some(Event::Summary(last)) => summary = Some(last),
            None => {}
        }
    }
    let Some(summary) = summary else {
        return Err(CliError::new(Class::Unavailable, "the scrub ended early: no result"));
    };
    show(context, found, summary)
}

fn show(context: &Context, found: Vec<Found>, summary: pb::ScrubSummary) -> Result<ExitCode> {
    let pb::ScrubSummary { blobs, blob_bytes: bytes, found: damaged, .. } = summary;
    let pb::ScrubSummary { trees: snapshots, tree_bytes: snapshot_bytes, unrecorded, .. } = summary;
    let ok = damaged == 0;
    if output::is_document(context.global.output) {
        let schema = "orlop.scrub/v1";
        let document = Document { schema, ok, found, blobs, bytes, snapshots, snapshot_bytes, unrecorded, damaged };
        output::document(context.global.output, &document)?;
    } else if context.global.output == Format::Name {
        output::names(found.iter().map(|row| row.subject.as_str()))?;
    } else {
        let mut table = Table::new(&["FAULT", "SUBJECT", "DETAIL"]);
        let empty = found.is_empty();
        for row in found {
            table.row([row.fault, row.subject, row.detail]);
        }
        if !empty {
            table.print()?;
        }
        let unknown = match unrecorded {
            0 => String::new(),
            some => format!(", nothing was recorded of {some} more"),
        };
        let blobs = format!("{} ({})", count(blobs, "blob"), size(bytes));
        let trees = format!("{} ({}{unknown})", count(snapshots, "snapshot"), size(snapshot_bytes));
        context.say(format!("read {blobs} and {trees}: {damaged} damaged"));
    }
    if ok {
        return Ok(ExitCode::SUCCESS);
    }
    let error = CliError::new(Class::Verification, format!("{damaged} damaged"));
    Ok(report(&error.hint("`orlop repair --known` mends what somebody has; `orlop check` lists what is left")))
}
