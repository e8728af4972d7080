//! The dialects of tar that layers come in, written by GNU tar where it knows them.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use crate::common::{Meta, Tar, describe, is_root, target};
use orlop_snapshot::Error;
use orlop_snapshot::apply::{Limits, Options, apply};
use tar_core::EntryType;

/// Packs a directory with GNU tar.
fn gnu_tar(directory: &Path, options: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").arg("-C").arg(directory).args(options).args(["-cf", "-", "."]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn apply_to_new(tar: &[u8]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    apply(tar, &target(root.path()), &Options::default()).unwrap();
    root
}

fn assert_same_tree(source: &Path, options: &[&str]) -> tempfile::TempDir {
    let found = apply_to_new(&gnu_tar(source, options));
    assert_eq!(describe(found.path()), describe(source), "{options:?}");
    found
}

#[test]
fn gnu_and_pax_archives_of_awkward_names_come_out_alike() {
    let source = tempfile::tempdir().unwrap();
    let long = source.path().join("directory-with-a-long-name/".repeat(9));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("x".repeat(200)), "long").unwrap();
    fs::write(source.path().join("sp ace ünï\n=%"), "odd").unwrap();
    fs::hard_link(long.join("x".repeat(200)), source.path().join("hard")).unwrap();
    std::os::unix::fs::symlink("t".repeat(300), source.path().join("sym")).unwrap();
    assert_same_tree(source.path(), &["--format=pax"]);
    // GNU's own format and ustar have whole seconds only.
    let whole = ["-exec", "touch", "-h", "-d", "@1700000000", "{}", "+"];
    assert!(Command::new("find").arg(source.path()).args(whole).status().unwrap().success());
    assert_same_tree(source.path(), &["--format=gnu"]);
}

#[test]
fn sparse_files_keep_their_holes_in_every_format() {
    let source = tempfile::tempdir().unwrap();
    let mut file = File::create(source.path().join("sparse")).unwrap();
    for block in 0..40_u64 {
        file.seek(SeekFrom::Start(block << 20)).unwrap();
        file.write_all(format!("block {block}").as_bytes()).unwrap();
    }
    file.set_len(50 << 20).unwrap();
    let blocks = file.metadata().unwrap().blocks();
    assert!(blocks < 4096, "the file system keeps holes");
    fs::write(source.path().join("zlast"), "after").unwrap();
    let whole = ["-exec", "touch", "-d", "@1700000000", "{}", "+"];
    assert!(Command::new("find").arg(source.path()).args(whole).status().unwrap().success());
    for format in [
        &["--format=gnu", "-S"][..],
        &["--format=pax", "-S", "--sparse-version=0.0"],
        &["--format=pax", "-S", "--sparse-version=0.1"],
        &["--format=pax", "-S", "--sparse-version=1.0"],
    ] {
        let found = assert_same_tree(source.path(), format);
        assert!(fs::metadata(found.path().join("sparse")).unwrap().blocks() < 4096, "{format:?}");
    }
}

