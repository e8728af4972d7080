//! What the looking commands share: the store as one model, what a text means in it, and words for what is there.
//!
//! Everything here works on any containerd. What only Orlop's own store knows (who wrote a record) is asked over `orlop.v1`
//! where there is one; elsewhere it is inferred from labels, and said to be.

mod beside;
pub(crate) mod disk;
pub(crate) mod facts;
pub(crate) mod groups;
pub(crate) mod parts;
pub(crate) mod paths;
pub(crate) mod removal;
pub(crate) mod rows;
mod source;
pub(crate) mod words;

use std::collections::HashSet;
use std::mem::ManuallyDrop;

use orlop_graph::model::{Found, Inventory, Matched, Model, NodeId, SHORTEST, SnapshotRow};

pub(crate) use source::Source;

use crate::commands::Context;
use crate::error::{Class, CliError, Result};
use crate::paint::plain;

/// How many names are proposed to who has mistyped one.
const PROPOSED: usize = 5;

/// A store that was read: whole, unless [`Look::around`] made it.
pub(crate) struct Look {
    pub(crate) reader: Source,
    pub(crate) model: Model,
    /// Whether it has only what surrounds one thing.
    pub(crate) is_part: bool,
}

impl Look {
    /// Reads all lists; `measured` says whether snapshots are asked what they take.
    pub(crate) async fn at(context: &Context, measured: Measured) -> Result<Self> {
        let (reader, inventory) = Source::read(context, measured).await?;
        say_gaps(context, &inventory);
        say_where_it_is_not(context, &inventory);
        let asked = match &reader {
            Source::Api(api, _) if measured == Measured::All => Some(tokio::spawn(api.usage(&inventory, |_| true))),
            _ => None,
        };
        // While the store answers.
        let mut model = Model::new(inventory);
        if let Some(asked) = asked {
            let failed = |e| CliError::new(Class::Failed, format!("ask snapshots what they take: {e}"));
            model.take_usage(asked.await.map_err(failed)??);
        }
        Ok(Self { reader, model, is_part: false })
    }

    /// Reads of Orlop's own store what concerns one thing, and of any other, or if there is no such thing, everything.
    pub(crate) async fn around(context: &Context, text: &str) -> Result<Self> {
        if let Some((reader, inventory)) = Source::around(context, text).await? {
            say_gaps(context, &inventory);
            let model = Model::new(inventory);
            if !model.find(text).is_empty() {
                return Ok(Self { reader, model, is_part: true });
            }
        }
        Self::at(context, Measured::None).await
    }

    /// Reads what a list of images shows. With more snapshots than `most` there are none in it, and false is told.
    pub(crate) async fn listing(context: &Context, most: usize) -> Result<(Self, bool)> {
        let (reader, inventory, all_snapshots) = Source::listing(context, most).await?;
        say_gaps(context, &inventory);
        say_where_it_is_not(context, &inventory);
        Ok((Self { reader, model: Model::new(inventory), is_part: false }, all_snapshots))
    }

    /// The same for a command that answers and ends: nobody needs the memory, and freeing hundreds of thousands of rows takes a
    /// tenth of the time that reading them did.
    pub(crate) fn for_the_rest_of_the_process(self) -> ManuallyDrop<Self> {
        ManuallyDrop::new(self)
    }

    /// The same, of some snapshots only: those that `wanted` takes, once everything else is known.
    pub(crate) async fn measured(mut self, wanted: impl Fn(&Model) -> Vec<NodeId>) -> Result<Self> {
        let places: HashSet<_> =
            wanted(&self.model).into_iter().filter_map(|node| words::place(&self.model, node)).collect();
        let named = |s: &SnapshotRow| {
            s.usage.is_none() && places.contains(&(s.namespace, s.snapshotter.clone(), s.key.clone()))
        };
        let measured = self.reader.usage(self.model.inventory(), named).await?;
        self.model.take_usage(measured);
        Ok(self)
    }
}

/// Whether snapshots are asked what they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measured {
    /// None, or not yet.
    None,
    /// All.
    All,
}

/// Says what could not be read: an answer without it may be wrong.
fn say_gaps(context: &Context, inventory: &Inventory) {
    for gap in &inventory.gaps {
        context.say(format!("unknown: {}: {}", gap.what, gap.why));
    }
}

/// Says that the namespace of the call is none of another store's: an empty list would be taken for an answer.
fn say_where_it_is_not(context: &Context, inventory: &Inventory) {
    let mut names: Vec<_> = inventory.namespaces.iter().map(|namespace| plain(&namespace.name)).collect();
    if context.store.is_own() || names.is_empty() || names.contains(&context.store.namespace.as_str().into()) {
        return;
    }
    let more = names.len().saturating_sub(PROPOSED);
    names.truncate(PROPOSED);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    context.say(format!("there is no namespace {:?} here, but {}{rest}", context.store.namespace, names.join(", ")));
}

/// What a text means: in the namespace of the call if it means something there, else anywhere.
pub(crate) fn find(model: &Model, text: &str, namespace: &str) -> Result<Vec<Found>> {
    if text.trim().is_empty() {
        return Err(CliError::new(Class::Usage, "the name is empty: expected a name, a digest or a key"));
    }
    let mut found = model.find(text);
    let here = |f: &Found| model.namespace(model.node(f.node).namespace()) == namespace;
    if found.iter().any(here) {
        found.retain(here);
    }
    if found.is_empty() {
        return Err(not_found(model, text));
    }
    // Of one name there may be several things: an image ID is a record and a config.
    let mut names: Vec<String> = found.iter().map(|f| words::shown(model, f.node)).collect();
    names.dedup();
    if found[0].matched == Matched::Prefix && names.iter().any(|name| *name != names[0]) {
        let more = names.len().saturating_sub(PROPOSED);
        names.truncate(PROPOSED);
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        let message = format!("{text:?} is the beginning of several: {}{rest}", names.join(", "));
        return Err(CliError::new(Class::Conflict, message).hint("give more of it"));
    }
    Ok(found)
}

fn not_found(model: &Model, text: &str) -> CliError {
    let begins = if text.len() < SHORTEST {
        "; the beginning of a name counts from four characters on"
    } else {
        ", or begins so"
    };
    let error = CliError::new(Class::NotFound, format!("nothing in this store is called {text:?}{begins}"));
    let part = text.rsplit('/').next().unwrap_or(text);
    let part = part.split([':', '@']).next().filter(|part| part.len() > 2).unwrap_or(text);
    let is_digest = part == "sha256" || (part.len() > 3 && part.bytes().all(|b| b.is_ascii_hexdigit()));
    let mut near = if is_digest { Vec::new() } else { model.records_with(part) };
    near.retain(|name| !name.starts_with("sha256:"));
    near.truncate(PROPOSED);
    if near.is_empty() {
        return error.hint("`orlop images --all -A` lists the records of all namespaces");
    }
    let near: Vec<_> = near.iter().map(|name| plain(name)).collect();
    error.hint(format!("there is {}", near.join(", ")))
}
