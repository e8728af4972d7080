//! What was done, which errors came, and what the daemon took meanwhile.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use orlop_testkit::tier::amount;
use tonic::{Code, Status};

/// Every error that a call may come back with, and when.
const EXPECTED: [(&str, Code); 7] = [
    ("get what was deleted", Code::NotFound),
    ("create what is there", Code::AlreadyExists),
    // Other clients pull and delete it too.
    ("get what others delete", Code::NotFound),
    ("delete what others delete", Code::NotFound),
    // Whoever collects first takes it along.
    ("remove a snapshot that nothing holds", Code::NotFound),
    // The server has not heard of it yet.
    ("go on with a write whose client vanished", Code::Unavailable),
    ("abort a write whose client vanished", Code::Unavailable),
];

/// Points at which memory is looked at.
const SAMPLES: u64 = 20;

/// How much is done.
enum Amount {
    Operations(u64),
    Time(Duration),
}

/// Shared by all clients.
pub(crate) struct Ledger {
    amount: Amount,
    began: Instant,
    done: AtomicU64,
    status: String,
    operations: Mutex<BTreeMap<&'static str, u64>>,
    errors: Mutex<BTreeMap<(&'static str, String), u64>>,
    resident: Mutex<Vec<u64>>,
}

impl Ledger {
    /// `pid` is the daemon. The long tier says how many seconds, the short one does a fixed number of operations.
    pub(crate) fn new(pid: u32, operations: u64) -> Self {
        let seconds = amount("ORLOP_TEST_SOAK_SECONDS", 0);
        let amount =
            if seconds > 0 { Amount::Time(Duration::from_secs(seconds)) } else { Amount::Operations(operations) };
        Self {
            amount,
            began: Instant::now(),
            done: AtomicU64::new(0),
            status: format!("/proc/{pid}/status"),
            operations: Mutex::default(),
            errors: Mutex::default(),
            resident: Mutex::default(),
        }
    }

    /// Whether it goes on for a time instead of a number of operations.
    pub(crate) fn is_long(&self) -> bool {
        matches!(self.amount, Amount::Time(_))
    }

    /// Whether another operation is to be done; looks at the daemon's memory now and then.
    pub(crate) fn goes_on(&self) -> bool {
        let begun = self.done.fetch_add(1, Ordering::Relaxed);
        let (part, whole) = match self.amount {
            Amount::Operations(all) => (begun, all),
            Amount::Time(all) => (self.began.elapsed().as_millis() as u64, all.as_millis() as u64),
        };
        let mut resident = self.resident.lock().unwrap_or_else(PoisonError::into_inner);
        if resident.len() as u64 * whole <= part * SAMPLES && (resident.len() as u64) < SAMPLES {
            resident.push(self.now_resident());
        }
        part < whole
    }

    /// Bytes of memory that the daemon has now.
    pub(crate) fn now_resident(&self) -> u64 {
        let status = std::fs::read_to_string(&self.status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Bytes of memory over the time.
    pub(crate) fn resident(&self) -> Vec<u64> {
        self.resident.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn operation(&self, name: &'static str) {
        *self.operations.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
    }

    /// The answer, or nothing if the call failed as it may.
    #[track_caller]
    pub(crate) fn unless_expected<T>(&self, case: &'static str, answer: Result<T, Status>) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer),
            Err(status) => {
                let may = EXPECTED.contains(&(case, status.code()));
                assert!(may, "{case}: {status:?}");
                *self
                    .errors
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry((case, format!("{:?}", status.code())))
                    .or_default() += 1;
                None
            }
        }
    }

    /// The call must have failed as it may.
    #[track_caller]
    pub(crate) fn refused<T: std::fmt::Debug>(&self, case: &'static str, answer: Result<T, Status>) {
        let found = self.unless_expected(case, answer);
        assert!(found.is_none(), "{case}: {found:?}");
    }

    /// What happened, in words.
    pub(crate) fn report(&self) -> String {
        let operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        let all: u64 = operations.values().sum();
        let mebibytes: Vec<u64> = self.resident().iter().map(|bytes| bytes >> 20).collect();
        format!(
            "{all} operations in {:?}: {operations:?}\nexpected errors: {:?}\nresident MiB: {mebibytes:?}",
            self.began.elapsed(),
            self.errors.lock().unwrap_or_else(PoisonError::into_inner)
        )
    }
}
