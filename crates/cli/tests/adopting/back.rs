//! Images of Orlop's own into a containerd that runs.

use orlop_testkit::archive;

use crate::place::{Ground, NAMESPACE, Place, generations, image, left, number};

const NAME: &str = "docker.io/library/app:1";

#[test]
fn an_image_is_given_to_a_containerd_without_a_byte_copied_and_runs_there() {
    for programs in generations() {
        for ground in Ground::all() {
            let Some(content) = image(51) else { return };
            let place = Place::start(&programs, ground, &[]);
            let what = format!("{}, reflinks: {}", programs.version(), place.ground.reflinks());
            let file = place.ground.path().join("image.tar");
            std::fs::write(&file, archive::oci_archive(&[(NAME, &content)])).unwrap();
            place.ok(&["import", file.to_str().unwrap()]);
            std::fs::remove_file(file).unwrap();
            let ours = place.mounted(NAME);
            let socket = place.containerd.socket();
            let give = ["give-back", "--to", socket.to_str().unwrap(), "app:1"];

            let plan = place.json(&[&give[..], &["--plan"]].concat());
            assert_eq!(place.their_blobs().len(), 0, "{what}: a plan changes nothing");
            assert_eq!((number(&plan, "/blobs"), number(&plan, "/snapshots")), (5, 3), "{what}: {plan:#}");
            let unknown = place.run(&[&give[..], &["--plan", "--snapshotter", "nobodys"]].concat());
            assert_eq!(unknown.code, 2, "{what}: {unknown:?}");
            assert!(unknown.err.contains("no snapshotter nobodys"), "{what}: {unknown:?}");
            let used = place.ground.used();
            let given = place.json(&give);
            assert_eq!((number(&given, "/blobs"), number(&given, "/snapshots")), (5, 3), "{what}: {given:#}");
            assert_eq!(left(&given), [], "{what}");
            if let (Some(before), Some(after)) = (used, place.ground.used()) {
                assert!(after.saturating_sub(before) < 1 << 20, "{what}: {} bytes were copied", after - before);
            }
            content.layers().iter().for_each(|layer| place.is_shared(layer));
            place.collect();
            let checked = place.containerd.ctr(NAMESPACE, &["images", "check"]).ok().stdout;
            assert!(checked.contains("complete (4/4)"), "{what}: {checked}");
            let keys = place.containerd.ctr(NAMESPACE, &["snapshots", "ls"]).ok().stdout;
            assert_eq!(keys.lines().filter(|line| line.contains("Committed")).count(), 3, "{what}: {keys}");
            place.mounted_there(NAME).assert_same(&ours, &what);
            if let Some(said) = place.container("overlayfs", NAME, "cat /etc/kept /etc/new; ls /opt") {
                assert_eq!(said, "keptnew 51seen\n", "{what}");
            }
            let again = place.json(&give);
            assert_eq!((number(&again, "/blobs"), number(&again, "/snapshots")), (0, 0), "{what}: {again:#}");

            // Either may remove it, and the other has it still.
            place.ok(&["rm", "--no-trash", NAME]);
            place.is_sound();
            if let Some(said) = place.container("overlayfs", NAME, "cat /etc/kept") {
                assert_eq!(said, "kept", "{what}");
            }
        }
    }
}

#[test]
fn what_cannot_be_given_is_said() {
    let Some(programs) = generations().pop() else { return };
    let place = Place::start(&programs, Ground::memory(), &[]);
    let none = place.run(&["give-back", place.theirs().to_str().unwrap()]);
    assert_eq!(none.code, 3, "{}", none.err);
    place.ok(&["leases", "create", "--id", "begin"]);
    let socket = place.containerd.socket();
    let unknown = place.run(&["give-back", "--to", socket.to_str().unwrap(), "nothing:1"]);
    assert_eq!(unknown.code, 3, "{}", unknown.err);
    let usage = place.run(&["give-back"]);
    assert_eq!(usage.code, 2, "{}", usage.err);
    let silent = place.run(&["give-back", "--to", "/nonexistent/socket"]);
    assert_eq!(silent.code, 8, "{}", silent.err);
}
