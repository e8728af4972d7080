//! Where peers are: the IPs that each was seen at or says it has.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;

use super::ip;

/// Peers that are remembered.
const MAX_PEERS: usize = 16_384;
/// IPs of each.
const MAX_IPS: usize = 8;

/// The addresses of peers.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// A node that listens on loopback alone has its peers there; for all others an address of loopback means themselves.
    loopback: bool,
    ips: HashMap<PeerId, Vec<IpAddr>>,
}

impl Book {
    pub(super) fn new(loopback: bool) -> Self {
        Self { loopback, ips: HashMap::new() }
    }

    /// Whether anybody but its owner can mean something by an address.
    pub(super) fn is_good(&self, address: IpAddr) -> bool {
        let link_local = matches!(address, IpAddr::V6(ip) if (ip.segments()[0] & 0xffc0) == 0xfe80);
        !address.is_unspecified() && !address.is_multicast() && !link_local && address.is_loopback() == self.loopback
    }

    /// A peer is at these addresses, the best of them first. They come before what was told earlier, but for the best of that.
    pub(super) fn add<'a>(&mut self, peer: PeerId, addresses: impl IntoIterator<Item = &'a Multiaddr>) {
        let found: Vec<IpAddr> =
            addresses.into_iter().filter_map(ip).filter(|ip| self.is_good(*ip)).take(MAX_IPS).collect();
        if found.is_empty() || (self.ips.len() >= MAX_PEERS && !self.ips.contains_key(&peer)) {
            return;
        }
        let known = self.ips.entry(peer).or_default();
        // The first was reached, or was there before all others.
        let mut place = known.len().min(1);
        for ip in found {
            if !known.contains(&ip) {
                known.insert(place, ip);
                place += 1;
            }
        }
        known.truncate(MAX_IPS);
    }

    /// A connection to a peer was made at this address: it is the best one.
    pub(super) fn reached(&mut self, peer: PeerId, address: &Multiaddr) {
        let Some(ip) = ip(address).filter(|ip| self.is_good(*ip)) else { return };
        self.add(peer, [address]);
        if let Some(known) = self.ips.get_mut(&peer)
            && let Some(at) = known.iter().position(|other| *other == ip)
        {
            known[..=at].rotate_right(1);
        }
    }

    pub(super) fn of(&self, peer: &PeerId) -> &[IpAddr] {
        self.ips.get(peer).map(Vec::as_slice).unwrap_or_default()
    }

    /// Forgets all but these, when there are too many.
    pub(super) fn tidy(&mut self, dear: &BTreeSet<PeerId>) {
        if self.ips.len() >= MAX_PEERS {
            self.ips.retain(|peer, _| dear.contains(peer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn keeps_what_others_can_be_reached_by_and_no_more_than_some() {
        let peer = PeerId::random();
        let mut book = Book::new(false);
        let said = ["/ip4/127.0.0.1/tcp/1", "/ip4/0.0.0.0/tcp/1", "/ip6/fe80::1/tcp/1", "/ip4/10.0.0.1/tcp/1"];
        book.add(peer, &said.map(at));
        assert_eq!(book.of(&peer), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        let many: Vec<Multiaddr> = (2..100).map(|n| at(&format!("/ip4/10.0.0.{n}/tcp/1"))).collect();
        book.add(peer, &many);
        assert_eq!(book.of(&peer).len(), MAX_IPS);
        book.reached(peer, &at("/ip4/10.0.0.3/tcp/9"));
        assert_eq!(book.of(&peer)[0], "10.0.0.3".parse::<IpAddr>().unwrap());
        let mut book = Book::new(true);
        book.add(peer, &said.map(at));
        assert_eq!(book.of(&peer), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
    }

    /// Only the first two are tried: a peer that has its third address was not found any more.
    #[test]
    fn newer_addresses_come_before_older_ones_and_after_the_best() {
        let (peer, mut book) = (PeerId::random(), Book::new(false));
        let of = |book: &Book| book.of(&peer).iter().map(ToString::to_string).collect::<Vec<_>>();
        book.add(peer, &[at("/ip4/10.0.0.1/tcp/1"), at("/ip4/10.0.0.2/tcp/1")]);
        book.add(peer, &[at("/ip4/10.0.0.3/tcp/1"), at("/ip4/10.0.0.4/tcp/1"), at("/ip4/10.0.0.1/tcp/1")]);
        assert_eq!(of(&book), ["10.0.0.1", "10.0.0.3", "10.0.0.4", "10.0.0.2"]);
        for last in 10..50 {
            book.add(peer, &[at(&format!("/ip4/10.0.0.{last}/tcp/1"))]);
            assert_eq!(of(&book)[1], format!("10.0.0.{last}"));
        }
        book.reached(peer, &at("/ip4/10.0.0.60/tcp/1"));
        assert_eq!(of(&book)[..2], ["10.0.0.60", "10.0.0.1"]);
        assert_eq!(of(&book).len(), MAX_IPS);
    }

    #[test]
    fn peers_are_bounded() {
        let mut book = Book::new(false);
        for _ in 0..MAX_PEERS + 10 {
            book.add(PeerId::random(), [&at("/ip4/10.0.0.1/tcp/1")]);
        }
        assert_eq!(book.ips.len(), MAX_PEERS);
        book.tidy(&BTreeSet::new());
        assert!(book.ips.is_empty());
    }
}
