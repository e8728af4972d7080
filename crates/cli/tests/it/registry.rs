//! Pull and push against a real docker-registry, over networks and authentication as they are.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::common;
use crate::common::{Orlop, import, registry_with};
use orlop_oci::Compression;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process::Daemon;
use orlop_testkit::proxy::{Fault, Proxy};
use orlop_testkit::registry;
use orlop_testkit::registry::{Options, PASSWORD, Registry, USER};
use orlop_testkit::tar::Entry;
use orlop_testkit::tls::Certificates;
use orlop_testkit::token::{self, TokenServer};
use rustix::process::Signal;

/// Two layers, the upper one with more incompressible bytes than any buffer between network and disk holds.
fn image() -> Content {
    let below = [Entry::dir("etc"), Entry::file("etc/hostname", "orlop\n"), Entry::symlink("etc/link", "hostname")];
    Content::image(
        &Image::host().layer(Layer::new(below)).layer(Layer::noise("data", 7, 6 << 20).packed(Compression::Gzip)),
    )
}

fn hosts_toml(dir: &Path, host: &str, text: &str) {
    let dir = dir.join(host.replace(':', "_") + "_");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("hosts.toml"), text).unwrap();
}

#[test]
fn what_was_pushed_is_pulled_with_its_three_records() {
    let content = image();
    let Some(registry) = registry_with(&content) else { return };
    let store = Orlop::new();
    let name = format!("{}/app:1", registry.host());
    let pulled = store.json(["pull", &name]);
    assert_eq!(pulled["target"], content.root.digest.as_str());
    let id = content.image_id().unwrap().to_string();
    let digest = format!("{}/app@{}", registry.host(), content.root.digest);
    let mut expected = vec![name.clone(), digest, id.clone()];
    expected.sort();
    assert_eq!(store.records(), expected);

    let images = store.json(["images"]);
    assert_eq!(images["images"].as_array().unwrap().len(), 1);
    assert_eq!(images["images"][0]["imageId"], id);
    assert_eq!(images["images"][0]["size"]["compressed"].as_u64().unwrap(), content.size());
    let records = store.json(["images", "--all"]);
    for record in records["records"].as_array().unwrap() {
        assert_eq!(record["labels"]["io.cri-containerd.image"], "managed");
        assert_eq!(record["target"]["digest"], content.root.digest.as_str());
        assert_eq!(record["size"].as_u64().unwrap(), content.size());
    }
    store.is_sound();
    let again = store.json(["pull", &name]);
    assert_eq!(again["bytesTransferred"], 0, "a warm pull moves nothing");
}

/// Regression: the unpacking of a layer larger than the pipe to it only began when the layer was there, so both waited.
#[test]
fn a_layer_larger_than_the_pipe_is_unpacked_while_it_comes() {
    if !common::is_root("a_layer_larger_than_the_pipe_is_unpacked_while_it_comes") {
        return;
    }
    let Some(registry) = registry_with(&image()) else { return };
    let store = Orlop::new();
    store.ok(["pull", &format!("{}/app:1", registry.host())]);
    let dir = store.path("mnt");
    std::fs::create_dir(&dir).unwrap();
    store.ok(["mount", &format!("{}/app:1", registry.host()), dir.to_str().unwrap()]);
    assert_eq!(std::fs::metadata(dir.join("data")).unwrap().len(), 6 << 20);
    assert_eq!(std::fs::read_to_string(dir.join("etc/link")).unwrap(), "orlop\n");
    assert!(std::fs::write(dir.join("new"), "x").is_err(), "a mount without --rw is read-only");
    store.ok(["umount", dir.to_str().unwrap()]);
    assert_eq!(store.ok(["leases", "ls", "-o", "name"]), "");
    store.ok(["gc"]);
    store.is_sound();
}

#[test]
fn an_interrupted_pull_resumes_where_it_stopped() {
    let content = image();
    let Some(registry) = registry_with(&content) else { return };
    let proxy = Proxy::start(registry.address());
    let name = format!("{}/app:1", proxy.host());
    let store = Orlop::new();
    // Every connection of the first try ends early, so that retries within one pull are used up too.
    proxy.set_default(Fault::CutAfter(600_000));
    let _ = store.run(["pull", "--no-unpack", &name]);
    proxy.set_default(Fault::None);
    let before = proxy.counts().down;
    store.ok(["pull", &name]);
    let came = proxy.counts().down - before;
    assert!(came < content.size(), "{came} bytes came again of {}", content.size());
    store.is_sound();
}

