//! `orlop repair`.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::pull::RegistryArgs;
use super::{Context, import};
use crate::args::Format;
use crate::client::pb;
use crate::error::{Class, CliError, Result, report};
use crate::output::{self, count, size};
use crate::paint::Tone;
use pb::mending::End;
use pb::repair_request::Step;

/// Options of `repair`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Reads what is wanted. A blob that is damaged is set aside (ROOT/quarantine) and never given to anybody again; sound
bytes are fetched by digest from the registries that its images are named after or came from, and their mirrors. An
unpacked layer that is damaged is unpacked anew, and takes the place of the damaged one unless containers stand on it.
Exit code 5 if something is damaged still; then the same command, a pull or an import mends it later.

Examples:
  orlop repair --plan                 what is damaged, whom it concerns, and whom would be asked; changes nothing
  orlop repair                        reads everything and mends
  orlop repair nginx:1.27             only this image
  orlop repair --known                only what a scrub or check has found before
  orlop repair --from images.tar      takes sound bytes from an archive instead
  orlop repair --rebuild-metadata     makes a lost or damaged meta.db again from blobs, snapshots and history.log")]
pub(crate) struct Args {
    /// An image, or the digest of a blob [default: the whole store]
    #[arg(value_name = "X")]
    what: Option<String>,
    /// Say what would be done; change nothing
    #[arg(long)]
    pub(crate) plan: bool,
    /// Mend what was found before, without looking for more
    #[arg(long)]
    known: bool,
    /// Take sound bytes from this archive (an OCI layout, as a tar or a directory, as `orlop export` writes it); - is standard input
    #[arg(long, value_name = "ARCHIVE")]
    from: Option<PathBuf>,
    /// Make meta.db again from what lies beside it, while nobody has the root open; with --plan only say what would come back
    #[arg(long, conflicts_with_all = ["what", "known", "from"])]
    pub(crate) rebuild_metadata: bool,
    /// Rebuild a meta.db that is sound, too: what only it knows (leases, containers) is lost
    #[arg(long, requires = "rebuild_metadata")]
    pub(crate) force: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Serialize)]
