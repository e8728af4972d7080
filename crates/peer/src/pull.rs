//! One blob from whoever gives it: the search, the decisions and the transfer together.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use libp2p_identity::PeerId;
use orlop_image::{Asking, Given, NearStream, Neighbour, Opening, Source, Wanted};
use orlop_oci::Digest;

use crate::Network;
use crate::http::{Answer, Asker, Question, Refusal};
use crate::net::{Net, NetState, Provider};
use crate::pace::Pace;
use crate::schedule::{Board, End, Fetch, Moment, Rules, Step, Transfer, Verdict};
use crate::shelf::Shelf;

/// Digests of which it is remembered who failed them.
const MAX_FAILED: usize = 1024;
/// How long that counts.
const FAILED_LIFE: Duration = Duration::from_secs(60);

/// Asks peers for blobs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Puller {
    inner: Arc<Inner>,
}

struct Inner {
    net: Net,
    asker: Asker,
    shelf: Shelf,
    near: Vec<Network>,
    rules: Rules,
    /// What all moments are counted from.
    began: Instant,
    board: Mutex<Board<PeerId>>,
    pace: Pace,
    /// Who broke off or was too slow with a blob, lately: others go on with it.
    failed: Mutex<HashMap<Digest, (Moment, Vec<PeerId>)>>,
    received: AtomicU64,
    lies: AtomicU64,
}

/// A peer's answer, or why it gives none.
type Answered = (PeerId, Duration, Result<Answer, Refusal>);

impl Puller {
    pub(crate) fn new(net: Net, asker: Asker, shelf: Shelf, near: Vec<Network>, rules: Rules, rate: u64) -> Self {
        // No two nodes have the same ID, and so no two the same seed.
        let id = net.id().to_bytes();
        let seed = id.iter().rev().take(8).fold(0u64, |seed, byte| (seed << 8) | u64::from(*byte));
        let inner = Inner {
            net,
            asker,
            shelf,
            near,
            began: Instant::now(),
            board: Mutex::new(Board::new(rules.clone(), seed)),
            rules,
            pace: Pace::new(rate),
            failed: Mutex::default(),
            received: AtomicU64::new(0),
            lies: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// See [`orlop_image::Neighbours::open`].
    pub(crate) async fn open(&self, wanted: Wanted<'_>) -> Opening {
        if self.inner.shelf.withholds(wanted.repository) {
            return Opening::default();
        }
        let question = Question {
            repository: wanted.repository.clone(),
            digest: wanted.digest.clone(),
            size: wanted.size,
            offset: wanted.offset,
            is_document: wanted.is_document,
        };
        Search::new(&self.inner, question).run().await
    }

    /// See [`orlop_image::Neighbours::disproved`].
    pub(crate) fn disproved(&self, digest: &Digest, givers: &[String], alone: bool) {
        let givers: Vec<PeerId> = givers.iter().filter_map(|giver| giver.split('@').next()?.parse().ok()).collect();
        let now = self.inner.now();
        let excluded = self.inner.board().disproved(now, &givers, alone);
        self.inner.lies.fetch_add(1, Ordering::Relaxed);
        for peer in excluded {
            tracing::warn!(%peer, %digest, "a peer gave wrong bytes and is not asked any more for a while");
        }
    }

    pub(crate) fn received(&self) -> u64 {
        self.inner.received.load(Ordering::Relaxed)
    }

    pub(crate) fn lies(&self) -> u64 {
        self.inner.lies.load(Ordering::Relaxed)
    }

    /// Everybody that is known, by what was had of them and where they are.
    pub(crate) fn neighbours(&self, state: &NetState) -> Vec<Neighbour> {
        let now = self.inner.now();
        let board = self.inner.board();
        let mut all: BTreeMap<PeerId, Neighbour> = BTreeMap::new();
        for (peer, addresses, is_connected) in &state.peers {
            let is_near = self.inner.is_near(addresses);
            let addresses = addresses.iter().map(ToString::to_string).collect();
            let known = Neighbour {
                id: peer.to_string(),
                addresses,
                is_connected: *is_connected,
                is_near,
                ..Default::default()
            };
            all.insert(*peer, known);
        }
        for (peer, conduct) in board.all(now) {
            let known = all.entry(*peer).or_insert_with(|| Neighbour { id: peer.to_string(), ..Default::default() });
            known.is_near |= conduct.near;
            known.latency = conduct.latency;
            known.rate = conduct.rate.map(|rate| rate as u64);
            known.received = conduct.bytes;
            known.blobs = conduct.blobs;
            known.failures = conduct.failures;
            known.lies = conduct.lies;
            known.excluded_for = conduct.excluded_until.map(|until| until.saturating_sub(now));
        }
        all.into_values().collect()
    }
}

impl Inner {
    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    fn board(&self) -> MutexGuard<'_, Board<PeerId>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_near(&self, addresses: &[IpAddr]) -> bool {
        self.near.is_empty() || addresses.iter().any(|address| self.near.iter().any(|net| net.contains(*address)))
    }

    /// Who failed a blob lately.
    fn failed(&self, digest: &Digest) -> Vec<PeerId> {
        let now = self.now();
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, (until, _)| *until > now);
        failed.get(digest).map(|(_, peers)| peers.clone()).unwrap_or_default()
    }

