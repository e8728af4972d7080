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
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::Network;
use crate::http::{Answer, Asker, Question, Refusal};
use crate::net::{Net, NetState, Provider, Sought, rank};
use crate::pace::Pace;
use crate::relay::{Coming, Relays};
use crate::schedule::{Board, End, Fetch, Moment, Rules, Step, Transfer, Verdict};
use crate::shelf::Shelf;

/// Digests of which it is remembered who failed them.
const MAX_FAILED: usize = 1024;
/// How long that counts.
const FAILED_LIFE: Duration = Duration::from_secs(60);
/// How long it is remembered who gave a part of a blob that was coming to him: no blob takes longer.
const RELAYED_LIFE: Duration = Duration::from_secs(3600);
/// How often those are looked for to whom a blob is coming, while they are waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// Asks peers for blobs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Puller {
    inner: Arc<Inner>,
}

struct Inner {
    net: Net,
    asker: Asker,
    shelf: Shelf,
    relays: Relays,
    near: Vec<Network>,
    rules: Rules,
    /// What all moments are counted from.
    began: Instant,
    board: Mutex<Board<PeerId>>,
    pace: Pace,
    /// Who broke off or was too slow with a blob, lately: others go on with it.
    failed: Remembered,
    /// Who gave a blob that was still coming to him, and not to its end: what was wrong with it may be another's fault.
    relayed: Remembered,
    received: AtomicU64,
    lies: AtomicU64,
}

/// A peer's answer, or why it gives none.
type Answered = (PeerId, Duration, Result<Answer, Refusal>);

impl Puller {
    pub(crate) fn new(
        net: Net,
        asker: Asker,
        held: (Shelf, Relays),
        near: Vec<Network>,
        rules: Rules,
        rate: u64,
    ) -> Self {
        let (shelf, relays) = held;
        // No two nodes have the same ID, and so no two the same seed.
        let id = net.id().to_bytes();
        let seed = id.iter().rev().take(8).fold(0u64, |seed, byte| (seed << 8) | u64::from(*byte));
        let inner = Inner {
            net,
            asker,
            shelf,
            relays,
            near,
            began: Instant::now(),
            board: Mutex::new(Board::new(rules.clone(), seed)),
            rules,
            pace: Pace::new(rate),
            failed: Mutex::default(),
            relayed: Mutex::default(),
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
        let coming = self.inner.relays.get(wanted.digest).filter(|_| !wanted.is_document);
        Search::new(&self.inner, question(wanted, coming.is_some()), coming).run().await
    }

    /// See [`orlop_image::Neighbours::ahead`].
    pub(crate) async fn ahead(&self, wanted: Wanted<'_>) -> Given {
        let rules = &self.inner.rules;
        let mut pause = rules.ahead_after;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(rules.ahead_most);
            let Some(coming) = self.inner.relays.get(wanted.digest) else { continue };
            let wanted = Wanted { offset: coming.stage().has, ..wanted };
            if wanted.size.is_some_and(|size| wanted.offset >= size) {
                continue;
            }
            if let Some(given) = Search::new(&self.inner, question(wanted, true), Some(coming)).ahead().await {
                return given;
            }
        }
    }

    /// See [`orlop_image::Neighbours::disproved`].
    pub(crate) fn disproved(&self, digest: &Digest, givers: &[String], alone: bool) {
        let givers: Vec<PeerId> = givers.iter().filter_map(|giver| giver.split('@').next()?.parse().ok()).collect();
        let now = self.inner.now();
        let relayed = of(&self.inner.relayed, now, digest);
        let excluded = self.inner.board().disproved(now, &givers, alone, &relayed);
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
        of(&self.failed, self.now(), digest)
    }

    /// A peer did not give a blob to its end.
    fn fail(&self, digest: &Digest, peer: PeerId) {
        note(&self.failed, self.now() + FAILED_LIFE, digest, peer);
    }
}

/// Peers that are remembered with a blob, each set until a moment.
type Remembered = Mutex<HashMap<Digest, (Moment, Vec<PeerId>)>>;

