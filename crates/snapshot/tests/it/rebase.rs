//! Applying layers without their parents and committing them in order gives the tree of serial applying.
//!
//! The reference is the native driver, which applies each layer onto a copy of the one below; compared with it is what
//! the kernel shows of overlayfs' directories that were written without parents.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{Meta as FileMeta, Tar, cases, describe, is_root, mode};
use orlop_snapshot::apply::{Options, apply};
use orlop_snapshot::{Driver, ErofsDriver, Error, Meta, NativeDriver, OverlayDriver, Result, SnapshotId, TempMount};
use orlop_testkit::mounts::{Cleaned, need_file_system};
use proptest::prelude::*;
use tar_core::EntryType;

type Tree = BTreeMap<String, String>;

fn meta(kind: &str, parent: Option<u64>) -> Meta {
    Meta { namespace: "n".into(), key: "k".into(), kind: kind.into(), parent, labels: BTreeMap::new() }
}

/// The numbers of the first `count` layers, nearest first.
fn chain(count: usize) -> Vec<SnapshotId> {
    (1..=count as u64).rev().map(SnapshotId).collect()
}

fn serial(layers: &[Tar]) -> Result<Tree> {
    let root = tempfile::tempdir().unwrap();
    let driver = NativeDriver::open(root.path().join("native")).unwrap();
    for (index, tar) in layers.iter().enumerate() {
        let id = SnapshotId(index as u64 + 1);
        driver.create(id, &chain(index), &meta("active", None))?;
        apply(&tar.end()[..], &driver.apply_target(id), &Options::default())?;
        driver.commit(id, &chain(index), &meta("committed", None))?;
    }
    Ok(describe(&driver.apply_target(SnapshotId(layers.len() as u64)).root))
}

/// Layers applied last first, so that nothing can lean on a parent.
fn parentless(layers: &[Tar], make: impl Fn(&Path) -> Box<dyn Driver>) -> Result<Tree> {
    let root = tempfile::tempdir().unwrap();
    let _cleaned = Cleaned(root.path().to_owned());
    let driver = make(root.path());
    for (index, tar) in layers.iter().enumerate().rev() {
        let id = SnapshotId(index as u64 + 1);
        driver.create(id, &[], &meta("active", None))?;
        apply(&tar.end()[..], &driver.apply_target(id), &Options::default())?;
    }
    for index in 0..layers.len() {
        driver.commit(SnapshotId(index as u64 + 1), &chain(index), &meta("committed", Some(index as u64)))?;
    }
    let view = SnapshotId(1000);
    driver.create(view, &chain(layers.len()), &meta("view", None))?;
    let mounts = driver.mounts(view, &chain(layers.len()), false)?;
    let mounted = TempMount::new(&mounts, root.path())?;
    Ok(describe(mounted.path()))
}

const STRICTER: [&str; 2] = ["behind a symbolic link of a lower layer", "to what it replaces"];

fn assert_same(layers: &[Tar]) {
    let serial = serial(layers);
    let overlayfs = parentless(layers, |root| Box::new(OverlayDriver::open(root.join("overlayfs")).unwrap()));
    assert_as_in(&serial, &overlayfs);
    if need_file_system("erofs") {
        let erofs = parentless(layers, |root| Box::new(ErofsDriver::open(root.join("erofs")).unwrap()));
        assert_as_in(&serial, &erofs);
    }
}

fn assert_as_in(serial: &Result<Tree>, parentless: &Result<Tree>) {
    match (serial, parentless) {
        (Ok(expected), Ok(found)) => assert_eq!(found, expected),
        (Err(_), Err(_)) => {}
        // Parentless is stricter where a symbolic link of a lower layer leads to the target (docs/compatibility.md).
        (Ok(_), Err(Error::Hostile { reason, .. })) if STRICTER.iter().any(|stricter| reason.contains(stricter)) => {}
        _ => panic!("serial: {serial:#?}\nparentless: {parentless:#?}"),
    }
}

fn tar(build: impl FnOnce(&mut Tar) -> &mut Tar) -> Tar {
    let mut tar = Tar::default();
    build(&mut tar);
    tar
}

fn owned(mode: u32, uid: u64, mtime: u64) -> FileMeta {
    let pax = vec![("SCHILY.xattr.user.layer".to_owned(), uid.to_string().into_bytes())];
    FileMeta { mode, uid, gid: uid + 1, mtime, pax }
}