    fn fail(&self, digest: &Digest, peer: PeerId) {
        let until = self.now() + FAILED_LIFE;
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.len() < MAX_FAILED || failed.contains_key(digest) {
            let entry = failed.entry(digest.clone()).or_default();
            entry.0 = until;
            entry.1.push(peer);
        }
    }
}

/// Looks for somebody who gives one blob.
struct Search {
    inner: Arc<Inner>,
    question: Question,
    addresses: HashMap<PeerId, Vec<IpAddr>>,
    answers: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// Asked, and not answered yet.
    open: Vec<PeerId>,
    asked: Vec<Asking>,
}

impl Search {
    fn new(inner: &Arc<Inner>, question: Question) -> Self {
        Self {
            inner: Arc::clone(inner),
            question,
            addresses: HashMap::new(),
            answers: FuturesUnordered::new(),
            open: Vec::new(),
            asked: Vec::new(),
        }
    }

    async fn run(mut self) -> Opening {
        let inner = Arc::clone(&self.inner);
        let began = inner.now();
        let left = self.question.size.unwrap_or(64 << 10).saturating_sub(self.question.offset);
        let mut fetch = Fetch::new(began, left, &inner.failed(&self.question.digest));
        let mut found = inner.net.find(&self.question.digest);
        let mut is_looking = true;
        loop {
            let step = fetch.next(inner.now(), &mut inner.board());
            let until = match step {
                Step::Ask(peer) => {
                    self.ask(peer);
                    continue;
                }
                Step::Wait(until) => until,
                Step::Upstream(why) => {
                    self.note(String::new(), why.as_str().to_owned(), inner.now().saturating_sub(began));
                    let asked = std::mem::take(&mut self.asked);
                    return Opening { asked, given: None };
                }
            };
            let pause = until.saturating_sub(inner.now());
            tokio::select! {
                Some((peer, took, answer)) = self.answers.next() => {
                    if let Some(given) = self.answered(peer, took, answer, &mut fetch) {
                        let asked = std::mem::take(&mut self.asked);
                        return Opening { asked, given: Some(given) };
                    }
                }
                provider = found.recv(), if is_looking => match provider {
                    Some(Provider { id, addresses }) => {
                        inner.board().place(inner.now(), &id, inner.is_near(&addresses));
                        self.addresses.insert(id, addresses);
                        fetch.found([id]);
                    }
                    None => {
                        is_looking = false;
                        fetch.looked();
                    }
                },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn ask(&mut self, peer: PeerId) {
        let (asker, question) = (self.inner.asker.clone(), self.question.clone());
        let addresses = self.addresses.get(&peer).cloned().unwrap_or_default();
        self.open.push(peer);
        self.answers.push(Box::pin(async move {
            let since = Instant::now();
            let answer = asker.ask(&addresses, &question).await;
            (peer, since.elapsed(), answer)
        }));
    }

    fn answered(
        &mut self,
        peer: PeerId,
        took: Duration,
        answer: Result<Answer, Refusal>,
        fetch: &mut Fetch<PeerId>,
    ) -> Option<Given> {
        self.open.retain(|open| *open != peer);
        let now = self.inner.now();
        let host = self.host(&peer);
        match answer {
            Ok(answer) => {
                self.inner.board().answered(now, &peer, took, answer.load);
                let taking = Taking {
                    inner: Arc::clone(&self.inner),
                    peer,
                    digest: self.question.digest.clone(),
                    left: answer.length,
                    transfer: Transfer::default(),
                    answer,
                    end: Some(End::Dropped),
                };
                Some(Given { host, stream: taking.into_stream() })
            }
            Err(refusal) => {
                let again = refusal.pause.map(|pause| now + pause);
                let mut board = self.inner.board();
                board.ended(now, &peer, refusal.end);
                fetch.failed(now, &peer, refusal.end, again, &board);
                drop(board);
                self.note(host, refusal.said, took);
                None
            }
        }
    }

    /// The peer, as it is told apart and found by people.
    fn host(&self, peer: &PeerId) -> String {
        match self.addresses.get(peer).and_then(|addresses| addresses.first()) {
            Some(address) => format!("{peer}@{address}"),
            None => peer.to_string(),
        }
    }

    fn note(&mut self, host: String, said: String, took: Duration) {
        self.asked.push(Asking { source: Source::Neighbour, host, said, bytes: 0, took });
    }
}

/// Those that were asked and not waited for.
impl Drop for Search {
    fn drop(&mut self) {
        let now = self.inner.now();
        let mut board = self.inner.board();
        self.open.iter().for_each(|peer| board.ended(now, peer, End::Dropped));
    }
}

/// A blob that a peer is giving.
struct Taking {
    inner: Arc<Inner>,
    peer: PeerId,
    digest: Digest,
    answer: Answer,
    left: u64,
    transfer: Transfer,
    /// How it ended, until that is told.
    end: Option<End>,
}

impl Taking {
    fn into_stream(self) -> NearStream {
        Box::pin(futures::stream::unfold(Some(self), |state| async move {
            let mut taking = state?;
            match taking.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(taking))),
                Ok(None) => None,
                Err((end, why)) => {
                    taking.end = Some(end);
                    taking.inner.fail(&taking.digest, taking.peer);
                    Some((Err(why), None))
                }
            }
        }))
    }

