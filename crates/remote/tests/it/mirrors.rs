//! hosts.toml at work: order, capabilities, dead mirrors, redirects that carry nothing away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use orlop_oci::{Document, Reference};
use orlop_remote::{Client, ClientOptions, Error, Tuning};

use crate::common::*;
use crate::fake::*;

fn image(seed: u64) -> (Document, Bytes) {
    let blob = noise(seed, 1000);
    (manifest(&noise(seed + 1, 10), &layer(&blob), ""), blob)
}

async fn good_host(document: &Document, blob: &Bytes) -> Fake {
    let (document, blob) = (document.clone(), blob.clone());
    Fake::start(move |seen| good(seen, &document, &blob)).await
}

fn reference() -> Reference {
    "registry.invalid/team/app:v1".parse().unwrap()
}

#[tokio::test]
async fn hosts_are_asked_in_order_and_told_which_registry_is_meant() {
    let (document, blob) = image(1);
    let empty = Fake::start(|_| status(404)).await;
    let full = good_host(&document, &blob).await;
    let never = Fake::start(|_| status(500)).await;
    let root = hosts(&[(
        "registry.invalid",
        &format!(
            "server = 'http://{}'\n[host.'http://{}']\n[host.'http://{}']",
            never.address, empty.address, full.address
        ),
    )]);
    let client = client_with_hosts(&root);
    assert_eq!(pull_image(&client, &reference()).await.unwrap(), blob);
    assert_eq!(client.resolve(&reference()).await.unwrap().host, full.address.to_string());
    for fake in [&empty, &full] {
        assert!(fake.seen().iter().all(|s| s.query("ns").as_deref() == Some("registry.invalid")));
    }
    assert!(never.seen().is_empty());
}

