//! Nodes that give each other blobs: whom to ask, finding them, giving and taking.
//!
//! ```text
//! schedule   whom to ask, how many at once, when to give up: pure
//! net        libp2p's Kademlia, as Spegel speaks it: who has which digest
//! http       a blob from one node to another, as Spegel has it
//! shelf      what this node has and gives
//! relay      what is still coming to it, and is given on meanwhile
//! pull       one blob: net, schedule and http together
//! pace       a limit on bytes per second, for giving and for taking
//! ```
//! [`Peers`] is all of it. It is what a pull's [`Neighbours`] are; `image` knows nothing of how they are found.
//!
//! # Invariants
//! - Digests only. What a tag means is neither asked of peers nor told to them.
//! - Nothing that comes is used before it was hashed, by whoever asked; whoever gave wrong bytes is excluded.
//! - One blob comes from one peer at a time: parts of several could only be told apart by the whole.
//! - What is given has been verified, or the last byte of it is kept back until it was (`relay`). Nothing is given that is withheld.
//! - Everything that strangers can make grow is bounded by a named constant.
//! - libp2p is known to `net` alone.
//!
//! # Concurrency
//! One task owns the swarm, one tells it what is here, one takes connections. A blob that is asked for is driven by
//! whoever asks, and ends with him.

mod http;
mod net;
mod pace;
mod pull;
mod relay;
pub mod schedule;
mod shelf;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use orlop_content::BlobReader;
use orlop_image::{Given, Images, Neighbourhood, Neighbours, Opening, Pattern, Relay, Wanted};
use orlop_oci::Digest;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::http::{Asker, Server, ServerSettings};
pub use crate::http::{Tls, TlsError};
pub use crate::net::{Bootstrap, BootstrapError};
use crate::net::{Net, NetSettings};
use crate::pull::Puller;
use crate::relay::Relays;
use crate::schedule::Rules;
use crate::shelf::Shelf;

/// How a node takes part.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where peers find each other.
    pub listen: SocketAddr,
    /// Where blobs are given. The port must be the same on every node.
    pub serve: SocketAddr,
    /// Where the first peers are found.
    pub bootstrap: Vec<Bootstrap>,
    /// Whether they are looked for on the local network too.
    pub mdns: bool,
    /// The file of the key by which others know this node; made if it is not there.
    pub identity: PathBuf,
    /// Only nodes that have the same key find each other; 32 bytes.
    pub shared_key: Option<[u8; 32]>,
    /// Only nodes with a certificate of one authority give each other blobs.
    pub tls: Option<Tls>,
    /// Repositories whose blobs are neither given to peers nor asked of them.
    pub withheld: Vec<Pattern>,
    /// Networks that are near: peers there are asked first.
    pub near: Vec<Network>,
    /// Bytes a second that are given; 0: no limit.
    pub upload_rate: u64,
    /// Bytes a second that are taken; 0: no limit.
    pub download_rate: u64,
    /// Blobs that are given at once; who asks for more is told to come back.
    pub uploads: usize,
    /// Connections of peers at once.
    pub connections: usize,
    /// Whether blobs are given on while they come, and taken from who has not all of them.
    pub relay: bool,
    /// After so long a peer that takes nothing more of a blob is cut off.
    pub patience: Duration,
    /// What the decisions go by.
    pub rules: Rules,
}

impl Default for Settings {
    fn default() -> Self {
        let any = IpAddr::from([0, 0, 0, 0]);
        Self {
            listen: SocketAddr::new(any, 5001),
            serve: SocketAddr::new(any, 5000),
            bootstrap: Vec::new(),
            mdns: false,
            identity: PathBuf::from("peer.key"),
            shared_key: None,
            tls: None,
            withheld: Vec::new(),
            near: Vec::new(),
            upload_rate: 0,
            download_rate: 0,
            uploads: 64,
            connections: 512,
            relay: true,
            patience: Duration::from_secs(30),
            rules: Rules::default(),
        }
    }
}

/// Addresses that begin with the same bits: `10.1.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// Why a text is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no network: expected ADDRESS/BITS, as in 10.1.0.0/16 or fd00::/48")]
pub struct NetworkError(String);

impl std::str::FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let wrong = || NetworkError(text.to_owned());
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits: u8 = bits.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if bits > most { Err(wrong()) } else { Ok(Self { address, bits }) }
    }
}

impl Network {
    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
            IpAddr::V6(ip) => ip.to_bits(),
        };
        // An IPv4 address stands in the highest bits.
        let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
        address.is_ipv4() == self.address.is_ipv4() && (bits(address) ^ bits(self.address)) & mask == 0
    }
}

