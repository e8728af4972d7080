//! The oracle: everything is read, edges are derived from the objects themselves, and what no root reaches is garbage.
//!
//! Nothing is shared with the incremental way but the meaning of a label ([`Edges`]): no row of `edge`, `condition`, `used` or
//! `suspect` is looked at.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, Row};

use super::graph::hold;
use super::mark::{Found, Hold, Link, Node};
use crate::conditions::Condition;
use crate::edges::{self, CONTAINERS, CONTENT, Edges, IMAGES, INGESTS, MOUNTS};
use crate::{Labels, Result, labels};

#[derive(Default)]
struct World {
    objects: HashSet<Node>,
    links: HashMap<Node, Vec<Link>>,
    roots: Vec<(Node, Hold)>,
    /// Each with who states it.
    conditions: Vec<(Node, Condition)>,
    /// When snapshots were used.
    uses: HashMap<Node, Vec<i64>>,
}

/// Finds all garbage at `now`.
pub(super) fn garbage(conn: &Connection, now: i64) -> Result<Found> {
    let mut world = World::default();
    world.images(conn, now)?;
    world.blobs(conn)?;
    world.ingests(conn, now)?;
    world.snapshots(conn)?;
    world.containers(conn)?;
    world.mounts(conn)?;
    world.leases(conn, now)?;
    world.judge_conditions(now);
    let visited = world.objects.len() as u64 + world.links.values().map(|l| l.len() as u64).sum::<u64>();
    let reached = world.reach();
    let garbage = world.objects.iter().filter(|node| !reached.contains_key(node)).cloned().collect();
    Ok(Found { garbage, visited })
}

impl World {
    fn object(&mut self, node: Node, root: bool, labels: &Labels) {
        let stated = Edges::of_labels(&node.kind, labels);
        for (from, to) in stated.ends(&node) {
            self.links.entry(from).or_default().push(Link { to, label: true });
        }
        self.conditions.extend(stated.conditions.into_iter().map(|condition| (node.clone(), condition)));
        if !stated.uses.is_empty() {
            self.uses.insert(node.clone(), stated.uses.into_iter().collect());
        }
        if root {
            self.roots.push((node.clone(), Hold::Full));
        }
        self.objects.insert(node);
    }

    /// Makes edges of the conditions that hold.
    fn judge_conditions(&mut self, now: i64) {
        for (from, condition) in std::mem::take(&mut self.conditions) {
            let to = Node::new(&from.namespace, &condition.kind, &condition.name);
            if self.uses.get(&to).is_some_and(|uses| uses.iter().any(|&used| condition.holds(used, now))) {
                self.links.entry(from).or_default().push(Link { to, label: true });
            }
        }
    }

    fn link(&mut self, from: &Node, to: Node) {
        self.links.entry(from.clone()).or_default().push(Link { to, label: false });
    }

    fn images(&mut self, conn: &Connection, now: i64) -> Result<()> {
        each(conn, "SELECT namespace, name, digest, labels FROM image", |row| {
            let labels = labels::column(row, 3)?;
            let image = node(row, IMAGES)?;
            self.link(&image, Node::new(&image.namespace, CONTENT, row.get_ref(2)?.as_str()?));
            let root = labels::expiry(&labels).is_none_or(|expires| expires >= now);
            self.object(image, root, &labels);
            Ok(())
        })
    }

    fn blobs(&mut self, conn: &Connection) -> Result<()> {
        each(conn, "SELECT namespace, digest, labels FROM blob", |row| {
            let labels = labels::column(row, 2)?;
            self.object(node(row, CONTENT)?, labels.contains_key(edges::ROOT), &labels);
            Ok(())
        })
    }

    fn ingests(&mut self, conn: &Connection, now: i64) -> Result<()> {
        each(conn, "SELECT namespace, ref, expected, expires FROM ingest", |row| {
            let ingest = node(row, INGESTS)?;
            if let Some(expected) = row.get::<_, Option<String>>(2)? {
                self.link(&ingest, Node::new(&ingest.namespace, CONTENT, &expected));
            }
            let root = row.get::<_, Option<i64>>(3)?.is_some_and(|expires| expires >= now);
            self.object(ingest, root, &Labels::new());
            Ok(())
        })
    }

    fn snapshots(&mut self, conn: &Connection) -> Result<()> {
        let sql = "SELECT s.namespace, s.name, s.driver, s.labels, p.name
                   FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent";
        each(conn, sql, |row| {
            let kind = edges::snapshots(row.get_ref(2)?.as_str()?);
            let labels = labels::column(row, 3)?;
            let snapshot = node(row, &kind)?;
            if let Some(parent) = row.get::<_, Option<String>>(4)? {
                self.link(&snapshot, Node::new(&snapshot.namespace, &kind, &parent));
            }
            self.object(snapshot, labels.contains_key(edges::ROOT), &labels);
            Ok(())
        })
    }

    fn containers(&mut self, conn: &Connection) -> Result<()> {
        each(conn, "SELECT namespace, id, labels, snapshotter, snapshot_key FROM container", |row| {
            let labels = labels::column(row, 2)?;
            let container = node(row, CONTAINERS)?;
            let (snapshotter, key) = (row.get_ref(3)?.as_str()?, row.get_ref(4)?.as_str()?);
            if !snapshotter.is_empty() && !key.is_empty() {
                self.link(&container, Node::new(&container.namespace, &edges::snapshots(snapshotter), key));
            }
            self.object(container, true, &labels);
            Ok(())
        })
    }

    fn mounts(&mut self, conn: &Connection) -> Result<()> {
        each(conn, "SELECT namespace, name, labels FROM mount", |row| {
            self.object(node(row, MOUNTS)?, false, &labels::column(row, 2)?);
            Ok(())
        })
    }

    fn leases(&mut self, conn: &Connection, now: i64) -> Result<()> {
        let sql = "SELECT r.namespace, r.name, r.kind, l.labels
                   FROM lease_resource r JOIN lease l ON l.namespace = r.namespace AND l.id = r.lease";
        each(conn, sql, |row| {
            let labels = labels::column(row, 3)?;
            if labels::expiry(&labels).is_none_or(|expires| expires >= now) {
                let kind = row.get_ref(2)?.as_str()?;
                let hold = hold(labels.contains_key(edges::FLAT), kind);
                self.roots.push((node(row, kind)?, hold));
            }
            Ok(())
        })
    }

    fn reach(&self) -> HashMap<&Node, Hold> {
        let mut reached: HashMap<&Node, Hold> = HashMap::new();
        let mut open: Vec<(&Node, Hold)> = self.roots.iter().map(|(node, hold)| (node, *hold)).collect();
        while let Some((node, hold)) = open.pop() {
            if reached.get(node).is_some_and(|&old| old >= hold) {
                continue;
            }
            reached.insert(node, hold);
            for link in self.links.get(node).into_iter().flatten() {
                if hold == Hold::Full || !link.label {
                    open.push((&link.to, hold));
                }
            }
        }
        reached
    }
}

/// The object of the first two columns.
fn node(row: &Row<'_>, kind: &str) -> rusqlite::Result<Node> {
    Ok(Node { namespace: row.get(0)?, kind: kind.to_owned(), name: row.get(1)? })
}

fn each(conn: &Connection, sql: &str, mut f: impl FnMut(&Row<'_>) -> rusqlite::Result<()>) -> Result<()> {
    let mut query = conn.prepare_cached(sql)?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        f(row)?;
    }
    Ok(())
}
