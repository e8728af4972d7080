//! On a file system whose files may share extents: what is shared is counted once, so that sums and plans are what the file system
//! has allocated and gives back.
//!
//! What broke: `native` takes files over from the snapshot below by reflink, and each copy was counted whole.

use std::path::Path;

use crate::common::Orlop;
use orlop_testkit::archive;
use orlop_testkit::disk::{Disk, FILE_SYSTEMS};
use orlop_testkit::image::{Content, Image, Layer};
use serde_json::Value;

/// Bytes that are in use after all was written out.
fn used(path: &Path) -> u64 {
    let directory = std::fs::File::open(path).unwrap();
    rustix::fs::syncfs(&directory).unwrap();
    let found = rustix::fs::fstatvfs(&directory).unwrap();
    (found.f_blocks - found.f_bfree) * found.f_frsize
}

/// Within 1 % or 1 MiB.
#[track_caller]
fn agrees(what: &str, said: u64, is: u64) {
    assert!(said.abs_diff(is) <= (is / 100).max(1 << 20), "{what}: {said} were said, {is} are right");
}

fn number(document: &Value, field: &str) -> u64 {
    document[field].as_u64().unwrap_or_else(|| panic!("{field}: {document:#}"))
}

#[test]
fn what_files_share_is_counted_once() {
    let Some(disk) = FILE_SYSTEMS.last().and_then(Disk::of) else { return };
    let store = Orlop::below(&disk.path());
    store.ok(["images"]);
    let empty = used(&disk.path());
    let began = number(&store.json(["df"]), "total");
    // Three trees: the second has all of the first, the third all of both.
    let image = Image::host()
        .layer(Layer::noise("base", 1, 40 << 20))
        .layer(Layer::noise("middle", 2, 2 << 20))
        .layer(Layer::noise("top", 3, 1 << 20));
    let file = store.path("image.tar");
    std::fs::write(&file, archive::oci_archive(&[("r.example/i:1", &Content::image(&image))])).unwrap();
    store.ok(["import", "--snapshotter", "native", file.to_str().unwrap()]);
    let full = used(&disk.path());
    let usage = store.json(["df"]);
    agrees("df", number(&usage, "total") - began, full - empty);
    agrees("the snapshots alone", number(&usage, "snapshots"), 43 << 20);
    let du = std::process::Command::new("du").args(["-s", "--block-size=1"]).arg(store.root()).output().unwrap();
    let du: u64 = String::from_utf8(du.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert!(du > number(&usage, "total") + (60 << 20), "nothing is shared here: du {du}, {usage:#}");
    // Of each snapshot what it alone takes, so that the sum is right as well.
    let of_each = store.json(["snapshots", "usage", "--snapshotter", "native"]);
    let sizes = of_each["snapshots"].as_array().unwrap().iter().map(|snapshot| number(snapshot, "size"));
    agrees("all snapshots", sizes.sum(), number(&usage, "snapshots"));
    let unpacked = usage["images"][0]["size"]["unpacked"].as_u64().unwrap();
    agrees("the image", unpacked, number(&usage, "snapshots"));
    let plan = store.json(["rm", "--plan", "--no-trash", "r.example/i:1"]);
    store.ok(["rm", "--no-trash", "r.example/i:1"]);
    agrees("the plan", number(&plan, "freedNow"), full - used(&disk.path()));
}