#[test]
fn attributes_come_from_gnu_tar_and_from_libarchive() {
    if !is_root("attributes_come_from_gnu_tar_and_from_libarchive") {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("f"), "").unwrap();
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(source.path().join("f"), name, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("user.binary", &[0, 1, 10, 255]);
    set("trusted.kept", b"t");
    set("security.capability", &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_same_tree(source.path(), &["--format=pax", "--xattrs", "--xattrs-include=*"]);

    let pax = vec![
        ("LIBARCHIVE.xattr.user.a%20b".to_owned(), b"aGVsbG8".to_vec()),
        ("LIBARCHIVE.xattr.user.both".to_owned(), b"aGVsbG8".to_vec()),
        ("SCHILY.xattr.user.both".to_owned(), b"plain".to_vec()),
        ("SCHILY.xattr.trusted.overlay.redirect".to_owned(), b"/etc".to_vec()),
    ];
    let mut tar = Tar::default();
    tar.entry(EntryType::Regular, "f", "", &Meta { pax, ..Meta::default() }, b"");
    let found = describe(apply_to_new(&tar.end()).path());
    assert!(found["f"].ends_with(" user.a b=68656c6c6f user.both=706c61696e"), "{}", found["f"]);
}

#[test]
fn numbers_are_read_in_octal_base_256_and_pax() {
    if !is_root("numbers_are_read_in_octal_base_256_and_pax") {
        return;
    }
    let mut tar = Tar::default();
    let big = Meta { uid: 3_000_000_000, gid: 4_000_000_000, mtime: 9_000_000_000, ..Meta::default() };
    tar.entry(EntryType::Regular, "pax", "", &big, b"");
    let mut gnu = tar_core::EntryBuilder::new_gnu();
    gnu.path("gnu").uid(3_000_000_000).unwrap().gid(4_000_000_000).unwrap().mtime(9_000_000_000).unwrap();
    gnu.mode(0o644).unwrap();
    tar.0.extend(gnu.finish_bytes());
    let early = Meta { pax: vec![("mtime".into(), b"-77.5".to_vec())], ..Meta::default() };
    tar.entry(EntryType::Regular, "early", "", &early, b"");
    let found = describe(apply_to_new(&tar.end()).path());
    for name in ["pax", "gnu"] {
        assert!(found[name].contains("644 3000000000:4000000000 9000000000.000000000"), "{}", found[name]);
    }
    assert!(found["early"].ends_with(" 0.000000000"), "before 1970 is 1970: {}", found["early"]);
}

#[test]
fn old_and_global_headers_are_understood() {
    let mut tar = Tar::default();
    tar.entry(
        EntryType::XGlobalHeader,
        "pax_global_header",
        "",
        &Meta::default(),
        b"52 comment=0123456789012345678901234567890123456789\n",
    );
    let mut header = tar_core::Header::new_old();
    header.set_path(b"v7/").unwrap();
    header.set_mode(0o755).unwrap();
    header.set_size(0).unwrap();
    header.set_mtime(1).unwrap();
    header.set_uid(0).unwrap();
    header.set_gid(0).unwrap();
    header.as_old_mut().linkflag = [0];
    header.set_checksum();
    tar.0.extend_from_slice(header.as_bytes());
    tar.file("v7/f", "x");
    // Without the two blocks at the end, and with only one of them.
    for end in [0, 512, 1024, 10240] {
        let found = describe(apply_to_new(&[&tar.0[..], &vec![0; end]].concat()).path());
        assert!(found["v7"].starts_with("dir 755") && found.len() == 2, "{found:#?}");
    }
    assert!(describe(apply_to_new(b"").path()).is_empty());
}

#[test]
fn entries_that_no_layer_has_are_refused() {
    for kind in [b'V', b'M', b'D', b'?'] {
        let mut tar = Tar::default();
        tar.entry(EntryType::Other(kind), "odd", "", &Meta::default(), b"");
        let root = tempfile::tempdir().unwrap();
        let error = apply(&tar.end()[..], &target(root.path()), &Options::default()).unwrap_err();
        assert!(matches!(&error, Error::Hostile { entry, .. } if entry == "odd"), "{error}");
    }
}

/// What one limit says of a tar: `None` if it takes it.
fn limited(limits: Limits, tar: &[u8]) -> Option<(&'static str, String)> {
    let root = tempfile::tempdir().unwrap();
    match apply(tar, &target(root.path()), &Options { limits, ..Options::default() }) {
        Ok(_) => None,
        Err(error) => match &error {
            Error::Limit { key, .. } => Some((key, error.to_string())),
            Error::Damaged { .. } if error.to_string().contains("zstd_window_bytes") => {
                Some(("zstd_window_bytes", error.to_string()))
            }
            other => panic!("{other}"),
        },
    }
}

/// Just within the limit, and just beyond it; the error names the key and, unless it is a sum of others, the bound.
#[track_caller]
fn both_sides(key: &str, limits: &Limits, within: &[u8], beyond: &[u8]) {
    assert_eq!(limited(limits.clone(), within), None, "{key}");
    let (found, said) = limited(limits.clone(), beyond).unwrap_or_else(|| panic!("{key}: taken"));
    assert_eq!(found, key, "{said}");
    assert!(said.contains(&format!("limits.{key}")), "{said}");
}

fn with_pax(records: &[(&str, &[u8])], content: &[u8]) -> Vec<u8> {
    let pax = records.iter().map(|(key, value)| ((*key).to_owned(), value.to_vec())).collect();
    let mut tar = Tar::default();
    tar.entry(EntryType::Regular, "f", "", &Meta { pax, ..Meta::default() }, content);
    tar.end()
}

#[test]
fn entries_are_limited() {
    let many = |count: usize| (0..count).fold(Tar::default(), |mut tar, n| tar.file(&n.to_string(), "").clone()).end();
    both_sides("layer_entries", &Limits { layer_entries: 10, ..Limits::default() }, &many(10), &many(11));
}

#[test]
fn paths_are_limited_in_bytes_links_resolved() {
    let limits = Limits { path_bytes: 100, ..Limits::default() };
    let path = |bytes: usize| format!("{}{}", "x/".repeat(40), "y".repeat(bytes - 80));
    both_sides(
        "path_bytes",
        &limits,
        &Tar::default().file(&path(100), "").end(),
        &Tar::default().file(&path(101), "").end(),
    );
    let link = |bytes| Tar::default().symlink("l", &path(bytes)).end();
    both_sides("path_bytes", &limits, &link(100), &link(101));
    let through =
        |count| Tar::default().symlink("l", &"y/".repeat(40)).file(&format!("l/{}f", "x/".repeat(count)), "").end();
    both_sides("path_bytes", &limits, &through(9), &through(40));
}

#[test]
fn directories_are_limited_in_depth_links_resolved() {
    let limits = Limits { directory_depth: 20, ..Limits::default() };
    let deep = |depth| Tar::default().file(&format!("{}f", "d/".repeat(depth)), "").end();
    both_sides("directory_depth", &limits, &deep(20), &deep(21));
    let through =
        |depth| Tar::default().symlink("l", &"e/".repeat(10)).file(&format!("l/{}f", "d/".repeat(depth)), "").end();
    both_sides("directory_depth", &limits, &through(10), &through(13));
}

#[test]
fn headers_are_limited() {
    let limits = Limits { header_bytes: 4096, ..Limits::default() };
    both_sides(
        "header_bytes",
        &limits,
        &with_pax(&[("comment", &[b'x'; 4000])], b""),
        &with_pax(&[("comment", &[b'x'; 5000])], b""),
    );
}

#[test]
fn attributes_are_limited() {
    let limits = Limits { xattr_bytes: 1000, ..Limits::default() };
    let attribute = |bytes: usize| with_pax(&[("SCHILY.xattr.user.x", &vec![b'x'; bytes])], b"");
    both_sides("xattr_bytes", &limits, &attribute(994), &attribute(995));
}

#[test]
fn regions_of_sparse_files_are_limited() {
    let limits = Limits { sparse_regions: 5, ..Limits::default() };
    let regions = |count: usize| {
        let map: Vec<String> = (0..count).map(|n| format!("{n},1")).collect();
        let (size, map) = (count.to_string(), map.join(","));
        let records: [(&str, &[u8]); 2] = [("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())];
        with_pax(&records, &vec![b'x'; count])
    };
    both_sides("sparse_regions", &limits, &regions(5), &regions(6));
}

#[test]
fn bytes_of_files_and_of_the_stream_are_limited() {
    let limits = Limits { layer_bytes: 64 << 10, ..Limits::default() };
    let holes =
        |size: u64| with_pax(&[("GNU.sparse.size", size.to_string().as_bytes()), ("GNU.sparse.map", b"0,0")], b"");
    both_sides("layer_bytes", &limits, &holes(64 << 10), &holes((64 << 10) + 1));
    // Behind the tar's end, where only the stream is counted.
    both_sides("layer_bytes", &limits, &vec![0; 64 << 10], &vec![0; (64 << 10) + 1]);
}

#[test]
fn windows_of_zstd_are_limited() {
    let packed = |log: u32| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.set_parameter(zstd::zstd_safe::CParameter::WindowLog(log)).unwrap();
        std::io::Write::write_all(&mut encoder, &Tar::default().file("f", "x").end()).unwrap();
        encoder.finish().unwrap()
    };
    both_sides(
        "zstd_window_bytes",
        &Limits { zstd_window_bytes: 1 << 20, ..Limits::default() },
        &packed(20),
        &packed(21),
    );
}

#[test]
fn a_bomb_is_refused_before_it_fills_the_disk() {
    let mut header = Tar::default();
    let mut entry = tar_core::EntryBuilder::new_ustar();
    entry.path("bomb").mode(0o644).unwrap().size(8 << 30).unwrap();
    header.0.extend(entry.finish_bytes());
    // 1,200 MiB of zeros, which zstd packs into some hundred kilobytes.
    let mut bomb = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    bomb.write_all(&header.0).unwrap();
    let zeros = vec![0; 1 << 20];
    (0..1200).for_each(|_| bomb.write_all(&zeros).unwrap());
    let bomb = bomb.finish().unwrap();
    let root = tempfile::tempdir().unwrap();
    let error = apply(&bomb[..], &target(root.path()), &Options::default()).unwrap_err();
    assert!(matches!(error, Error::Limit { key: "layer_ratio", .. }), "{error}");
}
