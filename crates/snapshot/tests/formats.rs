//! The dialects of tar that layers come in, written by GNU tar where it knows them.

mod common;

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use common::{Meta, Tar, describe, is_root, target};
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

#[test]
fn limits_hold() {
    let small = Limits {
        entries: 10,
        path_bytes: 100,
        header_bytes: 4096,
        xattr_bytes: 1000,
        sparse_regions: 5,
        tar_bytes: 1 << 20,
        ..Limits::default()
    };
    let options = Options { limits: small, ..Options::default() };
    let what = |tar: &Tar| {
        let root = tempfile::tempdir().unwrap();
        match apply(&tar.end()[..], &target(root.path()), &options) {
            Err(Error::Limit { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    };
    let file = |tar: &mut Tar, pax: Vec<(String, Vec<u8>)>| {
        tar.entry(EntryType::Regular, "f", "", &Meta { pax, ..Meta::default() }, b"");
    };
    let mut many = Tar::default();
    for number in 0..11 {
        many.file(&number.to_string(), "");
    }
    assert_eq!(what(&many), "entries");
    assert_eq!(what(Tar::default().file(&"x/".repeat(51), "")), "bytes in a path");
    assert_eq!(what(Tar::default().symlink("l", &"x/".repeat(51))), "bytes in a path");
    let mut through_links = Tar::default();
    through_links.symlink("l", &"y/".repeat(49)).file(&format!("l/{}", "x/".repeat(40)), "");
    assert_eq!(what(&through_links), "bytes in a path");
    let mut xattrs = Tar::default();
    file(&mut xattrs, vec![("SCHILY.xattr.user.x".into(), vec![b'x'; 1001])]);
    assert_eq!(what(&xattrs), "bytes of extended attributes in an entry");
    let mut headers = Tar::default();
    file(&mut headers, vec![("comment".into(), vec![b'x'; 5000])]);
    assert_eq!(what(&headers), "bytes in an entry's headers");
    let mut regions = Tar::default();
    file(&mut regions, vec![("GNU.sparse.map".into(), b"0,0,1,0,2,0,3,0,4,0,5,0".to_vec())]);
    assert_eq!(what(&regions), "regions in a sparse file");
    let mut huge = Tar::default();
    file(
        &mut huge,
        vec![("GNU.sparse.size".into(), b"9000000000000000000".to_vec()), ("GNU.sparse.map".into(), b"0,0".to_vec())],
    );
    assert_eq!(what(&huge), "bytes in files");
    // Behind the tar's end, where only the stream is counted.
    assert_eq!(what(&Tar(vec![0; 2 << 20])), "bytes uncompressed");
}

#[test]
fn a_bomb_is_refused_before_it_fills_the_disk() {
    let mut header = Tar::default();
    let mut entry = tar_core::EntryBuilder::new_ustar();
    entry.path("bomb").mode(0o644).unwrap().size(8 << 30).unwrap();
    header.0.extend(entry.finish_bytes());
    // 8 GiB of zeros, which zstd packs into some hundred kilobytes.
    let mut bomb = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    bomb.write_all(&header.0).unwrap();
    let zeros = vec![0; 1 << 20];
    (0..1200).for_each(|_| bomb.write_all(&zeros).unwrap());
    let bomb = bomb.finish().unwrap();
    let root = tempfile::tempdir().unwrap();
    let error = apply(&bomb[..], &target(root.path()), &Options::default()).unwrap_err();
    assert!(matches!(error, Error::Limit { what: "bytes uncompressed for each compressed byte", .. }), "{error}");
}
