//! The task that owns the swarm.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use futures::{AsyncRead, AsyncWrite, StreamExt};
use libp2p_connection_limits::{self as connection_limits, ConnectionLimits};
use libp2p_core::muxing::StreamMuxerBox;
use libp2p_core::transport::Boxed;
use libp2p_core::upgrade::Version;
use libp2p_core::{ConnectedPoint, Multiaddr, Transport};
use libp2p_identify as identify;
use libp2p_identity::{Keypair, PeerId};
use libp2p_kad::store::RecordStore;
use libp2p_kad::{self as kad, GetProvidersOk, ProviderRecord, QueryId, QueryResult, RecordKey};
use libp2p_mdns as mdns;
use libp2p_noise as noise;
use libp2p_ping as ping;
use libp2p_pnet::{PnetConfig, PreSharedKey};
use libp2p_swarm::behaviour::toggle::Toggle;
use libp2p_swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p_swarm::{Config, NetworkBehaviour, StreamProtocol, Swarm, SwarmEvent};
use libp2p_tcp as tcp;
use libp2p_yamux as yamux;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::book::Book;
use super::bootstrap::Bootstrap;
use super::records::Records;
use super::{Command, NetState, Provider, ip, multiaddr};
use crate::StartError;

/// Kademlia, as Spegel calls it.
const PROTOCOL: StreamProtocol = StreamProtocol::new("/spegel/kad/1.0.0");
/// How often what is here is announced anew.
const REPROVIDE: Duration = Duration::from_secs(15 * 60);
/// How long an announcement is believed.
const PROVIDER_LIFE: Duration = Duration::from_secs(19 * 60);

/// How long a search may go on: who asks has gone to the registry long before.
const QUERY_TIME: Duration = Duration::from_secs(10);
/// How long one peer may take to answer within it.
const ANSWER_TIME: Duration = Duration::from_secs(3);
/// Searches at once.
const MAX_LOOKUPS: usize = 512;
/// Announcements at once.
const MAX_ANNOUNCING: usize = 32;
/// Connections; of one peer.
const MAX_CONNECTIONS: u32 = 1024;
const MAX_OF_PEER: u32 = 4;
const MAX_PENDING: u32 = 128;
/// A connection that nothing goes over is closed.
const IDLE: Duration = Duration::from_secs(600);

/// How often the first peers are looked for while nobody is connected, at first and at last; and else.
const ALONE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
const TOGETHER: Duration = Duration::from_secs(300);
/// How often it is looked after things that need no hurry.
const TICK: Duration = Duration::from_millis(500);
/// How often what is out of date is dropped.
const EXPIRE: Duration = Duration::from_secs(60);
/// How soon everything is announced again since there are many more peers than when it was.
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(30);

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
struct Behaviour {
    limits: connection_limits::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
    kad: kad::Behaviour<Records>,
}

struct Lookup {
    key: RecordKey,
    askers: Vec<mpsc::Sender<Provider>>,
    found: HashSet<PeerId>,
}

pub(super) struct Task {
    swarm: Swarm<Behaviour>,
    commands: mpsc::Receiver<Command>,
    told: watch::Sender<NetState>,
    book: Book,
    bootstrap: Vec<Bootstrap>,
    http: reqwest::Client,
    port: u16,
    /// Sources of first peers that are being asked.
    looking: JoinSet<(Bootstrap, Result<Vec<Multiaddr>, String>)>,
    looked: Option<Instant>,
    pause: Duration,
    lookups: HashMap<QueryId, Lookup>,
    by_key: HashMap<RecordKey, QueryId>,
    /// Peers that are dialled to learn where they are, and who wants to know.
    dialled: HashMap<PeerId, Vec<mpsc::Sender<Provider>>>,
    connected: BTreeSet<PeerId>,
    have: HashSet<RecordKey>,
    to_announce: VecDeque<RecordKey>,
    announcing: HashSet<QueryId>,
    /// When everything was announced last, and to how many peers.
    announced: (Instant, usize),
    expired: Instant,
}

impl Task {
    pub(super) fn new(
        settings: NetSettings,
        commands: mpsc::Receiver<Command>,
        told: watch::Sender<NetState>,
    ) -> Result<Self, StartError> {
        let listen = settings.listen;
        let mut swarm = swarm(&settings)?;
        let refused = |error: &dyn std::fmt::Display| StartError::Listen { address: listen, reason: error.to_string() };
        swarm.listen_on(multiaddr(listen)).map_err(|error| refused(&error))?;
        Ok(Self {
            swarm,
            commands,
            told,
            book: Book::new(listen.ip().is_loopback()),
            bootstrap: settings.bootstrap,
            http: settings.http,
            port: listen.port(),
            looking: JoinSet::new(),
            looked: None,
            pause: ALONE.0,
            lookups: HashMap::new(),
            by_key: HashMap::new(),
            dialled: HashMap::new(),
            connected: BTreeSet::new(),
            have: HashSet::new(),
            to_announce: VecDeque::new(),
            announcing: HashSet::new(),
            announced: (Instant::now(), 0),
            expired: Instant::now(),
        })
    }

