//! `orlop check`.

use std::process::ExitCode;

use serde::Serialize;

use super::Context;
use crate::args::Format;
use crate::client::pb;
use crate::error::{Class, CliError, Result, report};
use crate::output::{self, Table, count, size};

/// Options of `check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code 5 if something is wrong. Without --deep, presence and sizes are checked; with it, every byte of blobs and unpacked layers is hashed.")]
pub(crate) struct Args {
    /// Hash every blob again, and every file of an unpacked layer
    #[arg(long)]
    deep: bool,
}

/// Something is wrong.
#[derive(Serialize)]
pub(crate) struct Problem {
    pub(crate) class: String,
    pub(crate) subject: String,
    pub(crate) detail: String,
    pub(crate) fix: String,
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
    let ok = problems.is_empty();
    if output::is_document(context.global.output) {
        output::document(context.global.output, &Report { schema: "orlop.check/v1", ok, problems })?;
    } else if context.global.output == Format::Name {
        output::names(problems.iter().map(|problem| problem.subject.as_str()))?;
    } else {
        show(context, problems, &summary, args.deep)?;
    }
    Ok(if ok { ExitCode::SUCCESS } else { report(&CliError::new(Class::Verification, "problems were found")) })
}

/// What is wrong with one image, or with the whole store, and how much was looked at.
pub(crate) async fn ask(context: &Context, deep: bool, name: &str) -> Result<(Vec<Problem>, pb::CheckSummary)> {
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

/// Prints problems for people, and how much was looked at.
pub(crate) fn show(context: &Context, problems: Vec<Problem>, summary: &pb::CheckSummary, deep: bool) -> Result<()> {
    let ok = problems.is_empty();
    let mut table = Table::new(&["PROBLEM", "SUBJECT", "DETAIL", "FIX"]);
    for p in problems {
        table.row([p.class, p.subject, p.detail, p.fix]);
    }
    if !ok {
        table.print()?;
    }
    context.say(format!(
        "{}, {} ({}{}), {}: {}",
        count(summary.records, "record"),
        count(summary.blobs, "blob"),
        size(summary.blob_bytes),
        if deep { ", all hashed" } else { ", sizes only" },
        count(summary.snapshots, "snapshot"),
        if ok { "no problem found" } else { "see above" }
    ));
    Ok(())
}
