//! The contract of a content store as tests: every backend passes them unedited.
//!
//! A backend's test file says `orlop_content::content_suite!(factory);` where `factory` is an async function that makes
//! a [`Fixture`] with an empty store. Each case becomes one test.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use orlop_oci::{Algorithm, Digest, Digester};

use crate::{BlockingReader, BlockingWriter, Error, IngestOptions, Result, Status, Store, Writer, abort_stale};

/// An empty store, and what must live as long as it.
pub struct Fixture {
    /// The store.
    pub store: Arc<dyn Store>,
    /// A temporary directory or the like, dropped last.
    pub keep: Box<dyn Any + Send + Sync>,
}

impl Fixture {
    /// A store that needs nothing else.
    pub fn new(store: impl Store + 'static) -> Self {
        Self { store: Arc::new(store), keep: Box::new(()) }
    }

    /// A store and what must live as long as it.
    pub fn keeping(store: impl Store + 'static, keep: impl Any + Send + Sync) -> Self {
        Self { store: Arc::new(store), keep: Box::new(keep) }
    }
}

/// Makes one test of each case of the contract. The argument is an `async fn() -> Fixture`.
#[macro_export]
macro_rules! content_suite {
    ($factory:path) => {
        $crate::content_suite! { @cases $factory,
            a_commit_makes_the_bytes_readable
            an_empty_blob_can_be_written
            ranges_stop_at_the_end_of_the_blob
            what_is_not_there_is_not_found
            a_write_is_resumed_where_it_stopped
            any_split_into_writes_gives_the_same_blob
            a_second_writer_of_a_ref_is_locked_out
            dropping_a_writer_frees_the_ref
            an_expected_blob_that_exists_is_not_written_again
            a_wrong_size_keeps_the_ingest
            a_wrong_digest_keeps_the_ingest
            what_the_writer_was_opened_with_is_checked_too
            options_given_later_win
            the_second_commit_of_a_digest_learns_that_it_exists
            many_writers_of_one_digest_leave_one_blob
            truncating_to_zero_starts_again
            truncating_to_the_middle_hashes_what_stays
            truncating_to_more_is_refused
            an_abort_fails_the_open_writer
            an_aborted_writer_cannot_disturb_its_successor
            statuses_name_every_write
            stale_writes_are_aborted
            the_other_algorithms_work
            a_commit_may_name_another_algorithm
            list_and_delete
            a_reader_survives_deletion
            pieces_that_are_held_keep_their_bytes
            a_deleted_blob_can_be_written_again
            a_discarded_blob_comes_back
            discarding_and_restoring_may_be_repeated
            any_text_but_none_is_a_ref
            a_committed_writer_is_finished
            threads_that_block_read_and_write
        }
    };
    (@cases $factory:path, $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::suite::$case(&$factory().await).await;
            }
        )*
    };
}

/// Bytes that do not repeat within a page.
fn noise(length: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..length.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(length).collect::<Vec<_>>().into()
}

fn digest_with(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let mut digester = Digester::new(algorithm);
    digester.update(bytes);
    digester.finish()
}

fn named(reference: &str) -> IngestOptions {
    IngestOptions { reference: reference.to_owned(), ..IngestOptions::default() }
}

fn expecting(reference: &str, digest: &Digest) -> IngestOptions {
    IngestOptions { expected: Some(digest.clone()), ..named(reference) }
}

async fn put(store: &dyn Store, reference: &str, bytes: &Bytes) -> Result<Digest> {
    let mut writer = store.writer(named(reference)).await?;
    writer.write(bytes.clone()).await?;
    writer.commit(bytes.len() as u64, None).await
}

async fn get(store: &dyn Store, digest: &Digest) -> Bytes {
    crate::read_verified(store, digest, 1 << 30).await.unwrap()
}

fn failure<T>(result: Result<T>) -> Error {
    match result {
        Ok(_) => panic!("expected an error"),
        Err(error) => error,
    }
}

