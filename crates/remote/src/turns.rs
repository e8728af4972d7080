//! One at a time, by what it is about.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Whose turn it is with each of many things; nothing is kept of one that nobody waits for.
#[derive(Debug)]
pub struct Turns<K> {
    taken: Mutex<HashMap<K, Weak<tokio::sync::Mutex<()>>>>,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { taken: Mutex::default() }
    }
}

impl<K: Eq + Hash + Clone> Turns<K> {
    /// What is to be locked by whoever works on `key`: the same for all who ask while anybody has it.
    pub fn of(&self, key: &K) -> Arc<tokio::sync::Mutex<()>> {
        // Nothing in here panics between two changes that belong together.
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = taken.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        taken.insert(key.clone(), Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_works_on_one_thing_waits_and_nothing_is_left() {
        let turns = Turns::default();
        let (first, same, other) = (turns.of(&1), turns.of(&1), turns.of(&2));
        let held = first.try_lock().unwrap();
        assert!(same.try_lock().is_err());
        assert!(other.try_lock().is_ok());
        drop(held);
        assert!(same.try_lock().is_ok());
        drop((first, same, other));
        let third = turns.of(&3);
        assert_eq!(turns.taken.lock().unwrap().keys().collect::<Vec<_>>(), [&3]);
        drop(third);
    }
}
