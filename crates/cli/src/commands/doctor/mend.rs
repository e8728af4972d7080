//! Mending by a plan: what would be done, as one list with one hash; then exactly that.
//!
//! # Order
//! What is written comes first, then records go (hash references before names, as `rm` does), leases, snapshots with what lies
//! on others first, writes, blobs. The store's own collection comes last and takes what only these kept: nothing is deleted
//! here that something else keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use orlop_api::containerd::services::{content, images, leases, snapshots};
use orlop_api::containerd::types::Descriptor;
use orlop_graph::model::{Class, Finding, MANAGED, Mend, Model, Node, NodeId, PINNED};
use orlop_oci::Digest;
use serde::Serialize;

use super::{Args, Examined, words};
use crate::args::Format;
use crate::client::Clients;
use crate::commands::{Context, rm};
use crate::error::{Class as Failure, CliError, Result};
use crate::look::words::{abbreviated, name};
use crate::look::{Look, Measured, Source};
use crate::output::{self, count, size};

/// What `--fix` does.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Plan {
    /// What it is about, as one digest.
    plan: String,
    /// What the store gives back.
    frees: u64,
    steps: Vec<Step>,
    /// Problems that it leaves.
    left: Vec<Left>,
    /// What came out differently; absent until it was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    differences: Option<Vec<String>>,
}

impl Plan {
    /// Prints what its steps are about; a collection is about nothing with a name.
    fn print_names(&self) -> Result<()> {
        output::names(self.steps.iter().map(|step| step.name.as_str()).filter(|name| !name.is_empty()))
    }
}

/// Problems that a plan leaves, and why.
#[derive(Debug, Serialize)]
struct Left {
    class: &'static str,
    problems: u64,
    because: &'static str,
}

/// What a step does; in the order in which it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Act {
    WriteRecord,
    RemoveRecord,
    RemoveLease,
    RemoveSnapshot,
    AbortWrite,
    RemoveBlob,
    Collect,
}

impl Act {
    /// Whether it takes something away, which the collection follows.
    fn removes(self) -> bool {
        (Self::RemoveRecord..=Self::RemoveBlob).contains(&self)
    }

