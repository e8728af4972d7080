//! Who may do what in the daemon's registry, with the files that an operator gives and clients that others wrote.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;

use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process::{Output, need, output};
use orlop_testkit::served::Served;
use orlop_testkit::tls::Certificates;
use rustix::process::Signal;
use serde_json::Value;

use crate::common::Orlop;
use crate::common::registry_address;
use crate::node_registry::layout;

/// alice's password is wonderland, bob's is builder, as `htpasswd -B` writes them.
const USERS: &str = "alice:$2b$04$abcdefghijklmnopqrstuujZkTwHUiJ9XdZPwKfcfDo7dMp5DjlTu\n\
    bob:$2y$04$abcdefghijklmnopqrstuu/GACL4BASs5qZJ2H5JEo0yW9XEj5.iq\n";

const PERMISSIONS: &str = "[{ repositories = [\"team/*\"], users = [\"alice\"], actions = [\"pull\", \"push\", \"delete\"] }, \
    { repositories = [\"*\"], users = [\"bob\"], actions = [\"pull\"] }]";

/// A store with a configuration, whose `[registry]` also says this.
fn configure(store: &Orlop, more: &str) -> PathBuf {
    std::fs::write(store.path("users"), USERS).unwrap();
    let (users, audit, config) = (store.path("users"), store.path("audit.jsonl"), store.path("config.toml"));
    let text = format!(
        "[registry]\naddress = \"127.0.0.1:0\"\nusers = {users:?}\naudit = {audit:?}\npermissions = {PERMISSIONS}\n{more}\n"
    );
    std::fs::write(&config, text).unwrap();
    config
}

pub(crate) fn serve(store: &Orlop, more: &str) -> (Served, String) {
    let config = configure(store, more);
    let mut served = store.serve(&["--config", config.to_str().unwrap()]);
    let host = registry_address(&mut served);
    (served, host)
}

pub(crate) fn image() -> Content {
    Content::image(&Image::host().layer(Layer::noise("data", 9, 100_000)))
}

fn skopeo(arguments: &[&str]) -> Output {
    let mut command = std::process::Command::new("skopeo");
    output(command.arg("--insecure-policy").args(arguments))
}

#[test]
fn clients_log_in_by_password_and_by_token() {
    if need("skopeo", "skopeo").is_none() {
        return;
    }
    for way in ["basic", "token"] {
        let store = Orlop::new();
        let (_served, host) = serve(&store, &format!("authentication = {way:?}"));
        let from = layout(&store.path("from"), &image());
        let url = format!("docker://{host}/team/app:1");
        let push = |credentials: &[&str]| {
            skopeo(&[&["copy", "--dest-tls-verify=false"], credentials, &[from.as_str(), url.as_str()]].concat())
        };
        push(&["--dest-creds", "alice:wonderland"]).ok();
        assert!(store.records().contains(&format!("{host}/team/app:1")));
        let log = store.ok(["log", &format!("{host}/team/app:1")]);
        assert!(log.contains("registry (alice at 127.0.0.1)"), "{log}");
        for refused in [&["--dest-creds", "bob:builder"][..], &["--dest-creds", "alice:builder"], &[]] {
            let said = push(refused);
            assert!(!said.status.success(), "{way} {refused:?}: {}", said.stdout);
        }
        let look = |credentials: &[&str]| {
            skopeo(&[&["inspect", "--raw", "--tls-verify=false"], credentials, &[url.as_str()]].concat())
        };
        let raw = look(&["--creds", "bob:builder"]).ok().stdout;
        assert_eq!(raw.as_bytes(), image().bytes(&image().root.digest));
        assert!(!look(&[]).status.success());
        // Orlop's own client, from another store.
        let other = Orlop::new();
        let pulled =
            other.run(["pull", "--plain-http", "--no-unpack", "--user", "bob:builder", &url["docker://".len()..]]);
        assert_eq!(pulled.code, 0, "{way}: {}", pulled.err);
        let refused = other.run(["pull", "--plain-http", "--no-unpack", &format!("{host}/team/none:1")]);
        assert_eq!(refused.code, 7, "{way}: {}", refused.err);
        skopeo(&["delete", "--tls-verify=false", "--creds", "alice:wonderland", &url]).ok();
        let audit = std::fs::read_to_string(store.path("audit.jsonl")).unwrap();
        let lines: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let has = |user: &str, action: &str, allowed: bool| {
            lines.iter().any(|l| {
                l["user"] == user && l["action"] == action && l["allowed"] == allowed && l["address"] == "127.0.0.1"
            })
        };
        assert!(has("alice", "push", true) && has("bob", "push", false), "{way}: {audit}");
        assert!(has("bob", "pull", true) && has("alice", "delete", true), "{way}: {audit}");
        assert!(!audit.contains("wonderland") && !audit.contains("Bearer"), "{audit}");
        store.is_sound();
    }
}

