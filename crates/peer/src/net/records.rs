//! Provider records, bounded: who has told this node that he has what.
//!
//! libp2p's own store keeps records that nobody asks for for ever, and its bound counts this node's own keys. Here
//! expired ones go, and no peer can take the place of others.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_kad::store::{Error, RecordStore, Result};
use libp2p_kad::{ProviderRecord, Record, RecordKey};

use super::{COMING, rank_of};

/// Records of others in all: about 100 MB.
const MAX_RECORDS: usize = 262_144;
/// Records of one peer.
const MAX_OF_PEER: usize = 32_768;
/// Providers of one key. Who comes later is not needed, and cannot push out who came before. An answer has 20 of them.
const MAX_OF_KEY: usize = 256;
/// Of those to whom a blob is coming, so many of the lowest ranks are told first, so that all who ask agree on who is the lowest.
const TOLD_BY_RANK: usize = 10;
/// Providers that libp2p puts into an answer.
const TOLD: usize = 20;
/// Addresses of one record.
const MAX_ADDRESSES: usize = 8;
/// Bytes of an address.
const MAX_ADDRESS_BYTES: usize = 128;
/// Bytes of a key: a multihash has 34.
const MAX_KEY_BYTES: usize = 64;

/// The records.
#[derive(Debug)]
pub(super) struct Records {
    own: PeerId,
    /// Where this node is, for who asks for the providers of what it has.
    addresses: Vec<Multiaddr>,
    provided: HashMap<RecordKey, ProviderRecord>,
    others: HashMap<RecordKey, Vec<ProviderRecord>>,
    /// Records of each peer.
    count: HashMap<PeerId, usize>,
    total: usize,
    life: Duration,
    /// Moves with each question, so that not everybody is told of the same providers.
    turn: AtomicUsize,
}

impl Records {
    pub(super) fn new(own: PeerId, life: Duration) -> Self {
        Self {
            own,
            addresses: Vec::new(),
            provided: HashMap::new(),
            others: HashMap::new(),
            count: HashMap::new(),
            total: 0,
            life,
            turn: AtomicUsize::new(0),
        }
    }

    /// This node is there.
    pub(super) fn set_addresses(&mut self, addresses: Vec<Multiaddr>) {
        self.addresses = addresses;
    }

    /// What others announced of a key.
    pub(super) fn others(&self, key: &RecordKey) -> &[ProviderRecord] {
        self.others.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// Drops what is out of date.
    pub(super) fn expire(&mut self, now: Instant) {
        let (mut total, count) = (0, &mut self.count);
        count.clear();
        self.others.retain(|_, records| {
            records.retain(|record| !record.is_expired(now));
            for record in records.iter() {
                *count.entry(record.provider).or_default() += 1;
                total += 1;
            }
            !records.is_empty()
        });
        self.total = total;
    }

    fn forget(&mut self, peer: &PeerId) {
        self.total = self.total.saturating_sub(1);
        if let Some(count) = self.count.get_mut(peer) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.count.remove(peer);
            }
        }
    }
}

impl RecordStore for Records {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::iter::Map<
        std::collections::hash_map::Values<'a, RecordKey, ProviderRecord>,
        fn(&'a ProviderRecord) -> Cow<'a, ProviderRecord>,
    >;

    fn get(&self, _key: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _record: Record) -> Result<()> {
        Err(Error::ValueTooLarge)
    }

    fn remove(&mut self, _key: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, mut record: ProviderRecord) -> Result<()> {
        if record.provider == self.own {
            self.provided.insert(record.key.clone(), record);
            return Ok(());
        }
        if record.key.to_vec().len() > MAX_KEY_BYTES {
            return Err(Error::ValueTooLarge);
        }
        record.addresses.retain(|address| address.len() <= MAX_ADDRESS_BYTES);
        record.addresses.truncate(MAX_ADDRESSES);
        record.expires = Some(Instant::now() + self.life);
        let known = self.others.get_mut(&record.key);
        if let Some(place) = known.and_then(|known| known.iter_mut().find(|other| other.provider == record.provider)) {
            *place = record;
            return Ok(());
        }
        let of_peer = self.count.get(&record.provider).copied().unwrap_or_default();
        if self.total >= MAX_RECORDS || of_peer >= MAX_OF_PEER {
            return Err(Error::MaxProvidedKeys);
        }
        let known = self.others.entry(record.key.clone()).or_default();
        if is_coming(&record.key) {
            // The lowest ranks are kept, in order.
            let rank = |record: &ProviderRecord| rank_of(&record.key.to_vec(), &record.provider);
            let own = rank(&record);
            let place = known.partition_point(|other| rank(other) < own);
            if place >= MAX_OF_KEY {
                return Ok(());
            }
            let gone = if known.len() >= MAX_OF_KEY { known.pop() } else { None };
            *self.count.entry(record.provider).or_default() += 1;
            self.total += 1;
            known.insert(place, record);
            if let Some(gone) = gone {
                self.forget(&gone.provider);
            }
        } else if known.len() < MAX_OF_KEY {
            *self.count.entry(record.provider).or_default() += 1;
            self.total += 1;
            known.push(record);
        }
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let own = self.provided.get(key).map(|record| {
            let mut record = record.clone();
            // Left empty, every address that the node listens on is told, loopback too.
            record.addresses.clone_from(&self.addresses);
            record
        });
        let others = self.others(key);
        let (lowest, others) = others.split_at(if is_coming(key) { TOLD_BY_RANK.min(others.len()) } else { 0 });
        let turn = self.turn.fetch_add(TOLD - lowest.len(), Ordering::Relaxed) % others.len().max(1);
        let (first, last) = others.split_at(turn);
        own.into_iter().chain(lowest.iter().chain(last).chain(first).cloned()).collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        self.provided.values().map(Cow::Borrowed)
    }

    fn remove_provider(&mut self, key: &RecordKey, peer: &PeerId) {
        if *peer == self.own {
            self.provided.remove(key);
            return;
        }
        let Some(known) = self.others.get_mut(key) else { return };
        let before = known.len();
        known.retain(|record| record.provider != *peer);
        let (gone, is_empty) = (known.len() < before, known.is_empty());
        if is_empty {
            self.others.remove(key);
        }
        if gone {
            self.forget(peer);
        }
    }
}

fn is_coming(key: &RecordKey) -> bool {
    key.as_ref().starts_with(COMING)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: u32, peer: PeerId) -> ProviderRecord {
        ProviderRecord::new(RecordKey::new(&key.to_be_bytes()), peer, Vec::new())
    }