#[tokio::test]
async fn the_server_of_a_file_is_asked_last_and_the_error_names_all() {
    let one = Fake::start(|_| status(404)).await;
    let two = Fake::start(|_| reply(403, &[], r#"{"errors":[{"code":"DENIED","message":"not for you"}]}"#)).await;
    let text = format!("server = 'http://{}'\n[host.'http://{}']", two.address, one.address);
    let root = hosts(&[("registry.invalid", &text)]);
    let client = client_with_hosts(&root);
    let error = client.resolve(&reference()).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(&error, Error::Hosts { errors, .. } if errors.len() == 2), "{text}");
    for part in ["registry.invalid/team/app:v1", &one.address.to_string(), &two.address.to_string(), "not for you"] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
}

#[tokio::test]
async fn not_found_everywhere_is_not_found() {
    let one = Fake::start(|_| status(404)).await;
    let two = Fake::start(|_| status(404)).await;
    let text = format!("server = 'http://{}'\n[host.'http://{}']", two.address, one.address);
    let root = hosts(&[("registry.invalid", &text)]);
    let error = client_with_hosts(&root).resolve(&reference()).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(error.to_string().contains(&two.address.to_string()), "{error}");
}

#[tokio::test]
async fn what_the_registry_says_counts_more_than_what_a_mirror_says() {
    let broken = Fake::start(|_| status(500)).await;
    let empty = Fake::start(|_| status(404)).await;
    for (mirror, server, gone) in [(&broken, &empty, true), (&empty, &broken, false)] {
        let text = format!("server = 'http://{}'\n[host.'http://{}']", server.address, mirror.address);
        let root = hosts(&[("registry.invalid", &text)]);
        let error = client_with_hosts(&root).resolve(&reference()).await.unwrap_err();
        assert!(matches!(error, Error::Hosts { .. }), "{error}");
        assert_eq!((error.is_not_found(), error.is_temporary()), (gone, !gone), "{error}");
    }
}

#[tokio::test]
async fn a_mirror_without_resolve_gives_content_but_no_tags() {
    let (document, blob) = image(1);
    let mirror = good_host(&document, &blob).await;
    let server = good_host(&document, &blob).await;
    let text =
        format!("server = 'http://{}'\n[host.'http://{}']\ncapabilities = ['pull']", server.address, mirror.address);
    let root = hosts(&[("registry.invalid", &text)]);
    let client = client_with_hosts(&root);
    pull_image(&client, &reference()).await.unwrap();
    let asked = |fake: &Fake| fake.seen().iter().map(|s| format!("{} {}", s.method, s.path())).collect::<Vec<_>>();
    assert_eq!(asked(&server), ["HEAD /v2/team/app/manifests/v1"]);
    assert_eq!(
        asked(&mirror),
        [
            format!("GET /v2/team/app/manifests/{}", document.digest()),
            format!("GET /v2/team/app/blobs/{}", layer(&blob).digest)
        ]
    );
    let only =
        hosts(&[("registry.invalid", &format!("server = 'http://{}'\ncapabilities = ['pull']", server.address))]);
    let refused = client_with_hosts(&only).push_document(&reference(), &document).await.unwrap_err();
    assert!(matches!(refused, Error::NoHost { capability: "push", .. }), "{refused}");
}

#[tokio::test]
async fn a_mirror_that_gives_wrong_bytes_is_passed_over() {
    let ((wrong, _), (right, blob)) = (image(1), image(10));
    let mirror = good_host(&wrong, &blob).await;
    let server = good_host(&right, &blob).await;
    let text =
        format!("server = 'http://{}'\n[host.'http://{}']\ncapabilities = ['pull']", server.address, mirror.address);
    let root = hosts(&[("registry.invalid", &text)]);
    assert_eq!(pull_image(&client_with_hosts(&root), &reference()).await.unwrap(), blob);
    assert_eq!(mirror.count("GET", "/manifests/"), 1);
}

#[tokio::test]
async fn a_mirror_that_breaks_off_for_good_is_followed_by_the_next_from_where_it_broke() {
    let blob = noise(20, 200_000);
    let (served, whole) = (blob.clone(), blob.clone());
    let alive = Arc::new(AtomicBool::new(true));
    let up = alive.clone();
    let mirror = Fake::start(move |seen| match up.swap(false, Ordering::SeqCst) {
        true => serve_blob(seen, &served, 80_000, Then::Break),
        false => status(404),
    })
    .await;
    let server = Fake::start(move |seen| serve_blob(seen, &whole, usize::MAX, Then::End)).await;
    let text = format!("server = 'http://{}'\n[host.'http://{}']", server.address, mirror.address);
    let root = hosts(&[("registry.invalid", &text)]);
    let stream = client_with_hosts(&root).blob(reference().repository().unwrap(), &layer(&blob), 0).await.unwrap();
    let (got, error) = collect(stream).await;
    assert!(error.is_none() && got == blob, "{error:?}");
    let start = server.seen()[0].range().unwrap().0;
    assert!(start > 0, "it began again from the start");
}

#[tokio::test]
async fn a_mirror_that_does_not_answer_is_asked_once() {
    let (document, blob) = image(1);
    // Connections are taken by the system, and nobody says anything on them.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let server = good_host(&document, &blob).await;
    let text = format!("server = 'http://{}'\n[host.'http://{address}']", server.address);
    let root = hosts(&[("registry.invalid", &text)]);
    let tuning = Tuning { mirror_response_timeout: Duration::from_millis(100), ..quick() };
    let options = ClientOptions { hosts_dirs: vec![root.path().to_owned()], ..ClientOptions::default() };
    let client = Client::with_tuning(options, tuning);
    for _ in 0..3 {
        assert_eq!(pull_image(&client, &reference()).await.unwrap(), blob);
    }
    silent.accept().await.unwrap();
    let again = tokio::time::timeout(Duration::from_millis(50), silent.accept()).await;
    assert!(again.is_err(), "the dead mirror was asked again");
}

#[tokio::test]
async fn a_dead_mirror_is_asked_after_all_when_nobody_else_answers() {
    let dead = free_address();
    let gone = free_address();
    let text = format!("server = 'http://{gone}'\n[host.'http://{dead}']");
    let root = hosts(&[("registry.invalid", &text)]);
    let client = client_with_hosts(&root);
    for _ in 0..2 {
        let error = client.resolve(&reference()).await.unwrap_err();
        assert!(matches!(&error, Error::Hosts { errors, .. } if errors.len() == 2), "{error}");
        assert!(error.is_temporary());
    }
}

#[tokio::test]
async fn changes_of_hosts_toml_count_at_once() {
    let (document, blob) = image(1);
    let (old, new) = (good_host(&document, &blob).await, good_host(&document, &blob).await);
    let root = hosts(&[("registry.invalid", &format!("server = 'http://{}'", old.address))]);
    let client = client_with_hosts(&root);
    client.resolve(&reference()).await.unwrap();
    write_hosts(root.path(), "registry.invalid", &format!("server = 'http://{}'", new.address));
    assert_eq!(client.resolve(&reference()).await.unwrap().host, new.address.to_string());
}

#[tokio::test]
async fn paths_are_overridden_and_headers_sent() {
    let (document, blob) = image(1);
    let fake = good_host(&document, &blob).await;
    let text = format!(
        "[host.'http://{}/api/docker']\noverride_path = true\n[host.'http://{}/api/docker'.header]\nx-key = ['a', 'b']",
        fake.address, fake.address
    );
    let root = hosts(&[("registry.invalid", &text)]);
    client_with_hosts(&root).resolve(&reference()).await.unwrap();
    let seen = &fake.seen()[0];
    assert_eq!(seen.path(), "/api/docker/team/app/manifests/v1");
    assert_eq!(seen.headers.get_all("x-key").iter().count(), 2);
    assert!(seen.header("user-agent").unwrap().starts_with("orlop/"));
}

#[tokio::test]
async fn nothing_secret_goes_along_with_a_redirect() {
    let (document, blob) = image(1);
    let served = blob.clone();
    let cdn = Fake::start(move |seen| serve_blob(seen, &served, 300, Then::Break)).await;
    let signed = format!("http://{}/data?signature=secret", cdn.address);
    let registry = Fake::start(move |seen| match seen.header("authorization") {
        None => reply(401, &[("www-authenticate", "Basic realm=\"x\""), ("set-cookie", "session=1")], ""),
        Some(_) if seen.path().contains("/blobs/") => reply(307, &[("location", &signed)], ""),
        Some(_) => good(seen, &document, &Bytes::new()),
    })
    .await;
    let root =
        hosts(&[("registry.invalid", &format!("server = 'http://{}'\n[header]\nx-secret = 'yes'", registry.address))]);
    let options = ClientOptions {
        hosts_dirs: vec![root.path().to_owned()],
        credentials: Some(("me".to_owned(), "pass".to_owned())),
        ..ClientOptions::default()
    };
    let client = Client::with_tuning(options, quick());
    assert_eq!(pull_image(&client, &reference()).await.unwrap(), blob);
    assert!(cdn.seen().len() > 1, "the download was not resumed");
    for seen in cdn.seen() {
        for name in ["authorization", "x-secret", "cookie", "referer"] {
            assert_eq!(seen.header(name), None);
        }
    }
    let registry = registry.seen();
    assert!(registry.iter().all(|s| s.header("x-secret") == Some("yes") && s.header("cookie").is_none()));
    assert!(registry.iter().any(|s| s.header("authorization") == Some(&basic("me", "pass"))));
}

#[tokio::test]
async fn an_expired_redirect_is_asked_for_again() {
    let blob = noise(30, 400_000);
    let served = blob.clone();
    let uses = std::sync::Mutex::new(std::collections::HashMap::<String, u32>::new());
    let cdn = Fake::start(move |seen| {
        let mut uses = uses.lock().unwrap();
        let used = uses.entry(seen.query("s").unwrap()).or_default();
        *used += 1;
        if *used > 3 { status(403) } else { serve_blob(seen, &served, usize::MAX, Then::End) }
    })
    .await;
    let (address, issued) = (cdn.address, std::sync::atomic::AtomicU32::new(0));
    let registry = Fake::start(move |_| {
        let url = format!("http://{address}/data?s={}", issued.fetch_add(1, Ordering::SeqCst));
        reply(307, &[("location", &url)], "")
    })
    .await;
    let tuning = Tuning {
        parallel_from: 1000,
        parallel_below: u64::MAX,
        probe_bytes: 40_000,
        range_bytes: 40_000,
        ranges: 2,
        ..quick()
    };
    let client = Client::with_tuning(ClientOptions::default(), tuning);
    let (got, error) = collect(client.blob(&registry.repository("a"), &layer(&blob), 0).await.unwrap()).await;
    assert!(error.is_none() && got == blob, "{error:?}");
    let asked = registry.seen().len();
    assert!((3..=8).contains(&asked), "the registry was asked {asked} times for 10 ranges");
}

#[tokio::test]
async fn redirects_in_circles_end() {
    let fake = Fake::start(|seen| reply(302, &[("location", seen.path())], "")).await;
    let error = client().blob(&fake.repository("a"), &layer(&noise(1, 5)), 0).await.map(drop).unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "{error}");
    assert!(fake.seen().len() < 20);
}
