//! Adoptions that end in the middle, and a containerd that goes on meanwhile.

use std::process::Stdio;
use std::time::Duration;

use orlop_testkit::disk::{Disk, FILE_SYSTEMS};

use crate::common::binary;
use crate::place::{Ground, Place, generations, image, number};

const NAME: &str = "r.example/app:1";

#[test]
fn an_adoption_that_is_killed_goes_on_and_shows_nothing_half() {
    let Some(programs) = generations().pop() else { return };
    let (Some(first), Some(second)) = (image(1), image(2)) else { return };
    let images = [(NAME, &first), ("r.example/second:1", &second)];
    let mut place = Place::start(&programs, Ground::memory(), &images);
    let theirs = place.mounted_there(NAME);
    place.containerd.stop(rustix::process::Signal::TERM);
    let before = place.fingerprint();
    let mut was_killed = 0;
    for round in 0..40_u64 {
        let mut command = binary();
        command.arg("--root").arg(place.own()).arg("adopt").arg(place.theirs());
        let mut adopting = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(round * 7));
        adopting.kill().unwrap();
        was_killed += u32::from(!adopting.wait().unwrap().success());
        if place.own().join("meta.db").exists() {
            place.is_sound();
            // Whoever is named is whole.
            for name in place.ok(&["images", "--all", "-o", "name"]).lines() {
                place.ok(&["verify", "--offline", name]);
            }
        }
    }
    assert!(was_killed > 3, "nothing was killed in the middle");
    place.adopt();
    place.mounted(NAME).assert_same(&theirs, "after all");
    place.fingerprint().assert_same(&before, "its root");
    place.ok(&["gc"]);
    place.is_sound();
    assert_eq!(place.ok(&["snapshots", "ls", "-o", "name"]).lines().count(), 5, "one of three layers is another");
}

#[test]
fn on_a_full_disk_it_says_so_and_goes_on_later() {
    let Some(programs) = generations().pop() else { return };
    let Some(content) = image(4) else { return };
    let Some(disk) = FILE_SYSTEMS.first().and_then(Disk::of) else { return };
    let place = Place::start(&programs, Ground::Disk(disk), &[(NAME, &content)]);
    place.ok(&["leases", "create", "--id", "begin"]);
    let Ground::Disk(disk) = &place.ground else { unreachable!("made so") };
    disk.fill_but(16 << 10);
    let done = place.run(&["adopt", place.theirs().to_str().unwrap()]);
    assert_eq!(done.code, 6, "{}{}", done.out, done.err);
    std::fs::remove_file(disk.path().join("filler")).unwrap();
    place.is_sound();
    let done = place.adopt();
    assert_eq!(number(&done, "/snapshots/taken") + number(&done, "/snapshots/present"), 3, "{done:#}");
    assert!(place.ok(&["images", "--all", "-o", "name"]).contains(NAME));
    place.is_sound();
}

#[test]
fn a_containerd_that_removes_images_meanwhile_loses_nothing_else() {
    for programs in generations() {
        let (Some(stays), Some(goes)) = (image(21), image(22)) else { return };
        let place = Place::start(&programs, Ground::memory(), &[("r.example/stays:1", &stays)]);
        for _ in 0..4 {
            place.import("r.example/goes:1", &goes);
            let mut command = binary();
            command.arg("--root").arg(place.own()).arg("adopt").arg(place.theirs());
            let adopting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            place.containerd.ctr("k8s.io", &["images", "rm", "--sync", "r.example/goes:1"]).ok();
            let done = adopting.wait_with_output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            place.is_sound();
            for name in place.ok(&["images", "--all", "-o", "name"]).lines() {
                place.ok(&["verify", "--offline", name]);
            }
            place.run(&["rm", "--no-trash", "r.example/goes:1"]);
        }
        let listed = place.containerd.ctr("k8s.io", &["images", "check"]).ok().stdout;
        assert!(listed.contains("complete"), "{listed}");
        if let Some(said) = place.container("overlayfs", "r.example/stays:1", "cat /etc/kept") {
            assert_eq!(said, "kept");
        }
    }
}

#[test]
fn a_give_back_that_is_killed_goes_on_and_leaves_containerd_whole() {
    let Some(programs) = generations().pop() else { return };
    let Some(content) = image(61) else { return };
    let place = Place::start(&programs, Ground::memory(), &[]);
    let file = place.ground.path().join("image.tar");
    std::fs::write(&file, orlop_testkit::archive::oci_archive(&[(NAME, &content)])).unwrap();
    place.ok(&["import", file.to_str().unwrap()]);
    let ours = place.mounted(NAME);
    let socket = place.containerd.socket();
    let mut was_killed = 0;
    for round in 0..25_u64 {
        let mut command = binary();
        command.arg("--root").arg(place.own()).args(["give-back", "--to"]).arg(&socket);
        let mut giving = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(round * 6));
        giving.kill().unwrap();
        was_killed += u32::from(!giving.wait().unwrap().success());
        place.is_sound();
        let listed = place.containerd.ctr("k8s.io", &["images", "check"]).ok().stdout;
        // A record comes last, and so has everything.
        assert!(listed.lines().skip(1).all(|line| line.contains("complete (4/4)")), "{listed}");
    }
    assert!(was_killed > 3, "nothing was killed in the middle");
    place.ok(&["give-back", "--to", socket.to_str().unwrap()]);
    for lease in place.containerd.ctr("k8s.io", &["leases", "ls", "-q"]).ok().stdout.lines() {
        place.containerd.ctr("k8s.io", &["leases", "rm", "--sync", lease]).ok();
    }
    place.collect();
    place.mounted_there(NAME).assert_same(&ours, "after all");
    let keys = place.containerd.ctr("k8s.io", &["snapshots", "ls"]).ok().stdout;
    assert!(!keys.contains("orlop-give"), "{keys}");
}
