//! `orlop prune`: images that nobody needs, by a policy. The policy selects ([`Model::selection`]); what is selected goes as by
//! `orlop rm`: by a plan with a hash, into the trash where there is one.
//!
//! # Invariants
//! - Nothing goes without `--execute HASH` or `--yes`.
//! - What a policy selects is selected anew from what the store lists now, and only if its plan has the hash it is executed.

mod document;
pub(super) mod read;
mod text;

use std::collections::BTreeMap;
use std::sync::Arc;

use document::Pruned;
use orlop_graph::model::{
    BlobRow, LabelRule, Labels, Model, NamespaceId, Node, NodeId, NodeKind, Pattern, Policy, Selection,
};
use orlop_lens::Documents;
use orlop_oci::Digest;
use serde::Deserialize;

use super::Context;
use super::rm::{self, FreeSpace, Plan};
use crate::args::Format;
use crate::client::pb;
use crate::error::{Class, CliError, Result};
use crate::look::Look;
use crate::look::words::name;
use crate::output;

/// Options of `prune`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Shows what would go; --execute HASH does exactly that, --yes whatever it is by then. Policies are joined by and. Never removed
is what a container uses, what is pinned, what a lease holds, and what no registry is known to have, but by --last-copies.

Examples:
  orlop prune                                     what no container uses
  orlop prune --unused-since 7d --execute sha256:…  exactly the plan that was shown
  orlop prune --keep-last 3 --repository 'r.example/**' --yes
  orlop prune --until-free 20% --yes              least recently used first, no more than needed")]
pub(crate) struct Args {
    /// Everything that no container uses, which is what there is without another policy
    #[arg(long, help_heading = "Policies")]
    unused: bool,
    /// What was not used for so long (7d, 36h), as far as records and snapshots tell
    #[arg(long, value_name = "DURATION", value_parser = read::age, help_heading = "Policies")]
    unused_since: Option<read::Age>,
    /// All but the newest N names of each repository, by when they were written
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Policies")]
    keep_last: Option<u32>,
    /// Images without a tag
    #[arg(long, help_heading = "Policies")]
    untagged: bool,
    /// Images with a label, theirs or their records': KEY, KEY=VALUE, !KEY, !KEY=VALUE; several: all of them
    #[arg(long = "label", value_name = "RULE", value_parser = read::rule, help_heading = "Policies")]
    labels: Vec<LabelRule>,
    /// Images of such repositories alone: * stands for a part of a path component, ** for any part; several: any of them
    #[arg(long = "repository", value_name = "PATTERN", value_parser = read::pattern, help_heading = "Policies")]
    repositories: Vec<Pattern>,
    /// As many as give back so much (5GiB), least recently used first
    #[arg(long, value_name = "SIZE", value_parser = read::size, help_heading = "Policies")]
    free: Option<u64>,
    /// As many as leave so much free on the store's file system (20GiB, 15%)
    #[arg(long, value_name = "SIZE", value_parser = read::share, conflicts_with = "free", help_heading = "Policies")]
    until_free: Option<read::Share>,
    /// Also what no registry is known to have: imported or built here
    #[arg(long, help_heading = "Policies")]
    last_copies: bool,
    /// Show the plan; change nothing. That is what it does anyway
    #[arg(long, conflicts_with_all = ["execute", "yes"])]
    plan: bool,
    /// Execute only if the plan still has this hash
    #[arg(long, value_name = "HASH", conflicts_with = "yes")]
    execute: Option<String>,
    /// Execute whatever the plan is now; needs a policy
    #[arg(short, long)]
    yes: bool,
    /// Give the space back at once; cannot be undone
    #[arg(long)]
    no_trash: bool,
}

impl Args {
    fn has_policy(&self) -> bool {
        self.unused
            || self.unused_since.is_some()
            || self.keep_last.is_some()
            || self.untagged
            || self.free.is_some()
            || self.until_free.is_some()
            || !self.labels.is_empty()
            || !self.repositories.is_empty()
    }

