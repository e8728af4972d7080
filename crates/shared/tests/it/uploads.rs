//! Uploads whose writers fail, are cut off, or are taken for dead: nothing that was acknowledged is lost, and no blob has bytes
//! of another.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use orlop_content::{Error, IngestOptions, Ingester as _, Writer, read_verified};
use orlop_oci::Digest;
use orlop_shared::SharedStore;

use crate::rig::{Place, noise};

async fn open(store: &SharedStore, reference: &str) -> Box<dyn Writer> {
    let reference = reference.to_owned();
    store.writer(IngestOptions { reference, ..IngestOptions::default() }).await.unwrap()
}

/// Takes the upload from whoever has it.
fn take(place: &Place) {
    place.sql("UPDATE ingests SET writer_until = now() - interval '1 second'");
}

/// Polls so many times at most, and drops what is not done then.
async fn cut<T>(polls: usize, work: impl Future<Output = T>) -> Option<T> {
    let (mut work, mut left) = (pin!(work), polls);
    std::future::poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        work.as_mut().poll(context).map(Some)
    })
    .await
}

/// Wherever a request is cut, what was written down before is there, and what there is more can be gone on from.
#[tokio::test]
async fn a_request_that_is_cut_takes_nothing_with_it() {
    let Some(place) = Place::new() else { return };
    let (shared, other) = (place.open().await, place.open().await);
    let (store, saved) = (shared.store(), 1000);
    for polls in 1.. {
        let bytes = noise(17 << 20, polls as u64);
        let digest = Digest::of(&bytes);
        let reference = format!("cut after {polls}");
        let mut writer = open(&store, &reference).await;
        writer.write(bytes.slice(..saved)).await.unwrap();
        writer.release().await.unwrap();
        let mut writer = open(&store, &reference).await;
        let request = async {
            writer.write(bytes.slice(saved..)).await.unwrap();
            writer.commit(0, Some(&digest)).await.unwrap();
        };
        let is_done = cut(polls, request).await.is_some();
        drop(writer);
        shared.settle().await;
        let mut writer = open(&other.store(), &reference).await;
        let offset = writer.status().offset as usize;
        let live = format!("SELECT count(*) FROM blobs WHERE digest = '{digest}' AND state = 'live'");
        assert!(offset >= saved || place.sql(&live) == "1", "{polls}: {offset}");
        writer.write(bytes.slice(offset..)).await.unwrap();
        let committed = writer.commit(0, Some(&digest)).await;
        assert!(matches!(committed, Ok(_) | Err(Error::AlreadyExists(_))), "{polls}: {committed:?}");
        assert_eq!(read_verified(&store, &digest, 1 << 30).await.unwrap(), bytes, "{polls}");
        if is_done {
            assert!(polls > 10, "it was cut at {polls} places only");
            return;
        }
    }
}

/// A collector that comes between, wherever, and takes what was reserved, its object too: the client is told to come again, and
/// then it succeeds. Nothing is called damaged that only took too long.
#[tokio::test]
async fn an_upload_that_outlives_its_lease_may_be_committed_again() {
    let Some(place) = Place::new() else { return };
    let (shared, other) = (place.open().await, place.open_with(|options| options.delete_after = Duration::ZERO).await);
    let (store, mut late) = (shared.store(), 0);
    for polls in 1.. {
        let bytes = noise(9 << 20, 1000 + polls as u64);
        let digest = Digest::of(&bytes);
        let mut writer = open(&store, &format!("late after {polls}")).await;
        writer.write(bytes.clone()).await.unwrap();
        let committed = {
            let mut commit = pin!(writer.commit(0, Some(&digest)));
            if cut(polls, commit.as_mut()).await.is_some() {
                assert!(late > 0, "the collector came never between");
                return;
            }
            // Not what its own transaction is at.
            place.sql(
                "UPDATE blobs SET held_until = now() - interval '1 second' \
                 WHERE generation IN (SELECT generation FROM blobs FOR UPDATE SKIP LOCKED)",
            );
            other.collector().collect().await.unwrap();
            commit.await
        };
        match committed {
            // Before the collector came, or after.
            Ok(_) => {}
            Err(Error::Unavailable { what, .. }) => {
                assert_eq!(what, "the reservation of this blob", "{polls}");
                late += 1;
                assert_eq!(writer.commit(0, Some(&digest)).await.unwrap(), digest, "{polls}");
                assert_eq!(read_verified(&store, &digest, 1 << 30).await.unwrap(), bytes, "{polls}");
            }
            Err(error) => panic!("{polls}: {error}"),
        }
    }
}

/// What two writers have beyond whole parts is told apart, although they began at the same place.
#[tokio::test]
async fn who_was_taken_for_dead_changes_nothing_that_a_row_names() {
    let Some(place) = Place::new() else { return };
    let (dead, alive) = (place.open().await, place.open().await);
    let mut first = open(&dead.store(), "upload").await;
    first.write(noise(100_000, 1)).await.unwrap();
    take(&place);
    let mut second = open(&alive.store(), "upload").await;
    let bytes = noise(100_000, 2);
    second.write(bytes.clone()).await.unwrap();
    second.release().await.unwrap();
    assert!(matches!(first.release().await, Err(Error::NotFound { .. })));
    assert_eq!(place.keys("uploads").len(), 1, "the tail that the row names");
    let digest = open(&alive.store(), "upload").await.commit(0, Some(&Digest::of(&bytes))).await.unwrap();
    assert_eq!(read_verified(&alive.store(), &digest, 1 << 20).await.unwrap(), bytes);
}

