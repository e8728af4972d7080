//! Uploads that break, stall, move and are refused.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::response::Response;
use bytes::{Bytes, BytesMut};
use orlop_oci::Digest;
use orlop_remote::{Client, ClientOptions, Error, Tuning, Uploaded};

use crate::common::*;
use crate::fake::*;

/// An upload session of the distribution specification, in memory; `odd` may answer before it does.
#[derive(Default)]
struct Session {
    data: BytesMut,
    done: bool,
}

type Odd = dyn Fn(&Seen, &mut Session) -> Option<Response> + Send + Sync;

fn answer(seen: &Seen, session: &mut Session, odd: &Odd) -> Response {
    if let Some(response) = odd(seen, session) {
        return response;
    }
    let range = |session: &Session| format!("0-{}", session.data.len().saturating_sub(1));
    match seen.method.as_str() {
        "HEAD" if session.done => reply(200, &[("content-length", &session.data.len().to_string())], ""),
        "HEAD" => status(404),
        "POST" => reply(202, &[("location", "uploads/u1?_state=begun"), ("oci-chunk-min-length", "70000")], ""),
        "GET" => reply(204, &[("location", "/up/u1?_state=asked"), ("range", &range(session))], ""),
        "PATCH" => {
            let (start, _) = seen.header("content-range").unwrap().split_once('-').unwrap();
            if start.parse::<usize>().unwrap() != session.data.len() {
                return reply(416, &[("range", &range(session))], "");
            }
            session.data.extend_from_slice(&seen.body);
            reply(202, &[("location", "/up/u1?_state=further"), ("range", &range(session))], "")
        }
        "PUT" => {
            assert!(seen.query("_state").is_some(), "the location's query was lost");
            session.data.extend_from_slice(&seen.body);
            session.done = Digest::of(&session.data).as_str() == seen.query("digest").unwrap();
            if session.done { status(201) } else { reply(400, &[], r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#) }
        }
        _ => status(405),
    }
}

struct Target {
    fake: Fake,
    session: Arc<Mutex<Session>>,
}

async fn target(odd: impl Fn(&Seen, &mut Session) -> Option<Response> + Send + Sync + 'static) -> Target {
    let session = Arc::new(Mutex::new(Session::default()));
    let shared = session.clone();
    let fake = Fake::start(move |seen| answer(seen, &mut shared.lock().unwrap(), &odd)).await;
    Target { fake, session }
}

impl Target {
    fn check(&self, bytes: &Bytes) {
        let session = self.session.lock().unwrap();
        assert!(session.done && session.data == bytes);
    }

    fn methods(&self) -> Vec<String> {
        self.fake.seen().iter().map(|s| s.method.to_string()).collect()
    }
}

fn chunked() -> Client {
    let tuning = Tuning { upload_chunk_bytes: 50_000, ..quick() };
    Client::with_tuning(ClientOptions::default(), tuning)
}

#[tokio::test]
async fn a_small_blob_goes_by_one_put() {
    let target = target(|_, _| None).await;
    let bytes = noise(1, 40_000);
    assert_eq!(push(&client(), &target.fake.repository("a"), &bytes).await, (Uploaded::Sent, 40_000));
    target.check(&bytes);
    assert_eq!(target.methods(), ["HEAD", "POST", "PUT"]);
    assert_eq!(target.fake.seen()[2].header("content-length"), Some("40000"));
    // The location was relative to the address it came from.
    assert_eq!(target.fake.seen()[2].path(), "/v2/a/blobs/uploads/uploads/u1");
}

#[tokio::test]
async fn chunks_are_as_large_as_the_host_wants_them() {
    let target = target(|_, _| None).await;
    let bytes = noise(2, 200_000);
    push(&chunked(), &target.fake.repository("a"), &bytes).await;
    target.check(&bytes);
    let ranges: Vec<_> =
        target.fake.seen().iter().filter_map(|s| s.header("content-range").map(str::to_owned)).collect();
    assert_eq!(ranges, ["0-69999", "70000-139999", "140000-199999"]);
}

#[tokio::test]
async fn a_refused_chunk_is_sent_again_from_where_the_host_is() {
    let calls = AtomicUsize::new(0);
    let target = target(move |seen, session| {
        // Once half of a chunk arrives, and once the answer to a whole one is lost.
        match (seen.method.as_str(), seen.method == "PATCH" && calls.fetch_add(1, Ordering::SeqCst) == 1) {
            ("PATCH", true) => {
                session.data.extend_from_slice(&seen.body[..30_000]);
                Some(status(503))
            }
            _ => None,
        }
    })
    .await;
    let bytes = noise(3, 200_000);
    push(&chunked(), &target.fake.repository("a"), &bytes).await;
    target.check(&bytes);
    let ranges: Vec<_> =
        target.fake.seen().iter().filter_map(|s| s.header("content-range").map(str::to_owned)).collect();
    assert_eq!(ranges, ["0-69999", "70000-139999", "100000-169999", "170000-199999"]);
}

#[tokio::test]
async fn a_broken_put_goes_on_by_chunks() {
    let calls = AtomicUsize::new(0);
    let target = target(move |seen, session| {
        (seen.method == "PUT" && calls.fetch_add(1, Ordering::SeqCst) == 0).then(|| {
            session.data.extend_from_slice(&seen.body[..12_345]);
            status(502)
        })
    })
    .await;
    let bytes = noise(4, 40_000);
    push(&client(), &target.fake.repository("a"), &bytes).await;
    target.check(&bytes);
    assert_eq!(target.methods(), ["HEAD", "POST", "PUT", "GET", "PATCH", "PUT"]);
    assert_eq!(target.fake.seen()[4].header("content-range"), Some("12345-39999"));
}

#[tokio::test]
async fn a_host_without_chunks_gets_the_whole() {
    let target = target(|seen, _| (seen.method == "PATCH").then(|| status(405))).await;
    let bytes = noise(5, 200_000);
    push(&chunked(), &target.fake.repository("a"), &bytes).await;
    target.check(&bytes);
    assert_eq!(target.methods(), ["HEAD", "POST", "PATCH", "POST", "PUT"]);
}

#[tokio::test]
async fn a_session_that_is_lost_is_begun_anew() {
    let lost = AtomicUsize::new(0);
    let target = target(move |seen, session| match seen.method.as_str() {
        "PATCH" if lost.load(Ordering::SeqCst) == 0 && !session.data.is_empty() => {
            session.data.clear();
            lost.store(1, Ordering::SeqCst);
            Some(status(404))
        }
        "GET" => Some(status(404)),
        _ => None,
    })
    .await;
    let bytes = noise(6, 200_000);
    push(&chunked(), &target.fake.repository("a"), &bytes).await;
    target.check(&bytes);
    assert_eq!(target.fake.count("POST", "/uploads/"), 2);
}

#[tokio::test]
async fn a_host_that_never_takes_it_is_given_up() {
    let target = target(|seen, _| (seen.method == "PUT").then(|| status(500))).await;
    let bytes = noise(7, 1000);
    let result = client()
        .push_blob(&target.fake.repository("a"), &layer(&bytes), &[], &|offset| pieces(&bytes, offset), &|_| {})
        .await;
    assert!(matches!(result, Err(Error::Status { status: 500, .. })), "{result:?}");
    assert_eq!(target.fake.count("PUT", "/"), 4);
}

#[tokio::test]
async fn a_source_that_fails_or_ends_early_breaks_the_upload_off() {
    let target = target(|_, _| None).await;
    let bytes = noise(8, 100_000);
    let repository = target.fake.repository("a");
    let short =
        client().push_blob(&repository, &layer(&bytes), &[], &|_| pieces(&bytes.slice(..70_000), 0), &|_| {}).await;
    assert!(matches!(&short, Err(Error::Source(e)) if e.to_string().contains("70000")), "{short:?}");
    let failing = client()
        .push_blob(
            &repository,
            &layer(&bytes),
            &[],
            &|_| Box::pin(futures::stream::iter([Err(Error::source("the disk is gone"))])),
            &|_| {},
        )
        .await;
    assert!(failing.unwrap_err().to_string().contains("the disk is gone"));
    assert!(!target.session.lock().unwrap().done);
    assert_eq!(target.fake.count("DELETE", "/uploads/u1"), 2, "what is given up has to be cancelled");
}

#[tokio::test]
async fn uploads_to_another_host_carry_no_credentials() {
    let storage = Fake::start(|_| status(201)).await;
    let location = format!("http://{}/store?sig=1", storage.address);
    let registry = Fake::start(move |seen| match (seen.header("authorization"), seen.method.as_str()) {
        (None, _) => reply(401, &[("www-authenticate", "Basic")], ""),
        (_, "POST") => reply(202, &[("location", &location)], ""),
        _ => status(404),
    })
    .await;
    let bytes = noise(9, 1000);
    push(&client_with_user("me", "pass"), &registry.repository("a"), &bytes).await;
    let seen = storage.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].header("authorization"), seen[0].body.clone()), (None, bytes));
    assert_eq!(seen[0].query("sig").as_deref(), Some("1"));
}

