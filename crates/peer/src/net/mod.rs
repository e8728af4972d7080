//! Finding peers, telling them what is here, and asking them who has a digest: libp2p's Kademlia, as Spegel speaks it.
//!
//! One task owns the swarm ([`task`]); everybody else holds a [`Net`] and sends it commands.
//!
//! # The protocol (facts of Spegel's)
//! - TCP, noise, yamux, identify; Kademlia as `/spegel/kad/1.0.0`, every node a server.
//! - The key of a digest is the SHA-256 multihash of its text, `sha256:<hex>`.
//! - Providers are announced anew every 15 minutes and believed for 19.
//! - Orlop's own: a blob that is still coming to a node is announced under a key that begins with `orlop/coming/`, then the digest's key.
//!   Spegel's nodes keep such records like any other.
//! - A provider record has addresses, of which only the IP counts: blobs are asked for at the port at which every node of
//!   the fleet serves them.
//!
//! # Invariants
//! - What strangers send is bounded: records in all and of each peer ([`records`]), addresses of each, peers in the book,
//!   connections.
//! - Values are neither stored nor given; only provider records are.
//! - A digest is announced as soon as somebody can hear it: announcements made in vain are made again when a first peer
//!   is found.

mod book;
mod bootstrap;
mod identity;
mod records;
mod swarm;
mod task;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use libp2p_core::Multiaddr;
use libp2p_core::multiaddr::Protocol;
use libp2p_identity::PeerId;
use libp2p_kad::RecordKey;
use orlop_oci::Digest;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub(crate) use bootstrap::id_document;
pub use bootstrap::{Bootstrap, BootstrapError};
pub(crate) use identity::identity;
pub(crate) use swarm::NetSettings;

use crate::StartError;

/// What a multihash of SHA-256 begins with: the code of the hash, and its length.
const SHA256: [u8; 2] = [0x12, 0x20];

/// Commands that may wait for the task.
const COMMANDS: usize = 1024;

/// The key under which the providers of a digest are found.
fn key(digest: &Digest) -> RecordKey {
    let mut bytes = Vec::with_capacity(34);
    bytes.extend_from_slice(&SHA256);
    bytes.extend_from_slice(&Sha256::digest(digest.as_str().as_bytes()));
    RecordKey::from(bytes)
}

/// What the key of a blob that is coming begins with.
const COMING: &[u8] = b"orlop/coming/";

/// The key under which those are found to whom a digest is coming.
fn coming_key(digest: &Digest) -> RecordKey {
    let bytes: Vec<u8> = COMING.iter().copied().chain(key(digest).to_vec()).collect();
    RecordKey::from(bytes)
}

/// Where a peer stands among those to whom a blob is coming: of those that know of each other the lowest one asks the registry. Nobody can
/// choose to be it for all blobs.
fn rank_of(key: &[u8], peer: &PeerId) -> u64 {
    let hash = Sha256::new().chain_update(key).chain_update(peer.to_bytes()).finalize();
    hash.iter().take(8).fold(0, |rank, byte| (rank << 8) | u64::from(*byte))
}

/// The same for a digest.
pub(crate) fn rank(digest: &Digest, peer: &PeerId) -> u64 {
    rank_of(&coming_key(digest).to_vec(), peer)
}

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sought {
    /// Who has all of a digest.
    Whole,
    /// To whom it is coming.
    Coming,
}

/// A peer that has announced something, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Provider {
    pub(crate) id: PeerId,
    pub(crate) addresses: Vec<IpAddr>,
}

enum Command {
    /// Who has this? They are sent as they are found; the channel closes when all were asked.
    Find(RecordKey, mpsc::Sender<Provider>),
    /// The same by a new search, though one may be going on: what was announced before now is found.
    FindAnew(RecordKey, mpsc::Sender<Provider>),
    /// This is coming here; it is said when others can have heard it.
    Comes(RecordKey, watch::Sender<bool>),
    /// It is not coming any more.
    Goes(RecordKey),
    /// What is here from now on, and what is not any more.
    Change { have: Vec<RecordKey>, lost: Vec<RecordKey> },
}

/// How the swarm is now.
#[derive(Debug, Clone, Default)]
pub(crate) struct NetState {
    /// Where others find this node.
    pub(crate) addresses: Vec<String>,
    /// Peers of the routing table, and whether they are connected.
    pub(crate) peers: Vec<(PeerId, Vec<IpAddr>, bool)>,
    /// Digests that are announced.
    pub(crate) announced: usize,
}

/// The swarm. It ends when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Net {
    id: PeerId,
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<NetState>,
    _task: Arc<Ended>,
}

struct Ended(JoinHandle<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Net {
    /// Listens, and finds others from then on.
    pub(crate) fn start(settings: NetSettings) -> Result<Self, StartError> {
        let (commands, taken) = mpsc::channel(COMMANDS);
        let (told, state) = watch::channel(NetState::default());
        let task = task::Task::new(settings, taken, told)?;
        let id = task.id();
        let task = Arc::new(Ended(tokio::spawn(task.run())));
        Ok(Self { id, commands, state, _task: task })
    }

    /// What this node is called.
    pub(crate) const fn id(&self) -> PeerId {
        self.id
    }

    /// How it is now.
    pub(crate) fn state(&self) -> NetState {
        self.state.borrow().clone()
    }

    /// Who has a digest, or is about to, as they are found. Nobody if too much waits already.
    pub(crate) fn find(&self, digest: &Digest, sought: Sought) -> mpsc::Receiver<Provider> {
        let (sender, receiver) = mpsc::channel(64);
        let command = match sought {
            Sought::Whole => Command::Find(key(digest), sender),
            Sought::Coming => Command::FindAnew(coming_key(digest), sender),
        };
        drop(self.commands.try_send(command));
        receiver
    }

    /// Announces that a digest is coming. True is told when others can have heard it; that the sender goes away means that they cannot.
    pub(crate) fn comes(&self, digest: &Digest) -> watch::Receiver<bool> {
        let (sender, receiver) = watch::channel(false);
        drop(self.commands.try_send(Command::Comes(coming_key(digest), sender)));
        receiver
    }

    /// A digest that was coming is not any more.
    pub(crate) fn goes(&self, digest: &Digest) {
        drop(self.commands.try_send(Command::Goes(coming_key(digest))));
    }

    /// Announces what is here from now on, and no more what is not.
    pub(crate) async fn change(&self, have: &[Digest], lost: &[Digest]) {
        let keys = |digests: &[Digest]| digests.iter().map(key).collect();
        drop(self.commands.send(Command::Change { have: keys(have), lost: keys(lost) }).await);
    }
}

/// The multiaddress of a TCP port.
fn multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()))
}

/// The IP that a multiaddress begins with.
fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_the_multihash_of_the_digest_s_text() {
        let digest: Digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        let key = key(&digest).to_vec();
        assert_eq!((key.len(), &key[..2]), (34, &[0x12, 0x20][..]));
        assert_eq!(key[2..], Sha256::digest(digest.as_str())[..]);
    }
}