fn base() -> Tar {
    tar(|t| {
        t.entry(EntryType::Directory, "d", "", &owned(0o2750, 7, 100), b"");
        t.entry(EntryType::Directory, "d/sub", "", &owned(0o711, 8, 200), b"");
        t.entry(EntryType::Regular, "d/sub/f", "", &owned(0o4755, 9, 300), b"lower");
        t.entry(EntryType::Regular, "twin", "", &owned(0o640, 10, 400), b"twins");
        t.link("d/twin", "twin").symlink("way", "d/sub").symlink("abs", "/d").file("plain", "p");
        t.dir("o", 0o700).file("o/x", "1").dir("o/in", 0o750).file("o/in/y", "2")
    })
}

#[test]
fn awkward_stacks_come_out_as_in_serial() {
    if !is_root("awkward_stacks_come_out_as_in_serial") {
        return;
    }
    let uppers: Vec<(&str, Tar)> = vec![
        ("implied directories", tar(|t| t.file("d/sub/new", "n").file("d/x/y/z", "n"))),
        ("implied over two layers", tar(|t| t.file("d/sub/.wh.f", "").file("o/in/.wh.y", ""))),
        ("link below", tar(|t| t.link("d/sub/link", "d/sub/f"))),
        ("link below from elsewhere", tar(|t| t.link("fresh/link", "d/sub/f").link("l2", "fresh/link"))),
        ("link to one of two names", tar(|t| t.link("third", "twin"))),
        ("link through a lower link", tar(|t| t.link("l", "way/f").link("m", "abs/sub/f"))),
        ("link to a symbolic link", tar(|t| t.link("l", "way"))),
        ("link, then its target goes", tar(|t| t.link("l", "plain").link("m", "plain").file(".wh.plain", ""))),
        ("link, then its target is replaced", tar(|t| t.link("l", "plain").file("plain", "new"))),
        ("link, then its directory is hidden", tar(|t| t.link("l", "o/x").file("o/.wh..wh..opq", ""))),
        ("link after its target went", tar(|t| t.file(".wh.plain", "").link("l", "plain"))),
        ("link to nothing", tar(|t| t.link("l", "nothing"))),
        ("link to a directory", tar(|t| t.link("l", "d"))),
        ("link below what is opaque", tar(|t| t.file("o/.wh..wh..opq", "").link("l", "o/x"))),
        ("link replaced", tar(|t| t.link("l", "plain").file("l", "own").link("m", "l"))),
        ("link replaced by a directory", tar(|t| t.link("l", "plain").dir("l", 0o700))),
        ("link replaced, another follows", tar(|t| t.link("l", "twin").dir("l", 0o700).link("m", "d/twin"))),
        ("link replaced, its target gone", tar(|t| t.link("l", "plain").dir("l", 0o700).file(".wh.plain", ""))),
        (
            "links to a file whose names all go",
            tar(|t| {
                t.entry(EntryType::Link, "l", "twin", &owned(0o601, 78, 998), b"").link("m", "d/twin").dir("l", 0o700);
                t.file(".wh.twin", "").file("d/.wh.twin", "")
            }),
        ),
        ("link over its target's directory", tar(|t| t.link("o", "o/x"))),
        // Found by chance in the long tier: serial follows the link before it goes, as nobody else does.
        ("link through the lower link that it replaces", tar(|t| t.link("way", "way/f"))),
        ("link through a lower link to what is replaced", tar(|t| t.dir("d/sub/f", 0o755).link("l", "way/f"))),
        ("links by both names", tar(|t| t.link("l", "twin").link("m", "d/twin"))),
        ("links by both names, one replaced", tar(|t| t.link("l", "twin").link("m", "d/twin").file("twin", "own"))),
        ("link over the other name", tar(|t| t.link("d/twin", "twin"))),
        ("link over the other name, before it", tar(|t| t.link("new", "twin").link("d/twin", "plain"))),
        ("link removed", tar(|t| t.link("q/l", "plain").file(".wh.q", ""))),
        ("link becomes a directory", tar(|t| t.link("o", "plain").dir("o", 0o755).file("o/z", ""))),
        ("link as a parent", tar(|t| t.link("l", "plain").file("l/x", ""))),
        ("link with its own attributes", tar(|t| t.entry(EntryType::Link, "l", "plain", &owned(0o600, 77, 999), b""))),
        ("directory removed and made again", tar(|t| t.file(".wh.o", "").dir("o", 0o711).file("o/z", "3"))),
        ("directory removed and implied again", tar(|t| t.file(".wh.o", "").file("o/in/z", "3"))),
        ("file, then directory", tar(|t| t.file("o", "f").dir("o", 0o711).file("o/z", "3"))),
        ("file, removed, directory implied", tar(|t| t.file("o", "f").file(".wh.o", "").file("o/z", "3"))),
        ("opaque before and after", tar(|t| t.file("o/a", "").file("o/.wh..wh..opq", "").file("o/in/b", ""))),
        ("implied, then opaque", tar(|t| t.file("o/in/b", "").file("o/.wh..wh..opq", ""))),
        ("opaque root", tar(|t| t.file("d/sub/own", "").file(".wh..wh..opq", "").file("later", ""))),
        ("opaque root with links", tar(|t| t.link("l", "plain").file(".wh..wh..opq", "").dir("o", 0o700))),
        ("whiteout of nothing", tar(|t| t.file(".wh.nothing", "").file("none/.wh.x", ""))),
        ("file over directory", tar(|t| t.file("d", "file"))),
        ("directory over file", tar(|t| t.dir("plain", 0o700).file("plain/x", ""))),
        ("implied over a lower link", tar(|t| t.file("way/x", "").file("abs/sub/y", ""))),
        ("implied over a lower file", tar(|t| t.file("plain/x", ""))),
        ("own links are followed", tar(|t| t.symlink("s", "d/sub").file("s/x", "").file("s/.wh.f", ""))),
        (
            "device as whiteout",
            tar(|t| {
                let mut device = tar_core::EntryBuilder::new_ustar();
                device.path("plain").entry_type(EntryType::Char).mode(0).unwrap().device(0, 0).unwrap();
                t.0.extend(device.finish_bytes());
                t
            }),
        ),
        (
            "attributes replaced",
            tar(|t| {
                t.entry(EntryType::Directory, "d", "", &mode(0o755), b"");
                t.entry(EntryType::Directory, "d/sub", "", &owned(0o700, 55, 1), b"")
            }),
        ),
        ("duplicates", tar(|t| t.file("p", "1").file("p", "2").dir("e", 0o700).dir("e", 0o750).symlink("p", "e"))),
    ];
    for (name, upper) in &uppers {
        println!("{name}");
        assert_same(&[base(), upper.clone()]);
        assert_same(&[base(), tar(|t| t.file("d/between", "").file("o/.wh.in", "")), upper.clone()]);
        let hidden = tar(|t| t.file(".wh.o", "").file("o/in/new", "").file("d/sub/.wh..wh..opq", ""));
        assert_same(&[base(), hidden, upper.clone()]);
    }
}

