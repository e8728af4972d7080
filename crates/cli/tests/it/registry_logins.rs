//! Clients that others wrote log in to the daemon's registry, push, pull and are refused, by password and by token: `docker login`,
//! podman, skopeo, crane, and `ctr` of two containerd generations with hosts.toml.

use std::path::Path;
use std::process::Command;

use orlop_testkit::archive::oci_archive;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::process::{Output, need, need_peer, need_root, output};
use orlop_testkit::tls::Certificates;

use crate::common::Orlop;
use crate::node_registry::layout;
use crate::node_registry_access::{image, serve};

const WAYS: [&str; 2] = ["basic", "token"];

fn way(name: &str) -> String {
    format!("authentication = {name:?}")
}

/// Docker asks the daemon of Docker first, and the registry itself where there is none.
#[test]
fn docker_logs_in() {
    if need("docker", "docker-cli").is_none() {
        return;
    }
    for name in WAYS {
        let store = Orlop::new();
        let (_served, host) = serve(&store, &way(name));
        let docker = |password: &str| {
            let mut command = Command::new("docker");
            command.env("DOCKER_HOST", "unix:///nonexistent/docker.sock").env("HOME", store.path("home"));
            command.arg("--config").arg(store.path("docker"));
            output(command.args(["login", "--username", "alice", "--password", password, &host]))
        };
        let done = docker("wonderland");
        assert!(
            done.status.success() && done.stdout.contains("Login Succeeded"),
            "{name}: {} {}",
            done.stdout,
            done.stderr
        );
        assert!(!docker("builder").status.success(), "{name}: another's password");
        let config = std::fs::read_to_string(store.path("docker/config.json")).unwrap();
        assert!(config.contains(&host), "{config}");
        // What Docker wrote down, others take.
        if need("skopeo", "skopeo").is_some() {
            let (from, url) = (layout(&store.path("from"), &image()), format!("docker://{host}/team/app:1"));
            let mut copy = Command::new("skopeo");
            copy.args(["--insecure-policy", "copy", "--dest-tls-verify=false", &from, &url]);
            output(copy.env("REGISTRY_AUTH_FILE", store.path("docker/config.json"))).ok();
        }
    }
}

#[test]
fn podman_logs_in_pushes_and_pulls() {
    if need("podman", "podman").is_none() || !crate::common::is_root("podman_logs_in_pushes_and_pulls") {
        return;
    }
    for name in WAYS {
        let store = Orlop::new();
        let (_served, host) = serve(&store, &way(name));
        let reference = format!("{host}/team/app:1");
        let archive = store.path("image.tar");
        std::fs::write(&archive, oci_archive(&[(reference.as_str(), &image())])).unwrap();
        let podman = |arguments: &[&str]| {
            let mut command = Command::new("podman");
            command.arg("--root").arg(store.path("graph")).arg("--runroot").arg(store.path("state"));
            command.args(["--storage-driver", "vfs", "--events-backend", "none"]);
            output(command.env("REGISTRY_AUTH_FILE", store.path("auth.json")).args(arguments))
        };
        podman(&["load", "-i", archive.to_str().unwrap()]).ok();
        assert!(!podman(&["push", "--tls-verify=false", &reference]).status.success(), "{name}: nobody");
        let login = |user: &str, password: &str| {
            podman(&["login", "--tls-verify=false", "--username", user, "--password", password, &host])
        };
        assert!(!login("alice", "builder").status.success(), "{name}: another's password");
        login("bob", "builder").ok();
        assert!(!podman(&["push", "--tls-verify=false", &reference]).status.success(), "{name}: bob only pulls");
        login("alice", "wonderland").ok();
        podman(&["push", "--tls-verify=false", &reference]).ok();
        podman(&["rmi", "--all", "--force"]).ok();
        login("bob", "builder").ok();
        podman(&["pull", "--tls-verify=false", &reference]).ok();
        podman(&["logout", &host]).ok();
        assert!(!podman(&["pull", "--tls-verify=false", &reference]).status.success(), "{name}: nobody");
    }
}