/// Those that are remembered now.
fn of(remembered: &Remembered, now: Moment, digest: &Digest) -> Vec<PeerId> {
    let mut all = remembered.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|_, (until, _)| *until > now);
    all.get(digest).map(|(_, peers)| peers.clone()).unwrap_or_default()
}

fn note(remembered: &Remembered, until: Moment, digest: &Digest, peer: PeerId) {
    let mut all = remembered.lock().unwrap_or_else(PoisonError::into_inner);
    if all.len() < MAX_FAILED || all.contains_key(digest) {
        let entry = all.entry(digest.clone()).or_default();
        entry.0 = until;
        if entry.1.len() < MAX_FAILED && !entry.1.contains(&peer) {
            entry.1.push(peer);
        }
    }
}

/// What peers are asked.
fn question(wanted: Wanted<'_>, gives_on: bool) -> Question {
    Question {
        repository: wanted.repository.clone(),
        digest: wanted.digest.clone(),
        size: wanted.size,
        offset: wanted.offset,
        is_document: wanted.is_document,
        gives_on,
    }
}

/// Tells of everybody who has a blob or to whom it is coming, again and again for as long as it is polled.
async fn look(net: Net, digest: Digest, coming: Option<Arc<Coming>>, heard: mpsc::Sender<Heard>) {
    let tell = async |sought| {
        let mut found = net.find(&digest, sought);
        while let Some(provider) = found.recv().await {
            drop(heard.send(Heard::Of(sought, provider)).await);
        }
    };
    let Some(coming) = coming else {
        tell(Sought::Whole).await;
        return drop(heard.send(Heard::All).await);
    };
    // Of two that begin at once the one whose announcement was heard later finds the other by the search that follows it.
    let others = async {
        tokio::join!(tell(Sought::Coming), coming.announced());
        tell(Sought::Coming).await;
    };
    tokio::join!(tell(Sought::Whole), others);
    loop {
        drop(heard.send(Heard::All).await);
        tokio::time::sleep(LOOK_AGAIN).await;
        tokio::join!(tell(Sought::Whole), tell(Sought::Coming));
    }
}

/// What a peer is called of which nothing is known but where it is: so what it does is held against nobody else.
fn nameless(address: IpAddr) -> PeerId {
    let hash = Sha256::new().chain_update("orlop/at/").chain_update(address.to_string()).finalize();
    let mut bytes = vec![0x12, 0x20];
    bytes.extend_from_slice(&hash);
    PeerId::from_bytes(&bytes).unwrap_or_else(|_| PeerId::random())
}

/// Looks for somebody who gives one blob.
struct Search {
    inner: Arc<Inner>,
    question: Question,
    /// What is known of it here, if it is given on.
    coming: Option<Arc<Coming>>,
    addresses: HashMap<PeerId, Vec<IpAddr>>,
    answers: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// Asked, and not answered yet.
    open: Vec<PeerId>,
    asked: Vec<Asking>,
}

/// What is heard of peers while they are looked for.
enum Heard {
    Of(Sought, Provider),
    /// Everybody who can be found now.
    All,
}

impl Search {
    fn new(inner: &Arc<Inner>, question: Question, coming: Option<Arc<Coming>>) -> Self {
        Self {
            inner: Arc::clone(inner),
            question,
            coming,
            addresses: HashMap::new(),
            answers: FuturesUnordered::new(),
            open: Vec::new(),
            asked: Vec::new(),
        }
    }

    /// Somebody who gives, or the registry is to be asked.
    async fn run(self) -> Opening {
        let now = self.inner.now();
        let fetch = Fetch::new(now, self.left(), &self.inner.failed(&self.question.digest));
        let own = self.coming.as_ref().map(|_| rank(&self.question.digest, &self.inner.net.id()));
        let fetch = match own {
            Some(own) => fetch.ranked(own),
            None => fetch,
        };
        self.drive(fetch).await
    }

    /// Somebody who is ahead of what gives now, if there is one.
    async fn ahead(self) -> Option<Given> {
        let now = self.inner.now();
        let fetch = Fetch::new(now, self.left(), &self.inner.failed(&self.question.digest)).moving();
        self.drive(fetch).await.given
    }