    pub(super) fn id(&self) -> PeerId {
        *self.swarm.local_peer_id()
    }

    /// Works until nobody can send commands any more.
    pub(super) async fn run(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.event(event),
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                Some(Ok((source, found))) = self.looking.join_next() => self.dial_first(&source, found),
                _ = ticks.tick() => self.tick(),
            }
        }
    }

    fn kad(&mut self) -> &mut kad::Behaviour<Records> {
        &mut self.swarm.behaviour_mut().kad
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Find(key, asker) => self.find(key, asker),
            Command::Change { have, lost } => {
                let own = self.id();
                for key in lost {
                    self.have.remove(&key);
                    self.kad().stop_providing(&key);
                }
                for key in have {
                    // Who asks this node hears of it at once.
                    drop(self.kad().store_mut().add_provider(ProviderRecord::new(key.clone(), own, Vec::new())));
                    if self.have.insert(key.clone()) {
                        self.to_announce.push_front(key);
                    }
                }
                self.announce();
            }
        }
    }

    fn find(&mut self, key: RecordKey, asker: mpsc::Sender<Provider>) {
        if let Some(lookup) = self.by_key.get(&key).and_then(|id| self.lookups.get_mut(id)) {
            for peer in &lookup.found {
                let addresses = self.book.of(peer).to_vec();
                drop(asker.try_send(Provider { id: *peer, addresses }));
            }
            lookup.askers.push(asker);
            return;
        }
        if self.lookups.len() >= MAX_LOOKUPS {
            return;
        }
        let id = self.kad().get_providers(key.clone());
        self.by_key.insert(key.clone(), id);
        self.lookups.insert(id, Lookup { key, askers: vec![asker], found: HashSet::new() });
    }

    fn found(&mut self, id: QueryId, providers: impl IntoIterator<Item = PeerId>) {
        let own = self.id();
        let Some(lookup) = self.lookups.get_mut(&id) else { return };
        let new: Vec<PeerId> =
            providers.into_iter().filter(|peer| *peer != own && lookup.found.insert(*peer)).collect();
        let askers = lookup.askers.clone();
        for peer in new {
            // What an announcement says of addresses is in the record, if it is here.
            let told = self.swarm.behaviour_mut().kad.store_mut().providers(&self.lookups[&id].key);
            let told = told.into_iter().find(|record| record.provider == peer).map(|record| record.addresses);
            self.book.add(peer, told.iter().flatten());
            let addresses = self.book.of(&peer).to_vec();
            if !addresses.is_empty() {
                let provider = Provider { id: peer, addresses };
                askers.iter().for_each(|asker| drop(asker.try_send(provider.clone())));
                continue;
            }
            // Whoever told of the peer told its address too, but only Kademlia knows it: dialling makes it known.
            let opts = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).build();
            if self.swarm.dial(opts).is_ok() || self.dialled.contains_key(&peer) {
                self.dialled.entry(peer).or_default().extend(askers.iter().cloned());
            }
        }
    }

    fn event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                id,
                result,
                step,
                ..
            })) => {
                self.progressed(id, result, step.last);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Kad(kad::Event::RoutingUpdated { peer, addresses, .. })) => {
                self.book.add(peer, addresses.iter());
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. })) => {
                self.identified(peer_id, info);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event { connection, result: Err(error), .. })) => {
                tracing::debug!(%error, "a peer does not answer; its connection is closed");
                self.swarm.close_connection(connection);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(mdns::Event::Discovered(found))) => {
                for (peer, address) in found {
                    self.meet(peer, address);
                }
            }
            SwarmEvent::NewListenAddr { address, .. } => self.listening(address, true),
            SwarmEvent::ExpiredListenAddr { address, .. } => self.listening(address, false),
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } => self.connected(peer_id, &endpoint),
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                self.connected.remove(&peer_id);
                tracing::debug!(peer = %peer_id, left = self.connected.len(), "a peer is gone");
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => {
                tracing::debug!(peer = ?peer_id, %error, "a peer cannot be reached");
                peer_id.and_then(|peer| self.dialled.remove(&peer));
            }
            _ => {}
        }
    }

    fn progressed(&mut self, id: QueryId, result: QueryResult, last: bool) {
        if let QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) = &result {
            self.found(id, providers.iter().copied());
        }
        if last {
            if let Some(lookup) = self.lookups.remove(&id) {
                self.by_key.remove(&lookup.key);
            }
            if self.announcing.remove(&id) {
                self.announce();
            }
        }
    }

    fn connected(&mut self, peer: PeerId, endpoint: &ConnectedPoint) {
        if let ConnectedPoint::Dialer { address, .. } = endpoint {
            self.book.reached(peer, address);
        }
        if let Some(askers) = self.dialled.remove(&peer) {
            let provider = Provider { id: peer, addresses: self.book.of(&peer).to_vec() };
            askers.iter().for_each(|asker| drop(asker.try_send(provider.clone())));
        }
        if self.connected.insert(peer) {
            tracing::debug!(%peer, all = self.connected.len(), "met a peer");
            self.pause = ALONE.0;
        }
        self.announce();
    }

    fn identified(&mut self, peer: PeerId, info: identify::Info) {
        if !info.protocols.contains(&PROTOCOL) {
            return;
        }
        self.book.add(peer, &info.listen_addrs);
        for address in info.listen_addrs.into_iter().take(16) {
            if ip(&address).is_some_and(|ip| self.book.is_good(ip)) && is_tcp(&address) {
                self.kad().add_address(&peer, address);
            }
        }
        self.announce();
    }

    /// A peer that was heard of is dialled.
    fn meet(&mut self, peer: PeerId, address: Multiaddr) {
        if !self.connected.contains(&peer) && is_tcp(&address) {
            let opts = DialOpts::peer_id(peer).addresses(vec![address]).build();
            drop(self.swarm.dial(opts));
        }
    }

    /// This node is at an address, or not any more.
    fn listening(&mut self, address: Multiaddr, is_there: bool) {
        if !ip(&address).is_some_and(|ip| self.book.is_good(ip)) {
            return;
        }
        if is_there {
            tracing::info!(%address, id = %self.id(), "peers find this node");
            self.swarm.add_external_address(address);
        } else {
            self.swarm.remove_external_address(&address);
        }
        let own: Vec<Multiaddr> = self.swarm.external_addresses().cloned().collect();
        self.kad().store_mut().set_addresses(own);
        self.tell();
    }

    /// Announces what waits, a few at a time, if anybody hears it.
    fn announce(&mut self) {
        if self.connected.is_empty() {
            return;
        }
        while self.announcing.len() < MAX_ANNOUNCING {
            let Some(key) = self.to_announce.pop_front() else { return };
            if !self.have.contains(&key) {
                continue;
            }
            match self.kad().start_providing(key) {
                Ok(id) => drop(self.announcing.insert(id)),
                Err(error) => tracing::warn!(%error, "a digest is not announced"),
            }
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        let wait = if self.connected.is_empty() { self.pause } else { TOGETHER };
        if self.looking.is_empty() && self.looked.is_none_or(|looked| now - looked >= wait) {
            self.looked = Some(now);
            self.pause = (self.pause * 2).min(ALONE.1);
            for source in self.bootstrap.clone() {
                let (http, port) = (self.http.clone(), self.port);
                self.looking.spawn(async move {
                    let found = source.find(port, &http).await;
                    (source, found)
                });
            }
        }
        if now - self.expired >= EXPIRE {
            self.expired = now;
            self.kad().store_mut().expire(now);
            let dear = self.connected.clone();
            self.book.tidy(&dear);
        }
        let peers = self.connected.len();
        if peers >= self.announced.1 * 2 && peers > self.announced.1 && now - self.announced.0 >= ANNOUNCE_AGAIN {
            // The peers that are closest to a key are others now.
            self.to_announce = self.have.iter().cloned().collect();
            self.announced = (now, peers);
        }
        self.announce();
        self.tell();
    }

    fn dial_first(&mut self, source: &Bootstrap, found: Result<Vec<Multiaddr>, String>) {
        let found = match found {
            Ok(found) => found,
            Err(why) => return tracing::info!(?source, why, "no first peers from there"),
        };
        let own: Vec<Multiaddr> = self.swarm.external_addresses().cloned().collect();
        for address in found.into_iter().filter(|address| !own.contains(address)) {
            if let Err(error) = self.swarm.dial(address.clone()) {
                tracing::debug!(%address, %error, "a first peer is not dialled");
            }
        }
    }

    fn tell(&mut self) {
        let addresses = self.swarm.external_addresses().map(ToString::to_string).collect();
        let mut peers = BTreeSet::new();
        for bucket in self.swarm.behaviour_mut().kad.kbuckets() {
            peers.extend(bucket.iter().map(|entry| *entry.node.key.preimage()));
        }
        peers.extend(&self.connected);
        let peers = peers.into_iter().map(|peer| (peer, self.book.of(&peer).to_vec(), self.connected.contains(&peer)));
        self.told.send_replace(NetState { addresses, peers: peers.collect(), announced: self.have.len() });
    }
}

fn is_tcp(address: &Multiaddr) -> bool {
    matches!(address.iter().nth(1), Some(libp2p_core::multiaddr::Protocol::Tcp(_)))
}

fn swarm(settings: &NetSettings) -> Result<Swarm<Behaviour>, StartError> {
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
