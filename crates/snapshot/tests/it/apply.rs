//! What applying a layer makes of each kind of entry.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use crate::common::{Meta, Tar, apply_all, describe, gzip, is_root, mode, target};
use orlop_oci::Digest;
use orlop_snapshot::Error;
use orlop_snapshot::apply::{Limits, Options, apply, list};
use tar_core::EntryType;

#[test]
fn files_directories_and_links_come_out_as_described() {
    let root = tempfile::tempdir().unwrap();
    let mut tar = Tar::default();
    tar.dir("./", 0o700).dir("bin/", 0o2755).file("bin/sh", "#!").symlink("bin/bash", "sh").link("bin/dash", "bin/sh");
    let nanos = Meta { mode: 0o4755, pax: vec![("mtime".into(), b"1700000000.123456789".to_vec())], ..Meta::default() };
    tar.entry(EntryType::Regular, "bin/su", "", &nanos, b"su");
    tar.entry(EntryType::Fifo, "run/pipe", "", &mode(0o622), b"");
    apply_all(&[&tar], root.path()).unwrap();

    let tree = describe(root.path());
    assert!(tree["bin"].starts_with("dir 2755 "), "{tree:#?}");
    assert!(tree["bin/su"].contains(" 4755 ") && tree["bin/su"].ends_with(" 1700000000.123456789"), "{tree:#?}");
    assert!(tree["bin/bash"].starts_with("link sh "), "{tree:#?}");
    assert!(tree["bin/dash"].ends_with(" = bin/dash") && tree["bin/sh"].ends_with(" = bin/dash"), "{tree:#?}");
    assert!(tree["run/pipe"].starts_with("fifo 622 "), "{tree:#?}");
    assert!(tree["run"].starts_with("dir 755 ") && tree["run"].ends_with(" 0.000000000"), "{tree:#?}");
    assert!(tree["bin"].ends_with(" 1600000000.000000000"), "a directory's time is set last: {tree:#?}");
}

#[test]
fn every_packing_gives_the_same_diff_id() {
    let mut tar = Tar::default();
    tar.file("a", &"x".repeat(3_000_000)).file("b", "y");
    let plain = [tar.end(), vec![0; 9216]].concat();
    let (head, tail) = plain.split_at(plain.len() / 2);
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let skippable = [&[0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc", &zstd(&plain)].concat();
    for packed in [
        plain.clone(),
        gzip(&plain),
        [gzip(head), gzip(tail)].concat(),
        zstd(&plain),
        [zstd(head), zstd(tail)].concat(),
        skippable,
    ] {
        let root = tempfile::tempdir().unwrap();
        let applied = apply(&packed[..], &target(root.path()), &Options::default()).unwrap();
        assert_eq!(applied.diff_id.digest(), &Digest::of(&plain));
        assert_eq!((applied.tar_bytes, applied.entries), (plain.len() as u64, 2));
        assert_eq!(applied.source_bytes, packed.len() as u64);
        assert_eq!(fs::metadata(root.path().join("a")).unwrap().len(), 3_000_000);
    }
}

#[test]
fn a_list_tells_paths_and_the_length_of_files_and_writes_nothing() {
    let mut tar = Tar::default();
    tar.dir("./", 0o700).dir("bin/", 0o755).file("./bin/sh", "#!").symlink("bin/bash", "sh").link("bin/dash", "bin/sh");
    tar.file("bin/large", &"x".repeat(700_000)).file("empty", "");
    let plain = tar.end();
    for packed in [plain.clone(), gzip(&plain), zstd::encode_all(&plain[..], 1).unwrap()] {
        let mut told = Vec::new();
        let each = |path: &[u8], length| told.push((String::from_utf8(path.to_vec()).unwrap(), length));
        list(&packed[..], &Limits::default(), each).unwrap();
        let expected = [
            ("", None),
            ("bin", None),
            ("bin/sh", Some(2)),
            ("bin/bash", None),
            ("bin/dash", None),
            ("bin/large", Some(700_000)),
            ("empty", Some(0)),
        ];
        assert_eq!(told, expected.map(|(path, length)| (path.to_owned(), length)));
    }
    let cut = list(&plain[..1000], &Limits::default(), |_, _| {});
    assert!(matches!(cut, Err(Error::Damaged { .. })), "{cut:?}");
}

#[test]
fn damaged_streams_are_told_from_failing_readers() {
    let mut tar = Tar::default();
    tar.file("a", &"content ".repeat(100_000));
    let packed = gzip(&tar.end());
    let root = tempfile::tempdir().unwrap();
    let run = |bytes: &[u8]| apply(bytes, &target(root.path()), &Options::default()).unwrap_err();
    assert!(matches!(run(&packed[..packed.len() - 30]), Error::Damaged { .. }));
    assert!(matches!(run(&[&packed[..], b"garbage"].concat()), Error::Damaged { .. }));
    assert!(matches!(run(&tar.end()[..5000]), Error::Damaged { .. }));
    assert!(matches!(run(&tar.end()[..100]), Error::Damaged { .. }));
    assert!(matches!(run(b"\xfd7zXZ\0rest"), Error::Damaged { reason } if reason.contains("xz")));

    struct Broken(bool);
    impl std::io::Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if std::mem::replace(&mut self.0, true) {
                return Err(std::io::Error::new(std::io::ErrorKind::ConnectionReset, "peer went away"));
            }
            buffer[..4].copy_from_slice(&[0x1f, 0x8b, 8, 0]);
            Ok(4)
        }
    }
    let error = apply(Broken(false), &target(root.path()), &Options::default()).unwrap_err();
    assert!(
        matches!(&error, Error::Source { source } if source.kind() == std::io::ErrorKind::ConnectionReset),
        "{error}"
    );
}

