//! A limit on bytes per second that waits.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::schedule::Bucket;

/// A [`Bucket`] with a clock.
pub(crate) struct Pace {
    began: Instant,
    bucket: Mutex<Bucket>,
}

impl Pace {
    /// A limit of `rate` bytes a second, 0 for none.
    pub(crate) fn new(rate: u64) -> Self {
        Self { began: Instant::now(), bucket: Mutex::new(Bucket::new(rate)) }
    }

    /// Waits until so many bytes may go.
    pub(crate) async fn take(&self, bytes: u64) {
        let now = self.began.elapsed();
        let wait = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(now, bytes);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}