/// Opens a writer that must not be given.
async fn refused(store: &dyn Store, options: IngestOptions) -> Error {
    failure(store.writer(options).await)
}

macro_rules! assert_error {
    ($pattern:pat $(if $guard:expr)?, $error:expr) => {
        match $error {
            $pattern $(if $guard)? => {}
            other => panic!("expected {}, found {other:?}", stringify!($pattern)),
        }
    };
}

#[allow(missing_docs, reason = "the names say it; the macro lists them")]
mod cases {
    use super::*;

    pub async fn a_commit_makes_the_bytes_readable(fixture: &Fixture) {
        let store = &*fixture.store;
        let bytes = noise(3_000_000, 1);
        let digest = Digest::of(&bytes);
        let mut writer = store.writer(expecting("layer", &digest)).await.unwrap();
        writer.write(bytes.slice(..1_000_000)).await.unwrap();
        assert_error!(Error::NotFound { .. }, failure(store.open(&digest).await));
        writer.write(bytes.slice(1_000_000..)).await.unwrap();
        assert_eq!(writer.status().offset, 3_000_000);
        assert_eq!(writer.digest(), digest);
        assert_error!(Error::NotFound { .. }, failure(store.info(&digest).await));
        assert_eq!(writer.commit(3_000_000, Some(&digest)).await.unwrap(), digest);
        assert_eq!(get(store, &digest).await, bytes);
        let info = store.info(&digest).await.unwrap();
        assert_eq!((info.digest, info.size), (digest, 3_000_000));
        assert_error!(Error::NotFound { .. }, failure(store.status("layer").await));
    }

    pub async fn an_empty_blob_can_be_written(fixture: &Fixture) {
        let store = &*fixture.store;
        let mut writer = store.writer(named("empty")).await.unwrap();
        let digest = writer.commit(0, Some(&Digest::of(b""))).await.unwrap();
        assert_eq!(store.info(&digest).await.unwrap().size, 0);
        let reader = store.open(&digest).await.unwrap();
        assert_eq!((reader.size(), reader.read_at(0, 10).await.unwrap()), (0, Bytes::new()));
    }

    pub async fn ranges_stop_at_the_end_of_the_blob(fixture: &Fixture) {
        let store = &*fixture.store;
        let bytes = noise(100_000, 2);
        let reader = store.open(&put(store, "r", &bytes).await.unwrap()).await.unwrap();
        for (offset, length) in [(0, 1), (0, 100_000), (0, 200_000), (99_999, 5), (50_000, 10_000), (7, 0)] {
            let start = usize::try_from(offset).unwrap();
            let expected = bytes.slice(start..(start + length).min(bytes.len()));
            assert_eq!(reader.read_at(offset, length).await.unwrap(), expected, "{length} bytes from {offset}");
        }
        for offset in [100_000, 100_001, u64::MAX] {
            assert!(reader.read_at(offset, 10).await.unwrap().is_empty(), "from {offset}");
        }
        assert_eq!(reader.read_at(99_990, usize::MAX).await.unwrap(), bytes.slice(99_990..));
    }

    pub async fn what_is_not_there_is_not_found(fixture: &Fixture) {
        let store = &*fixture.store;
        let digest = Digest::of(b"nothing");
        assert_error!(Error::NotFound { kind: "blob", .. }, failure(store.open(&digest).await));
        assert_error!(Error::NotFound { kind: "blob", .. }, failure(store.info(&digest).await));
        assert_error!(Error::NotFound { kind: "blob", .. }, failure(store.delete(&digest).await));
        assert_error!(Error::NotFound { kind: "ingest", .. }, failure(store.status("none").await));
        assert_error!(Error::NotFound { kind: "ingest", .. }, failure(store.abort("none").await));
        assert!(store.list().await.unwrap().is_empty());
        assert!(store.statuses().await.unwrap().is_empty());
    }

