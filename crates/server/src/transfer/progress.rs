//! Progress as containerd's clients show it: a tree of descriptors under the image's name.
//!
//! # Invariants
//! - The transfer never waits for a slow client: of each name only the latest state is kept.
//! - A parent is told before its children.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orlop_api::containerd::types::transfer as types;
use orlop_image::{BlobEvent, Event, Stage};
use orlop_oci::{Descriptor, Digest, MediaKind};
use tokio::sync::Notify;
use tonic::Status;

use super::described;
use crate::convert::signed;
use crate::streaming::Link;

/// How often the client is told.
const PACE: Duration = Duration::from_millis(100);

/// What a transfer tells.
#[derive(Default)]
pub(super) struct Progress {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Default)]
struct State {
    /// What is known of each descriptor: its line, without a state.
    nodes: HashMap<Digest, Line>,
    /// What the bytes do.
    moving: &'static str,
    pending: VecDeque<types::Progress>,
}

#[derive(Clone)]
struct Line {
    descriptor: Descriptor,
    name: String,
    parents: Vec<String>,
}

impl Progress {
    /// Runs a transfer and sends what it tells, all of it before this returns.
    pub(super) async fn run<T>(
        &self,
        link: Option<Arc<Link>>,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let Some(link) = link else { return work.await };
        let forwarding = async {
            loop {
                self.news.notified().await;
                self.flush(&link).await;
                tokio::time::sleep(PACE).await;
            }
        };
        let result = tokio::select! {
            result = work => result,
            () = forwarding => unreachable!("it never ends"),
        };
        self.flush(&link).await;
        result
    }