struct Document {
    schema: &'static str,
    ok: bool,
    plan: bool,
    repairs: Vec<Repair>,
    examined: Examined,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Examined {
    blobs: u64,
    bytes: u64,
    snapshots: u64,
    snapshot_bytes: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Repair {
    kind: String,
    subject: String,
    size: u64,
    fault: String,
    detail: String,
    images: Vec<Named>,
    snapshots: Vec<Named>,
    containers: Vec<Named>,
    sources: Vec<String>,
    quarantine: Option<String>,
    outcome: &'static str,
    from: Option<String>,
    reason: Option<String>,
    fix: Option<String>,
}

/// Something in a namespace.
#[derive(Serialize)]
struct Named {
    namespace: String,
    name: String,
}

/// Runs `repair`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let (repairs, summary) = ask(context, args).await?;
    let left = repairs.iter().filter(|repair| repair.outcome != "mended").count();
    if output::is_document(context.global.output) {
        let pb::RepairSummary { blobs, blob_bytes: bytes, trees: snapshots, tree_bytes: snapshot_bytes } = summary;
        let examined = Examined { blobs, bytes, snapshots, snapshot_bytes };
        let document = Document { schema: "orlop.repair/v1", ok: left == 0, plan: args.plan, repairs, examined };
        output::document(context.global.output, &document)?;
    } else if context.global.output == Format::Name {
        output::names(repairs.iter().map(|repair| repair.subject.as_str()))?;
    } else {
        for repair in &repairs {
            output::print_text(&text(repair))?;
        }
        context.say(said(&repairs, &summary, args.plan));
    }
    if left == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let message = match args.plan {
        true => "problems were found; nothing was changed".to_owned(),
        false => format!("{} could not be mended", count(left as u64, "problem")),
    };
    Ok(report(&CliError::new(Class::Verification, message)))
}

fn said(repairs: &[Repair], summary: &pb::RepairSummary, plan: bool) -> String {
    let blobs = format!("{} ({})", count(summary.blobs, "blob"), size(summary.blob_bytes));
    let read = match summary.trees {
        0 => format!("read {blobs}"),
        trees => format!("read {blobs} and {} ({})", count(trees, "snapshot"), size(summary.tree_bytes)),
    };
    if repairs.is_empty() {
        return format!("{read}: nothing is damaged");
    }
    let mended = repairs.iter().filter(|repair| repair.outcome == "mended").count() as u64;
    let damaged = repairs.len() as u64;
    match plan {
        true => format!("{read}: {damaged} damaged; `orlop repair` mends as said above"),
        false => format!("{read}: {damaged} damaged, {mended} mended"),
    }
}

async fn ask(context: &Context, args: &Args) -> Result<(Vec<Repair>, pb::RepairSummary)> {
    use pb::repair_response::Event;
    let options = pb::RepairOptions {
        name: args.what.clone().unwrap_or_default(),
        plan: args.plan,
        known: args.known,
        registry: Some(args.registry.to_api(context)?),
        archive: args.from.is_some() && !args.plan,
    };
    // Opened first: a name with a mistake changes nothing.
    let archive = match args.from.as_ref().filter(|_| !args.plan) {
        Some(path) => Some((import::open(path).await?, path.clone())),
        None => None,
    };
    let (send, receive) = tokio::sync::mpsc::channel(import::CHUNKS_AHEAD);
    let message = |step| pb::RepairRequest { step: Some(step) };
    let data = move |data: Vec<u8>| message(Step::Data(data.into()));
    let feeding = tokio::spawn(import::feed(message(Step::Options(options)), archive, data, send));
    let requests = tokio_stream::wrappers::ReceiverStream::new(receive);
    let answered = async {
        let mut stream = context.clients.orlop().repair(requests).await?.into_inner();
        let mut repairs = Vec::new();
        while let Some(answer) = stream.message().await? {
            match answer.event {
                Some(Event::Mending(mending)) => repairs.push(Repair::of(mending)),
                Some(Event::Summary(summary)) => return Ok((repairs, summary)),
                None => {}
            }
        }
        Err(CliError::new(Class::Unavailable, "the repair ended early: no result"))
    }
    .await;
    match answered {
        Ok(answer) => Ok(answer),
        // A broken input explains the refusal better than the refusal itself.
        Err(refused) => Err(import::read_error(feeding).await.unwrap_or(refused)),
    }
}

impl Repair {
    fn of(mending: pb::Mending) -> Self {
        let set = |text: String| (!text.is_empty()).then_some(text);
        let outcome = match mending.end() {
            End::Planned => "planned",
            End::Mended => "mended",
            End::Left => "left",
        };
        let mut repair = Self {
            kind: mending.kind,
            subject: mending.subject,
            size: mending.size,
            fault: mending.fault,
            detail: mending.detail,
            images: Vec::new(),
            snapshots: Vec::new(),
            containers: Vec::new(),
            sources: mending.sources,
            quarantine: set(mending.quarantine),
            outcome,
            from: set(mending.from),
            reason: set(mending.reason),
            fix: set(mending.advice),
        };
        for affected in mending.affected {
            let named = |names: Vec<String>| {
                let namespace = affected.namespace.clone();
                names.into_iter().map(move |name| Named { namespace: namespace.clone(), name })
            };
            repair.images.extend(named(affected.images));
            repair.snapshots.extend(named(affected.snapshots));
            repair.containers.extend(named(affected.containers));
        }
        repair
    }
}

/// One repair for people.
fn text(repair: &Repair) -> String {
    let title = format!("{} {}", repair.kind, repair.subject);
    let mut lines = vec![format!("{}  {}", Tone::Title.paint(title), Tone::Bad.paint(&repair.detail))];
    let mut line = |what: &str, names: Vec<String>| {
        for (at, name) in names.into_iter().enumerate() {
            lines.push(format!("  {:<12} {name}", if at == 0 { what } else { "" }));
        }
    };
    let called = |named: &[Named]| named.iter().map(|n| format!("{} (namespace {})", n.name, n.namespace)).collect();
    line("images", called(&repair.images));
    line("snapshots", called(&repair.snapshots));
    line("containers", called(&repair.containers));
    line("set aside", repair.quarantine.iter().map(|entry| format!("quarantine/{entry}")).collect());
    match repair.outcome {
        "mended" => line("mended", repair.from.iter().map(|from| format!("from {from}")).collect()),
        "planned" if repair.kind == "snapshot" => match repair.sources.as_slice() {
            [] => line("would unpack", vec!["nothing: no layer is here that it was unpacked from".to_owned()]),
            layers => line("would unpack", layers.to_vec()),
        },
        "planned" if repair.sources.is_empty() => {
            line("would ask", vec!["nobody: no registry is known that had it".to_owned()]);
        }
        "planned" => line("would ask", repair.sources.clone()),
        _ => {
            line("left", repair.reason.iter().cloned().collect());
            line("what to do", repair.fix.iter().cloned().collect());
        }
    }
    lines.push(String::new());
    lines.join("\n") + "\n"
}
