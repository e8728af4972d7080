//! Users and their passwords: a file as `htpasswd -B` writes it.
//!
//! # Invariants
//! - Only bcrypt counts: what is weaker is refused when the file is read, not when somebody logs in.
//! - An unknown name costs as much time as a wrong password: the hash of one of the users is computed for it, always the same one.
//! - A password that was right is remembered for a while as a keyed hash, so that not every request of a push costs bcrypt's time.
//!   One that was wrong is not.
//! - Hashing takes half of the processors at most, whatever clients send and however often they go away meanwhile. Who waits for it is
//!   counted, in all and for each address: more are told to come again.
//!
//! # Concurrency
//! Hashes are computed on the blocking pool. Requests of one push that come together wait for one hash.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use tokio::sync::Semaphore;

use super::permissions::RESERVED;

/// Passwords that are hashed at once at most: each keeps a processor for a while.
const MAX_AT_ONCE: usize = 4;

/// Requests that wait for a hash, in all: at the usual cost of bcrypt some seconds' worth.
const MAX_WAITING: usize = 128;

/// Requests from one address that wait for a hash: as many as a few pushes make, so that one address does not take all places.
const MAX_WAITING_OF_ADDRESS: usize = 32;

/// How long a password that was right is not hashed again.
const REMEMBERED: Duration = Duration::from_secs(300);

/// So many of them are remembered at most.
const MAX_REMEMBERED: usize = 1024;

/// A bcrypt hash of nothing that anybody knows, where there are no users.
const NOBODY: &str = "$2b$10$abcdefghijklmnopqrstuudIYiYitsLc.P5IUFXGOiCqot8GD8lXy";

/// What bcrypt's hashes begin with.
const BCRYPT: [&str; 3] = ["$2a$", "$2b$", "$2y$"];

/// The largest cost that is taken: higher ones would keep a processor for minutes.
const MAX_COST: u32 = 16;

/// Who can log in.
pub struct Users {
    hashes: HashMap<String, String>,
    /// The names, in their order: what is computed for a name that nobody has is one of theirs.
    names: Vec<String>,
    hashing: Arc<Semaphore>,
    key: hmac::Key,
    remembered: Mutex<HashMap<[u8; 32], Instant>>,
    waiting: Arc<Waiting>,
}

/// How many wait for a hash, from where.
type Waiting = Mutex<HashMap<Option<IpAddr>, usize>>;

/// What is said of a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the user's.
    Right,
    /// It is not, or there is no such user.
    Wrong,
    /// Too many wait to hear of theirs.
    Busy,
}

/// Why a user file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct UsersError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it; nothing of its password.
    pub reason: String,
}