#[test]
fn skopeo_logs_in_lists_and_mounts_from_where_it_may_read() {
    if need("skopeo", "skopeo").is_none() {
        return;
    }
    for name in WAYS {
        let store = Orlop::new();
        let (_served, host) = serve(&store, &way(name));
        let file = store.path("auth.json");
        let skopeo = |arguments: &[&str]| {
            output(Command::new("skopeo").arg("--insecure-policy").args(arguments).env("REGISTRY_AUTH_FILE", &file))
        };
        let from = layout(&store.path("from"), &image());
        let url = |path: &str| format!("docker://{host}/{path}");
        skopeo(&["login", "--tls-verify=false", "--username", "alice", "--password", "wonderland", &host]).ok();
        skopeo(&["copy", "--dest-tls-verify=false", &from, &url("team/app:1")]).ok();
        // The second time its blobs are mounted.
        let both = ["copy", "--src-tls-verify=false", "--dest-tls-verify=false"];
        skopeo(&[&both[..], &[&url("team/app:1"), &url("team/copy:1")]].concat()).ok();
        assert!(!skopeo(&[&both[..], &[&url("team/app:1"), &url("other/copy:1")]].concat()).status.success(), "{name}");
        let tags = skopeo(&["list-tags", "--tls-verify=false", &url("team/copy")]).ok().stdout;
        assert!(tags.contains("\"1\""), "{tags}");
        skopeo(&["delete", "--tls-verify=false", &url("team/copy:1")]).ok();
        skopeo(&["logout", &host]).ok();
        assert!(!skopeo(&["list-tags", "--tls-verify=false", &url("team/app")]).status.success(), "{name}: nobody");
    }
}

#[test]
fn crane_logs_in_copies_and_reads_the_catalogue() {
    let Some(program) = need_peer("crane") else { return };
    for name in WAYS {
        let store = Orlop::new();
        let (_served, host) = serve(&store, &way(name));
        let config = store.path("docker");
        let crane = |arguments: &[&str]| {
            output(Command::new(&program).arg("--insecure").args(arguments).env("DOCKER_CONFIG", &config))
        };
        std::fs::create_dir_all(&config).unwrap();
        let from = layout(&store.path("from"), &image());
        let from = from.strip_prefix("oci:").and_then(|from| from.rsplit_once(':')).unwrap().0.to_owned();
        let reference = format!("{host}/team/app:1");
        assert!(!crane(&["push", &from, &reference]).status.success(), "{name}: nobody");
        let login = |user: &str, password: &str| crane(&["auth", "login", &host, "-u", user, "-p", password]).ok();
        login("alice", "wonderland");
        crane(&["push", &from, &reference]).ok();
        crane(&["copy", &reference, &format!("{host}/team/copy:1")]).ok();
        assert_eq!(crane(&["catalog", &host]).ok().stdout, "team/app\nteam/copy\n", "{name}");
        login("bob", "builder");
        assert_eq!(crane(&["digest", &reference]).ok().stdout.trim(), image().root.digest.as_str());
        assert!(
            !crane(&["copy", &reference, &format!("{host}/team/third:1")]).status.success(),
            "{name}: bob only pulls"
        );
    }
}

/// `ctr` with a password and the authority of hosts.toml, by TLS; kubelet's pull secrets take the same way.
#[test]
fn ctr_pushes_and_pulls_by_tls_with_a_password() {
    if !need_root() {
        return;
    }
    for (programs, name) in [Programs::debian(), Programs::current()]
        .into_iter()
        .flatten()
        .flat_map(|programs| WAYS.map(|way| (programs.clone(), way)))
    {
        let store = Orlop::new();
        let certificates = Certificates::create(&made(&store.path("tls")));
        let (chain, key) = (&certificates.server, &certificates.server_key);
        let (_served, host) = serve(&store, &format!("{}\ntls_certificate = {chain:?}\ntls_key = {key:?}", way(name)));
        // The certificate is for localhost.
        let host = format!("localhost:{}", host.rsplit_once(':').unwrap().1);
        let hosts = store.path("certs.d");
        let toml = format!("server = \"https://{host}\"\n[host.\"https://{host}\"]\nca = {:?}\n", certificates.ca);
        std::fs::write(made(&hosts.join(&host)).join("hosts.toml"), toml).unwrap();
        let reference = format!("{host}/team/app:1");
        let archive = store.path("image.tar");
        std::fs::write(&archive, oci_archive(&[(reference.as_str(), &image())])).unwrap();
        let containerd = Containerd::start(&programs, &Options::default());
        let ctr = |arguments: &[&str]| containerd.ctr("default", arguments);
        let platform = orlop_oci::Platform::host().to_string();
        let at = |what: &str, user: &str| -> Output {
            let hosts = hosts.to_str().unwrap();
            ctr(&["images", what, "--hosts-dir", hosts, "--user", user, "--platform", &platform, &reference])
        };
        ctr(&["images", "import", "--no-unpack", "--all-platforms", archive.to_str().unwrap()]).ok();
        assert!(!at("push", "bob:builder").status.success(), "{name}: bob only pulls");
        at("push", "alice:wonderland").ok();
        ctr(&["images", "rm", "--sync", &reference]).ok();
        assert!(!at("pull", "alice:builder").status.success(), "{name}: another's password");
        at("pull", "bob:builder").ok();
        assert!(ctr(&["images", "ls"]).ok().stdout.contains(image().root.digest.as_str()));
    }
}

fn made(directory: &Path) -> std::path::PathBuf {
    std::fs::create_dir_all(directory).unwrap();
    directory.to_owned()
}