#[test]
fn whiteouts_and_type_changes_follow_the_tars_order() {
    let root = tempfile::tempdir().unwrap();
    let (mut lower, mut upper) = (Tar::default(), Tar::default());
    lower.dir("d", 0o755).file("d/keep", "1").file("d/gone", "2").file("f", "3").dir("o", 0o755).file("o/low", "4");
    upper.file("d/.wh.gone", "").file("d/new", "5").dir("f", 0o711).file("f/in", "6");
    upper.file("o/first", "7").file("o/.wh..wh..opq", "").file("o/second", "8").file(".wh..wh.plnk", "");
    apply_all(&[&lower, &upper], root.path()).unwrap();
    let names: Vec<_> = describe(root.path()).into_keys().collect();
    assert_eq!(names, ["d", "d/keep", "d/new", "f", "f/in", "o", "o/first", "o/second"]);
}

#[test]
fn nothing_outside_the_root_is_reached() {
    let parent = tempfile::tempdir().unwrap();
    let (root, outside) = (parent.path().join("root"), parent.path().join("outside"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("sentinel"), "untouched").unwrap();
    fs::set_permissions(outside.join("sentinel"), fs::Permissions::from_mode(0o600)).unwrap();
    let outside_text = outside.display().to_string();

    let hostile = |tar: &mut Tar| {
        let error = apply(&tar.end()[..], &target(&root), &Options::default()).unwrap_err();
        assert!(matches!(error, Error::Hostile { .. } | Error::LinkTarget { .. } | Error::Limit { .. }), "{error}");
    };
    hostile(Tar::default().file("../outside/x", ""));
    hostile(Tar::default().file("a/../../outside/sentinel", "x"));
    hostile(Tar::default().link("h", "../outside/sentinel"));
    hostile(Tar::default().link("h", &format!("{outside_text}/sentinel")));
    hostile(Tar::default().symlink("up", "../outside").link("h", "up/sentinel"));
    hostile(Tar::default().symlink("loop", "loop").file("loop/x", ""));
    hostile(Tar::default().file("f", "").file("f/x", ""));
    hostile(Tar::default().file(&"long/".repeat(1000), ""));
    hostile(Tar::default().file(".wh...", ""));

    // Followed, but inside the root.
    let mut inside = Tar::default();
    inside.symlink("up", "../../outside").file("up/x", "in").symlink("abs", "/etc").file("abs/y", "in");
    inside.symlink("file", &format!("{outside_text}/sentinel")).file("file", "replaced");
    inside.file("up/.wh.sentinel", "");
    apply_all(&[&inside], &root).unwrap();
    assert_eq!(fs::read_to_string(root.join("outside/x")).unwrap(), "in");
    assert_eq!(fs::read_to_string(root.join("etc/y")).unwrap(), "in");
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "replaced");

    let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["sentinel"]);
    assert_eq!(fs::read_to_string(outside.join("sentinel")).unwrap(), "untouched");
    assert_eq!(fs::metadata(outside.join("sentinel")).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn owners_capabilities_and_devices_are_set() {
    if !is_root("owners_capabilities_and_devices_are_set") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
    let meta = Meta {
        mode: 0o6755,
        uid: 3_000_000,
        gid: 7,
        pax: vec![
            ("SCHILY.xattr.security.capability".into(), capability),
            ("SCHILY.xattr.user.k".into(), b"v=1".to_vec()),
        ],
        ..Meta::default()
    };
    let mut tar = Tar::default();
    tar.entry(EntryType::Regular, "ping", "", &meta, b"elf");
    let mut device = tar_core::EntryBuilder::new_ustar();
    device.path("null").entry_type(EntryType::Char).mode(0o666).unwrap().device(1, 3).unwrap();
    tar.0.extend(device.finish_bytes());
    apply_all(&[&tar], root.path()).unwrap();
    let tree = describe(root.path());
    let ping = &tree["ping"];
    assert!(ping.contains(" 6755 3000000:7 "), "{ping}");
    assert!(ping.contains("security.capability=0100000200040000") && ping.contains("user.k=763d31"), "{ping}");
    assert!(tree["null"].starts_with("char 103 666 "), "{tree:#?}");
}
