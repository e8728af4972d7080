//! Basic and Bearer authentication, and where credentials must not go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::response::Response;
use bytes::Bytes;
use orlop_remote::{Client, ClientOptions, Credential, Error, Login};

use crate::common::*;
use crate::fake::*;

/// A registry that takes `Bearer <token>` where `accepts` says so, and points to `realm` otherwise.
async fn guarded(
    realm: String,
    scope: &'static str,
    accepts: impl Fn(&Seen, &str) -> bool + Send + Sync + 'static,
) -> Fake {
    let document = manifest(&noise(1, 10), &layer(&noise(2, 10)), "");
    Fake::start(move |seen| {
        let token = seen.header("authorization").and_then(|h| h.strip_prefix("Bearer ")).unwrap_or_default();
        if accepts(seen, token) {
            return match seen.method.as_str() {
                "POST" => reply(202, &[("location", "/upload/1")], ""),
                "PUT" => status(201),
                _ => good(seen, &document, &Bytes::new()),
            };
        }
        let challenge = format!(r#"Bearer realm="{realm}",service="reg.test",scope="{scope}""#);
        reply(401, &[("www-authenticate", &challenge)], r#"{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}"#)
    })
    .await
}

fn token(text: &str) -> Response {
    reply(200, &[], format!(r#"{{"token":"{text}","expires_in":300}}"#))
}

fn form(seen: &Seen, name: &str) -> Option<String> {
    url::form_urlencoded::parse(&seen.body).find(|(n, _)| n == name).map(|(_, v)| v.into_owned())
}

#[tokio::test]
async fn one_anonymous_token_serves_many_requests_at_once() {
    let realm = Fake::start(|_| token("abc")).await;
    let url = format!("http://{}/token", realm.address);
    let registry = guarded(url, "repository:a:pull", |_, token| token == "abc").await;
    let (client, reference) = (client(), registry.reference("a:1"));
    let all = (0..8).map(|_| client.resolve(&reference));
    for result in futures::future::join_all(all).await {
        result.unwrap();
    }
    client.resolve(&reference).await.unwrap();
    let seen = realm.seen();
    assert_eq!(seen.len(), 1, "the token was fetched more than once");
    assert_eq!(seen[0].query("service").as_deref(), Some("reg.test"));
    assert_eq!(seen[0].query("scope").as_deref(), Some("repository:a:pull"));
    assert_eq!(seen[0].header("authorization"), None);
}

#[tokio::test]
async fn tokens_that_expire_or_are_refused_are_fetched_again() {
    let issued = Arc::new(AtomicUsize::new(0));
    let count = issued.clone();
    let realm = Fake::start(move |seen| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        let life = if seen.query("scope").unwrap().contains("short") { 0 } else { 300 };
        reply(200, &[], format!(r#"{{"access_token":"t{n}","expires_in":{life}}}"#))
    })
    .await;
    let latest = issued.clone();
    let url = format!("http://{}/token", realm.address);
    let registry = guarded(url, "", move |seen, token| match seen.path().contains("short") {
        true => token.starts_with('t'),
        false => {
            token.strip_prefix('t').is_some_and(|n| n.parse::<usize>().unwrap() + 1 == latest.load(Ordering::SeqCst))
        }
    })
    .await;
    let client = client();
    for _ in 0..3 {
        client.resolve(&registry.reference("short:1")).await.unwrap();
    }
    assert_eq!(realm.seen().len(), 3);
    client.resolve(&registry.reference("long:1")).await.unwrap();
    client.resolve(&registry.reference("long:1")).await.unwrap();
    assert_eq!(realm.seen().len(), 4);
    // The registry forgets all tokens.
    issued.fetch_add(1, Ordering::SeqCst);
    client.resolve(&registry.reference("long:1")).await.unwrap();
    assert_eq!(realm.seen().len(), 5);
}

#[tokio::test]
async fn a_password_goes_by_post_and_by_get_where_post_is_not_taken() {
    for post in [200, 400, 401, 404, 405] {
        let realm = Fake::start(move |seen| match seen.method.as_str() {
            "POST" if post == 200 => token("mine"),
            "POST" => status(post),
            _ if seen.header("authorization") == Some(&basic("me", "p&w")) => token("mine"),
            _ => status(403),
        })
        .await;
        let url = format!("http://{}/token", realm.address);
        let registry = guarded(url, "repository:a:pull", |_, token| token == "mine").await;
        client_with_user("me", "p&w").resolve(&registry.reference("a:1")).await.unwrap();
        let seen = realm.seen();
        assert_eq!(seen.len(), if post == 200 { 1 } else { 2 });
        let expected = [
            ("grant_type", "password"),
            ("username", "me"),
            ("password", "p&w"),
            ("service", "reg.test"),
            ("scope", "repository:a:pull"),
            ("client_id", "orlop"),
        ];
        for (name, value) in expected {
            assert_eq!(form(&seen[0], name).as_deref(), Some(value));
        }
        assert!(registry.seen().iter().all(|s| !s.header("authorization").unwrap_or("").starts_with("Basic")));
    }
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let realm = Fake::start(|_| token("exchanged")).await;
    let url = format!("http://{}/token", realm.address);
    let registry = guarded(url, "repository:a:pull", |_, token| token == "exchanged").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = format!(r#"{{"auths":{{"{}":{{"identitytoken":"refresh-me"}}}}}}"#, registry.address);
    std::fs::write(file.path(), text).unwrap();
    let options = ClientOptions { docker_config: Some(file.path().to_owned()), ..ClientOptions::default() };
    Client::with_tuning(options, quick()).resolve(&registry.reference("a:1")).await.unwrap();
    let seen = realm.seen();
    assert_eq!(form(&seen[0], "grant_type").as_deref(), Some("refresh_token"));
    assert_eq!(form(&seen[0], "refresh_token").as_deref(), Some("refresh-me"));
}

#[tokio::test]
async fn scopes_that_a_host_asks_for_are_remembered() {
    let realm = Fake::start(|seen| token(&seen.query("scope").unwrap().replace([':', '/', ','], "-"))).await;
    let url = format!("http://{}/token", realm.address);
    // Every scope is a parameter of its own: the first one decides here.
    let registry = guarded(url, "repository:a:delete,pull", |_, token| token.contains("delete")).await;
    let client = client();
    client.resolve(&registry.reference("a:1")).await.unwrap();
    client.resolve(&registry.reference("a:1")).await.unwrap();
    assert_eq!(registry.seen().len(), 3, "the second request had to be challenged too");
    assert_eq!(realm.seen().len(), 1);
}

#[tokio::test]
async fn a_push_asks_for_the_scope_that_was_insufficient() {
    let realm = Fake::start(|seen| token(&seen.query("scope").unwrap().replace([':', ','], "-"))).await;
    let url = format!("http://{}/token", realm.address);
    let document = manifest(&noise(1, 10), &layer(&noise(2, 10)), "");
    let registry = Fake::start(move |seen| {
        let token = seen.header("authorization").unwrap_or_default();
        let challenge = format!(r#"Bearer realm="{url}",service="s",scope="repository:a:admin""#);
        match token {
            "" => reply(401, &[("www-authenticate", &challenge)], ""),
            token if token.contains("admin") => status(201),
            _ => reply(403, &[("www-authenticate", &format!(r#"{challenge},error="insufficient_scope""#))], ""),
        }
    })
    .await;
    client().push_document(&registry.reference("a:1"), &document).await.unwrap();
    let last = realm.seen().last().unwrap().query("scope").unwrap();
    assert_eq!(last, "repository:a:admin,pull,push");
}

#[tokio::test]
async fn refusals_name_who_refused_and_why() {
    let realm = Fake::start(|_| reply(401, &[], r#"{"details":"incorrect username or password"}"#)).await;
    let url = format!("http://{}/token", realm.address);
    let registry = guarded(url, "repository:a:pull", |_, _| false).await;
    let error = client_with_user("me", "wrong").resolve(&registry.reference("a:1")).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Unauthorized { .. }) && !error.is_temporary(), "{text}");
    assert!(text.contains("incorrect username") && text.contains(&realm.address.to_string()), "{text}");
    assert!(!text.contains("wrong"), "{text}");

    let open = Fake::start(|_| token("useless")).await;
    let registry = guarded(format!("http://{}/t", open.address), "repository:a:pull", |_, _| false).await;
    let error = client().resolve(&registry.reference("a:1")).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert!(registry.seen().len() < 10);
}

#[tokio::test]
async fn basic_credentials_are_sent_only_when_asked_for_and_only_to_their_host() {
    let document = manifest(&noise(1, 10), &layer(&noise(2, 10)), "");
    let asking = |challenge: &'static str| {
        let document = document.clone();
        move |seen: &Seen| match seen.header("authorization") {
            Some(header) if header == basic("me", "pass") => good(seen, &document, &Bytes::new()),
            _ => reply(401, &[("www-authenticate", challenge)], ""),
        }
    };
    let mirror = Fake::start(asking("Basic realm=\"mirror\"")).await;
    let server = Fake::start(asking("Digest x=y, Basic realm=\"server\"")).await;
    let text = format!("server = 'http://{}'\n[host.'http://{}']", server.address, mirror.address);
    let root = hosts(&[("registry.invalid", &text)]);
    let options = ClientOptions {
        hosts_dirs: vec![root.path().to_owned()],
        credentials: Some(("me".to_owned(), "pass".to_owned())),
        ..ClientOptions::default()
    };
    let client = Client::with_tuning(options, quick());
    client.resolve(&"registry.invalid/a:1".parse().unwrap()).await.unwrap();
    assert!(mirror.seen().iter().all(|s| s.header("authorization").is_none()), "the mirror was given credentials");
    assert_eq!(server.seen()[0].header("authorization"), None);
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn a_login_goes_to_the_host_it_names_and_to_no_other() {
    let document = manifest(&noise(1, 10), &layer(&noise(2, 10)), "");
    let challenging = move |seen: &Seen| match seen.header("authorization") {
        Some(header) if header == basic("me", "pass") => good(seen, &document, &Bytes::new()),
        _ => reply(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
    };
    let mirror = Fake::start(challenging.clone()).await;
    let server = Fake::start(challenging).await;
    let text = format!("server = 'http://{}'\n[host.'http://{}']", server.address, mirror.address);
    let root = hosts(&[("registry.invalid", &text)]);
    let resolve = async |named: Option<String>| {
        let credential = Credential::Basic { user: "me".to_owned(), password: "pass".to_owned() };
        let login = Some(Login { credential, server: named });
        let options = ClientOptions { hosts_dirs: vec![root.path().to_owned()], login, ..ClientOptions::default() };
        Client::with_tuning(options, quick()).resolve(&"registry.invalid/a:1".parse().unwrap()).await.map(|r| r.host)
    };
    let (first, last) = (mirror.address.to_string(), server.address.to_string());
    assert_eq!(resolve(None).await.unwrap(), last, "a mirror is another host than the one the reference names");
    assert_eq!(resolve(Some(last.clone())).await.unwrap(), last);
    assert_eq!(resolve(Some(format!("http://{first}/v2/"))).await.unwrap(), first);
    assert!(matches!(resolve(Some("elsewhere.example".to_owned())).await, Err(e) if !e.is_not_found()));
    let told = |fake: &Fake| fake.seen().iter().filter(|s| s.header("authorization").is_some()).count();
    assert_eq!((told(&mirror), told(&server)), (1, 2));
}

#[tokio::test]
async fn identity_and_access_tokens_are_used_as_what_they_are() {
    let realm = Fake::start(|seen| match form(seen, "refresh_token").as_deref() {
        Some("refresh") => reply(200, &[], r#"{"access_token":"fetched"}"#),
        _ => status(401),
    })
    .await;
    let url = format!("http://{}/token", realm.address);
    let registry = guarded(url, "", |_, token| token == "fetched" || token == "ready").await;
    let resolve = async |credential: Credential| {
        let login = Some(Login { credential, server: None });
        let options = ClientOptions { login, ..ClientOptions::default() };
        Client::with_tuning(options, quick()).resolve(&registry.reference("a:1")).await
    };
    resolve(Credential::Bearer("ready".to_owned())).await.unwrap();
    assert_eq!(realm.seen().len(), 0);
    resolve(Credential::Identity("refresh".to_owned())).await.unwrap();
    assert_eq!(form(&realm.seen()[0], "grant_type").as_deref(), Some("refresh_token"));
    resolve(Credential::Identity("wrong".to_owned())).await.unwrap_err();
}

#[tokio::test]
async fn endless_token_answers_and_rubbish_are_refused() {
    for body in ["{}", "not json", r#"{"token":""}"#, r#"{"token":"a\nb"}"#] {
        let realm = Fake::start(move |_| reply(200, &[], body)).await;
        let registry = guarded(format!("http://{}/t", realm.address), "", |_, _| false).await;
        let error = client().resolve(&registry.reference("a:1")).await.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{body}: {error}");
    }
    let endless = Fake::start(|_| reply(200, &[], noise(1, 600_000))).await;
    let registry = guarded(format!("http://{}/t", endless.address), "", |_, _| false).await;
    let error = client().resolve(&registry.reference("a:1")).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn config_json_gives_each_host_its_own() {
    let document = manifest(&noise(1, 10), &layer(&noise(2, 10)), "");
    let asking = |user: &'static str, has: bool| {
        let document = document.clone();
        move |seen: &Seen| match seen.header("authorization") {
            Some(header) if header == basic(user, "pass") && has => good(seen, &document, &Bytes::new()),
            Some(header) if header == basic(user, "pass") => status(404),
            Some(_) => status(400),
            None => reply(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
        }
    };
    let mirror = Fake::start(asking("mirror", false)).await;
    let server = Fake::start(asking("server", true)).await;
    let text = format!("server = 'http://{}'\n[host.'http://{}']", server.address, mirror.address);
    let root = hosts(&[("registry.invalid", &text)]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = format!(
        r#"{{"auths":{{"{}":{{"username":"mirror","password":"pass"}},"http://{}/v2/":{{"username":"server","password":"pass"}}}}}}"#,
        mirror.address, server.address
    );
    std::fs::write(file.path(), text).unwrap();
    let options = ClientOptions {
        hosts_dirs: vec![root.path().to_owned()],
        docker_config: Some(file.path().to_owned()),
        ..ClientOptions::default()
    };
    let client = Client::with_tuning(options, quick());
    let resolved = client.resolve(&"registry.invalid/a:1".parse().unwrap()).await.unwrap();
    assert_eq!(resolved.host, server.address.to_string());
    assert_eq!(mirror.count("HEAD", "/manifests/1"), 2);
}

/// Regression: of two first requests at once, the one whose challenge came after the other had learned the scheme failed.
#[tokio::test]
async fn a_challenge_that_comes_late_is_met_too() {
    let asked = Arc::new(tokio::sync::Notify::new());
    let notify = asked.clone();
    let realm = Fake::start(move |_| {
        notify.notify_one();
        token("abc")
    })
    .await;
    let document = manifest(&noise(1, 10), &layer(&noise(2, 10)), "");
    let challenge = format!(r#"Bearer realm="http://{}/token",scope="repository:a:pull""#, realm.address);
    let (both, strangers) = (Arc::new(tokio::sync::Barrier::new(2)), Arc::new(AtomicUsize::new(0)));
    let registry = Fake::start_waiting(move |seen| {
        let (asked, both, strangers) = (asked.clone(), both.clone(), strangers.clone());
        let (document, challenge) = (document.clone(), challenge.clone());
        Box::pin(async move {
            if seen.header("authorization").is_some() {
                return good(&seen, &document, &Bytes::new());
            }
            let late = strangers.fetch_add(1, Ordering::SeqCst) == 1;
            both.wait().await;
            if late {
                asked.notified().await;
            }
            reply(401, &[("www-authenticate", &challenge)], "")
        })
    })
    .await;
    let (client, repository, digest) = (client(), registry.repository("a"), layer(&noise(1, 10)).digest);
    let (one, two) = tokio::join!(client.has_blob(&repository, &digest), client.has_blob(&repository, &digest));
    assert!(one.unwrap() && two.unwrap());
    assert_eq!(realm.seen().len(), 1);
}

#[tokio::test]
async fn a_mount_asks_for_both_repositories() {
    let realm = Fake::start(|_| token("abc")).await;
    let challenge = format!(r#"Bearer realm="http://{}/token""#, realm.address);
    let registry = Fake::start(move |seen| match (seen.header("authorization"), seen.method.as_str()) {
        (None, _) => reply(401, &[("www-authenticate", &challenge)], ""),
        (_, "POST") => status(201),
        _ => status(404),
    })
    .await;
    let blob = layer(&noise(1, 10));
    client()
        .push_blob(&registry.repository("to"), &blob, &[registry.repository("from")], &|_| panic!("mounted"), &|_| {})
        .await
        .unwrap();
    let scopes: Vec<String> = url::Url::parse(&format!("http://h{}", realm.seen().last().unwrap().uri))
        .unwrap()
        .query_pairs()
        .filter(|(name, _)| name == "scope")
        .map(|(_, scope)| scope.into_owned())
        .collect();
    assert_eq!(scopes, ["repository:from:pull", "repository:to:pull,push"]);
}
