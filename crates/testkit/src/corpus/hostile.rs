//! Layers that try to reach outside their root.

use std::fs::{File, FileTimes};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use orlop_oci::{Compression, DiffId, Digest};

use super::{Case, Layer};
use crate::compress;
use crate::fingerprint::{self, Fingerprint};
use crate::tar::{Entry, Kind, TarBuilder};

/// A directory outside the root that hostile layers aim at, with files that must stay as they are.
#[derive(Debug)]
pub struct Hideout {
    path: PathBuf,
    /// Modes, owners, times, attributes and content, as it was made.
    before: Fingerprint,
}

/// When everything in a hideout was last changed: long ago, so that a change shows.
const LONG_AGO: Duration = Duration::from_secs(1_000_000_000);

impl Hideout {
    /// Makes `parent/hideout` with a file, a subdirectory and a file in that.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(parent: &Path) -> io::Result<Self> {
        let path = parent.join("hideout");
        std::fs::create_dir_all(path.join("sub"))?;
        std::fs::write(path.join("victim"), "untouched")?;
        std::fs::write(path.join("sub/victim"), "untouched")?;
        for name in ["victim", "sub/victim", "sub", ""] {
            let times = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + LONG_AGO);
            File::open(path.join(name))?.set_times(times)?;
        }
        let before = Fingerprint::of(&path, &fingerprint::Options::default())?;
        Ok(Self { path, before })
    }

    /// Where it is; absolute if `parent` was.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fails with a sentence if anything in it changed.
    ///
    /// # Errors
    /// What changed.
    pub fn check(&self) -> Result<(), String> {
        let mut found = Vec::new();
        list(&self.path, &mut found).map_err(|e| format!("{}: {e}", self.path.display()))?;
        found.sort();
        let expected: Vec<PathBuf> = ["sub", "sub/victim", "victim"].iter().map(|p| self.path.join(p)).collect();
        if found != expected {
            return Err(format!("outside the root there is now {found:?}, expected {expected:?}"));
        }
        for victim in ["victim", "sub/victim"] {
            let path = self.path.join(victim);
            let content = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            let links = std::os::unix::fs::MetadataExt::nlink(&path.metadata().map_err(|e| e.to_string())?);
            if content != b"untouched" || links != 1 {
                return Err(format!("{} was changed: {links} links, {content:?}", path.display()));
            }
        }
        let now = Fingerprint::of(&self.path, &fingerprint::Options::default()).map_err(|e| e.to_string())?;
        let changed = self.before.diff(&now);
        if changed.is_empty() { Ok(()) } else { Err(changed.join("\n")) }
    }
}

