//! From any identifier to what it may mean.

use std::sync::Arc;

use orlop_oci::{Digest, Reference, RepositoryName};

use super::{Model, Node, NodeId, NodeKind, UNCOMPRESSED};

/// How a text means a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Matched {
    /// It is the node's name, key or ID.
    Exactly,
    /// It is what people write for short: `alpine` for `docker.io/library/alpine:latest`.
    Normalized,
    /// It is the beginning of the digest, key or ID.
    Prefix,
    /// It is the digest of the layer before compression.
    DiffId,
}

/// A node that a text may mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The node.
    pub node: NodeId,
    /// How.
    pub matched: Matched,
}

/// A beginning shorter than this means nothing.
pub const SHORTEST: usize = 4;

impl Model {
    /// Everything in all namespaces that `text` may mean, the best first: what it is exactly hides what it is only for
    /// short, and that what it only begins.
    pub fn find(&self, text: &str) -> Vec<Found> {
        let text = text.trim();
        let mut found: Vec<Found> = Vec::new();
        let normal = text.parse::<Reference>().ok().map(|reference| reference.to_string());
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let digits = Some(hex).filter(|hex| hex.len() >= SHORTEST && hex.bytes().all(|b| b.is_ascii_hexdigit()));
        // No label is read of a hundred thousand blobs for what cannot be a digest.
        let may_be_digest = digits.is_some() || text.parse::<Digest>().is_ok();
        for node in (0..self.firsts[NodeKind::Missing as usize]).map(NodeId) {
            found.extend(
                self.matched(node, text, normal.as_deref(), digits, may_be_digest)
                    .map(|matched| Found { node, matched }),
            );
        }
        let best = found.iter().map(|f| rank(f.matched)).min();
        found.retain(|f| Some(rank(f.matched)) == best);
        found.sort_by_key(|f| (f.matched, self.kind(f.node), f.node));
        found
    }

    fn matched(
        &self,
        node: NodeId,
        text: &str,
        normal: Option<&str>,
        digits: Option<&str>,
        may_be_digest: bool,
    ) -> Option<Matched> {
        let digest =
            |digest: &str| digits.is_some_and(|hex| digest.strip_prefix("sha256:").is_some_and(|d| begins(d, hex)));
        let exact = |name: &str| name == text || name.strip_prefix("sha256:") == Some(text);
        let (name, short): (&str, bool) = match self.node(node) {
            Node::Record(row) if Some(&*row.name) == normal && !exact(&row.name) => return Some(Matched::Normalized),
            Node::Record(row) => (&row.name, digest(&row.name) || by_digest(&row.name, text)),
            Node::Blob(row) => {
                let diff_id = if may_be_digest { row.labels.get(UNCOMPRESSED) } else { None };
                let diff_id = diff_id.filter(|id| *id != row.digest.as_str());
                if diff_id.is_some_and(exact) {
                    return Some(Matched::DiffId);
                }
                (row.digest.as_str(), digest(row.digest.as_str()) || diff_id.is_some_and(digest))
            }
            Node::Snapshot(row) => (&row.key, digest(&row.key) || long(text) && row.key.starts_with(text)),
            Node::Lease(row) => (&row.id, long(text) && row.id.starts_with(text)),
            Node::Ingest(row) => (&row.reference, false),
            Node::Container(row) => (&row.id, long(text) && row.id.starts_with(text)),
            Node::Missing(_) => return None,
        };
        if exact(name) { Some(Matched::Exactly) } else { short.then_some(Matched::Prefix) }
    }

    /// Names of records that are like a text, the nearest first: for who has mistyped.
    pub fn records_with(&self, part: &str) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> =
            self.inventory.records.iter().filter(|r| r.name.contains(part)).map(|r| r.name.clone()).collect();
        names.sort();
        names.dedup();
        names
    }
}

const fn rank(matched: Matched) -> u8 {
    match matched {
        Matched::Exactly | Matched::DiffId => 0,
        Matched::Normalized => 1,
        Matched::Prefix => 2,
    }
}

/// Whether `name@sha256:…` begins as a text says, which may leave out the registry as people do.
fn by_digest(name: &str, text: &str) -> bool {
    let (Some((repository, digest)), Some((short, digits))) =
        (name.split_once("@sha256:"), text.split_once("@sha256:"))
    else {
        return false;
    };
    let same = || RepositoryName::parse(short).is_ok_and(|parsed| parsed.to_string() == repository);
    digits.len() >= SHORTEST && begins(digest, digits) && (repository == short || same())
}

fn long(text: &str) -> bool {
    text.len() >= SHORTEST
}

fn begins(hex: &str, digits: &str) -> bool {
    hex.len() >= digits.len() && hex.as_bytes()[..digits.len()].eq_ignore_ascii_case(digits.as_bytes())
}
