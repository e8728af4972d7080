//! Committed snapshots: a tree of directories that are made anew, with the files that are there.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use orlop_metadata::{self as metadata, Labels, Scope, ScopedSnapshots, SnapshotKind, Store};
use orlop_snapshot::linked;

use super::choose::{Blob, Tree};
use super::records::Layers;
use super::{Adoption, DRIVER, Foreign};
use crate::{Images, Result, labels};

/// How many files are named whose length is wrong.
const NAMED: usize = 3;

impl Images {
    /// Takes snapshots over into a namespace, each after its parent.
    pub(super) async fn take_trees(
        &self,
        scope: &Scope,
        foreign: &Arc<dyn Foreign>,
        trees: Vec<Tree>,
        layers: &Layers,
        done: &mut Adoption,
    ) -> Result<()> {
        let mut left = HashSet::new();
        for tree in trees {
            let key = tree.key.clone();
            let reason = if left.contains(&tree.parent) {
                Some("what it stands on was left".to_owned())
            } else {
                let taking = Taking {
                    scope: scope.clone(),
                    foreign: foreign.clone(),
                    layers: layers.clone(),
                    limits: self.settings().limits.layer.clone(),
                    tree,
                };
                let (ended, counted) = self.blocking(move |store| taking.run(store)).await?;
                counted.add_to(done);
                ended
            };
            if let Some(reason) = reason {
                done.leave(key.clone(), reason);
                left.insert(key);
            }
        }
        Ok(())
    }
}