    /// One at a time, so that nothing is lost when this is dropped while the client is slow.
    async fn flush(&self, link: &Link) {
        loop {
            let next = self.with(|state| state.pending.front().cloned());
            let Some(next) = next else { return };
            // A client that closed its stream wants to know no more.
            let _ = link.send(&next).await;
            self.with(|state| {
                // It may have been replaced by a newer state meanwhile, which is still to be sent.
                if state.pending.front() == Some(&next) {
                    state.pending.pop_front();
                }
            });
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn tell(&self, progress: types::Progress) {
        self.with(|state| {
            let same = |old: &&mut types::Progress| !progress.name.is_empty() && old.name == progress.name;
            match state.pending.iter_mut().find(same) {
                Some(old) => *old = progress,
                None => state.pending.push_back(progress),
            }
        });
        self.news.notify_one();
    }

    /// A line of status.
    pub(super) fn say(&self, event: String) {
        self.tell(types::Progress { event, ..types::Progress::default() });
    }

    /// A line of status about a target.
    pub(super) fn say_of(&self, event: String, target: &Descriptor) {
        self.tell(types::Progress { event, desc: Some(described(target)), ..types::Progress::default() });
    }

    /// The state of something with a name.
    pub(super) fn named(&self, event: &str, name: &str, target: Option<&Descriptor>) {
        self.tell(types::Progress {
            event: event.to_owned(),
            name: name.to_owned(),
            desc: target.map(described),
            ..types::Progress::default()
        });
    }

    /// The target is the first child of an image's name; its bytes are `moving`.
    pub(super) fn root(&self, name: &str, target: &Descriptor, moving: &'static str) {
        self.with(|state| {
            state.moving = moving;
            state.add(target, name);
        });
        self.state_of(&target.digest, "waiting", 0);
    }

    /// Takes what the operation tells.
    pub(super) fn push(&self, event: Event) {
        match event {
            Event::Document(parent, children) => {
                self.with(|state| {
                    let parent = state.nodes.get(&parent.digest).map_or_else(|| key(&parent), |line| line.name.clone());
                    children.iter().for_each(|child| state.add(child, &parent));
                });
                // A push sends documents last, and a client that does not know a parent draws its children elsewhere.
                for child in children.iter().filter(|child| holds_more(child)) {
                    self.state_of(&child.digest, "waiting", 0);
                }
            }
            Event::Blob(blob) => self.blob(&blob),
            Event::Target(_) => {}
            Event::Message(message) => self.say(message),
        }
    }

    fn blob(&self, blob: &BlobEvent) {
        let moving = self.with(|state| state.moving);
        let (event, at) = match blob.stage {
            Stage::Waiting => ("waiting", 0),
            Stage::Fetching | Stage::Pushing | Stage::Verifying if blob.offset == 0 => ("waiting", 0),
            Stage::Fetching | Stage::Pushing | Stage::Verifying => (moving, blob.offset),
            Stage::Unpacking => ("extracting", blob.offset),
            Stage::Complete if blob.unpacked > 0 => ("extracted", blob.total),
            Stage::Complete => ("complete", blob.total),
            Stage::Present | Stage::Mounted => ("already exists", blob.total),
        };
        self.state_of(&blob.digest, event, at);
    }

    fn state_of(&self, digest: &Digest, event: &str, at: u64) {
        let Some(line) = self.with(|state| state.nodes.get(digest).cloned()) else { return };
        self.tell(types::Progress {
            event: event.to_owned(),
            name: line.name,
            parents: line.parents,
            progress: signed(at),
            total: signed(line.descriptor.size),
            desc: Some(described(&line.descriptor)),
        });
    }
}

impl State {
    /// Adds a child, or one more parent of it.
    fn add(&mut self, child: &Descriptor, parent: &str) {
        let line = self.nodes.entry(child.digest.clone()).or_insert_with(|| Line {
            descriptor: child.clone(),
            name: key(child),
            parents: Vec::new(),
        });
        if !line.parents.iter().any(|known| known == parent) {
            line.parents.push(parent.to_owned());
        }
    }
}

/// Whether a descriptor is one of a document that names others.
fn holds_more(descriptor: &Descriptor) -> bool {
    matches!(descriptor.kind(), MediaKind::Manifest | MediaKind::Index)
}

/// The name that containerd's clients take apart: kind and digest.
fn key(descriptor: &Descriptor) -> String {
    let kind = match descriptor.kind() {
        MediaKind::Manifest | MediaKind::Schema1 => "manifest",
        MediaKind::Index => "index",
        MediaKind::Layer { .. } => "layer",
        MediaKind::Config => "config",
        MediaKind::Other if descriptor.media_type == "application/vnd.in-toto+json" => "attestation",
        MediaKind::Other => "unknown",
    };
    match descriptor.annotations.get("org.opencontainers.image.ref.name") {
        Some(name) => format!("{kind}-{name}@{}", descriptor.digest),
        None => format!("{kind}-{}", descriptor.digest),
    }
}

#[cfg(test)]
mod tests {
    use orlop_image::Limit;

    use super::*;

    fn blob(digest: &Digest, stage: Stage, offset: u64) -> Event {
        let digest = digest.clone();
        Event::Blob(BlobEvent { digest, kind: "layer", stage, offset, total: 9, unpacked: 0, limit: Limit::Unknown })
    }

    #[test]
    fn states_of_one_name_replace_each_other_and_parents_come_first() {
        let progress = Progress::default();
        let descriptor = |kind: &str, text: &[u8]| Descriptor::new(kind, Digest::of(text), 9);
        let root = descriptor("application/vnd.oci.image.manifest.v1+json", b"root");
        let layer = descriptor("application/vnd.oci.image.layer.v1.tar", b"layer");
        progress.named("fetching image content", "a.b/c:1", Some(&root));
        progress.root("a.b/c:1", &root, "downloading");
        progress.push(Event::Document(root.clone(), vec![layer.clone()]));
        progress.push(blob(&root.digest, Stage::Complete, 9));
        for offset in [1, 5] {
            progress.push(blob(&layer.digest, Stage::Fetching, offset));
        }
        let told = progress.with(|state| state.pending.clone());
        let shown: Vec<_> = told.iter().map(|p| (p.event.as_str(), p.progress, p.parents.clone())).collect();
        let parent = key(&root);
        assert_eq!(
            shown,
            [
                ("fetching image content", 0, vec![]),
                ("complete", 9, vec!["a.b/c:1".to_owned()]),
                ("downloading", 5, vec![parent])
            ]
        );
    }
    #[test]
    fn what_two_manifests_share_is_under_both() {
        let progress = Progress::default();
        let descriptor = |kind: &str, text: &[u8]| Descriptor::new(kind, Digest::of(text), 9);
        let manifest = |text| descriptor("application/vnd.oci.image.manifest.v1+json", text);
        let index = descriptor("application/vnd.oci.image.index.v1+json", b"index");
        let layer = descriptor("application/vnd.oci.image.layer.v1.tar", b"layer");
        let manifests = [manifest(b"one"), manifest(b"two")];
        progress.root("a.b/c:1", &index, "downloading");
        progress.push(Event::Document(index, manifests.to_vec()));
        for manifest in &manifests {
            progress.push(Event::Document(manifest.clone(), vec![layer.clone()]));
        }
        progress.push(blob(&layer.digest, Stage::Fetching, 1));
        let told = progress.with(|state| state.pending.back().cloned()).unwrap();
        assert_eq!(told.parents, manifests.each_ref().map(key));
    }
}
