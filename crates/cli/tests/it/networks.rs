//! Networks as nodes have them: proxies, and mirrors that are gone.

use std::net::TcpListener;
use std::path::Path;

use crate::common::{Done, Orlop};
use orlop_testkit::archive;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::liar::Liar;
use orlop_testkit::registry::{Options, Registry};
use orlop_testkit::tar::Entry;
use orlop_testkit::tls::Certificates;

fn image() -> Content {
    Content::image(&Image::host().layer(Layer::new([Entry::file("file", "content")])))
}

/// A `certs.d` directory that describes `registry.example`.
fn hosts(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("registry.example");
    std::fs::create_dir_all(&own).unwrap();
    std::fs::write(own.join("hosts.toml"), text).unwrap();
    dir
}

fn pull(store: &Orlop, hosts: &Path, environment: &[(&str, &str)]) -> Done {
    let hosts = hosts.to_str().unwrap();
    let mut command = store.command(["pull", "--no-unpack", "--hosts-dir", hosts, "registry.example/team/app:1"]);
    for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(variable).env_remove(variable.to_lowercase());
    }
    Done::of(&command.envs(environment.iter().copied()).output().unwrap())
}

#[test]
fn plain_registries_are_asked_through_the_http_proxy() {
    for variable in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        let (proxy, store) = (Liar::start(), Orlop::new());
        proxy.put("team/app", "1", &image());
        let hosts = hosts("server = 'http://registry.example'");
        let done = pull(&store, hosts.path(), &[(variable, &format!("http://{}", proxy.host()))]);
        assert_eq!(done.code, 0, "{variable}: {}", done.err);
        assert!(proxy.proxied().iter().all(|asked| asked == "http://registry.example"), "{:?}", proxy.proxied());
        store.ok(["verify", "-q", "registry.example/team/app:1"]);
    }
}

#[test]
fn tls_registries_are_asked_through_a_tunnel_of_the_https_proxy() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::create(directory.path());
    let Some(registry) = Registry::start(&Options::new().tls(&certificates)) else { return };
    let (proxy, source) = (Liar::start(), Orlop::new());
    let file = source.path("image.tar");
    std::fs::write(&file, archive::oci_archive(&[("docker.io/team/app:1", &image())])).unwrap();
    source.ok(["import", "--no-unpack", file.to_str().unwrap()]);
    source.ok(["push", "team/app:1", &format!("{}/team/app:1", registry.host())]);
    proxy.tunnel_to(registry.address());
    let hosts = hosts("server = 'https://registry.example'\nskip_verify = true");
    let address = format!("http://{}", proxy.host());
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
        let store = Orlop::new();
        let done = pull(&store, hosts.path(), &[(variable, &address)]);
        assert_eq!(done.code, 0, "{variable}: {}", done.err);
        assert!(proxy.proxied().iter().all(|asked| asked == "CONNECT registry.example:443"), "{:?}", proxy.proxied());
        store.ok(["verify", "-q", "registry.example/team/app:1"]);
    }
}

#[test]
fn no_proxy_and_loopback_hosts_are_asked_directly() {
    let (proxy, registry, store) = (Liar::start(), Liar::start(), Orlop::new());
    let address = format!("http://{}", proxy.host());
    let tls = hosts("server = 'https://registry.example'");
    for exempt in ["registry.example", ".example", "other.invalid,registry.example"] {
        let done = pull(&store, tls.path(), &[("HTTPS_PROXY", &address), ("NO_PROXY", exempt)]);
        assert_eq!(done.code, 8, "{exempt}: {}", done.err);
        assert!(done.err.contains("registry.example"), "{}", done.err);
    }
    registry.put("team/app", "1", &image());
    let local = hosts(&format!("server = 'http://{}'", registry.host()));
    let done = pull(&store, local.path(), &[("ALL_PROXY", &address), ("HTTP_PROXY", &address)]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(proxy.proxied(), Vec::<String>::new());
}

#[test]
fn a_proxy_that_is_gone_is_thought_of() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let hosts = hosts("server = 'https://registry.example'");
    let done = pull(&Orlop::new(), hosts.path(), &[("HTTPS_PROXY", &format!("http://{gone}"))]);
    assert_eq!(done.code, 8, "{}", done.err);
    assert!(done.err.contains("registry.example") && done.err.contains("HTTPS_PROXY"), "{}", done.err);
}

/// One takes connections and never says a word, one does not even do TLS; the pull goes on without them and says so.
#[test]
fn mirrors_that_never_answer_are_passed_over_and_named() {
    let (silent, mute) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (silent, mute) =
        (silent.local_addr().map(|a| (a, silent)).unwrap(), mute.local_addr().map(|a| (a, mute)).unwrap());
    let (registry, store) = (Liar::start(), Orlop::new());
    registry.put("team/app", "1", &image());
    let text =
        format!("server = 'http://{}'\n[host.'http://{}']\n[host.'https://{}']\n", registry.host(), silent.0, mute.0);
    let hosts = hosts(&text);
    let done = pull(&store, hosts.path(), &[]);
    assert_eq!(done.code, 0, "{}", done.err);
    for mirror in [silent.0, mute.0] {
        let named = |line: &str| line.contains(&mirror.to_string()) && line.contains("cannot be reached");
        assert!(done.err.lines().any(named), "{mirror}: {}", done.err);
    }
    store.ok(["verify", "-q", "registry.example/team/app:1"]);
}

/// Reading the authorities of a system takes milliseconds, a good part of a small pull.
#[test]
fn no_authority_is_read_for_a_plain_registry_on_this_machine() {
    let (registry, store) = (Liar::start(), Orlop::new());
    let name = registry.put("team/app", "1", &image());
    let mut command = store.command(["-v", "pull", "--no-unpack", "--plain-http", &name]);
    // Who reads them says that this one is missing.
    command.env("SSL_CERT_FILE", store.path("no-such-file"));
    let done = Done::of(&command.output().unwrap());
    assert_eq!((done.code, done.err.contains("CA store")), (0, false), "{}", done.err);
}
