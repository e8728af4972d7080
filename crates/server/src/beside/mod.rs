//! A containerd beside: kubelet asks Orlop for images, and that containerd runs the containers.
//!
//! Its CRI is one half of what kubelet sees on Orlop's socket: every call of the runtime service goes there as it comes, byte for
//! byte ([`pass`]), and so do the calls that list images. What kubelet's images *are* is that containerd's to say, since that is
//! what its containers can be started from. Pulls are made in one of two ways:
//!
//! - [`BesideMode::Share`]: Orlop pulls into its own store and gives that containerd what it needs ([`give`]): snapshots if its
//!   snapshotter is Orlop's, else blobs, and the records. What either side does to its records afterwards the other follows
//!   ([`follow`], [`merge`]).
//! - [`BesideMode::Pass`]: that containerd pulls, with Orlop as its remote snapshotter on a raw socket. The secret that kubelet
//!   brings is remembered while the call runs ([`secrets`]), so that Orlop can bring the layers by it.
//!
//! # Invariants
//! - An image that kubelet is told of can be started from: it is in that containerd's CRI.
//! - No definition of CRI is needed to pass a call on, so none goes out of date.
//! - Secrets are in memory, only while the call runs that brought them.
//!
//! # Concurrency
//! Calls run at the same time; an image is given by one at a time. The one connection is made when it is needed, and made again
//! when it has broken.

mod blobs;
mod calls;
mod follow;
mod frame;
mod give;
mod marks;
mod merge;
mod pass;
mod secrets;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use orlop_api::error::causes;
use orlop_metadata::Scope;
use orlop_oci::Digest;
use orlop_remote::{Login, Turns};
pub(crate) use pass::{ImageCalls, RuntimeCalls};
use secrets::Secrets;
use tonic::Status;
use tonic::transport::Channel;

use crate::Owner;
use crate::cri::filesystems::Filesystems;
use crate::raw::driver_of;

/// Who the history names.
const ACTOR: &str = "containerd beside";

/// Which containerd that is, and who pulls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BesideSettings {
    /// Its socket.
    pub socket: PathBuf,
    /// Who pulls.
    pub mode: BesideMode,
    /// The snapshotter that its CRI uses.
    pub snapshotter: String,
    /// Whose raw socket it calls, if that snapshotter is Orlop's.
    pub owner: Owner,
}

/// Who pulls what kubelet asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BesideMode {
    /// Orlop, which gives it to that containerd.
    Share,
    /// That containerd.
    Pass,
}

/// A containerd beside. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Beside {
    inner: Arc<Inner>,
}

struct Inner {
    settings: BesideSettings,
    channel: Channel,
    secrets: Secrets,
    /// Of the owner's snapshots.
    filesystems: Filesystems,
    /// The images that are being given, or taken away.
    giving: Turns<Digest>,
    /// The leases that work under way has there.
    leases: Mutex<HashSet<String>>,
}

impl Beside {
    /// Connects when it is first needed. Must be called within a runtime.
    pub(crate) fn new(settings: BesideSettings) -> Self {
        let channel = orlop_api::channel::unix_lazy(&settings.socket);
        let scope = Scope::new(settings.owner.snapshots(), ACTOR);
        let filesystems = Filesystems::new(scope, driver_of(&settings.snapshotter).unwrap_or_default());
        let (secrets, giving, leases) = (Secrets::default(), Turns::default(), Mutex::default());
        Self { inner: Arc::new(Inner { settings, channel, secrets, filesystems, giving, leases }) }
    }

    /// Whether Orlop pulls.
    pub(crate) fn is_shared(&self) -> bool {
        self.inner.settings.mode == BesideMode::Share
    }

    /// The driver of the snapshots that its containers have, if its snapshotter is Orlop's.
    fn driver(&self) -> Option<&'static str> {
        driver_of(&self.inner.settings.snapshotter)
    }

    /// The secret of a pull of an image that it makes for kubelet at the moment.
    pub(crate) fn secret(&self, owner: &Owner, image: &str) -> Option<Login> {
        if *owner != self.inner.settings.owner {
            return None;
        }
        self.inner.secrets.of(image)
    }

    /// What is told where it does not answer.
    fn away(&self, error: &(dyn std::error::Error + 'static)) -> Status {
        let (socket, why) = (self.inner.settings.socket.display(), causes(error));
        Status::unavailable(format!("containerd at {socket} does not answer: {why}"))
    }
}
