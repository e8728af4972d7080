//! Paths as identifiers: which snapshots a file belongs to.

use std::path::{Path, PathBuf};

use orlop_graph::model::{Found, Matched, Model, NodeId, NodeKind};
use orlop_lens::trees::{FileType, Hit, Trees};
use serde::Serialize;

use super::facts::Named;
use super::groups::search;
use super::words::called;
use super::{Look, find};
use crate::commands::Context;
use crate::error::{Class, CliError, Result};
use crate::output::{count, size};

/// How many snapshots with a path are named to people.
const NAMED: usize = 12;

/// What a text means: things, and if it was a path, what each has there.
#[derive(Debug, Default)]
pub(crate) struct Meant {
    pub(crate) found: Vec<Found>,
    pub(crate) files: Vec<InSnapshot>,
}

/// A path in a snapshot.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InSnapshot {
    #[serde(skip)]
    pub(crate) node: NodeId,
    pub(crate) snapshot: Named,
    /// As a container sees it; none if the snapshot's own directory was meant.
    pub(crate) path: Option<String>,
    /// `file`, `directory`, `link`, `whiteout`, `special file`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) size: u64,
    /// Octal.
    pub(crate) mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) link: Option<PathBuf>,
    /// Where it is on this host.
    pub(crate) host_path: PathBuf,
}

impl Meant {
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.found.iter().map(|found| found.node).collect()
    }

    /// What is known of the files, for people; nothing if the text was no path.
    pub(crate) fn lines(&self, model: &Model) -> Vec<String> {
        let mut lines: Vec<String> = self.files.iter().take(NAMED).map(|file| file.line(model)).collect();
        if self.files.len() > NAMED {
            lines.push(format!("and {} more", count((self.files.len() - NAMED) as u64, "snapshot")));
        }
        lines
    }
}

impl InSnapshot {
    fn of(model: &Model, trees: &Trees, hit: Hit) -> Option<Self> {
        let tree = &trees.all()[hit.tree];
        let namespace = model.inventory().namespaces.iter().position(|n| *n.name == *tree.namespace)?;
        let node = model.snapshot(namespace.try_into().ok()?, &tree.snapshotter, &tree.key)?;
        let host_path = match &hit.inside {
            Some(inside) => tree.files.join(inside.strip_prefix("/").unwrap_or(inside)),
            None => tree.directory.clone(),
        };
        Some(Self {
            node,
            snapshot: Named::of(model, node),
            path: hit.inside.map(|inside| inside.display().to_string()),
            kind: hit.kind.as_str(),
            size: hit.size,
            mode: format!("{:04o}", hit.mode),
            link: hit.link,
            host_path,
        })
    }

    fn line(&self, model: &Model) -> String {
        let Some(path) = &self.path else { return format!("the directory of {}", called(model, self.node)) };
        let what = match (self.kind, &self.link) {
            ("file", _) => format!("file, {}, mode {}", size(self.size), self.mode),
            (_, Some(link)) => format!("link to {}", link.display()),
            (whiteout, _) if whiteout == FileType::Whiteout.as_str() => "deleted here from the layers below".to_owned(),
            (kind, _) => format!("{kind}, mode {}", self.mode),
        };
        format!("{path}  ({what})  in {}", called(model, self.node))
    }
}

/// What a text means, as [`find`]; if it is nothing's name, and a path, which snapshots have it.
pub(crate) async fn meant(context: &Context, look: &Look, text: &str) -> Result<Meant> {
    or_path(context, look, text, find(&look.model, text, &context.store.namespace)).await
}

/// The same, as [`search`] finds.
pub(crate) async fn searched(context: &Context, look: &Look, text: &str) -> Result<Meant> {
    or_path(context, look, text, search(&look.model, text, &context.store.namespace)).await
}

async fn or_path(context: &Context, look: &Look, text: &str, found: Result<Vec<Found>>) -> Result<Meant> {
    match found {
        Err(error) if error.class == Class::NotFound && Path::new(text).is_absolute() => {
            let files = of_path(context, look, Path::new(text)).await?;
            let found = |file: &InSnapshot| Found { node: file.node, matched: Matched::Exactly };
            Ok(Meant { found: files.iter().map(found).collect(), files })
        }
        found => Ok(Meant { found: found?, files: Vec::new() }),
    }
}

/// What of a path is in which snapshot.
async fn of_path(context: &Context, look: &Look, path: &Path) -> Result<Vec<InSnapshot>> {
    let (wanted, model) = (path.to_owned(), &look.model);
    let search = move |trees: Trees| (trees.find(&wanted), trees);
    let (hits, trees) = look.reader.trees(search).await?;
    for gap in &trees.gaps {
        context.say(format!("unknown: {}: {}", gap.what, gap.why));
    }
    let files: Vec<InSnapshot> = hits.into_iter().filter_map(|hit| InSnapshot::of(model, &trees, hit)).collect();
    if files.is_empty() {
        let snapshots = count(model.nodes(NodeKind::Snapshot).count() as u64, "snapshot");
        let message = format!("no snapshot has {}, and it lies below none ({snapshots} looked at)", path.display());
        return Err(CliError::new(Class::NotFound, message)
            .hint("a path is one inside an image (/etc/os-release), or one of this host below a snapshot or a container's root"));
    }
    Ok(files)
}