/// Why a node cannot take part.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The key of this node cannot be used.
    #[error("the key of this node, {}: {reason}", path.display())]
    Identity {
        /// Its file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// An address cannot be listened on.
    #[error("listen for peers on {address}: {reason}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why not.
        reason: String,
    },
    /// TLS cannot be set up.
    #[error("TLS between peers: {0}")]
    Tls(#[from] TlsError),
    /// The system does not let it.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What it said.
        source: io::Error,
    },
}

/// A node among others. It takes part until it is dropped.
pub struct Peers {
    net: Net,
    server: Server,
    puller: Puller,
    relays: Relays,
    serves: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
}

impl Peers {
    /// Takes part: listens, finds others, tells what is here, gives and asks. Must be called within a runtime.
    ///
    /// # Errors
    /// If it cannot listen, or a file is not as it must be.
    pub async fn start(images: &Images, settings: Settings) -> Result<Arc<Self>, StartError> {
        let ends = settings.tls.as_ref().map(Tls::load).transpose()?;
        let key = net::identity(&settings.identity)?;
        let refused = |address, error: io::Error| StartError::Listen { address, reason: error.to_string() };
        let listener = TcpListener::bind(settings.serve).await.map_err(|error| refused(settings.serve, error))?;
        let serves = listener.local_addr().map_err(|error| refused(settings.serve, error))?;
        let asker = Asker::new(serves, ends.as_ref())?;
        let net = Net::start(NetSettings {
            key,
            listen: settings.listen,
            shared_key: settings.shared_key,
            bootstrap: settings.bootstrap,
            mdns: settings.mdns,
            http: asker.client().clone(),
        })?;
        let shelf = Shelf::new(images.store().clone(), settings.withheld);
        let Settings { upload_rate: rate, uploads, connections, patience, .. } = settings;
        let relays = Relays::new(net.clone(), shelf.clone(), settings.relay);
        let (held, fan_out) = ((shelf.clone(), relays.clone()), settings.rules.fan_out);
        let serving = ServerSettings {
            shelf: shelf.clone(),
            relays: relays.clone(),
            tls: ends,
            fan_out,
            rate,
            uploads,
            connections,
            patience,
        };
        let server = Server::new(serving, net.clone());
        let puller = Puller::new(net.clone(), asker, held, settings.near, settings.rules, settings.download_rate);
        let tasks = vec![tokio::spawn(server.clone().run(listener)), tokio::spawn(shelf.follow(net.clone()))];
        tracing::info!(id = %net.id(), %serves, listen = %settings.listen, "taking part among peers");
        Ok(Arc::new(Self { net, server, puller, relays, serves, tasks }))
    }

    /// Where blobs are given.
    pub const fn serves(&self) -> SocketAddr {
        self.serves
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

#[async_trait]
impl Neighbours for Peers {
    async fn open(&self, wanted: Wanted<'_>) -> Opening {
        self.puller.open(wanted).await
    }

    fn relay(&self, wanted: Wanted<'_>, bytes: Arc<dyn BlobReader>) -> Option<Arc<dyn Relay>> {
        self.relays.begin(wanted, bytes)
    }

    async fn ahead(&self, wanted: Wanted<'_>) -> Given {
        self.puller.ahead(wanted).await
    }

    fn disproved(&self, digest: &Digest, givers: &[String], alone: bool) {
        self.puller.disproved(digest, givers, alone);
    }

    fn report(&self) -> Neighbourhood {
        let state = self.net.state();
        Neighbourhood {
            id: self.net.id().to_string(),
            serves: self.serves.to_string(),
            announced: state.announced as u64,
            sent: self.server.sent(),
            received: self.puller.received(),
            disproved: self.puller.lies(),
            served: self.server.served(),
            relayed: self.server.relayed(),
            moved: self.relays.moved(),
            neighbours: self.puller.neighbours(&state),
            addresses: state.addresses,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let has = |network: &str, address: &str| {
            network.parse::<Network>().unwrap().contains(address.parse::<IpAddr>().unwrap())
        };
        assert!(has("10.1.0.0/16", "10.1.255.1") && !has("10.1.0.0/16", "10.2.0.1"));
        assert!(has("0.0.0.0/0", "10.2.0.1") && !has("0.0.0.0/0", "fd00::1"));
        assert!(has("10.0.0.1/32", "10.0.0.1") && !has("10.0.0.1/32", "10.0.0.2"));
        assert!(has("fd00::/48", "fd00::1:2") && !has("fd00::/48", "fd00:1::"));
        assert!(has("::/0", "fd00::1"));
        for text in ["10.1.0.0", "10.1.0.0/33", "x/8", "fd00::/129", "/8"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
