//! The whole graph in memory, as numbers: the same answers as [`Rows`](super::graph::Rows) gives row by row.
//!
//! Reading all rows in the order in which they lie costs a microsecond each, asking for one several; so this is for a
//! marking whose suspects are a good part of the store. What is read is `edge` and the tables of objects, never a label.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use rusqlite::{Connection, Row};

use super::graph::{Rows, hold};
use super::mark::{self, Found, Graph, Hold, Link, Node};
use crate::edges::{self, CONTAINERS, CONTENT, IMAGES, INGESTS, MOUNTS};
use crate::{Error, Result, conditions};

/// A node as a number.
type Number = u32;

/// What is known of a node besides its edges.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    exists: bool,
    root: bool,
    leased: Option<Hold>,
}

/// Nodes by number.
#[derive(Default)]
struct Numbers {
    /// Namespace and kind: few.
    groups: Vec<(String, String)>,
    /// Names of each group.
    names: Vec<HashMap<Box<str>, Number>>,
    states: Vec<State>,
}

/// All there is.
#[derive(Default)]
pub(super) struct Whole {
    nodes: Numbers,
    seeds: Vec<Number>,
    from: Vec<Vec<Link<Number>>>,
    /// Where edges to a node begin.
    to: Vec<Vec<Number>>,
}

impl Numbers {
    fn number(&mut self, namespace: &str, kind: &str, name: &str) -> Number {
        let known = self.groups.iter().position(|(n, k)| n == namespace && k == kind);
        let group = known.unwrap_or_else(|| {
            self.groups.push((namespace.to_owned(), kind.to_owned()));
            self.names.push(HashMap::new());
            self.groups.len() - 1
        });
        if let Some(number) = self.names[group].get(name) {
            return *number;
        }
        let number = Number::try_from(self.states.len()).expect("fewer objects than bytes");
        self.states.push(State::default());
        self.names[group].insert(name.into(), number);
        number
    }

    fn of(&mut self, node: &Node) -> Number {
        self.number(&node.namespace, &node.kind, &node.name)
    }

    fn state(&mut self, number: Number) -> &mut State {
        &mut self.states[number as usize]
    }
}

impl Whole {
    /// Reads what `rows` would be asked for.
    pub(super) fn load(rows: &Rows<'_>) -> Result<Self> {
        let mut whole = Self::default();
        whole.objects(rows)?;
        whole.leases(rows.conn, rows.now)?;
        whole.edges(rows)?;
        whole.conditions(rows)?;
        whole.seeds = rows.seeds()?.iter().map(|node| whole.nodes.of(node)).collect();
        whole.from.resize_with(whole.nodes.states.len(), Vec::new);
        whole.to.resize_with(whole.nodes.states.len(), Vec::new);
        Ok(whole)
    }

    /// All that is garbage.
    pub(super) fn garbage(&self) -> Result<Found> {
        let Found { garbage, visited } = mark::garbage(self)?;
        if garbage.is_empty() {
            return Ok(Found { garbage: HashSet::new(), visited });
        }
        let groups = self.nodes.groups.iter().zip(&self.nodes.names);
        let named = groups.flat_map(|((namespace, kind), names)| {
            let found = names.iter().filter(|(_, number)| garbage.contains(number));
            found.map(move |(name, _)| Node::new(namespace, kind, name))
        });
        Ok(Found { garbage: named.collect(), visited })
    }

    /// An object; what `row` has third says whether it is a root.
    fn object(&mut self, row: &Row<'_>, kind: &str) -> Result<()> {
        let number = self.nodes.number(text(row, 0)?, kind, text(row, 1)?);
        let state = self.nodes.state(number);
        (state.exists, state.root) = (true, row.get(2)?);
        Ok(())
    }

    fn objects(&mut self, rows: &Rows<'_>) -> Result<()> {
        let (conn, now) = (rows.conn, rows.now);
        // Answered from an index that has just these columns.
        each(conn, "SELECT namespace, digest, 0 FROM blob ORDER BY digest", [], |row| self.object(row, CONTENT))?;
        each(conn, "SELECT namespace, digest, 1 FROM blob WHERE root = 1", [], |row| self.object(row, CONTENT))?;
        let sql = "SELECT namespace, name, expires IS NULL OR expires >= ?1 FROM image";
        each(conn, sql, [now], |row| {
            let deleted = !rows.without.is_empty() && rows.deleted(&Node::new(text(row, 0)?, IMAGES, text(row, 1)?));
            if deleted { Ok(()) } else { self.object(row, IMAGES) }
        })?;
        let sql = "SELECT namespace, ref, coalesce(expires >= ?1, 0) FROM ingest";
        each(conn, sql, [now], |row| self.object(row, INGESTS))?;
        each(conn, "SELECT namespace, id, 1 FROM container", [], |row| self.object(row, CONTAINERS))?;
        each(conn, "SELECT namespace, name, 0 FROM mount", [], |row| self.object(row, MOUNTS))?;
        each(conn, "SELECT namespace, name, root, driver FROM snapshot", [], |row| {
            self.object(row, &edges::snapshots(text(row, 3)?))
        })
    }