fn list(dir: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        found.push(entry.path());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// Every hostile case, aimed at `hideout`.
pub fn hostile(hideout: &Hideout) -> Vec<Case> {
    let outside = hideout.path.to_str().expect("a temporary directory's name is UTF-8");
    [
        paths(outside),
        symlinks(outside),
        hardlinks(outside),
        whiteouts(outside),
        overlay(),
        limits(),
        media_types(),
        super::known::known(outside),
    ]
    .concat()
}

fn paths(outside: &str) -> Vec<Case> {
    let up = format!("{}{outside}", "../".repeat(40));
    let case = |name, path: &str| Case::contained(name).layer(&[Entry::file(path, "evil")]);
    vec![
        case("a path that climbs out", &format!("{up}/evil")),
        case("a path that climbs out after going in", &format!("a/b/../../{up}/evil")),
        case("an absolute path", &format!("{outside}/evil")),
        case("an absolute path with slashes", &format!("///{outside}/evil")),
        case("a path that overwrites outside", &format!("{up}/victim")),
        case("the parent itself", ".."),
        case("a file that is the root", "."),
        case("a file that is the root, as slash", "/"),
        case("an empty name", ""),
        Case::contained("a climbing directory").layer(&[Entry::dir(format!("{up}/evil")).mode(0o777)]),
        Case::contained("a climbing directory that exists").layer(&[Entry::dir(format!("{up}/sub")).mode(0o777)]),
        Case::contained("a climbing device").layer(&[Entry::new(format!("{up}/evil"), Kind::Char(1, 3))]),
        Case::contained("a PAX path that climbs behind a harmless name")
            .layer(&[Entry::file("harmless", "evil").pax("path", format!("{up}/evil"))]),
        Case::contained("a global PAX path").tar(
            &TarBuilder::new()
                .pax_header(b'g', &[("path".to_owned(), format!("{up}/evil").into_bytes())])
                .push(&Entry::file("f", "evil"))
                .finish(),
        ),
        Case::contained("a climbing sparse name").layer(&[Entry::new(
            format!("{up}/evil"),
            Kind::Sparse { size: 100, extents: vec![(0, b"evil".to_vec())] },
        )]),
    ]
}

fn symlinks(outside: &str) -> Vec<Case> {
    let up = format!("{}{outside}", "../".repeat(40));
    let through = |name, target: &str| {
        Case::contained(name).layer(&[
            Entry::symlink("link", target),
            Entry::file("link/evil", "evil"),
            Entry::file("link/victim", "evil"),
            Entry::dir("link/sub").mode(0o777),
        ])
    };
    vec![
        through("through an absolute symlink", outside),
        through("through a climbing symlink", &up),
        Case::contained("through a symlink of a lower layer").layer(&[Entry::symlink("link", outside)]).layer(&[
            Entry::file("link/evil", "evil"),
            Entry::dir("link"),
            Entry::file("link/victim", "evil"),
        ]),
        Case::contained("through a chain of symlinks").layer(&[
            Entry::dir("d"),
            Entry::symlink("d/a", "b/../../c"),
            Entry::symlink("d/b", ".."),
            Entry::symlink("c", outside),
            Entry::file("d/a/evil", "evil"),
        ]),
        Case::contained("a directory that turns into a symlink").layer(&[
            Entry::dir("d"),
            Entry::file("d/ok", "x"),
            Entry::symlink("d", outside),
            Entry::file("d/evil", "evil"),
        ]),
        Case::contained("a file over a symlink must not follow it")
            .layer(&[Entry::symlink("link", format!("{outside}/victim")), Entry::file("link", "evil")]),
        Case::contained("a directory over a symlink must not change its target")
            .layer(&[Entry::symlink("link", format!("{outside}/sub")), Entry::dir("link").mode(0o777).owner(1, 1)]),
        Case::contained("the root becomes a symlink").layer(&[Entry::symlink("./", outside), Entry::file("evil", "x")]),
        Case::contained("symlinks in a loop on the way").layer(&[
            Entry::symlink("a", "b"),
            Entry::symlink("b", "a"),
            Entry::file("a/f", "x"),
        ]),
        Case::contained("a file on the way").layer(&[Entry::file("f", "x"), Entry::file("f/below", "y")]),
        Case::contained("a fifo on the way").layer(&[Entry::new("f", Kind::Fifo), Entry::file("f/below", "y")]),
        Case::contained("a fifo that is written to").layer(&[Entry::new("f", Kind::Fifo), Entry::file("f", "y")]),
        Case::contained("into /proc through a symlink")
            .layer(&[Entry::symlink("p", "/proc/self/cwd"), Entry::file("p/evil", "x")]),
        Case::contained("into an open directory through /proc")
            .layer(&[Entry::symlink("p", "/proc/self/root"), Entry::file(format!("p{outside}/evil"), "x")]),
    ]
}

fn hardlinks(outside: &str) -> Vec<Case> {
    let up = format!("{}{outside}", "../".repeat(40));
    let case = |name, target: String| {
        Case::contained(name).layer(&[Entry::hardlink("link", target), Entry::file("link", "evil").mode(0o777)])
    };
    vec![
        case("a hard link to an absolute path outside", format!("{outside}/victim")),
        case("a hard link that climbs out", format!("{up}/victim")),
        Case::contained("a hard link through a symlink").layer(&[
            Entry::symlink("dir", outside),
            Entry::hardlink("link", "dir/victim"),
            Entry::file("link", "evil"),
        ]),
        Case::contained("a hard link to a symlink that points outside, then a write through it").layer(&[
            Entry::symlink("s", format!("{outside}/victim")),
            Entry::hardlink("h", "s"),
            Entry::file("h", "evil"),
        ]),
        Case::contained("mode and owner of a hard link to a symlink must not reach its target").layer(&[
            Entry::symlink("s", format!("{outside}/victim")),
            Entry::hardlink("h", "s").mode(0o777).owner(1, 1).xattr("user.evil", "1"),
        ]),
        Case::contained("a hard link to itself").layer(&[Entry::file("f", "x"), Entry::hardlink("f", "f")]),
        Case::contained("a hard link placed outside")
            .layer(&[Entry::file("f", "evil"), Entry::hardlink(format!("{up}/evil"), "f")]),
        Case::contained("a hard link to the root").layer(&[Entry::hardlink("l", "/")]),
        Case::contained("a hard link to an empty name").layer(&[Entry::hardlink("l", "")]),
    ]
}

fn whiteouts(outside: &str) -> Vec<Case> {
    let up = format!("{}{outside}", "../".repeat(40));
    vec![
        Case::contained("a whiteout that climbs out").layer(&[Entry::whiteout(&format!("{up}/victim"))]),
        Case::contained("a whiteout through a symlink").layer(&[
            Entry::symlink("l", outside),
            Entry::whiteout("l/victim"),
            Entry::whiteout("l/sub"),
        ]),
        Case::contained("a whiteout through a symlink of a lower layer")
            .layer(&[Entry::symlink("l", outside)])
            .layer(&[Entry::whiteout("l/victim")]),
        Case::contained("an opaque mark through a symlink").layer(&[Entry::symlink("l", outside), Entry::opaque("l")]),
        Case::contained("an opaque mark that climbs out").layer(&[Entry::opaque(&up)]),
        Case::contained("whiteouts of dot, dot-dot and nothing")
            .layer(&[Entry::dir("d"), Entry::file("d/f", "x")])
            .layer(&[Entry::file("d/.wh..", ""), Entry::file("d/.wh...", ""), Entry::file("d/.wh.", "")]),
        Case::contained("a whiteout of dot-dot at the root")
            .layer(&[Entry::file(".wh...", ""), Entry::file(".wh..", "")]),
        Case::contained("whiteouts that are no files").layer(&[
            Entry::dir(".wh.dir"),
            Entry::file(".wh.dir/below", "x"),
            Entry::symlink(".wh.link", outside),
            Entry::hardlink(".wh.hard", format!("{outside}/victim")),
        ]),
        Case::contained("a name, then its whiteout in the same layer")
            .layer(&[Entry::file("f", "x"), Entry::whiteout("f")]),
    ]
}

/// What overlayfs itself gives a meaning to.
fn overlay() -> Vec<Case> {
    let attribute = |name, key: &str, value: &str| {
        Case::contained(name)
            .layer(&[Entry::dir("lower"), Entry::file("lower/secret", "s"), Entry::file("f", "below")])
            .layer(&[Entry::dir("d").xattr(key, value), Entry::file("f", "above").xattr(key, value)])
    };
    vec![
        Case::contained("a device 0/0, which overlayfs takes for a whiteout")
            .layer(&[Entry::file("f", "below")])
            .layer(&[Entry::new("f", Kind::Char(0, 0)).mode(0)]),
        attribute("an overlay redirect of a directory", "trusted.overlay.redirect", "/lower"),
        attribute("an overlay redirect for users", "user.overlay.redirect", "/lower"),
        attribute("an overlay metacopy", "trusted.overlay.metacopy", ""),
        attribute("an overlay opaque mark", "trusted.overlay.opaque", "y"),
        attribute("an overlay opaque mark for users", "user.overlay.opaque", "y"),
        attribute("an overlay whiteout attribute", "trusted.overlay.whiteout", "y"),
        attribute("an overlay origin", "trusted.overlay.origin", "x"),
        attribute("a name in no namespace of attributes", "nonsense", "x"),
        attribute("an attribute of another security module", "security.selinux", "system_u:object_r:etc_t:s0"),
    ]
}

fn limits() -> Vec<Case> {
    let component = "long-component-of-a-path/";
    let path = component.repeat(5_000 / component.len());
    let big = vec![b'x'; 4 << 20];
    vec![
        Case::contained("a path of 5,000 bytes").layer(&[Entry::file(format!("{path}file"), "x")]),
        Case::contained("a link target of 5,000 bytes").layer(&[Entry::symlink("l", &path)]),
        Case::contained("a PAX record of 4 MiB").layer(&[Entry::file("f", "x").pax("comment", &big)]),
        Case::contained("an attribute of 1 MiB").layer(&[Entry::file("f", "x").xattr("user.big", &big[..1 << 20])]),
        Case::contained("a thousand attributes")
            .layer(&[(0..1000).fold(Entry::file("f", "x"), |e, i| e.xattr(&format!("user.a{i}"), "v"))]),
        Case::contained("a directory tree 1,000 levels deep")
            .layer(&[Entry::file(format!("{}f", "d/".repeat(1000)), "x")]),
        Case::contained("an unknown type of entry").layer(&[Entry::new("u", Kind::Other(b'Z', b"data".to_vec()))]),
        Case::contained("a contiguous file").layer(&[Entry::new("c", Kind::Other(b'7', b"data".to_vec()))]),
        Case::contained("a volume label").layer(&[Entry::new("label", Kind::Other(b'V', Vec::new()))]),
        Case::contained("a socket's worth of device bits").layer(&[Entry::new("c", Kind::Char(0x1f_ffff, 0x1f_ffff))]),
        Case::contained("garbage after the end of the tar").tar(&garbage()),
        Case::contained("an owner beyond 32 bits").layer(&[Entry::file("f", "x").owner(1 << 40, 1 << 40)]),
        Case::contained("a time beyond the file system's").layer(&[Entry::file("f", "x").mtime(1 << 60, 0)]),
        Case::contained("a sparse file of eight exbibytes")
            .layer(&[Entry::new("f", Kind::Sparse { size: i64::MAX as u64, extents: vec![] })]),
    ]
}

/// Bytes that are packed otherwise than the media type says. containerd looks at the bytes.
fn media_types() -> Vec<Case> {
    let bytes = crate::tar::tar(&[Entry::file("f", "x")]);
    let case = |name, packed, said| {
        let diff_id = Some(DiffId::new(Digest::of(&bytes)));
        Case::contained(name).packed(Layer { compression: said, bytes: packed, diff_id })
    };
    vec![
        case("gzip that is plain tar", bytes.clone(), Compression::Gzip),
        case("zstd that is gzip", compress::gzip(&bytes), Compression::Zstd),
        case("plain tar that is zstd", compress::zstd(&bytes), Compression::None),
        case("gzip that is zstd", compress::zstd(&bytes), Compression::Gzip),
        Case::contained("gzip of no bytes at all").packed(Layer::broken(Vec::new(), Compression::Gzip)),
    ]
}

fn garbage() -> Vec<u8> {
    [crate::tar::tar(&[Entry::file("f", "x")]), b"garbage".repeat(1000)].concat()
}
