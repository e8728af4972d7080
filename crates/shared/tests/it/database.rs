//! The database as operators have it: behind TLS, with a replica, restored to an earlier time.

use std::time::Duration;

use bytes::Bytes;
use orlop_content::{Provider as _, read_verified};
use orlop_oci::{Digest, media_type};
use orlop_registry::{BlobIndex as _, ManifestIndex as _, ManifestKey, ManifestRecord, TagIndex as _};
use orlop_shared::{Collected, DatabaseOptions, Error, Options, Shared};
use orlop_testkit::postgres::Postgres;
use orlop_testkit::tls::Certificates;

use crate::rig::{Place, noise, put};

/// Pushes an image of one layer under the tag `latest`; its record.
async fn push(shared: &Shared, seed: u64) -> ManifestRecord {
    let layer = put(&shared.store(), &noise(1000, seed)).await;
    let manifest = Bytes::from(format!("manifest {seed}"));
    put(&shared.store(), &manifest).await;
    shared.index().link_blob("app", &layer).await.unwrap();
    let record = ManifestRecord {
        digest: Digest::of(&manifest),
        media_type: media_type::OCI_MANIFEST.to_owned(),
        size: manifest.len() as u64,
        subject: None,
        artifact_type: None,
        annotations: Default::default(),
        children: vec![layer],
        elsewhere: Vec::new(),
    };
    shared.index().put_manifest("app", record.clone(), &["latest".to_owned()]).await.unwrap();
    record
}

async fn is_whole(shared: &Shared, record: &ManifestRecord) {
    let found = shared.index().manifest("app", &ManifestKey::Digest(record.digest.clone())).await.unwrap();
    assert_eq!(found, *record);
    for digest in record.children.iter().chain([&record.digest]) {
        assert!(read_verified(&shared.store(), digest, 1 << 20).await.is_ok(), "{digest}");
    }
}

#[tokio::test]
async fn tls_is_verified() {
    let Some(place) = Place::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::create(dir.path());
    let Some((server, port)) = Postgres::with_tls(&certificates) else { return };
    let open = |host: &str, mode: &str, authority: Option<&std::path::Path>| {
        let url = format!("postgres://orlop@{host}:{port}/postgres?sslmode={mode}");
        let authorities = authority.map(|file| std::fs::read(file).unwrap());
        let database = DatabaseOptions { authorities, ..DatabaseOptions::new(url) };
        Shared::open(Options { database, ..place.options() })
    };
    let shared = open("localhost", "require", Some(&certificates.ca)).await.unwrap();
    push(&shared, 1).await;
    assert_eq!(server.run("postgres", "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'orlop registry'").unwrap(), "t");
    // An authority that nobody here knows; another one's; no TLS where the server wants it.
    for (mode, authority) in [("require", None), ("require", Some(&certificates.client)), ("disable", None)] {
        let refused = open("localhost", mode, authority.map(|path| path.as_path())).await;
        assert!(matches!(refused, Err(Error::Database(_))), "{mode} {authority:?}");
    }
}

/// What a replica is asked for, and that what it does not know yet is asked of the primary.
#[tokio::test]
async fn a_replica_may_lag_or_be_away() {
    let Some(place) = Place::new() else { return };
    let primary = place.open().await;
    let old = push(&primary, 2).await;
    // As it was: a replica that has stopped to follow.
    let postgres = Postgres::shared().unwrap();
    let replica = postgres.copy(&place.database);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let with = |url: String| {
        let mut options = place.options();
        options.database.replica = Some(url);
        Shared::open(options)
    };
    let lagging = with(postgres.url(&replica)).await.unwrap();
    let away = with(format!("postgres://orlop@{nobody}/none")).await.unwrap();
    let new = push(&primary, 3).await;
    primary.index().put_manifest("app", new.clone(), &["v2".to_owned()]).await.unwrap();
    for shared in [&lagging, &away] {
        is_whole(shared, &old).await;
        is_whole(shared, &new).await;
        let latest = shared.index().manifest("app", &ManifestKey::Tag("latest".to_owned())).await.unwrap();
        assert_eq!(latest, new, "tags are the primary's");
    }
    for shared in [&lagging, &away] {
        assert_eq!(shared.index().tags("app", None, 10).await.unwrap(), ["latest", "v2"]);
    }
}