    fn changes(&self) -> bool {
        self.yes || self.execute.is_some()
    }

    /// The command line that shows this plan.
    fn command(&self) -> String {
        let mut words = vec!["orlop prune".to_owned()];
        let mut flag = |is_set: bool, word: &str| words.extend(is_set.then(|| word.to_owned()));
        flag(self.unused, "--unused");
        flag(self.untagged, "--untagged");
        flag(self.last_copies, "--last-copies");
        flag(self.no_trash, "--no-trash");
        words.extend(self.unused_since.iter().map(|age| format!("--unused-since {}", read::quoted(&age.text))));
        words.extend(self.keep_last.map(|last| format!("--keep-last {last}")));
        words.extend(self.labels.iter().map(|rule| format!("--label {}", read::quoted(&read::written(rule)))));
        words.extend(self.repositories.iter().map(|p| format!("--repository {}", read::quoted(p.as_str()))));
        words.extend(self.free.map(|bytes| format!("--free {bytes}B")));
        words.extend(self.until_free.map(|share| format!("--until-free {share}")));
        words.join(" ")
    }

    /// The policy of a namespace without the number of bytes.
    fn policy(&self, context: &Context, model: &Model) -> Option<Policy> {
        let namespaces = &model.inventory().namespaces;
        let namespace = namespaces.iter().position(|row| *row.name == *context.store.namespace)?;
        Some(Policy {
            namespace: NamespaceId::try_from(namespace).ok()?,
            unused_since: self.unused_since.as_ref().map(|age| age.duration),
            keep_last: self.keep_last.map(|last| last as usize),
            repositories: self.repositories.clone(),
            labels: self.labels.clone(),
            untagged: self.untagged,
            last_copies: self.last_copies,
            free: None,
            // Orlop's own plans count bytes as they are.
            block: if context.store.is_own() { 1 } else { rm::block_size(context) },
        })
    }
}

/// Runs `prune`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    if args.yes && !args.has_policy() {
        let error = CliError::new(Class::Usage, "--yes needs a policy: what is to go?");
        return Err(error.hint("--unused takes everything that no container uses; `orlop prune --help` has the others"));
    }
    let look = rm::read(context).await?;
    let (look, selection, wanted) = select(context, args, look).await?;
    let mut pruned = Pruned::of(context, args, &look.model, &selection, wanted);
    pruned.plan = match selection.chosen.is_empty() {
        true => nothing(args)?,
        false if context.store.is_own() => own(context, args, &look.model, &selection).await?,
        false => foreign(context, args, look, &selection).await?,
    };
    pruned.plan.schema = "orlop.prune/v1";
    show(context, args, &pruned)
}

/// What the policy takes of what is there, and how many bytes were asked for.
async fn select(context: &Context, args: &Args, look: Look) -> Result<(Look, Selection, Option<u64>)> {
    let Some(mut policy) = args.policy(context, &look.model) else { return Ok((look, Selection::default(), None)) };
    let labels = match policy.labels.is_empty() {
        true => BTreeMap::new(),
        false => labels_of_images(&look, policy.namespace).await?,
    };
    let all = records(&look.model.selection(&policy, &labels));
    let look = look.measured(|model| model.removal(&all).snapshots).await?;
    policy.free = wanted(context, args).await?;
    let selection = look.model.selection(&policy, &labels);
    Ok((look, selection, policy.free))
}

/// All records of what was chosen.
fn records(selection: &Selection) -> Vec<NodeId> {
    selection.chosen.iter().flat_map(|chosen| chosen.image.records.iter().copied()).collect()
}

