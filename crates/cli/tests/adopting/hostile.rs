//! A root in which somebody has been.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use rustix::process::Signal;

use crate::place::{Ground, Place, generations, image, left, number};

const NAME: &str = "r.example/app:1";

/// Directories of committed snapshots' trees.
fn trees(place: &Place) -> Vec<PathBuf> {
    let at = place.theirs().join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    let mut all: Vec<PathBuf> = std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path().join("fs")).collect();
    all.sort();
    all
}

/// A place whose containerd has ended, and in whose root `change` was.
fn changed(change: impl FnOnce(&Place, &orlop_testkit::image::Content)) -> Option<Place> {
    let programs = generations().pop()?;
    let content = image(11)?;
    let mut place = Place::start(&programs, Ground::memory(), &[(NAME, &content)]);
    place.containerd.stop(Signal::TERM);
    change(&place, &content);
    Some(place)
}

/// Adopts; nothing of the image may have come in under its name.
#[track_caller]
fn refused(place: &Place, words: &[&str]) {
    let before = place.fingerprint();
    let done = place.adopt();
    let left = left(&done);
    for word in words {
        assert!(left.iter().any(|(_, why)| why.contains(word)), "{word}: {left:#?}");
    }
    assert_eq!(place.ok(&["images", "--all", "-o", "name"]), "", "{left:#?}");
    place.is_sound();
    place.fingerprint().assert_same(&before, "its root");
}

#[test]
fn a_blob_that_is_not_what_its_name_says_is_not_adopted() {
    let changed = changed(|place, content| {
        let path = place.their_blob(&content.layers()[2]);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
    });
    let Some(place) = changed else { return };
    refused(&place, &["its bytes hash to", "incomplete there: missing layer"]);
}

#[test]
fn links_pipes_and_holes_in_the_place_of_blobs_are_not_followed() {
    for (what, word) in [("link", "symbolic link"), ("pipe", "no regular file"), ("nothing", "is not there")] {
        let changed = changed(|place, content| {
            let path = place.their_blob(&content.layers()[0]);
            std::fs::rename(&path, place.ground.path().join("aside")).unwrap();
            match what {
                "link" => symlink(place.ground.path().join("aside"), &path).unwrap(),
                "pipe" => {
                    use rustix::fs::{CWD, FileType, Mode, mknodat};
                    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
                }
                _ => {}
            }
        });
        let Some(place) = changed else { return };
        refused(&place, &[word, "incomplete there"]);
    }
}

#[test]
fn a_tree_with_a_file_that_lost_its_content_is_left_with_what_stands_on_it() {
    let changed = changed(|place, _| {
        let kept = trees(place).into_iter().map(|tree| tree.join("etc/kept")).find(|file| file.exists()).unwrap();
        std::fs::File::options().write(true).open(kept).unwrap().set_len(0).unwrap();
    });
    let Some(place) = changed else { return };
    let done = place.adopt();
    let left = left(&done);
    assert!(left.iter().any(|(_, why)| why.contains("etc/kept has 0 bytes, its layer says 4")), "{left:#?}");
    assert_eq!(left.iter().filter(|(_, why)| why.contains("what it stands on was left")).count(), 2, "{left:#?}");
    // The image is there, and is unpacked when somebody needs it.
    assert_eq!((number(&done, "/snapshots/taken"), number(&done, "/blobs/taken")), (0, 5));
    assert!(place.ok(&["images", "--all", "-o", "name"]).contains(NAME));
    place.is_sound();
}

#[test]
fn a_link_in_the_place_of_a_tree_leads_nowhere() {
    let changed = changed(|place, _| {
        let top = trees(place).pop().unwrap();
        std::fs::rename(&top, place.ground.path().join("aside")).unwrap();
        symlink("/etc", top).unwrap();
    });
    let Some(place) = changed else { return };
    let passwd = std::fs::metadata("/etc/passwd").unwrap().nlink();
    let done = place.adopt();
    let left = left(&done);
    assert!(left.iter().any(|(_, why)| why.contains("link") || why.contains("cannot be read")), "{left:#?}");
    assert_eq!(std::fs::metadata("/etc/passwd").unwrap().nlink(), passwd);
    place.is_sound();
}

#[test]
fn half_a_database_costs_what_it_told() {
    let changed = changed(|place, _| {
        let path = place.theirs().join("io.containerd.snapshotter.v1.overlayfs/metadata.db");
        let length = std::fs::metadata(&path).unwrap().len();
        std::fs::File::options().write(true).open(path).unwrap().set_len(length / 4).unwrap();
    });
    let Some(place) = changed else { return };
    let done = place.adopt();
    assert_eq!(number(&done, "/snapshots/taken"), 0, "{done:#}");
    assert!(left(&done).iter().any(|(_, why)| why.contains("metadata.db")), "{done:#}");
    assert!(place.ok(&["images", "--all", "-o", "name"]).contains(NAME));
    place.is_sound();

    let meta = place.theirs().join("io.containerd.metadata.v1.bolt/meta.db");
    std::fs::File::options().write(true).open(meta).unwrap().set_len(100).unwrap();
    let done = place.adopt();
    assert_eq!((number(&done, "/blobs/taken"), number(&done, "/blobs/present")), (0, 0), "{done:#}");
    assert!(left(&done).iter().any(|(_, why)| why.contains("meta.db")), "{done:#}");
}
