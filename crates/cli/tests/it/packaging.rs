//! What `packaging/` has is read by whom it is for: systemd its units, containerd its configurations, Orlop its own; and the daemon
//! does its work with no more than the units allow.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{self, Done, Orlop, binary};
use orlop_oci::Compression;
use orlop_testkit::archive;
use orlop_testkit::containerd::Programs;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process::{Daemon, need, output, which};
use orlop_testkit::tar::{Entry, Kind};

fn packaging(inside: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging").join(inside).canonicalize().unwrap()
}

fn read(inside: &str) -> String {
    std::fs::read_to_string(packaging(inside)).unwrap()
}

/// The words of a setting of the daemon's unit.
fn setting(name: &str) -> Vec<String> {
    let unit = read("systemd/orlop.service");
    let line = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("{name} is not set")).split_whitespace().map(str::to_owned).collect()
}

#[test]
fn systemd_takes_the_units() {
    if need("systemd-analyze", "systemd").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let own = env!("CARGO_BIN_EXE_orlop");
    for unit in ["orlop.service", "orlop.socket", "orlop-raw.socket"] {
        let text = read(&format!("systemd/{unit}")).replace("/usr/local/bin/orlop", own);
        std::fs::write(dir.path().join(unit), text).unwrap();
    }
    std::fs::create_dir(dir.path().join("orlop.service.d")).unwrap();
    let strict = packaging("systemd/orlop-beneath.conf");
    for with_it in [false, true] {
        if with_it {
            std::fs::copy(&strict, dir.path().join("orlop.service.d/orlop-beneath.conf")).unwrap();
        }
        let units = ["orlop.service", "orlop.socket", "orlop-raw.socket"].map(|unit| dir.path().join(unit));
        let done = output(Command::new("systemd-analyze").arg("verify").args(&units)).ok();
        assert_eq!(done.stderr, "", "systemd has something to say of the units");
    }
}

#[test]
fn containerd_reads_the_samples() {
    let effective = |programs: &Programs, config: &Path| {
        let done = output(Command::new(&programs.containerd).arg("--config").arg(config).args(["config", "dump"])).ok();
        assert!(
            !done.stderr.contains("level=error") && !done.stderr.contains("nknown key"),
            "{config:?}: {}",
            done.stderr
        );
        let dumped: toml::Table = toml::from_str(&done.stdout).unwrap();
        assert_eq!(dumped["proxy_plugins"]["orlop-overlay"]["address"].as_str(), Some("/run/orlop/raw.sock"));
        let plugins = dumped["plugins"].as_table().unwrap();
        let cri = plugins.get("io.containerd.cri.v1.images");
        let cri = cri.unwrap_or_else(|| &plugins["io.containerd.grpc.v1.cri"]["containerd"]);
        assert_eq!(cri["snapshotter"].as_str(), Some("orlop-overlay"), "{config:?}");
        cri["disable_snapshot_annotations"].as_bool()
    };
    if let Some(programs) = Programs::debian() {
        for sample in ["kubeadm/config-v2.toml", "microk8s/containerd-template.toml"] {
            assert_eq!(effective(&programs, &packaging(sample)), Some(false), "{sample}");
        }
    }
    if let Some(programs) = Programs::current() {
        effective(&programs, &packaging("kubeadm/config-v3.toml"));
        effective(&programs, &packaging("kubeadm/config-v2.toml"));
        for product in ["k3s", "rke2"] {
            // What the product writes, as far as it matters here, with the line of the template.
            let dir = tempfile::tempdir().unwrap();
            let template = read(&format!("{product}/config-v3.toml.tmpl"));
            let base = "version = 3\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = \"overlayfs\"\n  \
                        disable_snapshot_annotations = true\n  use_local_image_pull = true\n";
            let drop_ins = packaging(&format!("{product}/config-v3.toml.d"));
            let on_node = format!("/var/lib/rancher/{product}/agent/etc/containerd/config-v3.toml.d");
            let text = template.replace("{{ template \"base\" . }}\n", base);
            assert!(text.contains(&on_node), "{text}");
            let config = dir.path().join("config.toml");
            std::fs::write(&config, text.replace(&on_node, drop_ins.to_str().unwrap())).unwrap();
            assert_eq!(effective(&programs, &config), Some(false), "{product}: CRI has to name the image");
        }
    }
}

#[test]
fn orlop_reads_its_own_samples() {
    for product in ["microk8s", "k3s", "rke2"] {
        let dir = tempfile::tempdir().unwrap();
        // The registries that the product is configured with.
        let text = read(&format!("{product}/orlop.toml"));
        let hosts =
            text.lines().find_map(|line| line.strip_prefix("hosts_dir = ")).unwrap().trim_matches('"').to_owned();
        let config = dir.path().join("orlop.toml");
        let here = packaging("microk8s/certs.d").display().to_string();
        std::fs::write(&config, text.replace(&hosts, &here)).unwrap();
        let done = Done::of(&binary().args(["config", "check"]).arg(&config).output().unwrap());
        assert_eq!(done.code, 0, "{product}: {done:?}");
    }
    // The words of the manifest are documents, and its script is one.
    let documents = serde_norway::Deserializer::from_str(&read("kubernetes/daemonset.yaml"))
        .map(|document| <serde_json::Value as serde::Deserialize>::deserialize(document).unwrap()["kind"].clone())
        .collect::<Vec<_>>();
    assert_eq!(documents, ["Namespace", "DaemonSet", "DaemonSet"]);
    output(Command::new("sh").arg("-n").arg(packaging("kubernetes/node.sh"))).ok();
}