/// The labels of a namespace's images, by config; of one that cannot be read there are none.
async fn labels_of_images(look: &Look, namespace: NamespaceId) -> Result<BTreeMap<NodeId, Labels>> {
    #[derive(Deserialize)]
    struct Document {
        config: Option<Config>,
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(rename = "Labels")]
        labels: Option<BTreeMap<String, String>>,
    }
    let model = &look.model;
    let is_here = |node: &NodeId| model.node(*node).namespace() == namespace;
    let records: Vec<NodeId> = model.nodes(NodeKind::Record).filter(is_here).collect();
    let row = |config: NodeId| match model.node(config) {
        Node::Blob(row) => Some((config, row)),
        _ => None,
    };
    let configs: Vec<_> = model.configs(&records).into_iter().filter_map(row).collect();
    let wanted = configs.iter().map(|(_, row)| (Arc::from(model.namespace(namespace)), row.digest.clone(), row.size));
    let mut documents = Documents::default();
    look.reader.documents(&mut documents, wanted.collect::<Vec<_>>()).await?;
    let labels = |(config, row): (NodeId, &BlobRow)| {
        let document: Document = serde_json::from_slice(documents.get(&row.digest)?).ok()?;
        let labels = document.config.and_then(|config| config.labels).unwrap_or_default();
        Some((config, labels.into_iter().collect()))
    };
    Ok(configs.into_iter().filter_map(labels).collect())
}

/// How many bytes are to be given back, if that was said.
async fn wanted(context: &Context, args: &Args) -> Result<Option<u64>> {
    let Some(share) = args.until_free else { return Ok(args.free) };
    let space = FreeSpace::now(context);
    let Some((available, of)) = space.available.zip(space.of) else {
        let error = CliError::new(Class::Unavailable, "the store's file system is not reached from here");
        return Err(error.hint("--free SIZE says how much is to be given back"));
    };
    // What rests in the trash gives way when space is needed: it is as good as free.
    let resting = if context.store.is_own() && !args.no_trash {
        let entries = context.clients.orlop().list_trash(pb::ListTrashRequest {}).await?.into_inner().entries;
        entries.iter().map(|entry| entry.bytes).sum()
    } else {
        0
    };
    Ok(Some(share.of(of).saturating_sub(available).saturating_sub(resting)))
}

/// The plan of nothing.
fn nothing(args: &Args) -> Result<Plan> {
    let plan = Digest::of(b"").to_string();
    match args.execute.as_ref().filter(|hash| **hash != plan) {
        None => Ok(Plan { plan, ..Plan::default() }),
        Some(_) => {
            let error = CliError::new(Class::Conflict, "the plan has changed: now nothing would go");
            Err(error.hint(format!("look at it again: {}", args.command())))
        }
    }
}

async fn own(context: &Context, args: &Args, model: &Model, selection: &Selection) -> Result<Plan> {
    let request = pb::RemoveRequest {
        names: records(selection).into_iter().map(|record| name(model, record)).collect(),
        plan: args.execute.clone().unwrap_or_default(),
        force: false,
        no_trash: args.no_trash,
        reason: args.command().trim_start_matches("orlop ").to_owned(),
    };
    if args.changes() { rm::execute_own(context, request).await } else { rm::plan_own(context, request).await }
}

async fn foreign(context: &Context, args: &Args, look: Look, selection: &Selection) -> Result<Plan> {
    let planned = rm::of_records(context, look, &records(selection)).await?;
    if !args.changes() {
        return Ok(planned.plan);
    }
    rm::execute(context, args.execute.as_deref(), &args.command(), planned).await
}

fn show(context: &Context, args: &Args, pruned: &Pruned) -> Result<()> {
    let format = context.global.output;
    if output::is_document(format) {
        return output::document(format, pruned);
    }
    if format == Format::Name {
        return output::names(pruned.plan.records.iter().map(String::as_str));
    }
    if pruned.chosen.is_empty() {
        return output::print_text(&text::nothing(context, args, pruned));
    }
    if args.changes() {
        output::names(pruned.plan.records.iter().map(String::as_str))?;
        pruned.plan.say_outcome(context);
        return Ok(());
    }
    output::print_text(&text::plan(context, args, pruned))
}