/// Ctrl-C in mid-pull: exit code 130, no lease and no record stay, and the next pull fetches the rest only.
#[test]
fn a_pull_that_is_stopped_by_a_signal_leaves_nothing_but_what_it_fetched() {
    let content = image();
    let Some(registry) = registry_with(&content) else { return };
    let proxy = Proxy::start(registry.address());
    let name = format!("{}/app:1", proxy.host());
    let store = Orlop::new();
    proxy.set_default(Fault::StallAfter(3 << 20));
    let mut command = store.command(["pull", "--no-unpack", &name]);
    let mut pull = Daemon::start(&mut command, &store.path("pull.log")).unwrap();
    let ingests = store.root().join("content/ingest");
    let data = |dir: std::fs::DirEntry| std::fs::metadata(dir.path().join("data")).map_or(0, |m| m.len());
    let fetched = || std::fs::read_dir(&ingests).map_or(0, |dirs| dirs.flatten().map(data).sum::<u64>());
    pull.wait_for(|_| (fetched() > 2 << 20).then_some(()));
    pull.signal(Signal::INT);
    assert_eq!(pull.wait().code(), Some(130), "{}", pull.log());
    assert_eq!(store.records(), Vec::<String>::new());
    assert_eq!(store.ok(["leases", "ls", "-o", "name"]), "");
    store.is_sound();

    proxy.set_default(Fault::None);
    let before = proxy.counts().down;
    store.ok(["pull", "--no-unpack", &name]);
    let fetched = proxy.counts().down - before;
    assert!(fetched < 5 << 20, "{fetched} bytes of {} were fetched again", content.size());
    store.is_sound();
}

#[test]
fn a_connection_that_breaks_is_taken_up_within_the_pull() {
    let Some(registry) = registry_with(&image()) else { return };
    let proxy = Proxy::start(registry.address());
    let store = Orlop::new();
    proxy.set_default(Fault::CutAfter(3 << 20));
    store.ok(["pull", &format!("{}/app:1", proxy.host())]);
    assert!(proxy.counts().faults > 0, "nothing was cut: the test proves nothing");
    store.is_sound();
}

#[test]
fn a_changed_byte_is_noticed_and_never_visible() {
    let content = image();
    let Some(registry) = registry_with(&content) else { return };
    let layer = content.layers()[1].clone();
    let path = registry.blob_path(&layer);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let store = Orlop::new();
    let done = store.run(["pull", &format!("{}/app:1", registry.host())]);
    assert_eq!(done.code, 5, "{}", done.err);
    assert!(done.err.contains(layer.as_str()), "{}", done.err);
    assert_eq!(store.records(), Vec::<String>::new());
    assert!(!store.ok(["content", "ls", "-o", "name"]).contains(layer.as_str()));
    store.ok(["gc"]);
    store.is_sound();
}

#[test]
fn a_missing_layer_is_named_and_nothing_becomes_visible() {
    let content = image();
    let Some(registry) = registry_with(&content) else { return };
    let layer = content.layers()[0].clone();
    std::fs::remove_file(registry.blob_path(&layer)).unwrap();
    let store = Orlop::new();
    let done = store.run(["pull", &format!("{}/app:1", registry.host())]);
    assert_ne!(done.code, 0);
    assert!(done.err.contains(layer.as_str()), "{}", done.err);
    assert_eq!(store.records(), Vec::<String>::new());
}

#[test]
fn basic_authentication_by_flag_and_by_docker_config() {
    let Some(registry) = Registry::start(&Options::new().basic()) else { return };
    let store = Orlop::new();
    import(&store, "docker.io/library/app:1", &image());
    let name = format!("{}/app:1", registry.host());
    let done = store.run(["push", "app:1", &name]);
    assert_eq!(done.code, 7, "{}", done.err);
    store.ok(["push", "--user", &format!("{USER}:{PASSWORD}"), "app:1", &name]);
    assert_eq!(store.run(["pull", "--user", &format!("{USER}:wrong"), &name]).code, 7);

    let dir = store.path("docker");
    std::fs::create_dir(&dir).unwrap();
    let auth = serde_json::json!({ "auths": { registry.host(): { "username": USER, "password": PASSWORD } } });
    std::fs::write(dir.join("config.json"), auth.to_string()).unwrap();
    let other = Orlop::new();
    let done = common::Done::of(&other.command(["pull", &name]).env("DOCKER_CONFIG", &dir).output().unwrap());
    assert_eq!(done.code, 0, "{}", done.err);
}