    fn left(&self) -> u64 {
        self.question.size.unwrap_or(64 << 10).saturating_sub(self.question.offset)
    }

    async fn drive(mut self, mut fetch: Fetch<PeerId>) -> Opening {
        let inner = Arc::clone(&self.inner);
        let began = inner.now();
        let (sender, mut heard) = mpsc::channel(64);
        let looking = look(inner.net.clone(), self.question.digest.clone(), self.coming.clone(), sender);
        tokio::pin!(looking);
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
                Some(heard) = heard.recv() => self.heard(heard, &mut fetch),
                () = &mut looking, if is_looking => is_looking = false,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn heard(&mut self, heard: Heard, fetch: &mut Fetch<PeerId>) {
        let Heard::Of(sought, Provider { id, addresses }) = heard else { return fetch.looked() };
        self.met(id, addresses);
        match sought {
            Sought::Whole => fetch.found([id]),
            Sought::Coming => fetch.found_coming(id, Some(rank(&self.question.digest, &id))),
        }
    }

    /// A peer is there.
    fn met(&mut self, id: PeerId, addresses: Vec<IpAddr>) {
        self.inner.board().place(self.inner.now(), &id, self.inner.is_near(&addresses));
        self.addresses.insert(id, addresses);
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
                Some(Given { host, from: self.question.offset, had: answer.had, stream: self.taking(peer, answer) })
            }
            Err(refusal) => {
                let again = refusal.pause.map(|pause| now + pause);
                let mut board = self.inner.board();
                board.ended(now, &peer, refusal.end);
                fetch.failed(now, &peer, refusal.end, again, &board);
                drop(board);
                self.elsewhere(refusal.elsewhere, fetch);
                // Of those who are asked again the first answer says enough.
                if !self.asked.iter().any(|asking| asking.host == host && asking.said == refusal.said) {
                    self.note(host, refusal.said, took);
                }
                None
            }
        }
    }

    /// Peers of which another one told, by nothing but their addresses.
    fn elsewhere(&mut self, addresses: Vec<IpAddr>, fetch: &mut Fetch<PeerId>) {
        let own = self.inner.net.state().addresses;
        let is_own = |address: &IpAddr| own.iter().any(|own| own.split('/').nth(2) == Some(&address.to_string()));
        for address in addresses.into_iter().filter(|address| !is_own(address)) {
            let known = self.addresses.iter().find(|(_, known)| known.contains(&address)).map(|(id, _)| *id);
            let id = known.unwrap_or_else(|| nameless(address));
            if known.is_none() {
                self.met(id, vec![address]);
            }
            fetch.found_coming(id, None);
        }
    }

    fn taking(&self, peer: PeerId, answer: Answer) -> NearStream {
        let rules = &self.inner.rules;
        let rules = if answer.had.is_some() { rules.for_relays() } else { rules.clone() };
        let taking = Taking {
            inner: Arc::clone(&self.inner),
            rules,
            peer,
            digest: self.question.digest.clone(),
            left: answer.length,
            transfer: Transfer::default(),
            answer,
            end: Some(End::Dropped),
        };
        taking.into_stream()
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
    rules: Rules,
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
        // That a blob comes slowly to a peer itself may be the fault of whoever gives it there.
        let slow = if self.answer.had.is_some() { End::Broken } else { End::Slow };
        self.transfer.wait(self.inner.now());
        loop {
            let now = inner.now();
            let pause = match self.transfer.judge(now, &self.rules) {
                Verdict::GoOn(at) => at.saturating_sub(now),
                Verdict::Stalled => return Err((slow, format!("stood still for {:?}", self.rules.stall))),
                Verdict::Slow => return Err((slow, format!("was slower than {} B/s", self.rules.slow))),
            };
            match tokio::time::timeout(pause, self.answer.chunk()).await {
                Ok(Ok(bytes)) => {
                    let count = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
                    self.transfer.came(inner.now(), count, &self.rules);
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
            if self.answer.had.is_some() && self.left > 0 && self.transfer.bytes() > 0 {
                note(&self.inner.relayed, now + RELAYED_LIFE, &self.digest, self.peer);
            }
            self.inner.board().ended(now, &self.peer, end);
        }
    }
}
