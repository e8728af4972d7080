//! Snapshots of images for a containerd above, which skips what it is handed.
//!
//! containerd prepares the layers of an image one after the other, from the lowest, and names with each the image. At the
//! first that is not there the whole image is brought, all layers at once; the others are there then when they are asked for.
//!
//! # Invariants
//! - A snapshot is handed over only if containerd asked for its very chain ID and it is committed.
//! - What is brought is held by a lease until it was handed over, or [`GRACE`] has passed. What was adopted for the owner
//!   (`orlop adopt --owner`) waits for as long as it takes, and is handed over whether or not its image is named.
//! - What cannot be brought costs the owner nothing but time: containerd then fetches by itself, and the event
//!   `/orlop/snapshot/fallback` says why. What policy refuses is an error, for containerd would not ask policy.
//!
//! # Concurrency
//! One task brings an image, whoever waits for it; it goes on when they are gone.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orlop_api::orlop::v1::SnapshotFallback;
use orlop_image::{ADOPTED, Error, Handed, SNAPSHOT_REF, WAITING};
use orlop_metadata::{self as metadata, Labels, Resource, ResourceKind, Scope, ScopedSnapshots, SnapshotKind};
use orlop_oci::Digest;
use tokio::sync::{Notify, watch};
use tonic::{Code, Status};
use tracing::Instrument;

use super::{CLAIM, Raw};
use crate::blocking::blocking;
use crate::cri::{NAMESPACE, Progress};
use crate::status::ToStatus;

/// The image that was asked for, as a name with its host.
pub(crate) const IMAGE: &str = "containerd.io/snapshot/cri.image-ref";
/// The digest of its manifest.
pub(crate) const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";

/// How long what was brought is held for containerd to ask for it: it asks at once, layer by layer.
const GRACE: Duration = Duration::from_secs(60);

/// A layer that containerd asks for.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    chain: String,
    parent: String,
}

/// An image that is brought.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Wanted {
    name: String,
    manifest: Digest,
    driver: String,
}

/// The images that are being brought, or were just now.
#[derive(Default)]
pub(crate) struct Fetches {
    flights: Mutex<HashMap<Wanted, Flight>>,
    /// Whether it was told that images are not named.
    unnamed: AtomicBool,
}

/// Where an image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The registry that its name says.
    Registry,
    /// This store, which has it for kubelet.
    Here,
}

/// Layers that were brought for a containerd beside, which is about to ask for them. They are held as long as this lives.
pub(crate) struct Lent(Arc<Brought>);

impl Lent {
    /// Their chain IDs, lowest first.
    pub(crate) fn chains(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.layers.iter().map(|layer| layer.chain.as_str())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.done.notify_one();
    }
}

/// Tells how it ended, as soon as it has.
type Flight = watch::Receiver<Option<Outcome>>;

/// Why a layer could not be handed over.
enum Trouble {
    Refused(Status),
    /// The snapshot was there, and is not any more.
    Gone,
    Other(String),
}

/// An image that was brought.
#[derive(Debug)]
struct Brought {
    layers: Vec<Handed>,
    /// The chain IDs of those that nobody was handed yet.
    waiting: Mutex<HashSet<String>>,
    /// Told when there are none, or none is wanted any more.
    done: Notify,
}

impl Brought {
    fn handed(&self, chain: &str) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.remove(chain) && waiting.is_empty() {
            self.done.notify_one();
        }
    }

    /// The chain ID below a layer's; empty: nothing.
    fn below(&self, at: usize) -> &str {
        at.checked_sub(1).map_or("", |at| self.layers[at].chain.as_str())
    }
}

/// How bringing an image ended.
#[derive(Debug, Clone)]
enum Outcome {
    Brought(Arc<Brought>),
    Refused(Status),
    Failed(String),
}

impl Outcome {
    fn of(error: &Error) -> Self {
        let status = error.to_status();
        match error {
            Error::Refused(_) => Self::Refused(status),
            _ => Self::Failed(status.message().to_owned()),
        }
    }
}

