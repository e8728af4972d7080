//! How long what a mirror fetched stays.
//!
//! Two bounds: how long nobody asked for it, and how much there may be of it. The one that was asked for the longest ago goes first;
//! what somebody asked for within [`IN_USE`] stays, for he may be in the middle of it. Only records that have the mirror's label go,
//! by the removal of `orlop rm`, without the trash: it can be fetched again. Blobs that something else keeps stay.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use orlop_metadata::Image;
use orlop_oci::Digest;

use super::Mirror;
use crate::{ErrorKind, RemoveRequest, Result, labels};

/// What was asked for since then is in use.
const IN_USE: SignedDuration = SignedDuration::from_mins(15);

/// A record of the mirror's.
struct Cached {
    name: String,
    used: Timestamp,
    /// Its blobs that are here, with their sizes.
    blobs: Vec<(Digest, u64)>,
}

impl Mirror {
    /// Removes what has been here for too long or is too much, as of `now`. Returns the names of the records that went.
    ///
    /// # Errors
    /// If the store cannot be read or written. A record that cannot be removed, as a pinned one, stays.
    pub async fn tidy(&self, now: Timestamp) -> Result<Vec<String>> {
        let cached = self.cached().await?;
        let settings = &self.inner.settings;
        let limit = (!settings.keep.is_zero()).then(|| now - settings.keep);
        let mut gone = Vec::new();
        for name in outdated(&cached, limit, settings.keep_bytes, now - IN_USE) {
            let reason = Some("mirror: nobody asked for it lately".to_owned());
            let names = vec![name.clone()];
            let request =
                RemoveRequest { names, no_trash: true, keep_pushed: true, reason, ..RemoveRequest::default() };
            match self.inner.images.remove(&self.scope(), &request).await {
                Ok(_) => gone.push(name),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(%error, name, "it stays"),
            }
        }
        self.remembered(move |mirrored| mirrored.sweep(now - IN_USE)).await?;
        Ok(gone)
    }

    /// The records of the mirror, the one that was asked for last first.
    async fn cached(&self) -> Result<Vec<Cached>> {
        let (images, scope) = (&self.inner.images, self.scope());
        let uses = self.remembered(orlop_metadata::Mirrored::uses).await?;
        let namespace = scope.namespace.clone();
        let is_cached = [format!("labels.\"{}\"", labels::CACHED)];
        let records: Vec<Image> = images.blocking(move |store| Ok(store.images(&namespace, &is_cached)?)).await?;
        let mut cached = Vec::with_capacity(records.len());
        for record in records {
            let catalog = images.target_catalog(&scope, &record.target).await?;
            let blobs = catalog.blobs(&record.target).into_keys();
            let blobs = blobs.filter_map(|digest| catalog.content.get(&digest).map(|size| (digest, *size))).collect();
            let used = uses.get(&record.name).copied().unwrap_or(record.updated_at);
            cached.push(Cached { name: record.name, used, blobs });
        }
        cached.sort_by(|a, b| (b.used, &b.name).cmp(&(a.used, &a.name)));
        Ok(cached)
    }
}

/// Those that go of the records, which are in the order of their use.
fn outdated(cached: &[Cached], limit: Option<Timestamp>, keep_bytes: u64, in_use: Timestamp) -> Vec<String> {
    let mut kept: BTreeMap<&Digest, u64> = BTreeMap::new();
    let mut gone = Vec::new();
    for record in cached {
        let added: u64 =
            record.blobs.iter().filter(|(digest, _)| !kept.contains_key(digest)).map(|(_, size)| size).sum();
        let is_too_much = keep_bytes > 0 && kept.values().sum::<u64>().saturating_add(added) > keep_bytes;
        let is_old = limit.is_some_and(|limit| record.used < limit);
        if record.used < in_use && (is_too_much || is_old) {
            gone.push(record.name.clone());
        } else {
            kept.extend(record.blobs.iter().map(|(digest, size)| (digest, *size)));
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_and_what_they_share_counts_once() {
        let now: Timestamp = "2026-11-30T12:00:00Z".parse().unwrap();
        let at = |hours: i64| now - SignedDuration::from_hours(hours);
        let blob = |text: &str, size| (Digest::of(text.as_bytes()), size);
        let record = |name: &str, hours, blobs: &[(Digest, u64)]| Cached {
            name: name.into(),
            used: at(hours),
            blobs: blobs.to_vec(),
        };
        let shared = blob("shared", 50);
        let all = [
            record("new", 0, &[blob("new", 70), shared.clone()]),
            record("day", 24, &[blob("day", 20), shared.clone()]),
            record("week", 7 * 24, &[blob("week", 5), shared]),
        ];
        let gone = |limit, bytes| outdated(&all, limit, bytes, now - IN_USE);
        assert_eq!(gone(None, 0), Vec::<String>::new());
        assert_eq!(gone(Some(at(48)), 0), ["week"]);
        assert_eq!(gone(None, 145), Vec::<String>::new(), "70 + 50 + 20 + 5");
        assert_eq!(gone(None, 144), ["week"]);
        assert_eq!(gone(None, 130), ["day"], "what is left has room");
        assert_eq!(gone(None, 10), ["day", "week"], "one is in use");
    }
}