    fn leases(&mut self, conn: &Connection, now: i64) -> Result<()> {
        let sql = "SELECT r.namespace, r.kind, r.name, l.flat FROM lease l
                   JOIN lease_resource r ON r.namespace = l.namespace AND r.lease = l.id
                   WHERE l.expires IS NULL OR l.expires >= ?1";
        each(conn, sql, [now], |row| {
            let kind = text(row, 1)?;
            let number = self.nodes.number(text(row, 0)?, kind, text(row, 2)?);
            let state = self.nodes.state(number);
            state.leased = state.leased.max(Some(hold(row.get(3)?, kind)));
            Ok(())
        })
    }

    fn edges(&mut self, rows: &Rows<'_>) -> Result<()> {
        let sql = "SELECT namespace, from_kind, from_name, to_kind, to_name, back, label FROM edge";
        each(rows.conn, sql, [], |row| {
            let (from, to) = ([text(row, 1)?, text(row, 2)?], [text(row, 3)?, text(row, 4)?]);
            let [kind, name] = if row.get(5)? { to } else { from };
            // What a deleted record stated is gone.
            if kind == IMAGES && !rows.without.is_empty() && rows.deleted(&Node::new(text(row, 0)?, kind, name)) {
                return Ok(());
            }
            let from = self.nodes.number(text(row, 0)?, from[0], from[1]);
            let to = self.nodes.number(text(row, 0)?, to[0], to[1]);
            self.edge(from, to, row.get(6)?);
            Ok(())
        })
    }

    fn conditions(&mut self, rows: &Rows<'_>) -> Result<()> {
        let mut stated = Vec::new();
        each(rows.conn, "SELECT DISTINCT namespace, from_kind, from_name FROM condition", [], |row| {
            stated.push(Node::new(text(row, 0)?, text(row, 1)?, text(row, 2)?));
            Ok(())
        })?;
        for from in stated.iter().filter(|from| !rows.deleted(from)) {
            for to in conditions::kept_by(rows.conn, from, rows.now)? {
                let (from, to) = (self.nodes.of(from), self.nodes.of(&to));
                self.edge(from, to, true);
            }
        }
        Ok(())
    }

    fn edge(&mut self, from: Number, to: Number, label: bool) {
        let room = self.nodes.states.len();
        self.from.resize_with(room, Vec::new);
        self.to.resize_with(room, Vec::new);
        self.from[from as usize].push(Link { to, label });
        self.to[to as usize].push(from);
    }
}

impl Graph for Whole {
    type Error = Error;
    type Node = Number;

    fn seeds(&self) -> Result<Vec<Number>> {
        Ok(self.seeds.clone())
    }

    fn exists(&self, node: &Number) -> Result<bool> {
        Ok(self.nodes.states[*node as usize].exists)
    }

    fn held(&self, node: &Number) -> Result<Option<Hold>> {
        let state = self.nodes.states[*node as usize];
        Ok(if state.root { Some(Hold::Full) } else { state.leased })
    }

    fn links(&self, node: &Number) -> Result<Vec<Link<Number>>> {
        Ok(self.from[*node as usize].clone())
    }

    fn sources(&self, node: &Number, visit: &mut dyn FnMut(Number) -> Result<ControlFlow<()>>) -> Result<()> {
        for source in &self.to[*node as usize] {
            if visit(*source)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

fn text<'r>(row: &'r Row<'_>, column: usize) -> Result<&'r str> {
    Ok(row.get_ref(column)?.as_str().map_err(rusqlite::Error::from)?)
}

fn each<const N: usize>(
    conn: &Connection,
    sql: &str,
    parameters: [i64; N],
    mut f: impl FnMut(&Row<'_>) -> Result<()>,
) -> Result<()> {
    let mut query = conn.prepare_cached(sql)?;
    let mut rows = query.query(rusqlite::params_from_iter(parameters))?;
    while let Some(row) = rows.next()? {
        f(row)?;
    }
    Ok(())
}
