//! Layers. The first byte is flags; the rest is a tar, plain or packed, in which `HIDEOUT` stands for a directory outside.
//!
//! Applied by the drivers, as any layer is: nothing outside changes; what one takes the others take, and the trees are the
//! same; the digest is that of the bytes; the limits are kept.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use orlop_oci::Digest;
use orlop_snapshot::apply::{Applied, Limits, Options, apply};
use orlop_snapshot::{Driver, ErofsDriver, Error, Meta, NativeDriver, OverlayDriver, Result, SnapshotId};
use orlop_testkit::compress;
use orlop_testkit::corpus::{self, Hideout};
use orlop_testkit::fingerprint::{self, Fingerprint};
use orlop_testkit::tar::{Entry, Kind, tar};
use tempfile::TempDir;

use super::Target;
use crate::scratch;

/// See the module.
pub const TARGET: Target = Target {
    name: "tar_apply",
    run,
    seeds,
    words: &[
        b"../",
        b"/../../",
        b".wh.",
        b".wh..wh..opq",
        b".wh...",
        b"././@LongLink",
        b"ustar\x0000",
        b"ustar  \0",
        b"path=",
        b"linkpath=",
        b"size=",
        b"GNU.sparse.major=1",
        b"SCHILY.xattr.trusted.overlay.opaque=y",
        b"\x80\0\0\0",
        HIDEOUT.as_bytes(),
    ],
    limit: 32 << 10,
    isolated: false,
};

/// What layers of the corpus call the directory outside; the real one is put in its place, with as many bytes.
const HIDEOUT: &str = "/@@@@@@@@@@@@@@@@@@@@@@@/hideout";

/// The checksums of headers are made right, so that damage gets beyond them.
const SUM: u8 = 1;
/// The tar is packed before it is applied.
const GZIP: u8 = 2;

const LIMITS: Limits = Limits {
    layer_entries: 500,
    path_bytes: 4095,
    directory_depth: 2_048,
    header_bytes: 64 << 10,
    xattr_bytes: 16 << 10,
    sparse_regions: 500,
    layer_bytes: 4 << 20,
    layer_ratio: 500,
    zstd_window_bytes: 1 << 20,
};

struct Rig {
    drivers: [Box<dyn Driver>; 2],
    /// Where this machine has it. Its trees are seen where they are mounted, which is for other tests.
    images: Option<ErofsDriver>,
    hideout: Hideout,
    /// Where `HIDEOUT` leads.
    place: String,
    next: Cell<u64>,
    _directory: TempDir,
}

thread_local! {
    static RIG: Rc<Rig> = Rc::new(Rig::new());
}

impl Rig {
    fn new() -> Self {
        let directory = scratch::directory();
        let hideout = Hideout::create(directory.path()).expect("a hideout can be made");
        let place = format!("{:/>width$}", hideout.path().display(), width = HIDEOUT.len());
        let native = NativeDriver::open(directory.path().join("native")).expect("a driver");
        let overlay = OverlayDriver::open(directory.path().join("overlay")).expect("a driver");
        let images = ErofsDriver::open(directory.path().join("erofs")).expect("a driver");
        let images = Some(images).filter(|driver| driver.available().is_ok());
        Self {
            drivers: [Box::new(native), Box::new(overlay)],
            images,
            hideout,
            place,
            next: Cell::new(1),
            _directory: directory,
        }
    }

    /// One layer by one driver; its snapshot is gone afterwards.
    fn layer(&self, driver: &dyn Driver, bytes: &[u8]) -> Result<(Applied, Fingerprint)> {
        let id = SnapshotId(self.next.replace(self.next.get() + 1));
        let meta = meta();
        driver.create(id, &[], &meta)?;
        let options =
            Options { limits: LIMITS, squash_owners: !rustix::process::geteuid().is_root(), ..Options::default() };
        let target = driver.apply_target(id);
        let applied = apply(bytes, &target, &options).and_then(|applied| {
            driver.commit(id, &[], &meta)?;
            Ok((applied, tree(&target.root)))
        });
        driver.remove(id, None).expect("any tree can be removed");
        applied
    }
}

/// Of a snapshot that nobody asks about.
pub(super) fn meta() -> Meta {
    Meta { namespace: "n".into(), key: "k".into(), kind: "active".into(), parent: None, labels: BTreeMap::new() }
}

