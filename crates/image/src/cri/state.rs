//! What a catalog remembers, and how it follows the store.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use orlop_metadata::{self as metadata, Image, Look, Mark, Store};
use orlop_oci::{Descriptor, Digest, ImageId};

use super::gist::{Presence, Standing, standing};
use super::names::shown;
use super::view::{CriImage, CriView, Pinned};
use crate::reconcile::is_pinned;
use crate::supply::{self, Supply};
use crate::{Result, Settings, labels};

/// From so many questions on, reading all blobs' names costs less.
const MANY: usize = 64;

/// A namespace as it was at a mark.
#[derive(Default)]
pub(super) struct State {
    pub(super) version: i64,
    pub(super) view: Arc<CriView>,
    mark: Option<Mark>,
    records: BTreeMap<Arc<str>, Record>,
    targets: HashMap<Digest, Target>,
    /// By which the view was made.
    settings: Option<Arc<Settings>>,
}

struct Record {
    target: Arc<Descriptor>,
    created: jiff::Timestamp,
    pinned: bool,
}

struct Target {
    descriptor: Arc<Descriptor>,
    standing: Standing,
    supply: Supply,
}

/// Reads beside what another thread reads at its look.
struct Beside<'a> {
    store: &'a Store,
    namespace: &'a str,
    /// Of the store, before that look.
    version: i64,
    /// Whether there is so much to read that it pays.
    wanted: bool,
}

impl Beside<'_> {
    /// Who supplies each target; `None` if this thread would see another state of the store than the other does.
    fn supplies(&self, targets: &[Digest]) -> metadata::Result<Option<Vec<Supply>>> {
        self.store.look(self.namespace, |look| {
            // The first question takes the snapshot. If nothing was committed until after it, it is the same.
            look.mark()?;
            if self.store.version()? != self.version {
                return Ok(None);
            }
            targets.iter().map(|target| supply::of(look, target)).collect::<metadata::Result<_>>().map(Some)
        })
    }
}

impl Target {
    /// Looks again at what there is of it, where that may have changed; returns whether it did.
    fn follow(
        &mut self,
        look: &Look<'_>,
        presence: &Presence<'_>,
        settings: &Settings,
        dropped: bool,
    ) -> metadata::Result<bool> {
        let known = match &self.standing {
            Standing::Complete(_) => !dropped,
            Standing::Foreign => true,
            Standing::Partial | Standing::Unread => false,
        };
        if known {
            return Ok(false);
        }
        let now = standing(look, presence, &self.descriptor, &settings.platform)?;
        let changed = now != self.standing;
        self.standing = now;
        Ok(changed)
    }
}

impl State {
    /// Whether the view was made by these settings.
    pub(super) fn is_by(&self, settings: &Arc<Settings>) -> bool {
        self.settings.as_ref().is_some_and(|own| Arc::ptr_eq(own, settings))
    }

