//! Everything that is said of one thing.

use orlop_graph::model::{Model, Node, NodeId, NodeKind};
use serde::Serialize;

use super::deletion::Deletion;
use super::what::{self, Author};
use crate::commands::Context;
use crate::look::facts::{Costs, Keeper, Named, times};
use crate::look::words::called;

/// What is said of one thing.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Explanation {
    #[serde(flatten)]
    pub(crate) thing: Named,
    /// What it is, in a sentence.
    pub(crate) what: String,
    /// Why it is there, where a thing like this makes people ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) written_by: Option<Author>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) updated: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image_id: Option<String>,
    pub(crate) points_to: Vec<Named>,
    /// Other names of the same image, in all namespaces.
    pub(crate) other_names: Vec<Named>,
    /// Records of images that it is a part of.
    pub(crate) part_of: Vec<Named>,
    /// Containers made from it.
    pub(crate) used_by: Vec<Named>,
    /// The same in words.
    #[serde(skip)]
    pub(crate) users: Vec<String>,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trouble: Option<String>,
    pub(crate) kept_by: Vec<Keeper>,
    /// What it keeps, alone and with others.
    pub(crate) cost: Costs,
    /// What the whole image costs, of a record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image_cost: Option<Costs>,
    pub(crate) if_deleted: Deletion,
}

/// Records of the same image in the same namespace, itself included.
pub(crate) fn siblings(model: &Model, record: NodeId) -> Vec<NodeId> {
    let namespace = model.node(record).namespace();
    let mut family = model.family(record);
    family.retain(|other| model.node(*other).namespace() == namespace);
    family
}

/// The snapshots whose size is told.
pub(crate) fn of_interest(model: &Model, nodes: &[NodeId]) -> Vec<NodeId> {
    let mut from = nodes.to_vec();
    for node in nodes.iter().filter(|node| model.kind(**node) == NodeKind::Record) {
        from.extend(siblings(model, *node));
    }
    let reached = model.reached(&from);
    model.nodes(NodeKind::Snapshot).filter(|node| reached.contains(*node)).collect()
}

impl Explanation {
    pub(crate) fn of(context: &Context, model: &Model, node: NodeId, author: Option<Author>) -> Self {
        let named = |nodes: Vec<NodeId>| nodes.into_iter().map(|n| Named::of(model, n)).collect::<Vec<_>>();
        let is_record = model.kind(node) == NodeKind::Record;
        let family = if is_record { model.family(node) } else { Vec::new() };
        let siblings = if is_record { siblings(model, node) } else { Vec::new() };
        let (since, updated) = times(model, node);
        let chains = model.chains(node);
        let records = |chains: &[orlop_graph::model::Chain<'_>]| -> Vec<NodeId> {
            chains.iter().map(|c| c.root).filter(|root| model.kind(*root) == NodeKind::Record).collect()
        };
        let part_of = if is_record { Vec::new() } else { records(&chains) };
        let users = match model.kind(node) {
            NodeKind::Record => model.users(&siblings),
            NodeKind::Snapshot => {
                chains.iter().map(|c| c.root).filter(|r| model.kind(*r) == NodeKind::Container).collect()
            }
            _ => Vec::new(),
        };
        let (what, why) = what::of(context, model, node);
        Self {
            thing: Named::of(model, node),
            what,
            why,
            written_by: author,
            updated: updated.filter(|updated| Some(updated) != since.as_ref()),
            since,
            image_id: model.image_id(node).map(|id| id.to_string()),
            points_to: named(points_to(model, node)),
            other_names: named(family.into_iter().filter(|other| *other != node).collect()),
            part_of: named(part_of),
            users: users.iter().map(|user| called(model, *user)).collect(),
            trouble: is_record.then(|| super::what::trouble(model, node, &siblings, users.is_empty())).flatten(),
            used_by: named(users),
            kept_by: chains.iter().map(|chain| Keeper::of(model, chain)).collect(),
            cost: model.cost(&[node]).into(),
            image_cost: is_record.then(|| model.cost(&siblings).into()),
            if_deleted: Deletion::of(context, model, node, &siblings),
        }
    }
}

/// What a thing refers to itself; a manifest's many layers are summed up elsewhere.
fn points_to(model: &Model, node: NodeId) -> Vec<NodeId> {
    match model.node(node) {
        Node::Blob(_) if model.config(node).is_some() => model.config(node).into_iter().collect(),
        // Manifests of other platforms, which nobody has fetched, are nothing that it points to here.
        Node::Blob(_) => {
            let here = |node: &NodeId| model.kind(*node) != NodeKind::Missing;
            model.references(node).map(|edge| edge.node).filter(here).collect()
        }
        _ => model.references(node).map(|edge| edge.node).collect(),
    }
}