    pub async fn a_write_is_resumed_where_it_stopped(fixture: &Fixture) {
        let store = &*fixture.store;
        let bytes = noise(2_500_000, 3);
        let digest = Digest::of(&bytes);
        let options = IngestOptions { total: 2_500_000, ..expecting("resumed", &digest) };
        let mut writer = store.writer(options.clone()).await.unwrap();
        let first = writer.status();
        writer.write(bytes.slice(..1_200_000)).await.unwrap();
        drop(writer);
        let between = store.status("resumed").await.unwrap();
        assert_eq!((between.offset, between.total, between.expected), (1_200_000, 2_500_000, Some(digest.clone())));
        let mut writer = store.writer(named("resumed")).await.unwrap();
        let status = writer.status();
        assert_eq!((status.offset, status.total, status.expected), (1_200_000, 2_500_000, Some(digest.clone())));
        assert_eq!(status.started_at, first.started_at, "resuming is not a new start");
        assert_eq!(writer.digest(), Digest::of(&bytes[..1_200_000]));
        writer.write(bytes.slice(1_200_000..)).await.unwrap();
        writer.commit(0, None).await.unwrap();
        assert_eq!(get(store, &digest).await, bytes);
    }

    pub async fn any_split_into_writes_gives_the_same_blob(fixture: &Fixture) {
        let store = &*fixture.store;
        for (round, step) in [1_usize, 7, 4096, 65_537, 1 << 20].into_iter().enumerate() {
            let bytes = noise((step * 40).min(3 << 20), round as u64 + 10);
            let mut writer = store.writer(named("split")).await.unwrap();
            for start in (0..bytes.len()).step_by(step) {
                writer.write(bytes.slice(start..(start + step).min(bytes.len()))).await.unwrap();
            }
            writer.write(Bytes::new()).await.unwrap();
            let digest = writer.commit(bytes.len() as u64, Some(&Digest::of(&bytes))).await.unwrap();
            assert_eq!(get(store, &digest).await, bytes);
        }
    }

    pub async fn a_second_writer_of_a_ref_is_locked_out(fixture: &Fixture) {
        let store = &*fixture.store;
        let mut writer = store.writer(named("one")).await.unwrap();
        let error = refused(store, named("one")).await;
        assert!(error.is_temporary());
        assert_error!(Error::Locked(name) if name == "one", error);
        let other = store.writer(named("two")).await.unwrap();
        writer.write(Bytes::from_static(b"undisturbed")).await.unwrap();
        writer.commit(11, Some(&Digest::of(b"undisturbed"))).await.unwrap();
        drop(other);
    }

    pub async fn dropping_a_writer_frees_the_ref(fixture: &Fixture) {
        let store = &*fixture.store;
        for round in 0..20_u64 {
            let mut writer = store.writer(named("again")).await.unwrap();
            assert_eq!(writer.status().offset, round * 10);
            writer.write(noise(10, round)).await.unwrap();
        }
    }

    pub async fn an_expected_blob_that_exists_is_not_written_again(fixture: &Fixture) {
        let store = &*fixture.store;
        let bytes = noise(1000, 4);
        let digest = Digest::of(&bytes);
        let mut half = store.writer(named("half")).await.unwrap();
        half.write(bytes.slice(..500)).await.unwrap();
        drop(half);
        put(store, "whole", &bytes).await.unwrap();
        assert_error!(Error::AlreadyExists(found) if found == digest, refused(store, expecting("half", &digest)).await);
        assert_error!(Error::NotFound { .. }, failure(store.status("half").await));
        assert_error!(Error::AlreadyExists(_), refused(store, expecting("new", &digest)).await);
        assert!(store.statuses().await.unwrap().is_empty());
    }