    /// Follows the store, and says which records' documents nobody has read yet.
    pub(super) fn refresh(&mut self, store: &Store, namespace: &str, settings: &Arc<Settings>) -> Result<Vec<Image>> {
        let version = store.version()?;
        let follow = |look: &Look<'_>| {
            let mark = look.mark()?;
            let dropped = self.mark.as_ref().is_none_or(|earlier| !mark.kept_content_since(earlier));
            let moved = match &self.mark {
                Some(earlier) => self.follow_records(look.images_since(earlier)?),
                None => self.read_records(look)?,
            };
            let beside = Beside { store, namespace, version, wanted: self.mark.is_none() };
            let told = self.follow_targets(look, settings, dropped, &beside)?;
            self.mark = Some(mark);
            Ok((moved || told, self.unread()))
        };
        let (changed, unread) = store.look(namespace, follow)?;
        if changed || !self.is_by(settings) {
            self.settings = Some(settings.clone());
            self.view = Arc::new(self.picture(settings));
        }
        Ok(unread)
    }

    /// All records; returns whether there are any.
    fn read_records(&mut self, look: &Look<'_>) -> metadata::Result<bool> {
        let mut records = Vec::new();
        look.each_image(|glance| {
            let pinned = glance.label(labels::PINNED).is_some_and(|value| value == labels::PINNED_VALUE);
            let target = self.target(&glance.digest, glance.media_type, glance.size);
            records.push((Arc::from(glance.name), Record { target, created: glance.created_at, pinned }));
        })?;
        // All at once: they come in order.
        self.records = records.into_iter().collect();
        Ok(!self.records.is_empty())
    }

    /// Returns whether anything changed.
    fn follow_records(&mut self, (changed, gone): (Vec<Image>, Vec<String>)) -> bool {
        let any = !changed.is_empty() || !gone.is_empty();
        for name in gone {
            self.records.remove(name.as_str());
        }
        for image in changed {
            let Descriptor { digest, media_type, size, .. } = &image.target;
            let target = self.target(digest, media_type, *size);
            let record = Record { target, created: image.created_at, pinned: is_pinned(&image.labels) };
            self.records.insert(image.name.into(), record);
        }
        if any {
            let used: HashSet<&Digest> = self.records.values().map(|r| &r.target.digest).collect();
            self.targets.retain(|digest, _| used.contains(digest));
        }
        any
    }

    /// A target as all records that point at it share it.
    fn target(&mut self, digest: &Digest, media_type: &str, size: u64) -> Arc<Descriptor> {
        if let Some(known) = self.targets.get(digest) {
            return known.descriptor.clone();
        }
        let descriptor = Arc::new(Descriptor::new(media_type, digest.clone(), size));
        let target = Target { descriptor: descriptor.clone(), standing: Standing::Partial, supply: Supply::Unknown };
        self.targets.insert(digest.clone(), target);
        descriptor
    }

    /// Looks again at what may have changed; returns whether it did.
    fn follow_targets(
        &mut self,
        look: &Look<'_>,
        settings: &Settings,
        dropped: bool,
        beside: &Beside<'_>,
    ) -> metadata::Result<bool> {
        let open = |target: &Target| !matches!(target.standing, Standing::Complete(_) | Standing::Foreign);
        let asked = self.targets.values().filter(|target| dropped || open(target)).count();
        // In the order of the tables: a page of them is read once.
        let mut targets: Vec<_> = self.targets.iter_mut().collect();
        targets.sort_unstable_by(|a, b| a.0.cmp(b.0));
        let digests: Vec<Digest> = targets.iter().map(|(digest, _)| (*digest).clone()).collect();
        std::thread::scope(|scope| {
            let reading = (beside.wanted && asked > MANY)
                .then(|| std::thread::Builder::new().spawn_scoped(scope, || beside.supplies(&digests)).ok())
                .flatten();
            let presence = if asked > MANY { Presence::Known(look.blobs()?) } else { Presence::Asked(look) };
            let mut changed = false;
            for (_, target) in &mut targets {
                changed |= target.follow(look, &presence, settings, dropped)?;
            }
            let supplies = match reading.map(std::thread::ScopedJoinHandle::join) {
                None => None,
                Some(Ok(read)) => read?,
                Some(Err(panic)) => std::panic::resume_unwind(panic),
            };
            for (n, (digest, target)) in targets.into_iter().enumerate() {
                let complete = matches!(target.standing, Standing::Complete(_));
                if complete && (dropped || target.supply != Supply::Known) {
                    let read = supplies.as_ref().and_then(|all| all.get(n).cloned());
                    let now = read.map_or_else(|| supply::of(look, digest), Ok)?;
                    changed |= now != target.supply;
                    target.supply = now;
                }
            }
            Ok(changed)
        })
    }

    fn unread(&self) -> Vec<Image> {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let unread = self.targets.values().filter(|target| target.standing == Standing::Unread);
        let record = |target: &Target| Image {
            name: String::new(),
            target: (*target.descriptor).clone(),
            labels: metadata::Labels::new(),
            created_at: now,
            updated_at: now,
        };
        unread.map(record).collect()
    }

    fn picture(&self, settings: &Settings) -> CriView {
        let mut groups: HashMap<&ImageId, Vec<(&Arc<str>, &Record)>> = HashMap::new();
        for (name, record) in &self.records {
            if let Some(Standing::Complete(gist)) = self.targets.get(&record.target.digest).map(|t| &t.standing) {
                groups.entry(&gist.id).or_default().push((name, record));
            }
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_unstable_by_key(|(id, _)| *id);
        let pins = settings.pins();
        let images = groups.into_iter().filter_map(|(id, group)| self.image(id, &group, &pins, settings));
        CriView::new(images.collect())
    }

    fn image(
        &self,
        id: &ImageId,
        group: &[(&Arc<str>, &Record)],
        pins: &[String],
        settings: &Settings,
    ) -> Option<CriImage> {
        // The ID record follows the newest pull; an image keeps the size that it was first seen with, as in containerd.
        let own = id.to_string();
        let (_, first) = group.iter().min_by_key(|(name, record)| (record.created, ***name == *own))?;
        let Standing::Complete(gist) = &self.targets.get(&first.target.digest)?.standing else { return None };
        let names: Vec<Arc<str>> = group.iter().map(|(name, _)| Arc::clone(name)).collect();
        let shown = shown(&names);
        let mut pinned: Vec<Pinned> = Vec::new();
        pinned.extend(group.iter().find(|(_, r)| r.pinned).map(|(name, _)| Pinned::Label { name: name.to_string() }));
        let configured = names.iter().find(|name| pins.iter().any(|pin| **pin == ***name));
        pinned.extend(configured.map(|name| Pinned::Configured { name: name.to_string() }));
        if settings.pin_unsupplied {
            pinned.extend(self.unsupplied(group).map(|reason| Pinned::Unsupplied { reason }));
        }
        Some(CriImage {
            gist: gist.clone(),
            target: first.target.clone(),
            names,
            repo_tags: shown.tags,
            repo_digests: shown.digests,
            pinned,
        })
    }

    /// Why no registry is known to supply any of an image's targets; `None` if one is.
    fn unsupplied(&self, group: &[(&Arc<str>, &Record)]) -> Option<String> {
        let mut reason = None;
        for (_, record) in group {
            match &self.targets.get(&record.target.digest)?.supply {
                Supply::Known => return None,
                Supply::Gone(places) => reason = Some(format!("{} no longer has it", places.join(", "))),
                Supply::Unknown => {}
            }
        }
        let unknown = "it was imported or made here, and no registry is known to have it";
        Some(reason.unwrap_or_else(|| unknown.to_owned()))
    }
}