impl Images {
    /// Takes the labels off blobs that say that snapshots are here which were left: they are unpacked when they are needed.
    pub(super) async fn forget_left_trees(&self, scope: &Scope, blobs: &[Blob]) -> Result<()> {
        let of_snapshot = |blob: &Blob| {
            let own = blob.labels.iter().filter_map(|(key, chain)| {
                Some((blob.digest.clone(), key.strip_prefix(labels::GC_SNAPSHOT)?.to_owned(), chain.clone()))
            });
            own.collect::<Vec<_>>()
        };
        let stated: Vec<_> = blobs.iter().flat_map(of_snapshot).collect();
        let scope = scope.clone();
        self.blocking(move |store| {
            let content = store.content(&scope);
            for (digest, snapshotter, chain) in stated {
                let driver = snapshotter.split('/').next().unwrap_or_default();
                // Of a snapshotter that is none of Orlop's nobody expects anything here.
                let is_there = match store.snapshots(&scope, driver) {
                    Ok(snapshots) => snapshots.stat(&chain).is_ok(),
                    Err(_) => continue,
                };
                let key = format!("{}{snapshotter}", labels::GC_SNAPSHOT);
                if !is_there {
                    let mask = [format!("labels.{key}")];
                    match content.update(&digest, Labels::from([(key, String::new())]), &mask) {
                        Ok(_) | Err(metadata::Error::NotFound { .. }) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Ok(())
        })
        .await
    }
}

/// One tree on its way in.
struct Taking {
    scope: Scope,
    foreign: Arc<dyn Foreign>,
    layers: Layers,
    limits: orlop_snapshot::apply::Limits,
    tree: Tree,
}

/// What one tree came to.
#[derive(Default)]
struct Counted {
    taken: bool,
    present: bool,
    compared: bool,
    linked: linked::Linked,
}

impl Counted {
    fn add_to(&self, done: &mut Adoption) {
        done.snapshots += u64::from(self.taken);
        done.snapshots_present += u64::from(self.present);
        done.compared += u64::from(self.compared && self.taken);
        if self.taken {
            done.snapshot_bytes += self.linked.bytes;
            done.cloned_files += self.linked.cloned;
            done.linked_files += self.linked.files - self.linked.cloned;
        }
    }
}

impl Taking {
    /// Takes the tree; says why it was left, if it was.
    fn run(self, store: &Store) -> Result<(Option<String>, Counted)> {
        let snapshots = store.snapshots(&self.scope, DRIVER)?;
        let mut counted = Counted::default();
        match snapshots.stat(&self.tree.key) {
            Ok(info) if info.kind == SnapshotKind::Committed && info.parent == self.tree.parent => {
                counted.present = true;
                self.hold(store)?;
                return Ok((None, counted));
            }
            Ok(info) => return Ok((Some(format!("here it is {}, on {:?}", info.kind.as_str(), info.parent)), counted)),
            Err(metadata::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        match self.compare(store)? {
            Some(Ok(())) => counted.compared = true,
            Some(Err(why)) => return Ok((Some(why), counted)),
            None => {}
        }
        let (now, process) = (jiff::Timestamp::now().as_nanosecond(), std::process::id());
        let key = format!("adopt-{now}-{process} {}", self.tree.key);
        match snapshots.prepare(&key, &self.tree.parent, Labels::new()) {
            Ok(_) => {}
            Err(metadata::Error::NotFound { .. }) => {
                return Ok((Some("what it stands on is not here".into()), counted));
            }
            Err(error) => return Err(error.into()),
        }
        let filled = self.fill(&snapshots, &key, &mut counted);
        if !counted.taken {
            snapshots.remove(&key)?;
        }
        Ok((filled?, counted))
    }

    /// A lease holds what was here, too, until the records do.
    fn hold(&self, store: &Store) -> Result<()> {
        let Some(lease) = &self.scope.lease else { return Ok(()) };
        let kind = metadata::ResourceKind::Snapshots(DRIVER.to_owned());
        let resource = metadata::Resource { kind, name: self.tree.key.clone() };
        Ok(store.add_resource(&self.scope.namespace, lease, &resource)?)
    }

    /// Compares the lengths of files with what the layer says; `None` if the layer is not known or not here.
    fn compare(&self, store: &Store) -> Result<Option<Result<(), String>>> {
        let Some(layer) = self.layers.of_chain(&self.tree.key) else { return Ok(None) };
        let raw = store.raw_content();
        let Some(linking) = raw.linking() else { return Ok(None) };
        let file = match tokio::runtime::Handle::current().block_on(linking.file(&layer.digest)) {
            Ok(file) => file,
            Err(orlop_content::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let differing = match linked::differing(file, &self.tree.at, &self.limits) {
            Ok(differing) => differing,
            Err(orlop_snapshot::Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(Some(Err(GONE.to_owned())));
            }
            Err(error) => return Ok(Some(Err(format!("its layer {} cannot be read: {error}", layer.digest)))),
        };
        if differing.is_empty() {
            return Ok(Some(Ok(())));
        }
        let named = differing
            .iter()
            .take(NAMED)
            .map(|(path, said, is)| format!("{} has {is} bytes, its layer says {said}", path.display()));
        let more = differing.len().saturating_sub(NAMED);
        let more = if more > 0 { format!("; and {more} more files") } else { String::new() };
        Ok(Some(Err(format!("it is damaged there: {}{more}", named.collect::<Vec<_>>().join("; ")))))
    }

    fn fill(&self, snapshots: &ScopedSnapshots, key: &str, counted: &mut Counted) -> Result<Option<String>> {
        counted.linked = match snapshots.take_in(key, &self.tree.at) {
            Ok(linked) => linked,
            Err(metadata::Error::Snapshot(orlop_snapshot::Error::Io { source, .. }))
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                return Ok(Some(GONE.to_owned()));
            }
            // What it is opened by follows no link.
            Err(metadata::Error::Snapshot(orlop_snapshot::Error::Io { source, .. }))
                if source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) =>
            {
                return Ok(Some("a symbolic link is in the place of its tree".to_owned()));
            }
            Err(error) => return Err(error.into()),
        };
        if !self.foreign.has(&self.tree.at) {
            return Ok(Some(GONE.to_owned()));
        }
        let mut labels = self.tree.labels.clone();
        labels.extend(self.layers.labels(&self.tree.key, &self.tree.parent));
        match snapshots.commit(&self.tree.key, key, None, labels) {
            Ok(()) => counted.taken = true,
            // Somebody else has brought it meanwhile.
            Err(metadata::Error::AlreadyExists { .. }) => counted.present = true,
            Err(error) => return Err(error.into()),
        }
        Ok(None)
    }
}

const GONE: &str = "containerd has removed it since it was listed";