    pub async fn a_wrong_size_keeps_the_ingest(fixture: &Fixture) {
        let store = &*fixture.store;
        let mut writer = store.writer(named("size")).await.unwrap();
        writer.write(Bytes::from_static(b"12345")).await.unwrap();
        assert_error!(Error::SizeMismatch { expected: 6, actual: 5, .. }, failure(writer.commit(6, None).await));
        assert_eq!(store.status("size").await.unwrap().offset, 5);
        assert!(store.list().await.unwrap().is_empty());
        writer.write(Bytes::from_static(b"6")).await.unwrap();
        assert_eq!(writer.commit(6, None).await.unwrap(), Digest::of(b"123456"));
    }

    pub async fn a_wrong_digest_keeps_the_ingest(fixture: &Fixture) {
        let store = &*fixture.store;
        let wanted = Digest::of(b"wanted");
        let mut writer = store.writer(expecting("digest", &wanted)).await.unwrap();
        writer.write(Bytes::from_static(b"forged")).await.unwrap();
        let error = failure(writer.commit(6, Some(&wanted)).await);
        let forged = Digest::of(b"forged");
        assert_error!(Error::DigestMismatch { expected, actual, .. } if expected == wanted && actual == forged, error);
        for digest in [&wanted, &forged] {
            assert_error!(Error::NotFound { .. }, failure(store.open(digest).await));
        }
        drop(writer);
        let mut writer = store.writer(named("digest")).await.unwrap();
        assert_eq!(writer.status().offset, 6);
        writer.truncate(0).await.unwrap();
        writer.write(Bytes::from_static(b"wanted")).await.unwrap();
        assert_eq!(writer.commit(6, Some(&wanted)).await.unwrap(), wanted);
    }

    pub async fn what_the_writer_was_opened_with_is_checked_too(fixture: &Fixture) {
        let store = &*fixture.store;
        let wanted = Digest::of(b"wanted");
        let options = IngestOptions { total: 6, ..expecting("opened", &wanted) };
        let mut writer = store.writer(options).await.unwrap();
        writer.write(Bytes::from_static(b"forged")).await.unwrap();
        assert_error!(Error::DigestMismatch { .. }, failure(writer.commit(0, None).await));
        writer.write(Bytes::from_static(b"!")).await.unwrap();
        assert_error!(Error::SizeMismatch { expected: 6, actual: 7, .. }, failure(writer.commit(0, None).await));
    }

    pub async fn options_given_later_win(fixture: &Fixture) {
        let store = &*fixture.store;
        let (first, second) = (Digest::of(b"first"), Digest::of(b"second"));
        drop(store.writer(IngestOptions { total: 5, ..expecting("later", &first) }).await.unwrap());
        let writer = store.writer(IngestOptions { total: 6, ..expecting("later", &second) }).await.unwrap();
        let of = |status: Status| (status.total, status.expected);
        assert_eq!(of(writer.status()), (6, Some(second.clone())));
        drop(writer);
        assert_eq!(of(store.status("later").await.unwrap()), (6, Some(second)));
        // Another size makes it another blob: it begins again. The same or none goes on.
        let mut writer = store.writer(named("later")).await.unwrap();
        writer.write(Bytes::from_static(b"abc")).await.unwrap();
        drop(writer);
        for (total, offset) in [(6, 3), (0, 3), (7, 0), (6, 0)] {
            let writer = store.writer(IngestOptions { total, ..named("later") }).await.unwrap();
            assert_eq!(writer.status().offset, offset, "a total of {total}");
        }
        // Who expects nothing is not bound by what an earlier writer expected.
        let mut writer = store.writer(named("later")).await.unwrap();
        writer.write(Bytes::from_static(b"others")).await.unwrap();
        assert_eq!(writer.commit(6, None).await.unwrap(), Digest::of(b"others"));
    }