/// What was acknowledged by one gateway is in the lists of every other, however far behind the replica is that they ask; and when
/// it is not behind it is the one that is asked.
#[tokio::test]
async fn a_replica_that_streams_tells_no_less_than_was_acknowledged() {
    let Some(place) = Place::new() else { return };
    let Some(postgres) = Postgres::start() else { return };
    let standby = postgres.standby(&["log_statement=all"]);
    let mut options = place.options();
    options.database.url = postgres.url("postgres");
    options.database.replica = Some(standby.url("postgres"));
    let gateways = [Shared::open(options.clone()).await.unwrap(), Shared::open(options).await.unwrap()];
    let record = push(&gateways[0], 6).await;
    let mut tags = vec!["latest".to_owned()];
    let is_listed = async |tags: &[String]| {
        for gateway in &gateways {
            assert_eq!(gateway.index().tags("app", None, 100).await.unwrap(), tags);
        }
    };
    for round in 0..40 {
        // Halfway it stops to follow.
        if round == 20 {
            assert!(standby.run("postgres", "SELECT pg_wal_replay_pause()").is_some());
        }
        let tag = format!("v{round:02}");
        gateways[round % 2].index().put_manifest("app", record.clone(), std::slice::from_ref(&tag)).await.unwrap();
        tags.push(tag);
        is_listed(&tags).await;
    }
    // What it has not heard of is there, and what it does not know to be gone is in no list.
    let new = push(&gateways[1], 7).await;
    is_whole(&gateways[0], &new).await;
    gateways[0].index().delete_manifest("app", &ManifestKey::Tag(tags.remove(0))).await.unwrap();
    is_listed(&tags).await;

    assert!(standby.run("postgres", "SELECT pg_wal_replay_resume()").is_some());
    let asked = || standby.log().matches("SELECT name FROM tags").count();
    let before = asked();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while asked() == before {
        assert!(std::time::Instant::now() < deadline, "a replica that has caught up is asked nothing");
        is_listed(&tags).await;
    }
}

/// docs/operations/shared.md, "Restoring": to a time at most as long ago as objects outlive their rows.
#[tokio::test]
async fn a_database_that_is_restored_misses_nothing_it_knows() {
    let Some(place) = Place::new() else { return };
    let options = |place: &Place| Options { delete_after: Duration::from_secs(3600), ..place.options() };
    let shared = Shared::open(options(&place)).await.unwrap();
    let record = push(&shared, 4).await;
    let postgres = Postgres::shared().unwrap();
    let backup = postgres.copy(&place.database);

    // Since then it was deleted and collected, and another one was pushed.
    shared.index().delete_manifest("app", &ManifestKey::Digest(record.digest.clone())).await.unwrap();
    place.sql("UPDATE blobs SET held_until = now() - interval '1 second'");
    let collected = shared.collector().collect().await.unwrap();
    assert_eq!(collected, Some(Collected { given_up: 2, ..Collected::default() }));
    let later = push(&shared, 5).await;
    drop(shared);

    let restored = Place { database: backup, ..place.clone() };
    let shared = Shared::open(options(&restored)).await.unwrap();
    is_whole(&shared, &record).await;
    assert!(shared.store().open(&later.digest).await.is_err(), "what came later is not known");
    // It is pushed again, beside its orphans, and the sweep takes those alone.
    assert_eq!(push(&shared, 5).await, later);
    let sweeper = Shared::open(Options { orphan_age: Duration::ZERO, ..options(&restored) }).await.unwrap();
    let swept = sweeper.collector().sweep().await.unwrap().unwrap();
    assert_eq!((swept.seen, swept.deleted), (6, 2));
    for record in [&record, &later] {
        is_whole(&shared, record).await;
    }
}
