//! A bound on how many of something there are at once, which can be changed while it holds.
//!
//! # Invariants
//! - Nobody takes a place while there are as many as the bound or more; those that are there stay, also above a new, lower
//!   bound.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// The places.
#[derive(Debug)]
pub(super) struct Bound {
    taken: Mutex<usize>,
    limit: AtomicUsize,
    /// There is a place that was not there before.
    free: Notify,
}

/// One place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<Bound>);

impl Bound {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { taken: Mutex::default(), limit: AtomicUsize::new(limit), free: Notify::new() })
    }

    /// Another number from now on.
    pub(super) fn set(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
        self.free.notify_one();
    }

    /// A place of so many from now on, if there is one: for those whom nobody waits beside.
    pub(super) fn try_take_of(self: &Arc<Self>, limit: usize) -> Option<Place> {
        self.limit.store(limit, Ordering::Relaxed);
        self.try_take()
    }

    /// A place, if there is one.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if *taken >= self.limit.load(Ordering::Relaxed) {
            return None;
        }
        *taken += 1;
        Some(Place(self.clone()))
    }

    /// Waits for a place. One waits at a time.
    pub(super) async fn take(self: &Arc<Self>) -> Place {
        loop {
            if let Some(place) = self.try_take() {
                return place;
            }
            self.free.notified().await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_lower_bound_lets_nobody_in_until_enough_have_gone() {
        let bound = Bound::new(2);
        let (first, second) = (bound.try_take().unwrap(), bound.take().await);
        assert!(bound.try_take().is_none());
        bound.set(1);
        drop(first);
        assert!(bound.try_take().is_none(), "one is there still");
        drop(second);
        assert!(bound.try_take().is_some());
    }

    #[tokio::test]
    async fn who_waits_is_let_in_by_a_place_that_is_given_back_and_by_a_higher_bound() {
        let bound = Bound::new(1);
        let first = bound.take().await;
        let mut waiting = Box::pin(bound.take());
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(first);
        let _second = waiting.await;
        let mut waiting = Box::pin(bound.take());
        assert!(waiting.as_mut().now_or_never().is_none());
        bound.set(2);
        let _third = waiting.await;
    }
}
