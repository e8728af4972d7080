//! The real binary unpacks in threads that give up what they do not need: seen by strace.

mod common;

use std::collections::BTreeMap;
use std::process::Command;

use common::{Done, Orlop, binary};
use orlop_testkit::archive;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process::need;
use orlop_testkit::tar::Entry;

#[test]
fn each_layer_is_unpacked_by_two_threads_that_confine_themselves_first() {
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
    // Two for each layer, and the one that tried what holds here.
    assert_eq!((confined.len(), writing), (5, 2), "{threads:#?}");
}