impl Users {
    /// Reads a file: `NAME:HASH` in each line, empty lines and those that begin with `#` left out.
    pub fn parse(text: &str) -> Result<Self, UsersError> {
        let mut hashes = HashMap::new();
        for (at, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |reason: String| UsersError { line: at, reason };
            let (name, hash) =
                line.split_once(':').ok_or_else(|| wrong("expected NAME:HASH, as htpasswd -B writes it".into()))?;
            if name.is_empty() || RESERVED.contains(&name) {
                return Err(wrong(format!("{name:?} cannot be a user's name")));
            }
            check(hash).map_err(|reason| wrong(format!("the password of {name}: {reason}")))?;
            if hashes.insert(name.to_owned(), hash.to_owned()).is_some() {
                return Err(wrong(format!("{name} is there twice")));
            }
        }
        let key: [u8; 32] = rand::random();
        let at_once = std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)).min(MAX_AT_ONCE);
        let mut names: Vec<String> = hashes.keys().cloned().collect();
        names.sort_unstable();
        Ok(Self {
            hashes,
            names,
            hashing: Arc::new(Semaphore::new(at_once)),
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            remembered: Mutex::default(),
            waiting: Arc::default(),
        })
    }

    /// Whether there is a user of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.hashes.contains_key(name)
    }

    /// Whether a password is that of a user, for a request from this address.
    pub async fn verify(&self, name: &str, password: String, address: Option<IpAddr>) -> Verdict {
        let mark = self.mark(name, &password);
        if self.is_remembered(&mark) {
            return Verdict::Right;
        }
        let Some(place) = Place::take(&self.waiting, address) else { return Verdict::Busy };
        let Ok(permit) = self.hashing.clone().acquire_owned().await else { return Verdict::Busy };
        if self.is_remembered(&mark) {
            // A request that came together with this one has it.
            return Verdict::Right;
        }
        let hash = self.hash_for(name).to_owned();
        // A client that goes away does not end what is computed for it: the permit stays with that.
        let hashed = tokio::task::spawn_blocking(move || {
            let _kept = (permit, place);
            bcrypt::verify(password, &hash).unwrap_or_default()
        });
        let right = hashed.await.unwrap_or_default() && self.contains(name);
        if right {
            self.remember(mark);
        }
        if right { Verdict::Right } else { Verdict::Wrong }
    }

    /// The user's hash; of a name that nobody has, somebody's, so that costs which differ do not tell names either.
    fn hash_for(&self, name: &str) -> &str {
        if let Some(hash) = self.hashes.get(name) {
            return hash;
        }
        let drawn = hmac::sign(&self.key, name.as_bytes());
        let drawn = drawn.as_ref().iter().take(4).fold(0_usize, |number, byte| number << 8 | usize::from(*byte));
        let somebody = drawn.checked_rem(self.names.len()).and_then(|at| self.hashes.get(&self.names[at]));
        somebody.map_or(NOBODY, String::as_str)
    }

    fn mark(&self, name: &str, password: &str) -> [u8; 32] {
        // A form's name may have a colon: the length keeps the two apart.
        let tag = hmac::sign(&self.key, format!("{} {name}{password}", name.len()).as_bytes());
        let mut mark = [0; 32];
        mark.copy_from_slice(tag.as_ref());
        mark
    }

    fn is_remembered(&self, mark: &[u8; 32]) -> bool {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.get(mark).is_some_and(|since| since.elapsed() < REMEMBERED)
    }

    fn remember(&self, mark: [u8; 32]) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= MAX_REMEMBERED {
            remembered.retain(|_, since| since.elapsed() < REMEMBERED);
        }
        if remembered.len() < MAX_REMEMBERED {
            remembered.insert(mark, Instant::now());
        }
    }
}

/// A place among those that wait, until this is dropped.
struct Place {
    waiting: Arc<Waiting>,
    address: Option<IpAddr>,
}

impl Place {
    fn take(waiting: &Arc<Waiting>, address: Option<IpAddr>) -> Option<Self> {
        let mut all = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.get(&address).copied().unwrap_or_default();
        if count >= MAX_WAITING_OF_ADDRESS || all.values().sum::<usize>() >= MAX_WAITING {
            return None;
        }
        all.insert(address, count + 1);
        Some(Self { waiting: waiting.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.address);
            }
        }
    }
}

