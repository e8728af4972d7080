//! What the swarm is made of: transports, protocols and their limits.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use futures::{AsyncRead, AsyncWrite};
use libp2p_connection_limits::{self as connection_limits, ConnectionLimits};
use libp2p_core::Transport;
use libp2p_core::muxing::StreamMuxerBox;
use libp2p_core::transport::Boxed;
use libp2p_core::upgrade::Version;
use libp2p_identify as identify;
use libp2p_identity::{Keypair, PeerId};
use libp2p_kad as kad;
use libp2p_mdns as mdns;
use libp2p_noise as noise;
use libp2p_ping as ping;
use libp2p_pnet::{PnetConfig, PreSharedKey};
use libp2p_swarm::behaviour::toggle::Toggle;
use libp2p_swarm::{Config, NetworkBehaviour, StreamProtocol, Swarm};
use libp2p_tcp as tcp;
use libp2p_yamux as yamux;

use super::bootstrap::Bootstrap;
use super::records::Records;
use crate::StartError;

/// Kademlia, as Spegel calls it.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/spegel/kad/1.0.0");
/// How often what is here is announced anew.
const REPROVIDE: Duration = Duration::from_secs(15 * 60);
/// How long an announcement is believed.
const PROVIDER_LIFE: Duration = Duration::from_secs(19 * 60);
/// How long a search may go on: who asks has gone to the registry long before.
const QUERY_TIME: Duration = Duration::from_secs(10);
/// How long one peer may take to answer within it.
const ANSWER_TIME: Duration = Duration::from_secs(3);
/// Connections; of one peer.
const MAX_CONNECTIONS: u32 = 1024;
const MAX_OF_PEER: u32 = 4;
const MAX_PENDING: u32 = 128;
/// A connection that nothing goes over is closed.
const IDLE: Duration = Duration::from_secs(600);

/// What a swarm is made of.
pub(crate) struct NetSettings {
    pub(crate) key: Keypair,
    pub(crate) listen: SocketAddr,
    pub(crate) shared_key: Option<[u8; 32]>,
    pub(crate) bootstrap: Vec<Bootstrap>,
    pub(crate) mdns: bool,
    pub(crate) http: reqwest::Client,
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
pub(super) struct Behaviour {
    pub(super) limits: connection_limits::Behaviour,
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
    pub(super) kad: kad::Behaviour<Records>,
}

/// A swarm that neither listens nor dials yet.
pub(super) fn swarm(settings: &NetSettings) -> Result<Swarm<Behaviour>, StartError> {
    let key = &settings.key;
    let id = key.public().to_peer_id();
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
    let transport = match settings.shared_key {
        Some(shared) => {
            let shared = PreSharedKey::new(shared);
            secured(tcp.and_then(move |socket, _| PnetConfig::new(shared).handshake(socket)), key)?
        }
        None => secured(tcp, key)?,
    };
    let mdns = settings.mdns.then(|| mdns::tokio::Behaviour::new(mdns::Config::default(), id)).transpose();
    let mdns = mdns.map_err(|source| StartError::Io { what: "join mDNS".into(), source })?;
    let agent = concat!("orlop/", env!("CARGO_PKG_VERSION")).to_owned();
    let about = identify::Config::new("orlop/1".to_owned(), key.public()).with_agent_version(agent);
    let limits = ConnectionLimits::default()
        .with_max_pending_incoming(Some(MAX_PENDING))
        .with_max_pending_outgoing(Some(MAX_PENDING))
        .with_max_established(Some(MAX_CONNECTIONS))
        .with_max_established_per_peer(Some(MAX_OF_PEER));
    let mut kad = kad::Behaviour::with_config(id, Records::new(id, PROVIDER_LIFE), kad_config());
    kad.set_mode(Some(kad::Mode::Server));
    let behaviour = Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        identify: identify::Behaviour::new(about.with_hide_listen_addrs(true).with_push_listen_addr_updates(true)),
        ping: ping::Behaviour::new(ping::Config::new().with_timeout(Duration::from_secs(5))),
        mdns: mdns.into(),
        kad,
    };
    let config = Config::with_tokio_executor().with_idle_connection_timeout(IDLE);
    Ok(Swarm::new(transport, behaviour, id, config))
}

fn kad_config() -> kad::Config {
    let mut config = kad::Config::new(PROTOCOL);
    config
        .set_provider_publication_interval(Some(REPROVIDE))
        .set_provider_record_ttl(Some(PROVIDER_LIFE))
        .set_query_timeout(QUERY_TIME)
        .set_substreams_timeout(ANSWER_TIME)
        .set_record_ttl(None)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_caching(kad::Caching::Disabled);
    if let Some(parallel) = NonZeroUsize::new(5) {
        config.set_parallelism(parallel);
    }
    config
}

/// Encryption and streams over a transport.
fn secured<T>(transport: T, key: &Keypair) -> Result<Boxed<(PeerId, StreamMuxerBox)>, StartError>
where
    T: Transport + Send + Unpin + 'static,
    T::Output: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T::Error: Send + Sync + 'static,
    T::ListenerUpgrade: Send + 'static,
    T::Dial: Send + 'static,
{
    let noise = noise::Config::new(key).map_err(|error| StartError::Io {
        what: "make the keys of connections".into(),
        source: std::io::Error::other(error),
    })?;
    let upgraded = transport.upgrade(Version::V1Lazy).authenticate(noise).multiplex(yamux::Config::default());
    Ok(upgraded.timeout(Duration::from_secs(10)).map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))).boxed())
}
