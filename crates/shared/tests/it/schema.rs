//! Opening: the schema, whose bucket it is, and servers that are not there.

use orlop_shared::{DatabaseOptions, Error, Options, Shared};
use orlop_testkit::s3::S3;

use crate::rig::Place;

async fn refused(options: Options) -> Error {
    match Shared::open(options).await {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_that_start_together_make_one_schema() {
    let Some(place) = Place::new() else { return };
    let opening: Vec<_> = (0..6).map(|_| tokio::spawn(Shared::open(place.options()))).collect();
    for opened in opening {
        opened.await.unwrap().unwrap();
    }
    assert_eq!(place.sql("SELECT count(*), max(version) FROM orlop_schema"), "1|1");
    assert_eq!(place.sql("SELECT count(*) FROM identity"), "1");
    assert_eq!(place.keys(""), ["orlop-registry"]);
}

/// A gateway of the version before works on a schema that only adds; one that is too old says so.
#[tokio::test]
async fn a_later_schema_says_who_may_use_it() {
    let Some(place) = Place::new() else { return };
    place.open().await;
    place.sql("INSERT INTO orlop_schema (version, oldest) VALUES (2, 1)");
    place.open().await;
    place.sql("INSERT INTO orlop_schema (version, oldest) VALUES (3, 3)");
    let error = refused(place.options()).await;
    assert!(matches!(error, Error::Schema { found: 3, known: 1 }), "{error}");
    assert!(!error.is_temporary());
}

/// Else a gateway with the wrong database would take every object for an orphan.
#[tokio::test]
async fn a_bucket_has_one_database() {
    let (Some(place), Some(other)) = (Place::new(), Place::new()) else { return };
    place.open().await;
    let wrong = Place { bucket: place.bucket.clone(), ..other };
    let error = refused(wrong.options()).await;
    assert!(matches!(error, Error::Foreign { .. }), "{error}");
    assert!(error.to_string().contains("orlop-registry"), "{error}");
}

#[tokio::test]
async fn what_is_away_is_said_to_be_away() {
    let Some(place) = Place::new() else { return };
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let database = DatabaseOptions::new(format!("postgres://orlop@{nobody}/none"));
    let error = refused(Options { database, ..place.options() }).await;
    assert!(error.is_temporary() && error.to_string().contains("database"), "{error}");
    let mut options = place.options();
    options.bucket.url = S3::url(&place.bucket, nobody);
    options.bucket.patience = std::time::Duration::from_millis(200);
    let error = refused(options).await;
    assert!(error.is_temporary() && error.to_string().contains("bucket"), "{error}");
}

#[tokio::test]
async fn options_that_make_no_sense_are_named() {
    let Some(place) = Place::new() else { return };
    for url in ["images", "https://images", "s3://", "s3://images?colour=red"] {
        let mut options = place.options();
        options.bucket.url = url.to_owned();
        let error = refused(options).await;
        assert!(matches!(error, Error::Option { option: "the bucket's URL", .. }), "{url}: {error}");
    }
    let mut options = place.options();
    options.database.url = "mysql://none".to_owned();
    assert!(matches!(refused(options).await, Error::Option { option: "the database's URL", .. }));
    let mut options = place.options();
    options.database.authorities = Some(b"no certificate".to_vec());
    assert!(matches!(refused(options).await, Error::Authorities(_)));
}
