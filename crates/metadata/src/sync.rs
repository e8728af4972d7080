//! What small concurrent cores are made of. A core takes it from the module beside it (`super::sync`), so that a test can compile the
//! same file on a scheduler that tries the orders in which threads may go on ([`crate::transact`] is).

pub(crate) use std::sync::atomic::{AtomicUsize, Ordering};
pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

pub(crate) use crate::db::lock;
