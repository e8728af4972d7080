//! The real binary unpacks in threads that give up what they do not need: seen by strace. The daemon does its work with the capabilities
//! that are left to it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::common;
use crate::common::{Done, Orlop, binary};
use orlop_testkit::archive;
use orlop_testkit::corpus::CAPABILITY;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process::need;
use orlop_testkit::served::Served;
use orlop_testkit::tar::{Entry, Kind};

#[test]
fn each_layer_is_unpacked_by_threads_that_confine_themselves_first() {
    let Some(strace) = need("strace", "strace") else { return };
    let found = orlop_snapshot::confinement();
    if !found.is_whole() {
        println!("skipped: {found}");
        return;
    }
    let store = Orlop::new();
    let layer = |name: &str| Layer::new([Entry::file(name, "content")]);
    let image = Content::image(&Image::host().layer(layer("a")).layer(layer("b")));
    let (file, trace) = (store.path("image.tar"), store.path("trace"));
    std::fs::write(&file, archive::oci_archive(&[("docker.io/team/app:1", &image)])).unwrap();
    let mut command = Command::new(strace);
    command.args([
        "-f",
        "-qq",
        "-e",
        "trace=landlock_restrict_self,capset,seccomp,openat,openat2,mkdirat,execve,socket",
        "-o",
    ]);
    command.arg(&trace).arg(binary().get_program()).arg("--root").arg(store.root());
    // Without mounts, so that everybody may.
    let done = Done::of(&command.args(["import", "--snapshotter", "native"]).arg(&file).output().unwrap());
    assert_eq!(done.code, 0, "{}", done.err);
    let trace = std::fs::read_to_string(trace).unwrap();
    let mut threads: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in trace.lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        threads.entry(thread).or_default().push(call.trim_start());
    }
    let at = |calls: &[&str], name: &str| calls.iter().position(|call| call.starts_with(name));
    let confined: Vec<&Vec<&str>> =
        threads.values().filter(|calls| at(calls, "seccomp(SECCOMP_SET_MODE_FILTER").is_some()).collect();
    let mut writing = 0;
    for calls in &confined {
        let (landlock, filter) = (at(calls, "landlock_restrict_self"), at(calls, "seccomp(SECCOMP_SET_MODE_FILTER"));
        assert!(landlock.is_some() && landlock < filter && at(calls, "capset") < filter, "{calls:#?}");
        let after = &calls[filter.unwrap() + 1..];
        assert!(!after.iter().any(|call| call.starts_with("execve") || call.starts_with("socket")), "{after:#?}");
        // The C library's memory looks at settings of the system, and does without.
        let own = after.iter().filter(|call| !call.contains("\"/proc/sys/") && !call.contains("\"/sys/"));
        let refused = own.filter(|call| ["EPERM", "EACCES", "ENOSYS"].iter().any(|error| call.contains(error)));
        assert_eq!(refused.count(), 0, "{after:#?}");
        writing += usize::from(after.iter().any(|call| call.contains("O_CREAT") || call.starts_with("mkdirat")));
    }
    // Three for each layer, and the one that tried what holds here.
    assert_eq!((confined.len(), writing), (7, 2), "{threads:#?}");
}

/// What docs/security.md leaves to a daemon under systemd is enough for its work, and all that it has.
#[test]
fn a_daemon_does_its_work_with_the_capabilities_of_the_document_alone() {
    let Some(setpriv) = need("setpriv", "util-linux").filter(|_| common::is_root("a_daemon_does_its_work")) else {
        return;
    };
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/security.md");
    let document = std::fs::read_to_string(document).unwrap();
    let named = document.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let set: String =
        named.split(' ').map(|one| format!(",+{}", one.strip_prefix("CAP_").unwrap().to_lowercase())).collect();
    let store = Orlop::new();
    let mut command = binary();
    let mut confined = Command::new(setpriv);
    confined
        .args(["--no-new-privs", "--inh-caps=-all", &format!("--bounding-set=-all{set}")])
        .arg(command.get_program());
    command.get_envs().for_each(|(key, value)| match value {
        Some(value) => drop(confined.env(key, value)),
        None => drop(confined.env_remove(key)),
    });
    command = confined;
    let mut served = Served::start(command, &store.root(), &[]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.process().id())).unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
    let held = u64::from_str_radix(effective, 16).unwrap().count_ones() as usize;
    assert!(held <= named.split(' ').count() && held > 0, "{effective}");
    let capability = Entry::file("ping", "content").mode(0o755).owner(7, 7).xattr("security.capability", CAPABILITY);
    let device = Entry::new("null", Kind::Char(1, 3));
    let entries = [
        capability,
        device,
        Entry::file("su", "content").mode(0o4755).owner(1000, 2000),
        Entry::dir("closed").mode(0).owner(5, 5),
    ];
    let layers = [
        Layer::new(entries),
        Layer::new([Entry::file("closed/file", "x").owner(6, 6).mode(0), Entry::hardlink("pong", "ping")]),
    ];
    let image = Content::image(&layers.into_iter().fold(Image::host(), Image::layer));
    let archive = store.path("image.tar");
    std::fs::write(&archive, archive::oci_archive(&[("docker.io/team/app:1", &image)])).unwrap();
    for snapshotter in ["overlayfs", "native"] {
        store.ok(["import", "--snapshotter", snapshotter, archive.to_str().unwrap()]);
    }
    store.ok(["check", "--deep"]);
    store.ok(["scrub"]);
    let point = store.path("mnt");
    std::fs::create_dir(&point).unwrap();
    store.ok(["mount", "docker.io/team/app:1", point.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(point.join("pong")).unwrap(), "content");
    store.ok(["umount", point.to_str().unwrap()]);
    store.ok(["rm", "docker.io/team/app:1"]);
    store.ok(["gc", "--full"]);
    assert!(!served.log().contains("Operation not permitted"), "{}", served.log());
    store.is_sound();
}
