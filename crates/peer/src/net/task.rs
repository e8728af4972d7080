//! The task that owns the swarm.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p_core::{ConnectedPoint, Multiaddr};
use libp2p_identify as identify;
use libp2p_identity::PeerId;
use libp2p_kad::store::RecordStore;
use libp2p_kad::{self as kad, GetProvidersOk, ProviderRecord, QueryId, QueryResult, RecordKey};
use libp2p_mdns as mdns;
use libp2p_ping as ping;
use libp2p_swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p_swarm::{DialError, Swarm, SwarmEvent};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::book::Book;
use super::bootstrap::Bootstrap;
use super::records::Records;
use super::swarm::{Behaviour, BehaviourEvent, NetSettings, PROTOCOL, swarm};
use super::{Command, NetState, Provider, ip, multiaddr};
use crate::StartError;

/// Searches at once.
const MAX_LOOKUPS: usize = 512;
/// Announcements at once.
const MAX_ANNOUNCING: usize = 32;

/// How often the first peers are looked for while nobody is connected, at first and at last; and else.
const ALONE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
const TOGETHER: Duration = Duration::from_secs(300);
/// How often it is looked after things that need no hurry.
const TICK: Duration = Duration::from_millis(500);
/// How often what is out of date is dropped.
const EXPIRE: Duration = Duration::from_secs(60);
/// How soon everything is announced again since there are many more peers than when it was.
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(30);

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
    /// Announcements of what is coming, and who wants to know when they are made.
    coming: HashMap<QueryId, watch::Sender<bool>>,
    /// When everything was announced last, and to how many peers.
    announced: (Instant, usize),
    expired: Instant,
}

