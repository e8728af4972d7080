//! What was adopted, or would be: as a document, and in words.

use std::path::Path;

use orlop_image::{Adoption, Reason};
use serde::Serialize;

use super::{Args, Source};
use crate::args::{Format, Global};
use crate::error::Result;
use crate::output::{self, count, size};
use crate::paint::plain;
use crate::settings::Settings;

/// So many things that are left are shown to people; documents have all.
const SHOWN: usize = 20;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    schema: &'static str,
    plan: bool,
    from: &'a Path,
    to: &'a Path,
    running: bool,
    owner: Option<&'a str>,
    namespaces: &'a [String],
    records: &'a [String],
    records_present: u64,
    blobs: Blobs,
    snapshots: Snapshots,
    leases: u64,
    /// By how they came to be here; of a plan nothing is known yet.
    files: Files,
    left: &'a [Reason],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Blobs {
    taken: u64,
    bytes: u64,
    present: u64,
    hashed_bytes: u64,
}

#[derive(Serialize)]
struct Snapshots {
    taken: u64,
    bytes: u64,
    present: u64,
    compared: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Files {
    reflinked: u64,
    hard_linked: u64,
}

/// Prints it.
pub(super) fn show(
    global: &Global,
    args: &Args,
    settings: &Settings,
    source: &Source,
    adoption: &Adoption,
) -> Result<()> {
    if output::is_document(global.output) {
        return output::document(global.output, &document(args, settings, source, adoption));
    }
    if global.output == Format::Name {
        return output::names(adoption.records.iter().map(String::as_str));
    }
    output::print_text(&text(args, settings, source, adoption))
}

fn document<'a>(args: &'a Args, settings: &'a Settings, source: &'a Source, adoption: &'a Adoption) -> Document<'a> {
    Document {
        schema: "orlop.adopt/v1",
        plan: args.plan,
        from: source.root().path(),
        to: &settings.root,
        running: source.root().is_running(),
        owner: args.owner.as_deref(),
        namespaces: &adoption.namespaces,
        records: &adoption.records,
        records_present: adoption.records_present,
        blobs: Blobs {
            taken: adoption.blobs,
            bytes: adoption.blob_bytes,
            present: adoption.blobs_present,
            hashed_bytes: adoption.hashed_bytes,
        },
        snapshots: Snapshots {
            taken: adoption.snapshots,
            bytes: adoption.snapshot_bytes,
            present: adoption.snapshots_present,
            compared: adoption.compared,
        },
        leases: adoption.leases,
        files: Files { reflinked: adoption.cloned_files, hard_linked: adoption.linked_files },
        left: &adoption.left,
    }
}

fn text(args: &Args, settings: &Settings, source: &Source, adoption: &Adoption) -> String {
    let (from, to) = (source.root().path().display(), settings.root.display());
    let runs = if source.root().is_running() { "a containerd that runs" } else { "a containerd that does not run" };
    let mut lines = vec![match args.plan {
        true => format!("From {from}, the root of {runs}, {to} would get"),
        false => format!("From {from}, the root of {runs}, {to} has got"),
    }];
    let mut line = |what: &str, text: String| lines.push(format!("  {what:<11} {text}"));
    let here = |present: u64| if present > 0 { format!("; {present} were here") } else { String::new() };
    let none = if adoption.namespaces.is_empty() { "none" } else { "" };
    line("namespaces", format!("{none}{}", plain(&adoption.namespaces.join(", "))));
    let records = count(adoption.records.len() as u64, "record");
    line("records", format!("{records}{}", here(adoption.records_present)));
    let hashed = if args.plan { "to be hashed" } else { "hashed" };
    let (blobs, bytes) = (count(adoption.blobs, "blob"), size(adoption.blob_bytes));
    let hashed = format!("{} {hashed}, none copied", size(adoption.hashed_bytes));
    line("content", format!("{blobs}, {bytes}: {hashed}{}", here(adoption.blobs_present)));
    let (snapshots, bytes) = (count(adoption.snapshots, "snapshot"), size(adoption.snapshot_bytes));
    let compared = match args.plan {
        true => "none copied, lengths of files to be compared with their layers".to_owned(),
        false => format!("none copied, {} of them compared with their layers", adoption.compared),
    };
    line("snapshots", format!("{snapshots}, {bytes}: {compared}{}", here(adoption.snapshots_present)));
    if adoption.leases > 0 {
        line("leases", adoption.leases.to_string());
    }
    if !args.plan {
        let (linked, cloned) = (adoption.linked_files, adoption.cloned_files);
        line("how", format!("{linked} files by hard link, {cloned} by reflink"));
    }
    line(
        "free space",
        "stays, but for rows and directories; what both have comes back when both have removed it".into(),
    );
    lines.extend(left(&adoption.left));
    if args.plan {
        lines.push(format!("Nothing was changed. To do it: {}", command(args, source)));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// What was left and why, in lines; none if nothing was.
pub(in crate::commands) fn left(left: &[Reason]) -> Vec<String> {
    if left.is_empty() {
        return Vec::new();
    }
    let shown = left.iter().take(SHOWN).map(|left| format!("  {}: {}", plain(&left.name), plain(&left.reason)));
    let more = left.len().saturating_sub(SHOWN);
    let more = (more > 0).then(|| format!("  and {more} more; -o json has them"));
    ["Left".to_owned()].into_iter().chain(shown).chain(more).collect()
}

/// The command that does what was planned.
fn command(args: &Args, source: &Source) -> String {
    let mut words = vec!["orlop adopt".to_owned()];
    words.extend(args.owner.iter().map(|owner| format!("--owner {owner}")));
    words.extend(args.no_snapshots.then(|| "--no-snapshots".to_owned()));
    words.push(source.root().path().display().to_string());
    words.join(" ")
}