#[derive(Debug, Clone)]
enum Op {
    Dir(String, u32),
    File(String, u8),
    Symlink(String, String),
    Link(String, String),
    Whiteout(String),
    Opaque(String),
    Fifo(String),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    let target =
        prop_oneof![path(), path().prop_map(|p| format!("/{p}")), Just("..".to_owned()), Just("../b".to_owned())];
    prop_oneof![
        3 => (path(), prop::sample::select(vec![0o755, 0o700, 0o2775, 0o1777])).prop_map(|(p, m)| Op::Dir(p, m)),
        4 => (path(), any::<u8>()).prop_map(|(p, c)| Op::File(p, c)),
        1 => (path(), target).prop_map(|(p, t)| Op::Symlink(p, t)),
        3 => (path(), path()).prop_map(|(p, t)| Op::Link(p, t)),
        2 => path().prop_map(Op::Whiteout),
        1 => prop::option::of(path()).prop_map(|p| Op::Opaque(p.unwrap_or_default())),
        1 => path().prop_map(Op::Fifo),
    ]
}

fn build(ops: &[Op], layer: u64) -> Tar {
    tar(|t| {
        for (index, op) in ops.iter().enumerate() {
            let at = layer * 1000 + index as u64;
            match op {
                Op::Dir(path, mode) => t.entry(EntryType::Directory, path, "", &owned(*mode, at, at), b""),
                Op::File(path, content) => t.entry(EntryType::Regular, path, "", &owned(0o644, at, at), &[*content]),
                Op::Symlink(path, target) => {
                    t.entry(EntryType::Symlink, path, target, &FileMeta { mtime: at, ..mode(0o777) }, b"")
                }
                Op::Link(path, target) => {
                    t.entry(EntryType::Link, path, target, &FileMeta { mtime: at, ..mode(0o600) }, b"")
                }
                Op::Whiteout(path) => {
                    let (dir, name) = path.rsplit_once('/').map_or(("", path.as_str()), |(dir, name)| (dir, name));
                    t.file(format!("{dir}/.wh.{name}").trim_start_matches('/'), "")
                }
                Op::Opaque(path) => t.file(format!("{path}/.wh..wh..opq").trim_start_matches('/'), ""),
                Op::Fifo(path) => t.entry(EntryType::Fifo, path, "", &mode(0o600), b""),
            };
        }
        t
    })
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn any_stack_comes_out_as_in_serial(stack in prop::collection::vec(prop::collection::vec(op(), 1..7), 2..5)) {
        if rustix::process::geteuid().is_root() {
            let layers: Vec<Tar> = stack.iter().enumerate().map(|(index, ops)| build(ops, index as u64 + 1)).collect();
            assert_same(&layers);
        }
    }
}