impl Asked {
    /// What a snapshot is prepared for, by its labels; `None` if they do not say it. They say it no more then: what else is there
    /// under that name is not the owner's, or on another parent, and containerd would look for it in vain.
    pub(super) fn take(labels: &mut Labels, parent: &str) -> Option<Self> {
        Some(Self { chain: labels.remove(SNAPSHOT_REF)?, parent: parent.to_owned() })
    }
}

impl Wanted {
    /// The image that labels name.
    fn of(labels: &Labels, driver: &str) -> Option<Self> {
        let (name, manifest) = (labels.get(IMAGE)?.clone(), labels.get(MANIFEST)?.parse().ok()?);
        Some(Self { name, manifest, driver: driver.to_owned() })
    }
}

impl Raw {
    /// Hands a layer's snapshot over, which is brought with its image if `labels` name that.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` if the owner has it now, `PERMISSION_DENIED` if policy refuses the image. Without an error it is not to
    /// be had, and the reason was told.
    pub(super) async fn hand_over(
        &self,
        scope: &Scope,
        snapshots: &ScopedSnapshots,
        asked: Asked,
        labels: &Labels,
    ) -> Result<(), Status> {
        let there = || Status::already_exists(format!("snapshot {}: it is there", asked.chain));
        if self.is_claimed(snapshots, &asked).await? || self.claim_adopted(snapshots, &asked).await? {
            return Err(there());
        }
        let Some(image) = Wanted::of(labels, snapshots.driver_name()) else {
            self.tell_unnamed();
            return Ok(());
        };
        let mut handed = self.try_to_hand_over(scope, snapshots, &asked, &image).await;
        if let Err(Trouble::Gone) = handed {
            // It was removed since it was brought.
            handed = self.try_to_hand_over(scope, snapshots, &asked, &image).await;
        }
        let why = match handed {
            Ok(()) => return Err(there()),
            Err(Trouble::Refused(status)) => return Err(status),
            Err(Trouble::Gone) => "it is removed as often as it is brought".to_owned(),
            Err(Trouble::Other(why)) => why,
        };
        self.tell_fallback(scope, asked.chain, image.name, why);
        Ok(())
    }

    /// Brings the layers of an image that this store has for kubelet, without asking a registry: a containerd beside is told to ask
    /// for them, layer by layer, and is handed them.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` if policy refuses the image, `UNAVAILABLE` with the reason for everything else.
    pub(crate) async fn lend(&self, driver: &str, name: &str, manifest: &Digest) -> Result<Lent, Status> {
        let scope = Scope::new(self.owner.snapshots(), super::LENDER);
        let wanted = Wanted { name: name.to_owned(), manifest: manifest.clone(), driver: driver.to_owned() };
        match self.join(&scope, &wanted, Source::Here).await.1 {
            Outcome::Brought(brought) => Ok(Lent(brought)),
            Outcome::Refused(status) => Err(status),
            Outcome::Failed(why) => {
                Err(Status::unavailable(format!("the layers of {name} could not be unpacked: {why}")))
            }
        }
    }

    async fn try_to_hand_over(
        &self,
        scope: &Scope,
        snapshots: &ScopedSnapshots,
        asked: &Asked,
        image: &Wanted,
    ) -> Result<(), Trouble> {
        let (flight, outcome) = self.join(scope, image, Source::Registry).await;
        let brought = match outcome {
            Outcome::Refused(status) => return Err(Trouble::Refused(status)),
            Outcome::Failed(why) => return Err(Trouble::Other(why)),
            Outcome::Brought(brought) => brought,
        };
        let Some(at) = brought.layers.iter().position(|layer| layer.chain == asked.chain) else {
            return Err(Trouble::Other(format!("the manifest has no layer that unpacks to {}", asked.chain)));
        };
        if brought.below(at) != asked.parent {
            let (on, below) = (&asked.parent, brought.below(at));
            // Nor will the others be wanted.
            brought.done.notify_one();
            if on.is_empty() {
                return Err(Trouble::Other(format!(
                    "it was asked for without its parent {below}: the capability \"rebase\" and snapshots that are handed over do \
                     not go together; take one of both out of the proxy plugin"
                )));
            }
            return Err(Trouble::Other(format!("it was asked for on {on:?}, and lies on {below:?}")));
        }
        let claimed = self.claim(snapshots, &brought.layers[at]).await;
        if claimed.as_ref().is_err_and(|status| status.code() == Code::NotFound) {
            self.land(image, &flight);
            return Err(Trouble::Gone);
        }
        claimed.map_err(|status| Trouble::Other(status.message().to_owned()))?;
        brought.handed(&asked.chain);
        Ok(())
    }