fn check(hash: &str) -> Result<(), String> {
    if !BCRYPT.iter().any(|prefix| hash.starts_with(prefix)) {
        return Err("expected a bcrypt hash ($2y$…): make it with htpasswd -B".into());
    }
    let parts = hash.parse::<bcrypt::HashParts>().map_err(|_| "it is no whole bcrypt hash".to_owned())?;
    match parts.get_cost() {
        cost if cost > MAX_COST => Err(format!("its cost is {cost}, and at most {MAX_COST} is taken")),
        _ => Ok(()),
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("count", &self.hashes.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn right(users: &Users, name: &str, password: &str) -> bool {
        users.verify(name, password.into(), None).await == Verdict::Right
    }

    #[tokio::test]
    async fn only_the_right_password_of_a_user_counts() {
        let hash = |password: &str| bcrypt::hash(password, 4).unwrap();
        let users = Users::parse(&format!("# people\n\nalice:{}\nalice2:{}\n", hash("secret"), hash("b:c"))).unwrap();
        for _ in 0..2 {
            assert!(right(&users, "alice", "secret").await);
            assert!(!right(&users, "alice", "Secret").await);
            assert!(!right(&users, "alice", "").await);
            assert!(right(&users, "alice2", "b:c").await);
            assert!(!right(&users, "alice2:b", "c").await, "a form may say such a name");
            assert!(!right(&users, "alice", "2b:c").await);
        }
        for name in ["bob", "carol", "dave", "erin"] {
            assert!(!right(&users, name, "secret").await, "whose hash is computed for {name} does not matter");
        }
        assert!(!format!("{users:?}").contains("secret"));
        assert!(!right(&Users::parse("").unwrap(), "alice", "secret").await);
    }

    #[test]
    fn a_name_that_nobody_has_costs_what_the_same_user_costs_each_time() {
        let hash = |cost| bcrypt::hash("x", cost).unwrap();
        let users = Users::parse(&format!("a:{}\nb:{}\n", hash(4), hash(5))).unwrap();
        let costs = |name: &str| users.hash_for(name).split('$').nth(2).unwrap().to_owned();
        let of_strangers: std::collections::BTreeSet<_> = (0..64).map(|n| costs(&format!("stranger-{n}"))).collect();
        assert_eq!(of_strangers.len(), 2, "as those of users differ");
        assert!((0..64).all(|n| costs(&format!("stranger-{n}")) == costs(&format!("stranger-{n}"))));
    }

    #[tokio::test]
    async fn who_waits_is_counted_for_each_address() {
        let users = Users::parse(&format!("a:{}\n", bcrypt::hash("x", 4).unwrap())).unwrap();
        let all = users.hashing.clone().acquire_many_owned(users.hashing.available_permits() as u32).await.unwrap();
        let (here, there) = (Some(IpAddr::from([192, 0, 2, 1])), Some(IpAddr::from([192, 0, 2, 2])));
        let mut waiting: Vec<_> =
            (0..MAX_WAITING_OF_ADDRESS).map(|_| Box::pin(users.verify("a", "y".into(), here))).collect();
        for one in &mut waiting {
            assert!(futures::poll!(one.as_mut()).is_pending());
        }
        assert_eq!(users.verify("a", "x".into(), here).await, Verdict::Busy);
        let mut elsewhere = Box::pin(users.verify("a", "x".into(), there));
        assert!(futures::poll!(elsewhere.as_mut()).is_pending(), "another address has its own places");
        waiting.clear();
        drop(all);
        assert_eq!(elsewhere.await, Verdict::Right);
        assert_eq!(users.verify("a", "x".into(), here).await, Verdict::Right, "it is remembered");
        assert!(users.waiting.lock().unwrap().is_empty(), "places are given back");
    }

    /// What is computed for somebody who went away still takes its processor: another one began beside it.
    #[tokio::test]
    async fn no_more_is_hashed_at_once_when_clients_go_away() {
        let users = Users::parse(&format!("a:{}\n", bcrypt::hash("x", 10).unwrap())).unwrap();
        let free = users.hashing.available_permits();
        let mut begun = Box::pin(users.verify("a", "y".into(), None));
        assert!(futures::poll!(begun.as_mut()).is_pending());
        drop(begun);
        assert_eq!(users.hashing.available_permits(), free - 1, "it is computed to its end");
        let _all = users.hashing.acquire_many(free as u32).await.unwrap();
    }

    #[test]
    fn the_hash_for_nobody_is_one() {
        assert_eq!(check(NOBODY), Ok(()));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_with_its_line() {
        let hash = bcrypt::hash("x", 4).unwrap();
        let line = |text: &str| Users::parse(text).unwrap_err();
        assert_eq!(line("alice").line, 1);
        assert_eq!(line(&format!("\nlocal:{hash}")).line, 2);
        assert!(line("alice:{SHA}abc").reason.contains("htpasswd -B"));
        assert!(line("alice:$apr1$x$y").reason.contains("bcrypt"));
        assert!(line("alice:$2y$10$short").reason.contains("whole"));
        assert!(line(&format!("a:{hash}\na:{hash}")).reason.contains("twice"));
        assert!(line(&format!("a:{}", hash.replacen("$04$", "$31$", 1))).reason.contains("cost"));
    }
}