    pub async fn the_second_commit_of_a_digest_learns_that_it_exists(fixture: &Fixture) {
        let store = &*fixture.store;
        let bytes = noise(10_000, 5);
        let (mut one, mut two) = (store.writer(named("1")).await.unwrap(), store.writer(named("2")).await.unwrap());
        one.write(bytes.clone()).await.unwrap();
        two.write(bytes.clone()).await.unwrap();
        let digest = one.commit(10_000, None).await.unwrap();
        assert_error!(Error::AlreadyExists(found) if found == digest, failure(two.commit(10_000, None).await));
        assert!(store.statuses().await.unwrap().is_empty(), "the ref and its bytes are free");
        assert_eq!(get(store, &digest).await, bytes);
        drop(two);
        assert_eq!(store.writer(named("2")).await.unwrap().status().offset, 0);
    }

    pub async fn many_writers_of_one_digest_leave_one_blob(fixture: &Fixture) {
        let bytes = noise(400_000, 6);
        let tasks: Vec<_> = (0..16)
            .map(|i| {
                let (store, bytes) = (fixture.store.clone(), bytes.clone());
                tokio::spawn(async move { put(&*store, &format!("writer-{i}"), &bytes).await })
            })
            .collect();
        let mut committed = 0;
        for task in tasks {
            match task.await.unwrap() {
                Ok(_) => committed += 1,
                Err(Error::AlreadyExists(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(committed, 1);
        assert_eq!(get(&*fixture.store, &Digest::of(&bytes)).await, bytes);
        assert_eq!(fixture.store.list().await.unwrap().len(), 1);
        assert!(fixture.store.statuses().await.unwrap().is_empty());
    }

    pub async fn truncating_to_zero_starts_again(fixture: &Fixture) {
        let store = &*fixture.store;
        let mut writer = store.writer(named("zero")).await.unwrap();
        writer.write(noise(50_000, 7)).await.unwrap();
        writer.truncate(0).await.unwrap();
        assert_eq!((writer.status().offset, writer.digest()), (0, Digest::of(b"")));
        writer.write(Bytes::from_static(b"short")).await.unwrap();
        let digest = writer.commit(5, Some(&Digest::of(b"short"))).await.unwrap();
        assert_eq!(get(store, &digest).await, "short");
    }

    pub async fn truncating_to_the_middle_hashes_what_stays(fixture: &Fixture) {
        let store = &*fixture.store;
        let bytes = noise(2_000_000, 8);
        let mut writer = store.writer(named("middle")).await.unwrap();
        writer.write(bytes.clone()).await.unwrap();
        writer.truncate(2_000_000).await.unwrap();
        // Only 0 and the current offset are sure to be supported.
        if writer.truncate(1_234_567).await.is_ok() {
            assert_eq!(writer.digest(), Digest::of(&bytes[..1_234_567]));
            writer.write(bytes.slice(1_234_567..)).await.unwrap();
        }
        let digest = writer.commit(2_000_000, None).await.unwrap();
        assert_eq!(get(store, &digest).await, bytes);
    }

    pub async fn truncating_to_more_is_refused(fixture: &Fixture) {
        let mut writer = fixture.store.writer(named("more")).await.unwrap();
        writer.write(Bytes::from_static(b"abc")).await.unwrap();
        assert_error!(Error::Invalid(_), failure(writer.truncate(4).await));
        assert_eq!(writer.status().offset, 3);
    }

    pub async fn an_abort_fails_the_open_writer(fixture: &Fixture) {
        let store = &*fixture.store;
        for case in 0..3 {
            let mut writer = store.writer(named("doomed")).await.unwrap();
            writer.write(Bytes::from_static(b"doomed")).await.unwrap();
            store.abort("doomed").await.unwrap();
            let error = match case {
                0 => failure(writer.write(Bytes::from_static(b"!")).await),
                1 => failure(writer.truncate(0).await),
                _ => failure(writer.commit(6, None).await),
            };
            assert_error!(Error::NotFound { kind: "ingest", .. }, error);
            assert_error!(Error::NotFound { .. }, failure(store.status("doomed").await));
        }
        assert!(store.list().await.unwrap().is_empty());
    }

    pub async fn an_aborted_writer_cannot_disturb_its_successor(fixture: &Fixture) {
        let store = &*fixture.store;
        let mut old = store.writer(named("same")).await.unwrap();
        old.write(Bytes::from_static(b"old bytes")).await.unwrap();
        store.abort("same").await.unwrap();
        let mut new = store.writer(named("same")).await.unwrap();
        assert_eq!(new.status().offset, 0);
        new.write(Bytes::from_static(b"new ")).await.unwrap();
        assert_error!(Error::NotFound { .. }, failure(old.write(Bytes::from_static(b"more")).await));
        assert_error!(Error::NotFound { .. }, failure(old.commit(9, None).await));
        drop(old);
        assert_error!(Error::Locked(_), refused(store, named("same")).await);
        new.write(Bytes::from_static(b"bytes")).await.unwrap();
        let digest = new.commit(9, Some(&Digest::of(b"new bytes"))).await.unwrap();
        assert_eq!(get(store, &digest).await, "new bytes");
        assert_eq!(store.list().await.unwrap().len(), 1);
    }

    pub async fn statuses_name_every_write(fixture: &Fixture) {
        let store = &*fixture.store;
        let before = Timestamp::now() - SignedDuration::from_secs(2);
        let mut open = Vec::new();
        for (length, name) in [(10, "a"), (20, "b"), (30, "c")] {
            let mut writer = store.writer(IngestOptions { total: 100, ..named(name) }).await.unwrap();
            writer.write(noise(length, 9)).await.unwrap();
            open.push(writer);
        }
        drop(open.pop());
        let mut statuses = store.statuses().await.unwrap();
        statuses.sort_by(|a, b| a.reference.cmp(&b.reference));
        let seen: Vec<_> = statuses.iter().map(|s| (s.reference.as_str(), s.offset, s.total)).collect();
        assert_eq!(seen, [("a", 10, 100), ("b", 20, 100), ("c", 30, 100)]);
        for status in &statuses {
            assert!(status.started_at >= before && status.updated_at >= before, "{status:?}");
            assert_eq!(store.status(&status.reference).await.unwrap(), *status);
        }
    }

    pub async fn stale_writes_are_aborted(fixture: &Fixture) {
        let store = &*fixture.store;
        drop(store.writer(named("stale")).await.unwrap());
        let hour = SignedDuration::from_hours(1);
        assert!(abort_stale(store, Timestamp::now() - hour).await.unwrap().is_empty());
        assert_eq!(abort_stale(store, Timestamp::now() + hour).await.unwrap(), ["stale"]);
        assert!(store.statuses().await.unwrap().is_empty());
    }

    pub async fn the_other_algorithms_work(fixture: &Fixture) {
        let store = &*fixture.store;
        let bytes = noise(70_000, 11);
        for algorithm in [Algorithm::Sha384, Algorithm::Sha512] {
            let digest = digest_with(algorithm, &bytes);
            let mut writer = store.writer(expecting("other", &digest)).await.unwrap();
            writer.write(bytes.slice(..30_000)).await.unwrap();
            drop(writer);
            let mut writer = store.writer(expecting("other", &digest)).await.unwrap();
            writer.write(bytes.slice(30_000..)).await.unwrap();
            assert_eq!(writer.digest(), digest);
            assert_eq!(writer.commit(70_000, Some(&digest)).await.unwrap(), digest);
            assert_eq!(get(store, &digest).await, bytes);
        }
        assert_eq!(store.list().await.unwrap().len(), 2);
    }

    pub async fn a_commit_may_name_another_algorithm(fixture: &Fixture) {
        let store = &*fixture.store;
        let bytes = noise(70_000, 12);
        let digest = digest_with(Algorithm::Sha512, &bytes);
        let mut writer = store.writer(named("late")).await.unwrap();
        writer.write(bytes.clone()).await.unwrap();
        let wrong = digest_with(Algorithm::Sha512, b"");
        assert_error!(Error::DigestMismatch { .. }, failure(writer.commit(0, Some(&wrong)).await));
        assert_eq!(writer.commit(0, Some(&digest)).await.unwrap(), digest);
        assert_eq!(get(store, &digest).await, bytes);
    }

    pub async fn list_and_delete(fixture: &Fixture) {
        let store = &*fixture.store;
        let mut digests = Vec::new();
        for i in 0..10_u64 {
            digests.push(put(store, &format!("n{i}"), &noise(100 + i as usize, i)).await.unwrap());
        }
        let mut listed: Vec<_> = store.list().await.unwrap().into_iter().map(|i| (i.size, i.digest)).collect();
        listed.sort();
        assert_eq!(listed, (100..).zip(digests.clone()).collect::<Vec<_>>());
        store.delete(&digests[3]).await.unwrap();
        assert_error!(Error::NotFound { .. }, failure(store.delete(&digests[3]).await));
        assert_error!(Error::NotFound { .. }, failure(store.open(&digests[3]).await));
        assert_eq!(store.list().await.unwrap().len(), 9);
    }

    pub async fn a_reader_survives_deletion(fixture: &Fixture) {
        let store = &*fixture.store;
        let bytes = noise(3 << 20, 13);
        let digest = put(store, "read", &bytes).await.unwrap();
        let reader = store.open(&digest).await.unwrap();
        assert_eq!(reader.read_at(0, 10).await.unwrap(), bytes.slice(..10));
        store.delete(&digest).await.unwrap();
        assert_eq!(reader.read_at(2 << 20, 1 << 20).await.unwrap(), bytes.slice(2 << 20..));
    }

    /// Large ones, and one that is shorter than what was read there before.
    pub async fn pieces_that_are_held_keep_their_bytes(fixture: &Fixture) {
        let store = &*fixture.store;
        let bytes = noise((8 << 20) + 700_000, 15);
        let reader = store.open(&put(store, "read", &bytes).await.unwrap()).await.unwrap();
        for _ in 0..2 {
            let mut held = Vec::new();
            for start in (0..bytes.len()).step_by(1 << 20) {
                let piece = reader.read_at(start as u64, 1 << 20).await.unwrap();
                // Some go at once, some stay, some stay in part.
                match start >> 20 & 3 {
                    0 => drop(piece),
                    1 => held.push((start + 1000, piece.slice(1000..2000))),
                    _ => held.push((start, piece)),
                }
            }
            for (start, piece) in held {
                assert_eq!(piece, bytes.slice(start..start + piece.len()), "from {start}");
            }
        }
    }

    pub async fn a_deleted_blob_can_be_written_again(fixture: &Fixture) {
        let store = &*fixture.store;
        let bytes = noise(100, 14);
        for _ in 0..3 {
            let digest = put(store, "w", &bytes).await.unwrap();
            assert_eq!(get(store, &digest).await, bytes);
            store.delete(&digest).await.unwrap();
        }
    }

    pub async fn a_discarded_blob_comes_back(fixture: &Fixture) {
        let store = &*fixture.store;
        let Some(trash) = store.trash() else { return };
        let bin = tempfile::tempdir().unwrap();
        let bytes = noise(1000, 15);
        let digest = put(store, "x", &bytes).await.unwrap();
        assert_eq!(trash.discard(&digest, bin.path()).await.unwrap(), 1000);
        assert_error!(Error::NotFound { .. }, failure(store.open(&digest).await));
        assert!(store.list().await.unwrap().is_empty());
        assert_eq!(trash.restore(&digest, bin.path()).await.unwrap(), 1000);
        assert_eq!(get(store, &digest).await, bytes);
    }

    pub async fn discarding_and_restoring_may_be_repeated(fixture: &Fixture) {
        let store = &*fixture.store;
        let Some(trash) = store.trash() else { return };
        let bin = tempfile::tempdir().unwrap();
        let bin = bin.path();
        let bytes = noise(1000, 16);
        let digest = Digest::of(&bytes);
        assert_error!(Error::NotFound { .. }, failure(trash.discard(&digest, bin).await));
        assert_error!(Error::NotFound { .. }, failure(trash.restore(&digest, bin).await));
        put(store, "y", &bytes).await.unwrap();
        for _ in 0..2 {
            assert_eq!(trash.discard(&digest, bin).await.unwrap(), 1000);
        }
        for _ in 0..2 {
            assert_eq!(trash.restore(&digest, bin).await.unwrap(), 1000);
        }
        trash.discard(&digest, bin).await.unwrap();
        put(store, "y", &bytes).await.unwrap();
        assert_eq!(trash.restore(&digest, bin).await.unwrap(), 1000, "the store has it again");
        store.delete(&digest).await.unwrap();
        assert_error!(Error::NotFound { .. }, failure(trash.restore(&digest, bin).await));
    }

    pub async fn any_text_but_none_is_a_ref(fixture: &Fixture) {
        let store = &*fixture.store;
        assert_error!(Error::Invalid(_), refused(store, named("")).await);
        let long = "x".repeat(4000);
        let names = ["../../escape", "a/b", "ref", "data", " ", "Ünïcödé ✓", "new\nline", "nul\0", &long];
        for name in names {
            let mut writer = store.writer(named(name)).await.unwrap();
            writer.write(Bytes::from_static(b"1")).await.unwrap();
        }
        let mut seen: Vec<_> = store.statuses().await.unwrap().into_iter().map(|s| s.reference).collect();
        let mut names: Vec<_> = names.map(str::to_owned).into();
        seen.sort();
        names.sort();
        assert_eq!(seen, names);
        for name in names {
            store.abort(&name).await.unwrap();
        }
    }

    pub async fn a_committed_writer_is_finished(fixture: &Fixture) {
        let store = &*fixture.store;
        let mut writer = store.writer(named("done")).await.unwrap();
        writer.write(Bytes::from_static(b"done")).await.unwrap();
        let digest = writer.commit(4, None).await.unwrap();
        assert_error!(Error::NotFound { .. }, failure(writer.write(Bytes::from_static(b"more")).await));
        assert_error!(Error::NotFound { .. }, failure(writer.commit(4, None).await));
        let again: Box<dyn Writer> = store.writer(named("done")).await.unwrap();
        assert_eq!(again.status().offset, 0, "the ref is free while the old writer is still there");
        drop((writer, again));
        assert_eq!(get(store, &digest).await, "done");
    }

    pub async fn threads_that_block_read_and_write(fixture: &Fixture) {
        let store = fixture.store.clone();
        let handle = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            let bytes = noise((3 << 20) + 17, 17);
            let writer = handle.block_on(store.writer(named("thread"))).unwrap();
            let mut writer = BlockingWriter::new(handle.clone(), writer);
            writer.write(bytes.slice(..10)).unwrap();
            writer.truncate(0).unwrap();
            writer.write(bytes.clone()).unwrap();
            let digest = writer.commit(bytes.len() as u64, Some(&Digest::of(&bytes))).unwrap();
            let reader = handle.block_on(store.open(&digest)).unwrap();
            for start in [0, 1, 1 << 20, bytes.len() - 1, bytes.len()] {
                let mut read = Vec::new();
                let mut from = BlockingReader::new(handle.clone(), reader.clone(), start as u64);
                std::io::Read::read_to_end(&mut from, &mut read).unwrap();
                assert!(read == bytes[start..], "from {start}");
            }
        })
        .await
        .unwrap();
    }
}

pub use cases::*;