/// `[::]` is every address of both families, as for other servers; libp2p's sockets have one family each.
fn families(listen: SocketAddr) -> impl Iterator<Item = SocketAddr> {
    let is_all = matches!(listen.ip(), IpAddr::V6(ip) if ip.is_unspecified());
    let v4 = is_all.then(|| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), listen.port()));
    std::iter::once(listen).chain(v4)
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
        for address in families(listen) {
            swarm.listen_on(multiaddr(address)).map_err(|error| refused(&error))?;
        }
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
            coming: HashMap::new(),
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
            Command::FindAnew(key, asker) => self.search(key, asker),
            Command::Comes(key, told) => self.comes(key, told),
            Command::Goes(key) => self.kad().stop_providing(&key),
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
            lookup.askers.push(asker.clone());
            let found: Vec<PeerId> = lookup.found.iter().copied().collect();
            found.into_iter().for_each(|peer| self.introduce(peer, std::slice::from_ref(&asker)));
            return;
        }
        self.search(key, asker);
    }

    fn search(&mut self, key: RecordKey, asker: mpsc::Sender<Provider>) {
        if self.lookups.len() >= MAX_LOOKUPS {
            return;
        }
        let id = self.kad().get_providers(key.clone());
        self.by_key.insert(key.clone(), id);
        self.lookups.insert(id, Lookup { key, askers: vec![asker], found: HashSet::new() });
    }

    /// Announced at once, before all that waits: it is for those who look for it now.
    fn comes(&mut self, key: RecordKey, told: watch::Sender<bool>) {
        if self.connected.is_empty() || self.coming.len() >= MAX_LOOKUPS {
            let own = self.id();
            drop(self.kad().store_mut().add_provider(ProviderRecord::new(key, own, Vec::new())));
            return;
        }
        match self.kad().start_providing(key) {
            Ok(id) => drop(self.coming.insert(id, told)),
            Err(error) => tracing::warn!(%error, "what is coming is not announced"),
        }
    }

    fn found(&mut self, id: QueryId, providers: impl IntoIterator<Item = PeerId>) {
        let own = self.id();
        let Some(lookup) = self.lookups.get_mut(&id) else { return };
        let new: Vec<PeerId> =
            providers.into_iter().filter(|peer| *peer != own && lookup.found.insert(*peer)).collect();
        let askers = lookup.askers.clone();
        // What an announcement says of addresses is in the record, if it is here.
        let records = self.swarm.behaviour_mut().kad.store_mut().others(&lookup.key);
        for record in records.iter().filter(|record| new.contains(&record.provider)) {
            self.book.add(record.provider, &record.addresses);
        }
        new.into_iter().for_each(|peer| self.introduce(peer, &askers));
    }

    /// Tells of a peer that has what was asked for, as soon as it is known where it is.
    fn introduce(&mut self, peer: PeerId, askers: &[mpsc::Sender<Provider>]) {
        if self.tell_of(peer, askers) {
            return;
        }
        // Whoever told of the peer told its address too, but only Kademlia knows it: dialling makes it known.
        let opts = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).build();
        let comes = match self.swarm.dial(opts) {
            Ok(()) => true,
            // It is dialled already, by whomever.
            Err(DialError::DialPeerConditionFalse(_)) => !self.connected.contains(&peer),
            Err(_) => false,
        };
        if comes {
            self.dialled.entry(peer).or_default().extend(askers.iter().cloned());
        }
    }

    /// Tells of a peer, if it is known where it is.
    fn tell_of(&self, peer: PeerId, askers: &[mpsc::Sender<Provider>]) -> bool {
        let provider = Provider { id: peer, addresses: self.book.of(&peer).to_vec() };
        let is_known = !provider.addresses.is_empty();
        if is_known {
            askers.iter().for_each(|asker| drop(asker.try_send(provider.clone())));
        }
        is_known
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
            if let Some(lookup) = self.lookups.remove(&id)
                && self.by_key.get(&lookup.key) == Some(&id)
            {
                self.by_key.remove(&lookup.key);
            }
            if let Some(told) = self.coming.remove(&id) {
                told.send_replace(true);
            }
            if self.announcing.remove(&id) {
                self.announce();
            }
        }
    }

    fn connected(&mut self, peer: PeerId, endpoint: &ConnectedPoint) {
        if let ConnectedPoint::Dialer { address, .. } = endpoint {
            self.book.reached(peer, address);
            if let Some(askers) = self.dialled.remove(&peer) {
                self.tell_of(peer, &askers);
            }
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

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;

    use super::super::{Net, key};
    use super::*;

    fn settings() -> NetSettings {
        NetSettings {
            key: Keypair::generate_ed25519(),
            listen: "127.0.0.1:0".parse().unwrap(),
            shared_key: None,
            bootstrap: Vec::new(),
            mdns: false,
            http: reqwest::Client::new(),
        }
    }

    /// What was told of a provider that is dialled already was nothing, or that it is nowhere, for which it was not asked for a while.
    #[tokio::test]
    async fn a_provider_that_is_being_dialled_is_told_of_when_it_is_known_where_it_is() {
        let there = Net::start(settings()).unwrap();
        let mut state = there.state.clone();
        let address = state.wait_for(|state| !state.addresses.is_empty()).await.unwrap().addresses[0].clone();
        let (_commands, taken) = mpsc::channel(1);
        let (told, _state) = watch::channel(NetState::default());
        let mut task = Task::new(settings(), taken, told).unwrap();
        let peer = there.id();
        task.swarm.dial(DialOpts::peer_id(peer).addresses(vec![address.parse().unwrap()]).build()).unwrap();
        let ((first, mut of_first), (second, mut of_second)) = (mpsc::channel(1), mpsc::channel(1));
        let wanted = key(&orlop_oci::Digest::of(b"x"));
        task.find(wanted.clone(), first);
        task.found(task.by_key[&wanted], [peer]);
        task.find(wanted, second);
        let _running = super::super::Ended(tokio::spawn(task.run()));
        let expected = Some(Provider { id: peer, addresses: vec!["127.0.0.1".parse().unwrap()] });
        assert_eq!(of_first.recv().await, expected);
        assert_eq!(of_second.recv().await, expected);
    }
}