    async fn next(&mut self) -> Result<Option<Bytes>, (End, String)> {
        if self.left == 0 {
            self.end = Some(End::Given { bytes: self.transfer.bytes(), waited: self.transfer.waited() });
            return Ok(None);
        }
        let bytes = self.wait().await?;
        let Some(mut bytes) = bytes else {
            return Err((End::Broken, "broke off: it ended before the blob's end".to_owned()));
        };
        // What comes beyond the length that it named is no part of the blob.
        bytes.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = bytes.len() as u64;
        self.left -= count;
        self.inner.received.fetch_add(count, Ordering::Relaxed);
        self.inner.pace.take(count).await;
        Ok(Some(bytes))
    }

    /// The next bytes, as long as it is worth waiting for them.
    async fn wait(&mut self) -> Result<Option<Bytes>, (End, String)> {
        let inner = Arc::clone(&self.inner);
        let rules = &inner.rules;
        self.transfer.wait(self.inner.now());
        loop {
            let now = inner.now();
            let pause = match self.transfer.judge(now, rules) {
                Verdict::GoOn(at) => at.saturating_sub(now),
                Verdict::Stalled => return Err((End::Slow, format!("stood still for {:?}", rules.stall))),
                Verdict::Slow => return Err((End::Slow, format!("was slower than {} B/s", rules.slow))),
            };
            match tokio::time::timeout(pause, self.answer.chunk()).await {
                Ok(Ok(bytes)) => {
                    let count = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
                    self.transfer.came(inner.now(), count, rules);
                    return Ok(bytes);
                }
                Ok(Err(why)) => return Err((End::Broken, why)),
                Err(_) => {}
            }
        }
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            let now = self.inner.now();
            self.inner.board().ended(now, &self.peer, end);
        }
    }
}