    #[test]
    fn a_flood_of_one_peer_leaves_room_for_others_and_goes_when_it_is_old() {
        let (own, flooder, other) = (PeerId::random(), PeerId::random(), PeerId::random());
        let mut records = Records::new(own, Duration::from_secs(60));
        let stored = (0..100_000).filter(|key| records.add_provider(record(*key, flooder)).is_ok()).count();
        assert_eq!(stored, MAX_OF_PEER);
        records.add_provider(record(7, other)).unwrap();
        assert_eq!(records.providers(&record(7, own).key).len(), 2);
        records.expire(Instant::now() + Duration::from_secs(61));
        assert!(records.others.is_empty() && records.count.is_empty() && records.total == 0);
    }

    #[test]
    fn all_of_them_together_are_bounded_and_so_are_those_of_a_key() {
        let mut records = Records::new(PeerId::random(), Duration::from_secs(60));
        for _ in 0..12 {
            let peer = PeerId::random();
            (0..MAX_OF_PEER as u32).for_each(|key| drop(records.add_provider(record(key, peer))));
        }
        assert_eq!(records.total, MAX_RECORDS);
        let mut records = Records::new(PeerId::random(), Duration::from_secs(60));
        (0..300).for_each(|_| drop(records.add_provider(record(1, PeerId::random()))));
        assert_eq!(records.providers(&record(1, PeerId::random()).key).len(), MAX_OF_KEY);
    }

    #[test]
    fn those_who_ask_are_told_of_others_first() {
        let mut records = Records::new(PeerId::random(), Duration::from_secs(60));
        (0..100).for_each(|_| drop(records.add_provider(record(1, PeerId::random()))));
        let first = || records.providers(&record(1, PeerId::random()).key)[0].provider;
        let told: std::collections::HashSet<PeerId> = (0..5).map(|_| first()).collect();
        assert_eq!(told.len(), 5);
    }

    /// Who announces later pushes out those of higher ranks only, and all who ask are told of the same lowest ones.
    #[test]
    fn of_those_to_whom_a_blob_is_coming_the_lowest_are_kept_and_told_first() {
        let key = RecordKey::new(&[COMING, b"x"].concat());
        let mut records = Records::new(PeerId::random(), Duration::from_secs(60));
        let mut peers: Vec<PeerId> = (0..400).map(|_| PeerId::random()).collect();
        peers
            .iter()
            .for_each(|peer| records.add_provider(ProviderRecord::new(key.clone(), *peer, Vec::new())).unwrap());
        peers.sort_by_key(|peer| rank_of(&key.to_vec(), peer));
        let of = |record: ProviderRecord| record.provider;
        assert_eq!(records.others(&key).iter().cloned().map(of).collect::<Vec<_>>(), peers[..MAX_OF_KEY]);
        assert_eq!((records.total, records.count.len()), (MAX_OF_KEY, MAX_OF_KEY));
        let told = || records.providers(&key).into_iter().map(of).take(TOLD).collect::<Vec<_>>();
        let (first, second) = (told(), told());
        assert_eq!((&first[..TOLD_BY_RANK], &second[..TOLD_BY_RANK]), (&peers[..TOLD_BY_RANK], &peers[..TOLD_BY_RANK]));
        assert!(first[TOLD_BY_RANK..].iter().all(|peer| !second[TOLD_BY_RANK..].contains(peer)));
    }

    #[test]
    fn own_records_have_the_node_s_addresses_and_are_not_bounded_by_others() {
        let own = PeerId::random();
        let mut records = Records::new(own, Duration::from_secs(60));
        records.set_addresses(vec!["/ip4/10.0.0.1/tcp/5001".parse().unwrap()]);
        records.add_provider(record(1, own)).unwrap();
        let found = records.providers(&record(1, own).key);
        assert_eq!(found[0].addresses, ["/ip4/10.0.0.1/tcp/5001".parse::<Multiaddr>().unwrap()]);
        assert_eq!(records.provided().count(), 1);
        records.remove_provider(&record(1, own).key, &own);
        assert_eq!(records.provided().count(), 0);
    }

    #[test]
    fn counts_follow_what_is_removed() {
        let (own, peer) = (PeerId::random(), PeerId::random());
        let mut records = Records::new(own, Duration::from_secs(60));
        (0..10).for_each(|key| records.add_provider(record(key, peer)).unwrap());
        records.add_provider(record(3, peer)).unwrap();
        (0..10).for_each(|key| records.remove_provider(&record(key, own).key, &peer));
        assert!(records.others.is_empty() && records.count.is_empty() && records.total == 0);
    }
}
