//! A containerd that gets Orlop below it goes on as if nothing had happened, and back.

use std::path::Path;

use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::served::Served;
use rustix::process::Signal;

use crate::common::binary;
use crate::place::{Ground, Place, generations, image, number};

const NAME: &str = "r.example/app:1";
const SNAPSHOTTER: &str = "orlop-overlay";

/// Orlop with a raw socket.
fn serve(place: &Place, raw: &Path) -> Served {
    Served::start(binary(), &place.own(), &["--raw-socket", raw.to_str().unwrap()])
}

/// A containerd on the same root that has Orlop as content store and snapshotter.
fn with_orlop(programs: &Programs, place: &Place, raw: &Path) -> Containerd {
    let raw = raw.display();
    let root = place.own().join("snapshots/overlayfs");
    let mut config = format!(
        "[proxy_plugins.{SNAPSHOTTER}]\ntype = \"snapshot\"\naddress = \"{raw}\"\n\
         [proxy_plugins.{SNAPSHOTTER}.exports]\nroot = \"{}\"\nenable_remote_snapshot_annotations = \"true\"\n\
         [proxy_plugins.orlop-content]\ntype = \"content\"\naddress = \"{raw}\"\n",
        root.display()
    );
    if !programs.version().contains(" 1.") {
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        config += &format!(
            "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\nplatform = \"linux/{arch}\"\n\
             snapshotter = \"{SNAPSHOTTER}\"\ndiffer = \"walking\"\n"
        );
    }
    let disabled = vec!["io.containerd.content.v1.content"];
    Containerd::start(programs, &Options { config, disabled, root: Some(place.theirs()), ..Options::default() })
}

#[test]
fn a_containerd_goes_on_with_orlop_below_it_and_back_without_a_pull() {
    for programs in generations() {
        let (Some(content), Some(later)) = (image(31), image(32)) else { return };
        let mut place = Place::start(&programs, Ground::memory(), &[(NAME, &content)]);
        let what = programs.version();
        let theirs = place.mounted_there(NAME);
        place.collect();
        let blobs = place.their_blobs();
        let sockets = tempfile::Builder::new().prefix("raw").tempdir_in("/tmp").unwrap();
        let raw = sockets.path().join("s");

        let done = place.json(&["adopt", "--owner", "containerd", place.theirs().to_str().unwrap()]);
        assert_eq!((number(&done, "/blobs/taken"), number(&done, "/snapshots/taken")), (5, 3), "{what}: {done:#}");
        let again = place.json(&["adopt", "--owner", "containerd", place.theirs().to_str().unwrap()]);
        assert_eq!((number(&again, "/blobs/taken"), number(&again, "/snapshots/present")), (0, 3), "{what}: {again:#}");
        place.containerd.stop(Signal::TERM);
        place.ok(&["gc"]);

        // The configuration is another one.
        let served = serve(&place, &raw);
        let below = with_orlop(&programs, &place, &raw);
        place.containerd = below;
        let ctr = |place: &Place, args: &[&str]| place.containerd.ctr("k8s.io", args);
        assert!(ctr(&place, &["images", "check"]).ok().stdout.contains("complete (4/4)"), "{what}");
        place.collect();
        let listed = ctr(&place, &["content", "ls", "-q"]).ok().stdout;
        assert_eq!(listed.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>(), blobs, "{what}");

        // Snapshots are handed over, and are the trees that were unpacked before.
        let socket = place.containerd.socket();
        let handed =
            |place: &Place| place.json(&["adopt", "--owner", "containerd", "--hand-over", socket.to_str().unwrap()]);
        let done = handed(&place);
        assert_eq!((number(&done, "/snapshots"), number(&done, "/waiting")), (3, 0), "{what}: {done:#}");
        let done = handed(&place);
        assert_eq!(number(&done, "/snapshots"), 0, "{what}: {done:#}");
        place.collect();
        let keys = ctr(&place, &["snapshots", "--snapshotter", SNAPSHOTTER, "ls"]).ok().stdout;
        assert_eq!(keys.lines().filter(|line| line.contains("Committed")).count(), 3, "{what}: {keys}");
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().to_str().unwrap();
        ctr(&place, &["images", "mount", "--snapshotter", SNAPSHOTTER, NAME, at]).ok();
        let seen = orlop_testkit::fingerprint::Fingerprint::of(directory.path(), &Default::default()).unwrap();
        ctr(&place, &["images", "unmount", "--snapshotter", SNAPSHOTTER, "--rm", at]).ok();
        seen.assert_same(&theirs, &what);
        if let Some(said) = place.container(SNAPSHOTTER, NAME, "cat /etc/kept /etc/new; ls /opt") {
            assert_eq!(said, "keptnew 31seen\n", "{what}");
        }

        // What comes now lies in Orlop's store alone; on the way back it lies among containerd's files again.
        place.import("r.example/later:1", &later);
        // Without what only the import needed.
        place.collect();
        assert_eq!(place.their_blobs(), blobs, "{what}");
        let plan = place.json(&["give-back", "--plan", place.theirs().to_str().unwrap()]);
        assert_eq!(place.their_blobs(), blobs, "{what}: a plan changes nothing");
        let given = place.json(&["give-back", place.theirs().to_str().unwrap()]);
        assert_eq!(number(&given, "/blobs"), number(&plan, "/blobs"), "{what}: {given:#}");
        assert!(number(&given, "/blobs") >= 3, "{what}: {given:#}");
        place.containerd.stop(Signal::TERM);
        drop(served);
        later.layers().iter().for_each(|layer| place.is_shared(layer));
        let plain = Options { root: Some(place.theirs()), ..Options::default() };
        place.containerd = Containerd::start(&programs, &plain);
        let checked = ctr(&place, &["images", "check"]).ok().stdout;
        assert_eq!(checked.matches("complete (4/4)").count(), 2, "{what}: {checked}");
        for name in [NAME, "r.example/later:1"] {
            ctr(&place, &["snapshots", "unpack", later_target(&place, name).as_str()]);
            if let Some(said) = place.container("overlayfs", name, "cat /etc/kept") {
                assert_eq!(said, "kept", "{what}");
            }
        }
    }
}

/// What an image's name points at.
fn later_target(place: &Place, name: &str) -> String {
    let listed = place.containerd.ctr("k8s.io", &["images", "ls", &format!("name=={name}")]).ok().stdout;
    let row = listed.lines().nth(1).unwrap_or_default().to_owned();
    row.split_whitespace().nth(2).unwrap_or_default().to_owned()
}

#[test]
fn what_was_adopted_for_a_containerd_is_nobody_elses_and_no_garbage() {
    let Some(programs) = generations().pop() else { return };
    let Some(content) = image(41) else { return };
    let place = Place::start(&programs, Ground::memory(), &[(NAME, &content)]);
    place.json(&["adopt", "--owner", "k3s", place.theirs().to_str().unwrap()]);
    assert_eq!(place.ok(&["images", "--all", "-o", "name"]), "", "no record: containerd has its own");
    place.ok(&["gc", "--full"]);
    let usage = place.json(&["df"]);
    assert!(number(&usage, "/elsewhere") > content.size(), "{usage:#}");
    let namespaces = place.ok(&["namespaces", "ls", "-o", "name"]);
    assert!(namespaces.contains("raw.k3s.content") && namespaces.contains("raw.k3s.snapshots"), "{namespaces}");
    let bad = place.run(&["adopt", "--owner", "Not A Name", place.theirs().to_str().unwrap()]);
    assert_eq!(bad.code, 2, "{}", bad.err);
}