/// A refusal by a registry came with the advice to become the owner of the root.
#[test]
fn a_credential_helper_is_asked_and_without_credentials_the_advice_is_to_log_in() {
    let Some(registry) = Registry::start(&Options::new().basic()) else { return };
    let (store, other) = (Orlop::new(), Orlop::new());
    import(&store, "docker.io/library/app:1", &image());
    let name = format!("{}/app:1", registry.host());
    let done = store.run(["push", "app:1", &name]);
    assert_eq!(done.code, 7, "{}", done.err);
    assert!(done.err.contains("docker login") && !done.err.contains("owner of the root"), "{}", done.err);

    let dir = store.path("helper");
    std::fs::create_dir(&dir).unwrap();
    let helper = dir.join("docker-credential-mine");
    let answer = serde_json::json!({"ServerURL": registry.host(), "Username": USER, "Secret": PASSWORD});
    let script = format!("#!/bin/sh\nread server\n[ \"$1 $server\" = 'get {}' ] && echo '{answer}'\n", registry.host());
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = serde_json::json!({"credHelpers": {registry.host(): "mine"}});
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let helped = |store: &Orlop, args: &[&str]| {
        let mut command = store.command(args);
        common::Done::of(&command.env("DOCKER_CONFIG", &dir).env("PATH", &path).output().unwrap())
    };
    let pushed = helped(&store, &["push", "app:1", &name]);
    assert_eq!(pushed.code, 0, "{}", pushed.err);
    let pulled = helped(&other, &["pull", &name]);
    assert_eq!(pulled.code, 0, "{}", pulled.err);
    other.is_sound();

    let missing = common::Done::of(&other.command(["pull", &name]).env("DOCKER_CONFIG", &dir).output().unwrap());
    assert!(missing.code != 0 && missing.err.contains("docker-credential-mine"), "{}", missing.err);
}

#[test]
fn token_authentication_with_and_without_oauth() {
    for post_status in [None, Some(405)] {
        let server = TokenServer::start(token::Options { post_status, ..token::Options::default() });
        let Some(registry) = Registry::start(&registry::Options::new().token(&server)) else { return };
        let store = Orlop::new();
        import(&store, "docker.io/library/app:1", &image());
        let name = format!("{}/app:1", registry.host());
        assert_eq!(store.run(["push", "app:1", &name]).code, 7);
        store.ok(["push", "--user", "user:secret", "app:1", &name]);
        let other = Orlop::new();
        other.ok(["pull", "--user", "user:secret", &name]);
        assert!(server.asked().iter().any(|a| a.status == 200 && a.scopes.iter().any(|s| s.contains("pull"))));
    }
}

#[test]
fn a_private_authority_and_client_certificates_come_from_hosts_toml() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::create(dir.path());
    let options = Options::new().tls(&certificates).client_certificates(&certificates);
    let Some(registry) = Registry::start(&options) else { return };
    let store = Orlop::new();
    import(&store, "docker.io/library/app:1", &image());
    let name = format!("{}/app:1", registry.host());
    let done = store.run(["push", "app:1", &name]);
    assert_ne!(done.code, 0, "an unknown authority is refused");

    let hosts = dir.path().join("certs.d");
    let text = format!(
        "server = \"https://{host}\"\n[host.\"https://{host}\"]\nca = {ca:?}\nclient = [[{cert:?}, {key:?}]]\n",
        host = registry.host(),
        ca = certificates.ca,
        cert = certificates.client,
        key = certificates.client_key
    );
    hosts_toml(&hosts, &registry.host(), &text);
    let hosts = hosts.to_str().unwrap();
    store.ok(["push", "--hosts-dir", hosts, "app:1", &name]);
    Orlop::new().ok(["pull", "--hosts-dir", hosts, &name]);
}

#[test]
fn a_mirror_is_asked_first_and_a_dead_one_is_passed_over() {
    let content = image();
    let Some(registry) = registry_with(&content) else { return };
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead_address = dead.local_addr().unwrap();
    drop(dead);
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "server = \"http://unreachable.invalid\"\n\
         [host.\"http://{dead_address}\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
         [host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        registry.host()
    );
    let sub = dir.path().join("registry.example");
    std::fs::create_dir_all(&sub).unwrap();
    std::fs::write(sub.join("hosts.toml"), text).unwrap();
    let store = Orlop::new();
    store.ok(["pull", "--hosts-dir", dir.path().to_str().unwrap(), "registry.example/app:1"]);
    assert!(store.records().contains(&"registry.example/app:1".to_owned()));
}

