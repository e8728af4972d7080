//! Who may do what, over HTTP: passwords, tokens, permissions by repository, read-only mode, and what is written down of it.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use orlop_registry::{
    Access, Action, Audit, Decision, Permissions, RepositoryPattern, RepositoryRule, TokenKey, Tokens, Users,
};
use reqwest::Response;
use serde_json::Value;

use crate::common::{Peer, code, header};

/// Everything that was decided, a line each.
#[derive(Default)]
struct Taken(Mutex<Vec<String>>);

impl Audit for Taken {
    fn record(&self, decision: &Decision<'_>) {
        let Decision { user, action, repository, allowed, .. } = decision;
        let (user, place) = (user.unwrap_or("-"), repository.unwrap_or("-"));
        self.0.lock().unwrap().push(format!("{user} {action} {place} {allowed}"));
    }
}

fn users() -> Option<Arc<Users>> {
    let hash = |password: &str| bcrypt::hash(password, 4).unwrap();
    let text = format!("alice:{}\nbob:{}\n", hash("wonderland"), hash("builder"));
    Some(Arc::new(Users::parse(&text).unwrap()))
}

/// Everybody reads what is public; alice has her team's; bob reads everything.
fn permissions() -> Permissions {
    let rule = |repositories: &str, who: &str, actions: &[Action]| RepositoryRule {
        repositories: vec![RepositoryPattern::new(repositories)],
        who: vec![who.parse().unwrap()],
        actions: actions.to_vec(),
    };
    Permissions::new(vec![
        rule("public/*", "anonymous", &[Action::Pull]),
        rule("team/*", "alice", &Action::ALL),
        rule("*", "bob", &[Action::Pull]),
    ])
}