    /// Whether the owner has the snapshot already, on the parent that is asked for.
    async fn is_claimed(&self, snapshots: &ScopedSnapshots, asked: &Asked) -> Result<bool, Status> {
        let (snapshots, asked) = (snapshots.clone(), asked.clone());
        blocking(move || match snapshots.stat(&asked.chain) {
            Ok(info) => Ok(info.kind == SnapshotKind::Committed
                && info.parent == asked.parent
                && info.labels.contains_key(CLAIM)),
            Err(metadata::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        })
        .await
    }

    /// Makes a snapshot the owner's that was adopted for it, if there is one on that parent.
    async fn claim_adopted(&self, snapshots: &ScopedSnapshots, asked: &Asked) -> Result<bool, Status> {
        let mut labels = Labels::from([(ADOPTED.to_owned(), String::new())]);
        self.mark(&mut labels);
        let (store, namespace) = (self.server.store().clone(), self.owner.snapshots());
        let (snapshots, asked) = (snapshots.clone(), asked.clone());
        blocking(move || {
            let info = match snapshots.stat(&asked.chain) {
                Ok(info) => info,
                Err(metadata::Error::NotFound { .. }) => return Ok(false),
                Err(error) => return Err(error),
            };
            let waits = info.kind == SnapshotKind::Committed && info.labels.contains_key(ADOPTED);
            if !waits || info.parent != asked.parent {
                return Ok(false);
            }
            let mask: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
            match snapshots.update(&asked.chain, labels, &mask) {
                Ok(_) => {}
                Err(metadata::Error::NotFound { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
            let kind = ResourceKind::Snapshots(snapshots.driver_name().to_owned());
            // It is a root itself now.
            match store.delete_resource(&namespace, WAITING, &Resource { kind, name: asked.chain }) {
                Err(metadata::Error::NotFound { .. }) => Ok(true),
                other => other.map(|()| true),
            }
        })
        .await
    }

    /// Makes a snapshot that was brought the owner's.
    async fn claim(&self, snapshots: &ScopedSnapshots, layer: &Handed) -> Result<(), Status> {
        let (snapshots, chain, mut labels) = (snapshots.clone(), layer.chain.clone(), layer.labels.clone());
        self.mark(&mut labels);
        blocking(move || {
            let mask: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
            snapshots.update(&chain, labels, &mask).map(drop)
        })
        .await
    }

    /// Waits for an image that is being brought, or begins to bring it.
    async fn join(&self, scope: &Scope, wanted: &Wanted, source: Source) -> (Flight, Outcome) {
        let mut flight = {
            let mut flights = self.flights();
            match flights.get(wanted) {
                Some(flight) => flight.clone(),
                None => {
                    let (told, flight) = watch::channel(None);
                    flights.insert(wanted.clone(), flight.clone());
                    let (raw, scope, wanted) = (self.clone(), scope.clone(), wanted.clone());
                    tokio::spawn(async move { raw.fly(scope, wanted, source, told).await }.in_current_span());
                    flight
                }
            }
        };
        let ended = flight.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        let outcome = ended.ok().flatten().unwrap_or_else(|| Outcome::Failed("the server is shutting down".to_owned()));
        (flight, outcome)
    }

    /// Forgets what was brought: whoever asks next has it brought anew.
    fn land(&self, wanted: &Wanted, flight: &Flight) {
        let mut flights = self.flights();
        if flights.get(wanted).is_some_and(|known| known.same_channel(flight)) {
            flights.remove(wanted);
        }
    }

    /// Brings an image, tells how that ended, and holds what came for a while.
    async fn fly(self, scope: Scope, wanted: Wanted, source: Source, told: watch::Sender<Option<Outcome>>) {
        let (images, flight) = (self.server.images(), told.subscribe());
        let held = images.under_lease(&scope, async |scope| {
            let outcome = match source {
                Source::Registry => self.bring(&scope, &wanted).await,
                Source::Here => self.bring_held(&scope, &wanted).await,
            };
            if let Outcome::Brought(brought) = &outcome {
                told.send_replace(Some(outcome.clone()));
                tokio::select! {
                    () = brought.done.notified() => {}
                    () = tokio::time::sleep(GRACE) => {}
                    () = self.server.ending().cancelled() => {}
                }
            }
            Ok(outcome)
        });
        let outcome = held.await.unwrap_or_else(|error| Outcome::of(&error));
        self.land(&wanted, &flight);
        told.send_replace(Some(outcome));
        // What nobody was handed goes.
        self.server.collector().request();
    }

    /// By the secret that kubelet brought for this image, if that containerd pulls it for kubelet; else by those of the node.
    async fn bring(&self, scope: &Scope, wanted: &Wanted) -> Outcome {
        let (progress, cri) = (Progress::default(), self.server.cri());
        let login = self.server.beside().and_then(|beside| beside.secret(&self.owner, &wanted.name));
        let (sink, client, timeout) = (|event| progress.note(&event), cri.client_with(login), cri.progress_timeout());
        let Wanted { name, manifest, driver } = wanted;
        tokio::select! {
            brought = self.server.images().bring_unnamed(scope, &client, name, manifest, driver, &sink) => match brought {
                Ok(layers) => self.brought(scope, driver, layers).await,
                Err(error) => Outcome::of(&error),
            },
            what = progress.stalled(timeout) => Outcome::Failed(format!("nothing came for {timeout:?}: {what}")),
            () = self.server.ending().cancelled() => Outcome::of(&Error::Interrupted),
        }
    }

    async fn bring_held(&self, scope: &Scope, wanted: &Wanted) -> Outcome {
        let Wanted { name, manifest, driver } = wanted;
        let held = Scope::new(NAMESPACE, super::LENDER);
        tokio::select! {
            brought = self.server.images().bring_held(scope, &held, name, manifest, driver) => match brought {
                Ok(layers) => self.brought(scope, driver, layers).await,
                Err(error) => Outcome::of(&error),
            },
            () = self.server.ending().cancelled() => Outcome::of(&Error::Interrupted),
        }
    }

    /// What came, of which the owner may have some already.
    async fn brought(&self, scope: &Scope, driver: &str, layers: Vec<Handed>) -> Outcome {
        let (store, scope, driver, asked) =
            (self.server.store().clone(), scope.clone(), driver.to_owned(), layers.clone());
        let missing = blocking(move || {
            let snapshots = store.snapshots(&scope, &driver)?;
            let mut missing = HashSet::new();
            for layer in asked {
                if !snapshots.stat(&layer.chain)?.labels.contains_key(CLAIM) {
                    missing.insert(layer.chain);
                }
            }
            Ok::<_, metadata::Error>(missing)
        });
        match missing.await {
            Ok(waiting) => {
                let done = Notify::new();
                if waiting.is_empty() {
                    done.notify_one();
                }
                Outcome::Brought(Arc::new(Brought { layers, waiting: Mutex::new(waiting), done }))
            }
            Err(status) => Outcome::Failed(status.message().to_owned()),
        }
    }

    /// Says once what it means that layers come without the name of their image: it may be wanted so, or forgotten.
    fn tell_unnamed(&self) {
        if !self.fetches.unnamed.swap(true, Ordering::Relaxed) {
            tracing::info!(
                owner = %self.owner,
                "containerd asks for snapshots without naming their image, and brings its layers itself. To have Orlop bring them: \
                 disable_snapshot_annotations = false for CRI of containerd 1, enable_remote_snapshot_annotations = \"true\" in the \
                 exports of the proxy plugin of containerd 2; containerd before 1.6 cannot"
            );
        }
    }

    fn tell_fallback(&self, scope: &Scope, chain: String, image: String, reason: String) {
        tracing::warn!(image, chain, reason, owner = %self.owner, "a layer is left to containerd to fetch");
        let event = SnapshotFallback { owner: self.owner.to_string(), image, chain, reason };
        self.server.exchange().tell(&scope.namespace, "/orlop/snapshot/fallback", &event);
    }

    fn flights(&self) -> std::sync::MutexGuard<'_, HashMap<Wanted, Flight>> {
        self.fetches.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
