//! `orlop check` and `orlop verify`.

use std::process::ExitCode;

use serde::Serialize;

use super::Context;
use crate::client::pb;
use crate::error::{Class, CliError, Result, report};
use crate::output::{self, Table, size};

/// Options of `check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code 5 if something is wrong. Without --deep, presence and sizes are checked; with it, every byte is hashed.")]
pub(crate) struct Args {
    /// Hash every blob again
    #[arg(long)]
    deep: bool,
}

/// Options of `verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// Names, digests or image IDs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Serialize)]
struct Problem {
    class: String,
    subject: String,
    detail: String,
    fix: String,
}

#[derive(Serialize)]
struct Report {
    schema: &'static str,
    ok: bool,
    problems: Vec<Problem>,
}

/// Runs `check`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let (problems, summary) = ask(context, args.deep, "").await?;
    show(context, "orlop.check/v1", problems, &summary, args.deep)
}

/// Runs `verify`: a deep check of some images.
pub(crate) async fn verify(context: &Context, args: &VerifyArgs) -> Result<ExitCode> {
    let mut problems = Vec::new();
    let mut total = pb::CheckSummary::default();
    for name in &args.names {
        let (found, summary) = ask(context, true, name).await?;
        problems.extend(found);
        total.records += summary.records;
        total.blobs += summary.blobs;
        total.blob_bytes += summary.blob_bytes;
        total.snapshots += summary.snapshots;
    }
    show(context, "orlop.verify/v1", problems, &total, true)
}

async fn ask(context: &Context, deep: bool, name: &str) -> Result<(Vec<Problem>, pb::CheckSummary)> {
    use pb::check_response::Event;
    let request = pb::CheckRequest { deep, name: name.to_owned() };
    let mut stream = context.clients.orlop().check(request).await?.into_inner();
    let mut problems = Vec::new();
    while let Some(answer) = stream.message().await? {
        match answer.event {
            Some(Event::Problem(p)) => {
                problems.push(Problem { class: p.class, subject: p.subject, detail: p.detail, fix: p.fix });
            }
            Some(Event::Summary(summary)) => return Ok((problems, summary)),
            None => {}
        }
    }
    Err(CliError::new(Class::Unavailable, "the check ended early: no result"))
}

fn show(
    context: &Context,
    schema: &'static str,
    problems: Vec<Problem>,
    summary: &pb::CheckSummary,
    deep: bool,
) -> Result<ExitCode> {
    let ok = problems.is_empty();
    if output::is_document(context.global.output) {
        output::document(context.global.output, &Report { schema, ok, problems })?;
    } else {
        let mut table = Table::new(&["PROBLEM", "SUBJECT", "DETAIL", "FIX"]);
        for p in problems {
            table.row([p.class, p.subject, p.detail, p.fix]);
        }
        if !ok {
            table.print()?;
        }
        context.say(format!(
            "{} records, {} blobs ({}{}), {} snapshots: {}",
            summary.records,
            summary.blobs,
            size(summary.blob_bytes),
            if deep { ", all hashed" } else { ", sizes only" },
            summary.snapshots,
            if ok { "no problem found" } else { "see above" }
        ));
    }
    Ok(if ok { ExitCode::SUCCESS } else { report(&CliError::new(Class::Verification, "problems were found")) })
}
