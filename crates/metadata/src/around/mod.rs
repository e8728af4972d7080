//! What surrounds a thing: all that must be known to say what it is, who keeps it, and what its removal would do.
//!
//! Let M be everything that a text may mean, and the records of the same images. What M leads to, in whatever namespace
//! there is a copy of it, is D; what leads to anything of D is U; the surroundings are U and all that U leads to. So
//! whoever looks at the surroundings alone sees of each thing of D all that keeps it and all that it keeps, and of each
//! thing of U all that it keeps, as one who looks at the whole store does. Of the rest he sees nothing.
//!
//! # Invariants
//! - One snapshot of the database answers all.
//! - An edge that is there only at times ([`crate::conditions`]) counts as one: who looks judges it.
//! - The cost follows the surroundings, not the store; of a text that may be a diff ID, the labels of all blobs are read.

mod seeds;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use orlop_oci::{ImageId, Reference};
use rusqlite::{Connection, OptionalExtension, params};

use crate::edges::{CONTAINERS, CONTENT, IMAGES, INGESTS};
use crate::gc::{Node, driver_of};
use crate::kin::names_leading_to;
use crate::{Result, Store, labels};

/// The kind of leases, of which no edge tells.
const LEASES: &str = "leases";

/// Label of a manifest: its config.
const CONFIG: &str = "containerd.io/gc.ref.content.config";

const NAMESPACES: &str = "SELECT name FROM namespace";

/// What is near a thing in one namespace: names of what is there, or was a moment ago.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Image records.
    pub images: BTreeSet<String>,
    /// Digests of blobs.
    pub blobs: BTreeSet<String>,
    /// Driver and key of snapshots.
    pub snapshots: BTreeSet<(String, String)>,
    /// IDs of leases.
    pub leases: BTreeSet<String>,
    /// References of writes in progress.
    pub ingests: BTreeSet<String>,
    /// IDs of containers.
    pub containers: BTreeSet<String>,
}

impl Store {
    /// By namespace, the surroundings of everything that `text` may mean: a name, whole or for short, a digest, an ID, a key,
    /// or the beginning of one. Nothing if there is no such thing; `None` if they have more than `most` things. Blocks.
    pub fn surroundings(&self, text: &str, most: usize) -> Result<Option<BTreeMap<String, Surroundings>>> {
        self.read(|conn| {
            let mut meant = seeds::meant(conn, text)?;
            meant.extend(images_of(conn, &meant)?);
            let Some(family) = family(conn, &meant, most)? else { return Ok(None) };
            meant.extend(family);
            let Some(of) = below_with_copies(conn, meant, most)? else { return Ok(None) };
            let Some(with) = closure(of, most, |node| above(conn, node))? else { return Ok(None) };
            Ok(closure(with, most, |node| below(conn, node))?.map(by_namespace))
        })
    }
}

fn by_namespace(nodes: HashSet<Node>) -> BTreeMap<String, Surroundings> {
    let mut found: BTreeMap<String, Surroundings> = BTreeMap::new();
    for Node { namespace, kind, name } in nodes {
        let here = found.entry(namespace).or_default();
        match kind.as_str() {
            IMAGES => drop(here.images.insert(name)),
            CONTENT => drop(here.blobs.insert(name)),
            LEASES => drop(here.leases.insert(name)),
            INGESTS => drop(here.ingests.insert(name)),
            CONTAINERS => drop(here.containers.insert(name)),
            kind => here.snapshots.extend(driver_of(kind).map(|driver| (driver.to_owned(), name))),
        }
    }
    found
}