/// A registry with an image in three repositories, and who may what.
async fn guarded(tokens: Option<Tokens>) -> (Peer, Arc<Taken>) {
    let peer = Peer::start().await;
    for name in ["public/app", "team/app", "private/app"] {
        peer.push_image(name, "1", name).await;
    }
    let taken = Arc::new(Taken::default());
    let audit: Option<Arc<dyn Audit>> = Some(taken.clone());
    let access = Access { users: users(), permissions: permissions(), tokens, read_only: false, audit };
    peer.registry.set_access(access);
    (peer, taken)
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

async fn ask(peer: &Peer, method: &str, path: &str, credentials: Option<&str>) -> Response {
    let request = peer.request(method, path);
    let request = match credentials {
        Some(value) => request.header("authorization", value),
        None => request,
    };
    request.send().await.unwrap()
}

#[tokio::test]
async fn passwords_open_what_their_users_may() {
    let (peer, taken) = guarded(None).await;
    let (alice, bob) = (basic("alice", "wonderland"), basic("bob", "builder"));
    let status = async |method: &str, path: &str, credentials: Option<&str>| {
        ask(&peer, method, path, credentials).await.status().as_u16()
    };
    let challenged = ask(&peer, "GET", "/v2/", None).await;
    assert_eq!(challenged.status(), 401, "clients find out there that they can log in");
    let value = header(&challenged, "www-authenticate").to_owned();
    assert!(value.starts_with(&format!("Basic realm=\"{}\"", peer.host())), "{value}");
    assert_eq!(code(challenged).await, (401, "UNAUTHORIZED".into()));
    assert_eq!(status("GET", "/v2/", Some(&alice)).await, 200);
    for wrong in [basic("alice", "builder"), basic("carol", "x"), "Basic !".into(), "Bearer x".into(), "x".into()] {
        assert_eq!(status("GET", "/v2/public/app/manifests/1", Some(&wrong)).await, 401, "{wrong} is not nobody");
    }
    assert_eq!(status("GET", "/v2/public/app/manifests/1", None).await, 200);
    assert_eq!(status("GET", "/v2/public/app/manifests/1", Some("Basic Og==")).await, 200, "no name and no password");
    assert_eq!(status("GET", "/v2/team/app/manifests/1", None).await, 401);
    assert_eq!(status("GET", "/v2/team/none/manifests/1", None).await, 401, "nor whether there is one");
    assert_eq!(status("GET", "/v2/team/app/manifests/1", Some(&alice)).await, 200);
    assert_eq!(code(ask(&peer, "GET", "/v2/private/app/tags/list", Some(&alice)).await).await, (403, "DENIED".into()));
    assert_eq!(status("GET", "/v2/private/app/tags/list", Some(&bob)).await, 200);
    assert_eq!(status("POST", "/v2/team/app/blobs/uploads/", Some(&bob)).await, 403);
    assert_eq!(status("POST", "/v2/team/app/blobs/uploads/", Some(&alice)).await, 202);
    assert_eq!(status("DELETE", "/v2/team/app/manifests/1", Some(&bob)).await, 403);
    assert_eq!(status("DELETE", "/v2/team/app/manifests/1", Some(&alice)).await, 202);
    let taken = taken.0.lock().unwrap().clone();
    for line in [
        "- login - false",
        "- pull public/app true",
        "- pull team/app false",
        "bob push team/app false",
        "alice push team/app true",
        "alice delete team/app true",
    ] {
        assert!(taken.iter().any(|taken| taken == line), "no {line:?} in {taken:#?}");
    }
}

#[tokio::test]
async fn a_blob_is_mounted_only_from_where_its_caller_may_read() {
    let (peer, taken) = guarded(None).await;
    let bytes = Bytes::from("private/app".repeat(1000));
    let digest = orlop_oci::Digest::of(&bytes);
    let alice = basic("alice", "wonderland");
    let mount = |from: &str| format!("/v2/team/other/blobs/uploads/?mount={digest}&from={from}");
    let refused = ask(&peer, "POST", &mount("private/app"), Some(&alice)).await;
    assert_eq!(refused.status(), 202, "it is to be sent, as one that is not there");
    assert_eq!(ask(&peer, "GET", &format!("/v2/team/other/blobs/{digest}"), Some(&alice)).await.status(), 404);
    let own = orlop_oci::Digest::of("team/app".repeat(1000).as_bytes());
    let path = format!("/v2/team/other/blobs/uploads/?mount={own}&from=team/app");
    assert_eq!(ask(&peer, "POST", &path, Some(&alice)).await.status(), 201);
    let taken = taken.0.lock().unwrap().clone();
    assert!(taken.contains(&"alice pull private/app false".to_owned()), "{taken:#?}");
    assert!(taken.contains(&"alice pull team/app true".to_owned()), "{taken:#?}");
}

#[tokio::test]
async fn the_catalog_has_what_its_reader_may_read() {
    let (peer, _) = guarded(None).await;
    let listed = async |user: &str, password: &str, query: &str| {
        let answer = ask(&peer, "GET", &format!("/v2/_catalog{query}"), Some(&basic(user, password))).await;
        answer.json::<Value>().await.unwrap()["repositories"].clone()
    };
    assert_eq!(listed("alice", "wonderland", "").await, serde_json::json!(["public/app", "team/app"]));
    assert_eq!(listed("alice", "wonderland", "?n=1").await, serde_json::json!(["public/app"]));
    assert_eq!(listed("alice", "wonderland", "?n=1&last=public/app").await, serde_json::json!(["team/app"]));
    assert_eq!(listed("bob", "builder", "").await, serde_json::json!(["private/app", "public/app", "team/app"]));
    assert_eq!(listed("alice", "wonderland", "?n=0").await, serde_json::json!([]));
    assert_eq!(ask(&peer, "GET", "/v2/_catalog", None).await.status(), 401);
}

/// What a challenge says, by key.
fn parts(challenge: &str) -> std::collections::BTreeMap<String, String> {
    let rest = challenge.strip_prefix("Bearer ").unwrap_or_else(|| panic!("{challenge}"));
    let pairs = rest.split("\",").filter_map(|part| part.split_once("=\""));
    pairs.map(|(key, value)| (key.to_owned(), value.trim_end_matches('"').to_owned())).collect()
}

#[tokio::test]
async fn a_token_is_for_what_it_was_asked_for_and_its_user_may() {
    let tokens = || Some(Tokens::new(TokenKey::new(&[7; 32]).unwrap(), None));
    let (peer, _) = guarded(tokens()).await;
    let alice = basic("alice", "wonderland");
    let challenged = ask(&peer, "PUT", "/v2/team/app/manifests/2", None).await;
    assert_eq!(challenged.status(), 401);
    let said = parts(header(&challenged, "www-authenticate"));
    assert_eq!(said["realm"], format!("http://{}/token", peer.host()));
    assert_eq!((said["service"].clone(), said["scope"].as_str()), (peer.host(), "repository:team/app:pull,push"));
    let token = async |scope: &str, credentials: Option<&str>| {
        let answer = ask(&peer, "GET", &format!("/token?service={}&scope={scope}", peer.host()), credentials).await;
        assert_eq!((answer.status().as_u16(), header(&answer, "cache-control")), (200, "no-store"));
        let issued: Value = answer.json().await.unwrap();
        assert_eq!(issued["token"], issued["access_token"]);
        assert!(issued["expires_in"].as_u64().unwrap() >= 60);
        format!("Bearer {}", issued["token"].as_str().unwrap())
    };
    let status = async |method: &str, path: &str, token: &str| ask(&peer, method, path, Some(token)).await.status();
    let pull = token("repository:team/app:pull", Some(&alice)).await;
    assert_eq!(status("GET", "/v2/", &pull).await, 200);
    assert_eq!(status("GET", "/v2/team/app/manifests/1", &pull).await, 200);
    let refused = ask(&peer, "POST", "/v2/team/app/blobs/uploads/", Some(&pull)).await;
    assert_eq!(refused.status(), 401, "a better token may be had");
    assert_eq!(parts(header(&refused, "www-authenticate"))["error"], "insufficient_scope");
    let push = token("repository:team/app:push,pull", Some(&alice)).await;
    assert_eq!(status("POST", "/v2/team/app/blobs/uploads/", &push).await, 202);
    assert_eq!(status("GET", "/v2/public/app/manifests/1", &push).await, 401, "that one is for another repository");
    let too_much = token("repository:private/app:pull,push", Some(&alice)).await;
    assert_eq!(status("GET", "/v2/private/app/manifests/1", &too_much).await, 403, "no token helps alice");
    let nobody = token("repository:public/app:pull%20repository:team/app:pull", None).await;
    assert_eq!(status("GET", "/v2/public/app/manifests/1", &nobody).await, 200);
    assert_eq!(status("GET", "/v2/team/app/manifests/1", &nobody).await, 401);
    assert_eq!(ask(&peer, "GET", "/token?scope=repository:a:pull", Some(&basic("alice", "x"))).await.status(), 401);
    assert_eq!(ask(&peer, "GET", "/token?scope=repository:a:pull", Some(&pull)).await.status(), 401);
    // As Docker logs in.
    let host = peer.host();
    let form = [("grant_type", "password"), ("username", "alice"), ("password", "wonderland"), ("service", &host)];
    let form = [&form[..], &[("scope", "repository:team/app:pull")]].concat();
    let issued: Value = peer.request("POST", "/token").form(&form).send().await.unwrap().json().await.unwrap();
    let posted = format!("Bearer {}", issued["access_token"].as_str().unwrap());
    assert_eq!(status("GET", "/v2/team/app/manifests/1", &posted).await, 200);
    let wrong = [("grant_type", "password"), ("username", "alice"), ("password", "x")];
    assert_eq!(peer.request("POST", "/token").form(&wrong).send().await.unwrap().status(), 401);
    // What somebody may not do any more, his token does not do either.
    let access = Access { users: users(), permissions: Permissions::default(), tokens: tokens(), ..Access::default() };
    peer.registry.set_access(access);
    assert_eq!(status("GET", "/v2/team/app/manifests/1", &pull).await, 403);
}

/// Registries that have the same key take each other's tokens, for the host that clients call them by; which is not always where
/// tokens are issued.
#[tokio::test]
async fn gateways_with_one_key_take_each_others_tokens() {
    let tokens = || Some(Tokens::new(TokenKey::new(&[7; 32]).unwrap(), Some("https://login.example/token".into())));
    let (one, two) = (guarded(tokens()).await.0, guarded(tokens()).await.0);
    let challenged = ask(&one, "GET", "/v2/team/app/manifests/1", None).await;
    assert_eq!(parts(header(&challenged, "www-authenticate"))["realm"], "https://login.example/token");
    let token = async |query: &str| {
        let request = one.request("GET", &format!("/token?scope=repository:team/app:pull{query}"));
        let request = request.header("host", "login.example").header("authorization", basic("alice", "wonderland"));
        let issued: Value = request.send().await.unwrap().json().await.unwrap();
        format!("Bearer {}", issued["token"].as_str().unwrap())
    };
    let at = async |host: &str, token: &str| {
        let request = two.request("GET", "/v2/team/app/manifests/1").header("host", host);
        request.header("authorization", token).send().await.unwrap().status()
    };
    let asked_for = token("&service=registry.example").await;
    assert_eq!(at("registry.example", &asked_for).await, 200);
    assert_eq!(at("login.example", &asked_for).await, 401, "it is for another host");
    assert_eq!(at("login.example", &token("").await).await, 200, "who names none gets one for where he asks");
    let stranger = guarded(Some(Tokens::new(TokenKey::new(&[8; 32]).unwrap(), None))).await.0;
    let request = stranger.request("GET", "/v2/team/app/manifests/1").header("host", "registry.example");
    assert_eq!(request.header("authorization", &asked_for).send().await.unwrap().status(), 401, "another key");
}

/// Behind something that ends TLS, clients were sent to `/token` without it, with their passwords.
#[tokio::test]
async fn who_came_by_tls_is_sent_on_by_tls() {
    let (peer, _) = guarded(Some(Tokens::new(TokenKey::random(), None))).await;
    let realm = async |proto: &str| {
        let request = peer.request("GET", "/v2/").header("host", "registry.example").header("x-forwarded-proto", proto);
        parts(header(&request.send().await.unwrap(), "www-authenticate"))["realm"].clone()
    };
    assert_eq!(realm("https").await, "https://registry.example/token");
    assert_eq!(realm("http").await, "http://registry.example/token");
}

/// A wrong password is as much work as a right one: who sends many is told to come again, and the others go on.
#[tokio::test]
async fn many_wrong_passwords_at_once_do_not_keep_others_out() {
    let peer = Peer::start().await;
    let hash = bcrypt::hash("wonderland", 10).unwrap();
    let users = Some(Arc::new(Users::parse(&format!("alice:{hash}")).unwrap()));
    peer.registry.set_access(Access { users, permissions: permissions(), ..Access::default() });
    let wrong = (0..100).map(|n| {
        let request = peer.request("GET", "/v2/").header("authorization", basic("alice", &format!("guess {n}")));
        async move {
            let answer = request.send().await.unwrap();
            let retries = answer.headers().contains_key("retry-after");
            (answer.status().as_u16(), retries)
        }
    });
    let answers = futures::future::join_all(wrong).await;
    assert!(answers.contains(&(401, false)), "{answers:?}");
    assert!(answers.contains(&(429, true)), "{answers:?}");
    assert_eq!(ask(&peer, "GET", "/v2/", Some(&basic("alice", "wonderland"))).await.status(), 200);
}

#[tokio::test]
async fn a_read_only_registry_takes_no_changes_from_anybody() {
    let peer = Peer::start().await;
    peer.push_image("app", "1", "x").await;
    peer.registry.set_access(Access { read_only: true, ..Access::open() });
    assert_eq!(peer.get("/v2/app/manifests/1").await.status(), 200);
    for (method, path) in
        [("POST", "/v2/app/blobs/uploads/"), ("PUT", "/v2/app/manifests/2"), ("DELETE", "/v2/app/manifests/1")]
    {
        let refused = peer.request(method, path).send().await.unwrap();
        assert_eq!(code(refused).await, (405, "UNSUPPORTED".into()), "{method} {path}");
    }
    assert_eq!(peer.get("/token").await.status(), 404, "nobody issues tokens here");
}