#[tokio::test]
async fn a_manifest_that_arrives_as_another_one_is_an_error() {
    let fake =
        Fake::start(|_| reply(201, &[("docker-content-digest", Digest::of(b"something else").as_str())], "")).await;
    let document = manifest(&noise(1, 10), &layer(&noise(2, 10)), "");
    let error = client().push_document(&fake.reference("a:1"), &document).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    let other = fake.repository("a").with_digest(&Digest::of(b"other"));
    let error = client().push_document(&other, &document).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    assert_eq!(fake.seen().len(), 1, "a document was sent under a digest that is not its own");
}

#[tokio::test]
async fn a_registry_that_keeps_referrers_gets_no_tag() {
    let fake = Fake::start(|_| reply(201, &[("oci-subject", "sha256:1")], "")).await;
    let bytes = noise(1, 10);
    let subject = format!(
        r#","subject":{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":5}}"#,
        Digest::of(b"image")
    );
    let document = manifest(&bytes, &layer(&bytes), &subject);
    client().push_document(&fake.reference("a:1"), &document).await.unwrap();
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test]
async fn referrers_come_in_pages_filtered_by_whoever_can() {
    let page = |kinds: &[&str]| {
        let all: Vec<String> = kinds
            .iter()
            .map(|kind| {
                format!(
                    r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":1,"artifactType":"{kind}"}}"#,
                    Digest::of(kind.as_bytes())
                )
            })
            .collect();
        format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, all.join(","))
    };
    let (one, two) = (page(&["a/x", "b/x"]), page(&["c/x", "a/x"]));
    let index = "application/vnd.oci.image.index.v1+json";
    let fake = Fake::start(move |seen| match seen.query("page").as_deref() {
        None => {
            reply(200, &[("content-type", index), ("link", "</v2/a/referrers/x?page=2>; rel=\"next\"")], one.clone())
        }
        Some(_) => reply(200, &[("content-type", index)], two.clone()),
    })
    .await;
    let client = client();
    let all = client.referrers(&fake.repository("a"), &Digest::of(b"s"), None).await.unwrap();
    assert_eq!(all.len(), 4);
    let some = client.referrers(&fake.repository("a"), &Digest::of(b"s"), Some("a/x")).await.unwrap();
    assert_eq!(some.len(), 2);
    assert_eq!(fake.seen()[2].query("artifactType").as_deref(), Some("a/x"));
}
