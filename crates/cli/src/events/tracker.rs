//! What an event does not say and can be looked up: where a record points, where it pointed before, who changed it.

use std::collections::BTreeMap;
use std::time::Duration;

use orlop_api::containerd::services::images::v1::GetImageRequest;
use prost_types::Timestamp;
use serde::Serialize;

use super::Event;
use crate::client::{Clients, pb};

/// Records whose last target is remembered; beyond, all are forgotten and begin anew.
const REMEMBERED: usize = 1 << 14;

/// How long a look-up may hold up the next event.
const PATIENCE: Duration = Duration::from_secs(2);

/// Changes of one record that may lie between an event and the look-up of who made it.
const RECENT: u32 = 16;

/// Who changed a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Author {
    pub(crate) name: String,
    /// Whether that is only what a label suggests.
    pub(crate) inferred: bool,
}

/// Looks things up, and remembers where records pointed.
pub(crate) struct Tracker {
    clients: Clients,
    /// Whether the server has a history.
    own: bool,
    targets: BTreeMap<(String, String), String>,
}

/// What was looked up about an event. All of it is what holds right after the event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// What the record points at.
    pub(crate) target: Option<String>,
    /// What it pointed at when it was last seen.
    pub(crate) was: Option<String>,
    pub(crate) author: Option<Author>,
}

impl Tracker {
    pub(crate) fn new(clients: Clients, own: bool) -> Self {
        Self { clients, own, targets: BTreeMap::new() }
    }

    /// Looks up what can be known; nothing if the event is not about a record, or nobody answers in time.
    pub(crate) async fn look_up(&mut self, event: &Event) -> Found {
        if !event.is_of_a_record() {
            return Found::default();
        }
        let known = tokio::time::timeout(PATIENCE, async { tokio::join!(self.target(event), self.author(event)) });
        let (target, author) = known.await.unwrap_or_default();
        let inferred = || event.managed.then(|| Author { name: "CRI".into(), inferred: true });
        let was = self.remember(event, target.as_deref());
        Found { target, was, author: author.or_else(inferred) }
    }

    async fn target(&self, event: &Event) -> Option<String> {
        if event.what == "image deleted" {
            return None;
        }
        let clients = self.clients.in_namespace(&event.namespace).ok()?;
        let answer = clients.images().get(GetImageRequest { name: event.subject.clone() }).await.ok()?;
        answer.into_inner().image?.target.map(|target| target.digest)
    }

    /// The author of the change that the event tells of; its time is the event's.
    async fn author(&self, event: &Event) -> Option<Author> {
        if !self.own {
            return None;
        }
        let clients = self.clients.in_namespace(&event.namespace).ok()?;
        let request = pb::HistoryRequest { name: event.subject.clone(), limit: RECENT };
        let mut pages = clients.orlop().history(request).await.ok()?.into_inner();
        while let Some(page) = pages.message().await.ok()? {
            let same = |row: &pb::HistoryRow| is_same_time(row.at.as_ref(), event.at.as_ref());
            if let Some(row) = page.rows.into_iter().find(same) {
                return Some(Author { name: row.actor, inferred: false });
            }
        }
        None
    }

    /// Remembers where the record points now, and says where it pointed before, if that is another place.
    fn remember(&mut self, event: &Event, target: Option<&str>) -> Option<String> {
        let key = (event.namespace.clone(), event.subject.clone());
        if self.targets.len() >= REMEMBERED {
            self.targets.clear();
        }
        let was = match target {
            Some(target) => self.targets.insert(key, target.to_owned()),
            None => self.targets.remove(&key),
        };
        was.filter(|was| Some(was.as_str()) != target)
    }
}

fn is_same_time(one: Option<&Timestamp>, other: Option<&Timestamp>) -> bool {
    one.is_some() && one == other
}