/// All that one comes to from `first` by steps; `None` if that is too much.
fn closure<I>(
    first: HashSet<Node>,
    most: usize,
    mut step: impl FnMut(&Node) -> Result<I>,
) -> Result<Option<HashSet<Node>>>
where
    I: IntoIterator<Item = Node>,
{
    let mut open: Vec<Node> = first.iter().cloned().collect();
    let mut seen = first;
    while let Some(node) = open.pop() {
        if seen.len() > most {
            return Ok(None);
        }
        for next in step(&node)? {
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    Ok(Some(seen))
}

/// What the nodes lead to, and the same bytes in other namespaces, or the want of them there, with what these lead to.
fn below_with_copies(conn: &Connection, nodes: HashSet<Node>, most: usize) -> Result<Option<HashSet<Node>>> {
    let namespaces = seeds::texts(conn, NAMESPACES, &[])?;
    closure(nodes, most, |node| {
        let mut next = below(conn, node)?;
        if node.kind == CONTENT {
            next.extend(namespaces.iter().map(|namespace| Node::new(namespace, CONTENT, &node.name)));
        }
        Ok(next)
    })
}

/// What a node leads to.
fn below(conn: &Connection, node: &Node) -> Result<Vec<Node>> {
    let mut query = conn.prepare_cached(
        "SELECT to_kind, to_name FROM edge WHERE namespace = ?1 AND from_kind = ?2 AND from_name = ?3
         UNION ALL
         SELECT to_kind, to_name FROM condition WHERE namespace = ?1 AND from_kind = ?2 AND from_name = ?3
         UNION ALL
         SELECT kind, name FROM lease_resource WHERE ?2 = 'leases' AND namespace = ?1 AND lease = ?3",
    )?;
    neighbours(&mut query, node)
}

/// What leads to a node.
fn above(conn: &Connection, node: &Node) -> Result<Vec<Node>> {
    let mut query = conn.prepare_cached(
        "SELECT from_kind, from_name FROM edge WHERE namespace = ?1 AND to_kind = ?2 AND to_name = ?3
         UNION ALL
         SELECT from_kind, from_name FROM condition WHERE namespace = ?1 AND to_kind = ?2 AND to_name = ?3
         UNION ALL
         SELECT 'leases', lease FROM lease_resource WHERE namespace = ?1 AND kind = ?2 AND name = ?3",
    )?;
    neighbours(&mut query, node)
}

fn neighbours(query: &mut rusqlite::Statement<'_>, node: &Node) -> Result<Vec<Node>> {
    let rows = query.query_map([&node.namespace, &node.kind, &node.name], |row| {
        Ok(Node { namespace: node.namespace.clone(), kind: row.get(0)?, name: row.get(1)? })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The records that the containers among some nodes were made by.
fn images_of(conn: &Connection, nodes: &HashSet<Node>) -> Result<Vec<Node>> {
    let mut images = Vec::new();
    for node in nodes.iter().filter(|node| node.kind == CONTAINERS) {
        let sql = "SELECT image FROM container WHERE namespace = ?1 AND id = ?2";
        let names = seeds::texts(conn, sql, &[&node.namespace, &node.name])?;
        images.extend(names.iter().map(|name| Node::new(&node.namespace, IMAGES, name)));
    }
    Ok(images)
}

/// The records that name the same images as the records among some nodes, in all namespaces, and containers that were made
/// by one of their names; `None` if one of the images has too many parts.
fn family(conn: &Connection, nodes: &HashSet<Node>, most: usize) -> Result<Option<HashSet<Node>>> {
    let mut digests: BTreeSet<String> = BTreeSet::new();
    for record in nodes.iter().filter(|node| node.kind == IMAGES) {
        let Some(found) = identities(conn, record, most)? else { return Ok(None) };
        digests.extend(found);
    }
    let mut family: HashSet<Node> = nodes.iter().filter(|node| node.kind == IMAGES).cloned().collect();
    for namespace in seeds::texts(conn, NAMESPACES, &[])? {
        let names = names_leading_to(conn, &namespace, digests.clone())?;
        // An ID record may point at an image that says nothing of its config.
        family.extend(names.iter().chain(&digests).map(|name| Node::new(&namespace, IMAGES, name)));
    }
    let mut made = HashSet::new();
    for record in &family {
        let ids = seeds::texts(
            conn,
            "SELECT id FROM container WHERE namespace = ?1 AND image = ?2",
            &[&record.namespace, &record.name],
        )?;
        made.extend(ids.into_iter().map(|id| Node::new(&record.namespace, CONTAINERS, &id)));
    }
    family.extend(made);
    Ok(Some(family))
}

/// What makes two records names of one image: the target, and the configs that the name, other names of the target and the
/// labels of what it leads to tell of; `None` if that is too much.
fn identities(conn: &Connection, record: &Node, most: usize) -> Result<Option<BTreeSet<String>>> {
    let id = |name: &str| match name.parse() {
        Ok(Reference::Id(id)) => Some(ImageId::digest(&id).to_string()),
        _ => None,
    };
    let mut digests: BTreeSet<String> = id(&record.name).into_iter().collect();
    let mut query = conn.prepare_cached("SELECT digest FROM image WHERE namespace = ?1 AND name = ?2")?;
    let target: Option<String> = query.query_row([&record.namespace, &record.name], |row| row.get(0)).optional()?;
    let Some(target) = target else { return Ok(Some(digests)) };
    let beside = seeds::texts(
        conn,
        "SELECT name FROM image INDEXED BY image_target WHERE namespace = ?1 AND digest = ?2",
        &[&record.namespace, &target],
    )?;
    digests.extend(beside.iter().filter_map(|name| id(name)));
    let documents = closure(HashSet::from([Node::new(&record.namespace, CONTENT, &target)]), most, |node| {
        Ok(below(conn, node)?.into_iter().filter(|next| next.kind == CONTENT))
    })?;
    let Some(documents) = documents else { return Ok(None) };
    let mut query = conn.prepare_cached("SELECT labels FROM blob WHERE namespace = ?1 AND digest = ?2")?;
    for document in documents {
        let labels =
            query.query_row(params![document.namespace, document.name], |row| labels::column(row, 0)).optional()?;
        digests.extend(labels.and_then(|mut labels| labels.remove(CONFIG)));
    }
    digests.insert(target);
    Ok(Some(digests))
}