/// An image with what needs rights: owners, modes, a device, a file capability.
fn demanding() -> Content {
    let entries = [
        Entry::dir("bin"),
        Entry::file("bin/su", "su").mode(0o4755),
        Entry::file("bin/theirs", "theirs").owner(1000, 1000),
        Entry::new("null", Kind::Char(1, 3)),
        Entry::file("etc/gone", "gone"),
    ];
    let above = [Entry::whiteout("etc/gone"), Entry::file("etc/new", "new")];
    let layers = [Layer::new(entries), Layer::new(above)].map(|layer| layer.packed(Compression::Gzip));
    Content::image(&layers.into_iter().fold(Image::host(), Image::layer))
}

#[test]
fn the_daemon_needs_no_more_than_its_unit_allows() {
    if !common::is_root("the_daemon_needs_no_more_than_its_unit_allows") || need("setpriv", "util-linux").is_none() {
        return;
    }
    let allowed = setting("CapabilityBoundingSet");
    let allowed: Vec<String> = allowed.iter().map(|name| format!("+{}", name[4..].to_lowercase())).collect();
    assert_eq!(setting("NoNewPrivileges"), ["yes"]);
    let store = Orlop::new();
    let (socket, trace) = (store.path("s"), store.path("trace"));
    let mut serve = Command::new("setpriv");
    serve.args(["--no-new-privs", &format!("--bounding-set=-all,{}", allowed.join(","))]);
    let denied = denied_calls();
    if let Some(denied) = &denied {
        let set = denied.iter().map(|name| format!("?{name}")).collect::<Vec<_>>().join(",");
        // As a grandchild: what is started is the daemon itself, which ends with this test whatever happens.
        serve.args(["strace", "-D", "-f", "-q", "-e", &format!("trace={set}"), "-o"]).arg(&trace);
    }
    serve.arg(env!("CARGO_BIN_EXE_orlop")).arg("--root").arg(store.root()).arg("serve").arg("--socket").arg(&socket);
    let mut daemon = Daemon::start(&mut serve, &store.path("log")).unwrap();
    daemon.wait_for(|_| std::os::unix::net::UnixStream::connect(&socket).ok());

    let file = store.path("image.tar");
    std::fs::write(&file, archive::oci_archive(&[("docker.io/library/app:1", &demanding())])).unwrap();
    let run = |args: &[&str]| {
        let done = Done::of(&binary().arg("--address").arg(&socket).args(args).output().unwrap());
        assert_eq!(done.code, 0, "{args:?}: {done:?}\n{}", daemon.log());
        done.out
    };
    run(&["import", file.to_str().unwrap()]);
    run(&["check", "--deep"]);
    // What it mounts for a client.
    if let Some(programs) = Programs::current() {
        let at = store.path("mounted");
        std::fs::create_dir(&at).unwrap();
        let ctr = |args: &[&str]| {
            output(Command::new(&programs.ctr).arg("-a").arg(&socket).args(["-n", "k8s.io"]).args(args))
        };
        ctr(&["images", "mount", "docker.io/library/app:1", at.to_str().unwrap()]).ok();
        assert_eq!(std::fs::read_to_string(at.join("etc/new")).unwrap(), "new");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::metadata(at.join("bin/su")).unwrap().mode() & 0o7777, 0o4755);
        ctr(&["images", "unmount", "--rm", at.to_str().unwrap()]).ok();
    }
    run(&["rm", "app:1"]);
    run(&["gc", "--trash"]);
    daemon.stop();
    if denied.is_some() {
        let called = whole_trace(&trace, daemon.id());
        let called: Vec<&str> = called.lines().filter(|line| line.contains('(')).collect();
        assert_eq!(called, [""; 0], "calls that the unit does not let through");
    }
}

/// What strace wrote, when it has seen the end of the process too.
fn whole_trace(trace: &Path, process: u32) -> String {
    let is_end = |line: &str| line.split_whitespace().take(2).eq([process.to_string().as_str(), "+++"]);
    for _ in 0..1000 {
        let written = std::fs::read_to_string(trace).unwrap();
        if written.lines().any(is_end) {
            return written;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("strace has not seen the end of process {process}");
}

/// The system calls of the sets that the unit takes away; none where it cannot be seen here which are called.
fn denied_calls() -> Option<Vec<String>> {
    let filter = setting("SystemCallFilter");
    let sets: Vec<&str> = filter.iter().map(|set| set.trim_start_matches('~')).collect();
    which("systemd-analyze").and(need("strace", "strace"))?;
    let mut open: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let mut calls = Vec::new();
    while let Some(set) = open.pop() {
        let listed = output(Command::new("systemd-analyze").args(["syscall-filter", &set])).ok().stdout;
        let words = listed.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        for word in words {
            if word.starts_with('@') { open.push(word.to_owned()) } else { calls.push(word.to_owned()) }
        }
    }
    assert!(calls.len() > 50, "{calls:?}");
    Some(calls)
}
