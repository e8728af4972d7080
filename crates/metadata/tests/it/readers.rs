//! Many threads that read at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::support;
use crate::support::{Root, image, scope};

/// What reads at once at most.
const MOST: usize = 16;
const THREADS: usize = 64;

fn connections(root: &Root) -> usize {
    let (database, open) = (root.path().join("meta.db"), std::fs::read_dir("/proc/self/fd").unwrap().flatten());
    open.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path == database)).count()
}

/// Regression: every thread that read at the same time as others had a connection of its own, with its own cache: of a
/// daemon with some hundred clients, hundreds of megabytes.
#[test]
fn however_many_threads_read_a_few_connections_are_enough() {
    let root = Root::new();
    root.store.create_image(&scope(), image("a", "a")).unwrap();
    let (inside, most, seen) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                root.store
                    .look("test", |look| {
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        // As many as may be are there at once.
                        while most.load(Ordering::SeqCst) < MOST {
                            thread::yield_now();
                        }
                        look.mark()?;
                        seen.fetch_max(connections(&root), Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        Ok(())
                    })
                    .unwrap();
            });
        }
    });
    assert_eq!(most.into_inner(), MOST);
    // One more writes.
    assert!(seen.load(Ordering::SeqCst) <= MOST + 1, "{seen:?} descriptors of the database");
}

/// Nobody waits for a connection who holds one, or the write lock.
#[test]
fn who_reads_or_writes_may_read_within() {
    let root = Root::new();
    root.store.create_image(&scope(), image("a", "a")).unwrap();
    let inside = AtomicUsize::new(0);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (store, inside) = (&root.store, &inside);
            scope.spawn(move || {
                let all = store.look("test", |_| {
                    inside.fetch_add(1, Ordering::SeqCst);
                    while inside.load(Ordering::SeqCst) < MOST {
                        thread::yield_now();
                    }
                    store.images("test", &[])
                });
                assert!(!all.unwrap().is_empty());
                let change = orlop_metadata::ImageChange::Delete { name: format!("not there {number}") };
                let within = |_: &_, _: &[_]| store.images("test", &[]).unwrap().is_empty();
                let left = store.write_images_decided_at(&support::scope(), 0, vec![change], within).unwrap();
                assert!(left.is_empty());
            });
        }
    });
}