#[test]
fn who_trusts_its_authority_reaches_it_by_tls_and_a_renewed_certificate_counts_at_once() {
    if need("skopeo", "skopeo").is_none() {
        return;
    }
    let store = Orlop::new();
    let made = |name: &str| {
        let dir = store.path(name);
        std::fs::create_dir(&dir).unwrap();
        Certificates::create(&dir)
    };
    let certificates = made("first");
    let trusted = store.path("trusted");
    std::fs::create_dir(&trusted).unwrap();
    std::fs::copy(&certificates.ca, trusted.join("ca.crt")).unwrap();
    let (chain, key) = (store.path("cert.pem"), store.path("key.pem"));
    let write = |of: &Certificates| {
        std::fs::copy(&of.server, &chain).unwrap();
        std::fs::copy(&of.server_key, &key).unwrap();
    };
    write(&certificates);
    let (mut served, host) = serve(&store, &format!("tls_certificate = {chain:?}\ntls_key = {key:?}"));
    let port = host.rsplit_once(':').unwrap().1.to_owned();
    let url = format!("docker://localhost:{port}/team/app:1");
    let from = layout(&store.path("from"), &image());
    let push = || {
        let trust = trusted.to_str().unwrap();
        skopeo(&["copy", "--dest-cert-dir", trust, "--dest-creds", "alice:wonderland", &from, &url])
    };
    push().ok();
    assert!(!skopeo(&["inspect", "--raw", "--creds", "bob:builder", &url]).status.success(), "an authority unknown");
    // The next certificate is of another authority.
    let next = made("second");
    write(&next);
    served.process().signal(Signal::HUP);
    served.process().wait_for(|daemon| daemon.log().contains("were read anew").then_some(()));
    assert!(!push().status.success(), "the new certificate counts");
    std::fs::copy(&next.ca, trusted.join("ca.crt")).unwrap();
    push().ok();
}

#[test]
fn users_and_rules_are_read_anew_and_mistakes_are_told() {
    let store = Orlop::new();
    let (mut served, host) = serve(&store, "");
    let status = || get(&host, None);
    assert_eq!(status(), "401");
    let config = store.path("config.toml");
    let before = std::fs::read_to_string(&config).unwrap();
    let opened = before.replace("\"bob\"", "\"anonymous\"");
    std::fs::write(&config, &opened).unwrap();
    served.process().signal(Signal::HUP);
    served.process().wait_for(|daemon| daemon.log().contains("were read anew").then_some(()));
    assert_eq!(status(), "404", "everybody may look now, and there is nothing");
    let check = |text: &str, expected: &str| {
        std::fs::write(&config, text).unwrap();
        let done = store.run(["config", "check", config.to_str().unwrap()]);
        assert_eq!(done.code, 2, "{}", done.err);
        assert!(done.err.contains(expected), "no {expected:?} in {}", done.err);
    };
    check(&before.replace("\"bob\"", "\"carol\""), "there is no user \"carol\"");
    let open = "[registry]\naddress = \"0.0.0.0:32000\"\n";
    check(open, "config.toml:2: registry.address: \"0.0.0.0:32000\" is reached from other machines");
    std::fs::write(store.path("users"), "alice:{SHA}x\n").unwrap();
    check(&before, "users: line 1: the password of alice: expected a bcrypt hash");
    served.process().signal(Signal::HUP);
    served.process().wait_for(|daemon| daemon.log().contains("the new configuration is refused").then_some(()));
    assert_eq!(status(), "404", "the old rules stay in force");
}

/// An address that is not the machine's own was opened by a reload of a configuration that says nothing of users, where the address
/// was an option's.
#[test]
fn a_reload_opens_nothing_that_other_machines_reach() {
    let store = Orlop::new();
    let config = configure(&store, "");
    let before = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, before.replace("address = \"127.0.0.1:0\"\n", "")).unwrap();
    let mut served = store.serve(&["--config", config.to_str().unwrap(), "--registry", "0.0.0.0:0"]);
    let host = registry_address(&mut served);
    let status = || get(&host, None);
    assert_eq!(status(), "401");
    std::fs::write(&config, "[registry]\n").unwrap();
    served.process().signal(Signal::HUP);
    served.process().wait_for(|daemon| daemon.log().contains("nobody said who may do what").then_some(()));
    assert_eq!(status(), "401");
}

/// What a push in progress has, its token, outlives a reload; and decisions are written where the name of the file is.
#[test]
fn tokens_and_the_log_of_decisions_go_on_over_a_reload() {
    let store = Orlop::new();
    let (mut served, host) = serve(&store, "authentication = \"token\"");
    let asked = http(&host, "/token?scope=repository:team/app:pull", Some("Basic YWxpY2U6d29uZGVybGFuZA=="));
    let issued: Value = serde_json::from_str(&asked[asked.find('{').unwrap()..=asked.rfind('}').unwrap()]).unwrap();
    let token = format!("Bearer {}", issued["token"].as_str().unwrap());
    assert_eq!(get(&host, Some(&token)), "404", "alice may look, and there is nothing");
    let (log, old) = (store.path("audit.jsonl"), store.path("audit.jsonl.1"));
    std::fs::rename(&log, &old).unwrap();
    served.process().signal(Signal::HUP);
    served.process().wait_for(|daemon| daemon.log().contains("were read anew").then_some(()));
    assert_eq!(get(&host, Some(&token)), "404");
    let lines = std::fs::read_to_string(&log).unwrap();
    assert!(lines.contains("\"user\":\"alice\",\"action\":\"pull\""), "{lines}");
    assert!(std::fs::read_to_string(&old).unwrap().contains("\"action\":\"token\""));
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o007, 0, "not for everybody");
}

/// The answer to a GET, with its head.
fn http(host: &str, path: &str, authorization: Option<&str>) -> String {
    let authorization = authorization.map(|value| format!("authorization: {value}\r\n")).unwrap_or_default();
    let mut stream = TcpStream::connect(host).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\n{authorization}connection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The status of a look at alice's repository.
fn get(host: &str, authorization: Option<&str>) -> String {
    http(host, "/v2/team/app/tags/list", authorization).split(' ').nth(1).unwrap_or_default().to_owned()
}