fn tree(root: &Path) -> Fingerprint {
    let skip_xattrs = vec!["trusted.overlay.".to_owned(), "user.overlay.".to_owned()];
    // Directories that no entry made have the time of day or none.
    let options = fingerprint::Options { skip_root: true, skip_dir_times: true, skip_xattrs, ..Default::default() };
    Fingerprint::of(root, &options).expect("a tree can be read")
}

fn run(bytes: &[u8]) {
    let Some((flags, tar)) = bytes.split_first() else { return };
    let rig = RIG.with(Rc::clone);
    let mut tar = replaced(tar, HIDEOUT.as_bytes(), rig.place.as_bytes());
    if flags & SUM != 0 {
        sum(&mut tar);
    }
    let packed = if flags & GZIP != 0 { compress::gzip(&tar) } else { tar.clone() };
    let [native, overlay] = rig.drivers.each_ref().map(|driver| rig.layer(driver.as_ref(), &packed));
    let image = rig.images.as_ref().map(|driver| rig.layer(driver, &packed));
    rig.hideout.check().unwrap_or_else(|change| panic!("outside: {change}"));
    match (&overlay, &image) {
        (Ok((applied, _)), Some(Ok((same, _)))) => assert_eq!(applied, same),
        // A file system may hold fewer attributes than an image, or an image fewer than that.
        (Ok(_), Some(Err(Error::Unsupported { .. }))) | (Err(_), _) | (_, None) => {}
        (Ok(_), Some(Err(error))) => panic!("as an image: {error}"),
    }
    let ((applied, native), (same, overlay)) = match (native, overlay) {
        (Ok(native), Ok(overlay)) => (native, overlay),
        (Err(native), Err(_)) => return assert!(!native.to_string().is_empty()),
        (native, overlay) => panic!("native: {native:?}, overlayfs: {overlay:?}"),
    };
    assert_eq!(applied, same);
    assert!(applied.entries <= LIMITS.layer_entries && applied.tar_bytes <= LIMITS.layer_bytes);
    assert_eq!(applied.source_bytes, packed.len() as u64);
    if flags & GZIP != 0 {
        assert_eq!(applied.diff_id.digest(), &Digest::of(&tar));
    }
    native.assert_same(&overlay, "native and overlayfs");
}

/// Each occurrence of `from` as `to`, which is as long.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let mut at = 0;
    while let Some(found) = out[at..].windows(from.len()).position(|window| window == from) {
        at += found;
        out[at..at + to.len()].copy_from_slice(to);
        at += to.len();
    }
    out
}

/// Makes the checksum of every block right that looks like a header.
pub(crate) fn sum(tar: &mut [u8]) {
    for block in tar.as_chunks_mut::<512>().0 {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let total: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{total:06o}\0 ").as_bytes());
        }
    }
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    // As long a name as the one that stands for it.
    let directory = tempfile::Builder::new().prefix("orlop-fuzz-seed-").rand_bytes(3).tempdir_in("/tmp");
    let directory = directory.expect("a directory");
    let hideout = Hideout::create(directory.path()).expect("a hideout");
    let place = hideout.path().display().to_string();
    assert_eq!(place.len(), HIDEOUT.len(), "{place}");
    let shown = |bytes: &[u8]| replaced(bytes, place.as_bytes(), HIDEOUT.as_bytes());
    let mut all = vec![(
        "kinds".to_owned(),
        tar(&[
            Entry::dir("d").mode(0o750),
            Entry::file("d/f", "content").xattr("user.x", "y").mtime(12, 5),
            Entry::symlink("s", HIDEOUT),
            Entry::file("s/in", "x"),
            Entry::hardlink("h", "d/f"),
            Entry::hardlink("out", format!("{HIDEOUT}/victim")),
            Entry::whiteout("d/gone"),
            Entry::opaque("d"),
            Entry::new("fifo", Kind::Fifo),
            Entry::new("null", Kind::Char(0, 0)),
            Entry::new("sparse", Kind::Sparse { size: 8192, extents: vec![(4096, vec![b'a'; 10])] }),
            Entry::file("long/".repeat(40), "x"),
        ]),
    )];
    for (at, case) in corpus::all(&hideout).into_iter().enumerate() {
        for (layer, found) in case.layers.iter().enumerate() {
            // Of the larger ones the tests of the corpus say all.
            if found.bytes.len() <= 4 << 10 {
                all.push((format!("case-{at:03}-{layer}"), shown(&found.bytes)));
            }
        }
    }
    all.into_iter().map(|(name, tar)| (name, [&[SUM][..], &tar].concat())).collect()
}