    const fn words(self) -> &'static str {
        match self {
            Self::WriteRecord => "write record",
            Self::RemoveRecord => "remove record",
            Self::RemoveLease => "remove lease",
            Self::RemoveSnapshot => "remove snapshot",
            Self::AbortWrite => "abort write",
            Self::RemoveBlob => "remove blob",
            Self::Collect => "collect garbage",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    act: Act,
    class: &'static str,
    namespace: String,
    /// What it is done to.
    name: String,
    /// Where a record points, or who has a snapshot.
    #[serde(skip_serializing_if = "String::is_empty")]
    of: String,
    /// The node itself, or the one that a new record is to be like.
    #[serde(skip)]
    node: NodeId,
}

/// Shows the plan, or executes it.
pub(super) async fn run(context: &Context, args: &Args, examined: Examined) -> Result<ExitCode> {
    let model = &examined.look.model;
    if matches!(examined.look.reader, Source::Files(..)) {
        return Err(CliError::new(Failure::Usage, "--fix needs a server: these are only a store's files"));
    }
    if let Some(gap) = model.inventory().gaps.first() {
        return Err(rm::incomplete(gap));
    }
    let mut plan = plan(args, &examined);
    let Some(hash) = &args.execute else {
        if output::is_document(context.global.output) {
            output::document(context.global.output, &super::document(context, &examined, Some(plan)))?;
        } else if context.global.output == Format::Name {
            plan.print_names()?;
        } else {
            output::print_text(&shown(args, &plan))?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    if *hash != plan.plan {
        let message = format!("the plan has changed: now it is {}", plan.plan);
        return Err(CliError::new(Failure::Conflict, message).hint("look at it again: orlop doctor --fix …"));
    }
    let before = rm::FreeSpace::now(context);
    execute(context, model, &plan.steps).await?;
    let freed = before.given_back(context);
    let after = Look::at(context, Measured::None).await?;
    plan.differences = Some(differences(model, &plan, &after.model));
    if output::is_document(context.global.output) {
        output::document(context.global.output, &super::document(context, &examined, Some(plan)))?;
        return Ok(ExitCode::SUCCESS);
    }
    if context.global.output == Format::Name {
        plan.print_names()?;
    } else {
        output::print_text(&plan.steps.iter().map(line).collect::<String>())?;
    }
    plan.differences.iter().flatten().for_each(|difference| context.say(difference));
    context.say(match freed {
        Some(freed) => format!("planned were {}, the file system has got back {}", size(plan.frees), size(freed)),
        None => format!("{} given back", size(plan.frees)),
    });
    Ok(ExitCode::SUCCESS)
}

async fn execute(context: &Context, model: &Model, steps: &[Step]) -> Result<()> {
    for (at, step) in steps.iter().enumerate() {
        done(context, model, step).await.map_err(|failed| {
            let (what, all) = (step.act.words(), steps.len());
            let message = format!("{what} {}: {}; {at} of {all} steps are done", step.name, failed.message);
            CliError { message, ..failed }
        })?;
    }
    Ok(())
}

/// Whether a finding is mended: its class is safe, or was named, and mending it is in the store's power.
fn is_mended(args: &Args, finding: &Finding) -> bool {
    let is_wanted = if args.classes.is_empty() { finding.class.is_safe() } else { args.is_named(finding.class) };
    is_wanted && !matches!(finding.mend, Mend::Fetch | Mend::Label)
}

fn plan(args: &Args, examined: &Examined) -> Plan {
    let model = &examined.look.model;
    let all = examined.found.iter().map(|found| &found.finding);
    let (mended, rest): (Vec<&Finding>, Vec<&Finding>) = all.partition(|finding| is_mended(args, finding));
    let mut steps: Vec<Step> = Vec::new();
    for step in mended.iter().flat_map(|finding| steps_of(model, finding)) {
        if !steps.iter().any(|known| (known.act, known.node, &known.name) == (step.act, step.node, &step.name)) {
            steps.push(step);
        }
    }
    // Of one kind the order stays: snapshots are listed with what lies on others first.
    steps.sort_by_key(|step| (step.act, step.act == Act::RemoveRecord && is_name(model, step.node)));
    let removed: Vec<NodeId> = steps.iter().filter(|step| step.act.removes()).map(|step| step.node).collect();
    if let Some(last) = steps.last().filter(|step| step.act.removes()) {
        steps.push(Step { act: Act::Collect, name: String::new(), of: String::new(), ..last.clone() });
    }
    let garbage: u64 = mended.iter().filter(|f| f.mend == Mend::Collect).map(|f| f.frees.bytes()).sum();
    Plan {
        plan: hash(&steps).to_string(),
        frees: model.cost(&removed).alone.bytes() + garbage,
        left: left(&rest),
        steps,
        differences: None,
    }
}

/// What a plan leaves, by class.
fn left(rest: &[&Finding]) -> Vec<Left> {
    let mut counts: BTreeMap<Class, u64> = BTreeMap::new();
    for finding in rest {
        *counts.entry(finding.class).or_default() += 1;
    }
    let row = |(class, problems): (Class, u64)| Left {
        class: class.as_str(),
        problems,
        because: words::caution(class).unwrap_or("its class was not named"),
    };
    counts.into_iter().map(row).collect()
}

fn is_name(model: &Model, node: NodeId) -> bool {
    matches!(model.node(node), Node::Record(_)) && !model.record_kind(node).is_hash_reference()
}

/// The steps that mend one finding.
fn steps_of(model: &Model, finding: &Finding) -> Vec<Step> {
    let class = finding.class.as_str();
    let namespace = |node: NodeId| model.namespace(model.node(node).namespace()).to_owned();
    let step =
        |act, node: NodeId, name: String, of: String| Step { act, class, namespace: namespace(node), name, of, node };
    let target = |node: NodeId| match model.node(node) {
        Node::Record(row) => row.target.to_string(),
        Node::Snapshot(row) => row.snapshotter.to_string(),
        _ => String::new(),
    };
    match &finding.mend {
        Mend::Remove(nodes) => nodes
            .iter()
            .filter_map(|node| {
                let act = match model.node(*node) {
                    Node::Record(_) => Act::RemoveRecord,
                    Node::Lease(_) => Act::RemoveLease,
                    Node::Snapshot(_) => Act::RemoveSnapshot,
                    Node::Ingest(_) => Act::AbortWrite,
                    Node::Blob(_) => Act::RemoveBlob,
                    Node::Container(_) | Node::Missing(_) => return None,
                };
                Some(step(act, *node, name(model, *node), target(*node)))
            })
            .collect(),
        Mend::Write { name, like } => vec![step(Act::WriteRecord, *like, name.clone(), target(*like))],
        Mend::Collect => vec![step(Act::Collect, finding.subject, String::new(), String::new())],
        _ => Vec::new(),
    }
}

/// What the plan is about, as one digest. What a collection takes is not part of it: that may go at any time.
fn hash(steps: &[Step]) -> Digest {
    let lines: BTreeSet<String> =
        steps.iter().map(|s| format!("{} {:?} {:?} {:?}\n", s.act.words(), s.namespace, s.name, s.of)).collect();
    Digest::of(lines.into_iter().collect::<String>().as_bytes())
}

fn shown(args: &Args, plan: &Plan) -> String {
    let mut text = format!("Plan {}\n\n", plan.plan);
    if plan.steps.is_empty() {
        text.push_str("Nothing to do\n");
    }
    text.extend(plan.steps.iter().map(line));
    if !plan.left.is_empty() {
        text.push_str("\nLeft alone\n");
    }
    for left in &plan.left {
        text.push_str(&format!("  {}: {}: {}\n", left.class, count(left.problems, "problem"), left.because));
    }
    if !plan.steps.is_empty() {
        let deep = if args.deep { " --deep" } else { "" };
        let class =
            if args.classes.is_empty() { String::new() } else { format!(" --class {}", args.classes.join(",")) };
        text.push_str(&format!("\nGives back {}\nNothing was changed. ", size(plan.frees)));
        text.push_str(&format!("To do exactly this: orlop doctor{deep} --fix{class} --execute {}\n", plan.plan));
    }
    text
}

fn line(step: &Step) -> String {
    let name = abbreviated(&step.name);
    let name = if name.is_empty() { String::new() } else { format!(" {name}") };
    format!("  {}{name}  ({}, namespace {})\n", step.act.words(), step.class, step.namespace)
}

/// What was to be and is not, and what was to stay and has gone.
fn differences(before: &Model, plan: &Plan, after: &Model) -> Vec<String> {
    let there = |model: &Model, node: NodeId| {
        (model.kind(node), model.namespace(model.node(node).namespace()).to_owned(), name(model, node))
    };
    let is_listed = |node: &NodeId| !matches!(after.node(*node), Node::Missing(_));
    let kinds = [
        orlop_graph::model::NodeKind::Record,
        orlop_graph::model::NodeKind::Blob,
        orlop_graph::model::NodeKind::Snapshot,
        orlop_graph::model::NodeKind::Lease,
        orlop_graph::model::NodeKind::Ingest,
    ];
    let now: BTreeSet<_> =
        kinds.iter().flat_map(|kind| after.nodes(*kind)).filter(is_listed).map(|node| there(after, node)).collect();
    let removed: Vec<NodeId> = plan.steps.iter().filter(|step| step.act.removes()).map(|step| step.node).collect();
    let mut lines: Vec<String> = removed
        .iter()
        .filter(|node| now.contains(&there(before, **node)))
        .map(|node| format!("{} is there again: somebody has made it anew", name(before, *node)))
        .collect();
    let stays = before.kept_without(&removed);
    let lost = kinds[..3].iter().flat_map(|kind| before.nodes(*kind)).filter(|node| stays.contains(*node));
    lines.extend(
        lost.filter(|node| !now.contains(&there(before, *node)))
            .map(|node| format!("{} has gone meanwhile, and not by this plan", name(before, node))),
    );
    lines
}

/// Does one step. What is done already is what was wanted.
async fn done(context: &Context, model: &Model, step: &Step) -> Result<()> {
    let clients = context.clients.in_namespace(&step.namespace)?;
    let answer = match step.act {
        Act::WriteRecord => write(&clients, model, step).await,
        Act::RemoveRecord => {
            let target = descriptor(model, step.node);
            let request = images::v1::DeleteImageRequest { name: step.name.clone(), sync: false, target };
            clients.images().delete(request).await.map(drop)
        }
        Act::RemoveLease => {
            let request = leases::v1::DeleteRequest { id: step.name.clone(), sync: false };
            clients.leases().delete(request).await.map(drop)
        }
        Act::RemoveSnapshot => {
            let request = snapshots::v1::RemoveSnapshotRequest { snapshotter: step.of.clone(), key: step.name.clone() };
            clients.snapshots().remove(request).await.map(drop)
        }
        Act::AbortWrite => {
            clients.content().abort(content::v1::AbortRequest { r#ref: step.name.clone() }).await.map(drop)
        }
        Act::RemoveBlob => {
            let request = content::v1::DeleteContentRequest { digest: step.name.clone() };
            clients.content().delete(request).await.map(drop)
        }
        Act::Collect => collect(&clients).await,
    };
    match answer {
        Ok(()) => Ok(()),
        Err(status) if is_done(step.act, status.code()) => Ok(()),
        Err(status) => Err(status.into()),
    }
}

fn is_done(act: Act, code: tonic::Code) -> bool {
    match act {
        Act::WriteRecord => code == tonic::Code::AlreadyExists,
        Act::Collect => false,
        _ => code == tonic::Code::NotFound,
    }
}

fn descriptor(model: &Model, record: NodeId) -> Option<Descriptor> {
    let Node::Record(row) = model.node(record) else { return None };
    Some(Descriptor {
        media_type: row.media_type.to_string(),
        digest: row.target.to_string(),
        size: row.size as i64,
        ..Descriptor::default()
    })
}

/// A record as CRI would have written it.
async fn write(clients: &Clients, model: &Model, step: &Step) -> Result<(), tonic::Status> {
    let mut labels = BTreeMap::from([(MANAGED.to_owned(), "managed".to_owned())]);
    if let Some(pinned) = model.labels(step.node).get(PINNED) {
        labels.insert(PINNED.to_owned(), pinned.to_owned());
    }
    let target = descriptor(model, step.node);
    let image = images::v1::Image { name: step.name.clone(), labels, target, ..Default::default() };
    let request = images::v1::CreateImageRequest { image: Some(image), source_date_epoch: None };
    clients.images().create(request).await.map(drop)
}

/// Has the store collect: it does when a lease is deleted and the call waits for it.
async fn collect(clients: &Clients) -> Result<(), tonic::Status> {
    let id = format!("orlop-doctor-{}", std::process::id());
    let request = leases::v1::CreateRequest { id: id.clone(), ..Default::default() };
    clients.leases().create(request).await?;
    clients.leases().delete(leases::v1::DeleteRequest { id, sync: true }).await.map(drop)
}