/// The database is full just when the blob is there: whoever commits it again, and wherever, finds it put together.
#[tokio::test]
async fn a_commit_that_failed_at_its_end_may_be_repeated_anywhere() {
    let Some(place) = Place::new() else { return };
    let (shared, other) = (place.open().await, place.open().await);
    let bytes = noise(9 << 20, 3);
    let digest = Digest::of(&bytes);
    place.sql(
        "CREATE FUNCTION full_disk() RETURNS trigger AS $$ BEGIN RAISE 'full' USING ERRCODE = '53100'; END $$ LANGUAGE plpgsql; \
         CREATE TRIGGER full_disk BEFORE UPDATE ON blobs FOR EACH ROW EXECUTE FUNCTION full_disk()",
    );
    let mut writer = open(&shared.store(), "upload").await;
    writer.write(bytes.clone()).await.unwrap();
    for _ in 0..2 {
        let failed = writer.commit(0, Some(&digest)).await;
        assert!(matches!(&failed, Err(error) if error.is_temporary()), "{failed:?}");
    }
    writer.release().await.unwrap();
    place.sql("DROP TRIGGER full_disk ON blobs");
    let mut writer = open(&other.store(), "upload").await;
    assert_eq!(writer.status().offset, bytes.len() as u64);
    assert_eq!(writer.commit(0, Some(&digest)).await.unwrap(), digest);
    assert_eq!(read_verified(&shared.store(), &digest, 1 << 30).await.unwrap(), bytes);
}

/// What another one has put together is as long as this one's, and not the same.
#[tokio::test]
async fn what_another_put_together_is_not_taken_for_ones_own() {
    let Some(place) = Place::new() else { return };
    let (dead, alive) = (place.open().await, place.open().await);
    let parts = noise(9 << 20, 4);
    let mut first = open(&dead.store(), "upload").await;
    first.write(parts.clone()).await.unwrap();
    first.release().await.unwrap();
    let mut first = open(&dead.store(), "upload").await;
    first.write(Bytes::from_static(b"first")).await.unwrap();
    // The commit of the first stops for good after it has put its parts together.
    place.sql(
        "CREATE FUNCTION stop() RETURNS trigger AS $$ BEGIN RAISE 'stop' USING ERRCODE = '53100'; END $$ LANGUAGE plpgsql; \
         CREATE TRIGGER stop BEFORE UPDATE ON blobs FOR EACH ROW EXECUTE FUNCTION stop()",
    );
    assert!(first.commit(0, None).await.is_err());
    place.sql("DROP TRIGGER stop ON blobs");
    take(&place);
    let mut second = open(&alive.store(), "upload").await;
    second.write(Bytes::from_static(b"other")).await.unwrap();
    let digest = Digest::of(&[parts, Bytes::from_static(b"other")].concat());
    assert!(second.commit(0, Some(&digest)).await.is_err());
    assert_eq!(place.sql("SELECT count(*) FROM blobs WHERE state = 'live'"), "0");
}

/// It is taken over between the reservation of its blob and the end of its copy.
#[tokio::test]
async fn who_is_taken_over_while_he_commits_publishes_nothing() {
    let Some(place) = Place::new() else { return };
    let shared = place.open().await;
    let mut writer = open(&shared.store(), "upload").await;
    writer.write(noise(9 << 20, 5)).await.unwrap();
    place.sql(
        "CREATE FUNCTION take() RETURNS trigger AS \
         $$ BEGIN UPDATE ingests SET writer = 'another'; RETURN NEW; END $$ LANGUAGE plpgsql; \
         CREATE TRIGGER take BEFORE INSERT ON blobs FOR EACH ROW EXECUTE FUNCTION take()",
    );
    assert!(matches!(writer.commit(0, None).await, Err(Error::NotFound { .. })));
    assert_eq!(place.sql("SELECT state FROM blobs"), "reserved");
    assert_eq!(place.sql("SELECT writer FROM ingests"), "another");
}

#[tokio::test]
async fn a_truncated_upload_goes_back_to_nothing_that_it_has_not() {
    let Some(place) = Place::new() else { return };
    let shared = place.open().await;
    let mut writer = open(&shared.store(), "upload").await;
    let (old, new) = (noise(100, 6), noise(60, 7));
    writer.write(old.clone()).await.unwrap();
    writer.release().await.unwrap();
    let mut writer = open(&shared.store(), "upload").await;
    writer.truncate(50).await.unwrap();
    writer.write(new.clone()).await.unwrap();
    writer.truncate(100).await.unwrap();
    let expected = Digest::of(&[old.slice(..50), new.slice(..50)].concat());
    assert_eq!(writer.commit(0, None).await.unwrap(), expected);
}
