//! `orlop give-back`: content that a containerd's `meta.db` names and that Orlop has, back among its files; or images of Orlop's own into a
//! containerd that runs.

mod files;
mod live;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use orlop_image::Reason;
use serde::Serialize;

use crate::args::{Format, Global};
use crate::commands::adopt;
use crate::error::{Class, CliError, Result};
use crate::find;
use crate::output::{self, count, size};
use crate::settings::Settings;

/// Who the history says it was.
const ACTOR: &str = "orlop give-back";

/// Options of `give-back`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Of DIR only what its meta.db names and what it has no file of is given, whether or not its containerd runs:
that is what came while Orlop was its content store. With --to images of Orlop's own namespace are given to a
containerd that runs: content, unpacked layers and names, so that containers start from them at once. Nothing
is copied: everything must be on one file system. What was given frees nothing until both have removed it.

Examples:
  orlop give-back --plan /var/lib/containerd
  orlop give-back /var/lib/containerd           then take Orlop out of containerd's configuration
  orlop give-back --to /run/containerd/containerd.sock                  every image of the namespace
  orlop give-back --to /run/containerd/containerd.sock docker.io/library/alpine:3.20")]
pub(crate) struct Args {
    /// The root of a containerd; with --to names of images
    #[arg(value_name = "DIR|NAME", required_unless_present = "to")]
    what: Vec<String>,
    /// Give images of this store to the containerd at this socket
    #[arg(long, value_name = "SOCKET")]
    to: Option<PathBuf>,
    /// Show what would be given, and change nothing
    #[arg(long)]
    plan: bool,
    /// The snapshotter that gets unpacked layers; one whose files are not overlayfs' gets none
    #[arg(long, value_name = "NAME", default_value = "overlayfs", requires = "to")]
    snapshotter: String,
}

/// What was given, or would be.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema: &'static str,
    plan: bool,
    to: PathBuf,
    names: Vec<String>,
    blobs: u64,
    blob_bytes: u64,
    blobs_present: u64,
    snapshots: u64,
    snapshot_bytes: u64,
    snapshots_present: u64,
    files: BTreeMap<&'static str, u64>,
    left: Vec<Reason>,
}

impl Document {
    fn new(args: &Args, to: PathBuf) -> Self {
        let files = BTreeMap::from([("hardLinked", 0), ("reflinked", 0)]);
        Self { schema: "orlop.give-back/v1", plan: args.plan, to, files, ..Self::default() }
    }

    fn leave(&mut self, name: impl Into<String>, reason: impl Into<String>) {
        self.left.push(Reason { name: name.into(), reason: reason.into() });
    }

    fn shared(&mut self, files: u64, cloned: u64) {
        *self.files.entry("reflinked").or_default() += cloned;
        *self.files.entry("hardLinked").or_default() += files - cloned;
    }
}

/// Runs `give-back`.
pub(crate) async fn run(global: &Global, args: &Args) -> Result<ExitCode> {
    let settings = Settings::load(global)?;
    if !find::is_root(find::places::Product::Orlop, &settings.root) {
        let message = format!("no Orlop store at {}", settings.root.display());
        return Err(
            CliError::new(Class::NotFound, message).hint("--root DIR names one; `orlop stores` shows what is here")
        );
    }
    let done = match (&args.to, &args.what[..]) {
        (Some(socket), _) => live::run(&settings, args, socket).await?,
        (None, [directory]) => files::run(&settings, args, directory.as_ref()).await?,
        (None, _) => {
            return Err(CliError::new(Class::Usage, "expected one directory, the root of a containerd")
                .hint("with --to SOCKET names of images are given"));
        }
    };
    show(global, args, &done)?;
    Ok(ExitCode::SUCCESS)
}

fn show(global: &Global, args: &Args, done: &Document) -> Result<()> {
    if output::is_document(global.output) {
        return output::document(global.output, done);
    }
    if global.output == Format::Name {
        return output::names(done.names.iter().map(String::as_str));
    }
    let here = |present: u64| if present > 0 { format!("; {present} were there") } else { String::new() };
    let given = if args.plan { "would get" } else { "has got" };
    let mut lines = vec![format!("{} {given}", done.to.display())];
    let (blobs, bytes) = (count(done.blobs, "blob"), size(done.blob_bytes));
    lines.push(format!("  content     {blobs}, {bytes}, none copied{}", here(done.blobs_present)));
    if args.to.is_some() {
        let (snapshots, bytes) = (count(done.snapshots, "snapshot"), size(done.snapshot_bytes));
        lines.push(format!("  snapshots   {snapshots}, {bytes}, none copied{}", here(done.snapshots_present)));
        lines.push(format!("  records     {}", done.names.len()));
    }
    if !args.plan {
        let [linked, cloned] = ["hardLinked", "reflinked"].map(|how| done.files.get(how).copied().unwrap_or_default());
        lines.push(format!("  how         {linked} files by hard link, {cloned} by reflink"));
    }
    lines.extend(adopt::left(&done.left));
    if args.plan {
        lines.push("Nothing was changed. The same command without --plan does it".to_owned());
    }
    lines.push(String::new());
    output::print_text(&lines.join("\n"))
}