/// A failing pull left an empty store behind, which looked like one that somebody wanted.
#[test]
fn a_pull_or_import_that_brings_nothing_leaves_no_store() {
    let Some(registry) = registry_with(&image()) else { return };
    let absent = format!("{}/absent:1", registry.host());
    let broken = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(broken.path(), "no archive").unwrap();
    let failing: [&[&str]; 3] =
        [&["pull", &absent], &["pull", "registry.invalid/app:1"], &["import", broken.path().to_str().unwrap()]];
    for args in failing {
        let store = Orlop::new();
        let done = store.run(args);
        assert_ne!(done.code, 0, "{args:?}: {}", done.err);
        assert!(!store.root().exists(), "{args:?} has made {}", store.root().display());
        // A directory that was there stays, and what is in it.
        std::fs::create_dir(store.root()).unwrap();
        assert_eq!(store.run(args).code, done.code);
        assert_eq!(std::fs::read_dir(store.root()).unwrap().count(), 0, "{args:?}");
    }
    // Of a store that is there, nothing goes; nor what a pull has brought before it failed.
    let store = Orlop::new();
    let name = format!("{}/app:1", registry.host());
    assert_ne!(store.run(["pull", "--no-unpack", &name, &absent]).code, 0);
    assert!(store.records().contains(&name));
    store.ok(["rm", "--no-trash", &name]);
    assert_ne!(store.run(["pull", &absent]).code, 0);
    assert!(store.root().join("meta.db").exists());
    store.is_sound();
}

#[test]
fn a_second_push_sends_nothing_and_another_repository_mounts() {
    let content = image();
    let Some(registry) = registry_with(&content) else { return };
    let store = Orlop::new();
    let name = format!("{}/app:1", registry.host());
    store.ok(["pull", "--no-unpack", &name]);
    let documents = content.root.size;
    let again = store.json(["push", &name]);
    assert_eq!(again["bytesTransferred"].as_u64().unwrap(), documents);
    let mounted = store.json(["push", &name, &format!("{}/other/app:2", registry.host())]);
    assert_eq!(mounted["bytesTransferred"].as_u64().unwrap(), documents);
    let fresh = Orlop::new();
    fresh.ok(["pull", &format!("{}/other/app:2", registry.host())]);
    fresh.is_sound();
}

#[test]
fn an_index_gives_the_platform_that_is_wanted() {
    let arm = Content::image(&Image::new("linux/arm64").layer(Layer::new([Entry::file("arm", "arm")])));
    let host = Content::image(&Image::host().layer(Layer::new([Entry::file("host", "host")])));
    let s390x = Content::image(&Image::new("linux/s390x").layer(Layer::new([Entry::file("big", "big")])));
    let attested = Content::attestation(&host);
    let index = Content::index(&[arm.clone(), host.clone(), s390x, attested]);
    let Some(registry) = registry_with(&index) else { return };
    let name = format!("{}/app:1", registry.host());

    let store = Orlop::new();
    store.ok(["pull", &name]);
    let row = &store.json(["images"])["images"][0];
    assert_eq!(row["imageId"], host.image_id().unwrap().to_string());
    assert_eq!(row["targets"][0], index.root.digest.as_str());
    assert!(!store.ok(["content", "ls", "-o", "name"]).contains(arm.layers()[0].as_str()));
    store.is_sound();

    let store = Orlop::new();
    store.ok(["pull", "--platform", "linux/arm64", "--no-unpack", &name]);
    assert!(store.ok(["content", "ls", "-o", "name"]).contains(arm.layers()[0].as_str()));

    let store = Orlop::new();
    let done = store.run(["pull", "--platform", "linux/mips", &name]);
    assert_ne!(done.code, 0);
    assert!(done.err.contains("linux/mips") && done.err.contains("linux/s390x"), "{}", done.err);
    assert_eq!(store.records(), Vec::<String>::new());

    let store = Orlop::new();
    store.ok(["pull", "--all-platforms", &name]);
    store.ok(["push", &name, &format!("{}/copy:1", registry.host())]);
    assert_eq!(store.json(["images"])["images"][0]["platforms"].as_array().unwrap().len(), 3);
}
