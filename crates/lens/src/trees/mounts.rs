//! Mounts that are made of trees, as the kernel lists them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A mount that puts trees over each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Overlay {
    /// Its directories, the uppermost first; they may be relative to where whoever mounted it was.
    pub(super) layers: Vec<PathBuf>,
}

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    at: PathBuf,
    overlay: Option<Overlay>,
}

/// The kernel's list of mounts, as this process sees them; empty if it cannot be read.
pub(super) fn list() -> Vec<u8> {
    std::fs::read("/proc/self/mountinfo").unwrap_or_default()
}

/// The overlay that a directory is the mount point of in such a list: of several mounts on it the last is seen.
pub(super) fn overlay_in(list: &[u8], point: &Path) -> Option<Overlay> {
    list.split(|byte| *byte == b'\n').filter_map(parse).rfind(|mount| mount.at == point)?.overlay
}

/// Fields: number, parent, device, root, mount point, options, optional ones up to `-`, type, source, options of the file
/// system (proc(5)).
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let at = path(&unescaped(fields.nth(4)?));
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, _source, options) = (rest.next()?, rest.next()?, rest.next()?);
    let overlay = (kind == b"overlay").then(|| Overlay { layers: layers(&unescaped(options)) });
    Some(Mount { at, overlay })
}

/// The upper directory and those below it, from an overlay's options. A kernel may list each lower one by itself.
fn layers(options: &[u8]) -> Vec<PathBuf> {
    let mut layers = Vec::new();
    for option in options.split(|byte| *byte == b',') {
        if let Some(upper) = option.strip_prefix(b"upperdir=") {
            layers.insert(0, path(upper));
        } else if let Some(lower) = option.strip_prefix(b"lowerdir=") {
            layers.extend(lower.split(|byte| *byte == b':').filter(|one| !one.is_empty()).map(path));
        } else if let Some(lower) = option.strip_prefix(b"lowerdir+=") {
            layers.push(path(lower));
        }
    }
    layers
}

fn path(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

/// Blanks and the like are written as a backslash and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let digits = field.get(at + 1..at + 4).filter(|_| field[at] == b'\\');
        let octal = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(field[at]);
                at += 1;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[u8] = b"\
22 1 0:20 / / rw,relatime - ext4 /dev/sda1 rw
40 22 0:31 / /run/a rw,relatime shared:4 master:1 - overlay overlay rw,lowerdir=/s/2/fs:/s/1/fs,upperdir=/s/3/fs,workdir=/s/3/work
41 22 0:32 / /run/with\\040blank ro - overlay none ro,lowerdir=2/fs:1/fs,xino=off
42 22 0:33 / /run/new ro - overlay none ro,lowerdir+=/s/2/fs,lowerdir+=/s/1/fs
43 40 0:20 /x /run/a/etc/hosts rw - ext4 /dev/sda1 rw
44 22 0:34 / /run/a rw - tmpfs none rw
45 22 0:35 / /run/b rw - tmpfs none rw
46 22 0:36 / /run/b rw - overlay none rw,lowerdir=/s/9/fs
";

    fn layers_at(point: &str) -> Option<Vec<String>> {
        let overlay = overlay_in(LIST, Path::new(point))?;
        Some(overlay.layers.iter().map(|path| path.display().to_string()).collect())
    }

    #[test]
    fn an_overlay_is_its_upper_directory_and_those_below_from_the_top() {
        let first = LIST.split(|b| *b == b'\n').nth(1).unwrap();
        let overlay = overlay_in(first, Path::new("/run/a")).unwrap();
        assert_eq!(overlay.layers, ["/s/3/fs", "/s/2/fs", "/s/1/fs"].map(PathBuf::from));
        assert_eq!(layers_at("/run/with blank").unwrap(), ["2/fs", "1/fs"]);
        assert_eq!(layers_at("/run/new").unwrap(), ["/s/2/fs", "/s/1/fs"]);
    }

    #[test]
    fn of_several_mounts_on_a_directory_the_last_is_seen() {
        assert_eq!(layers_at("/run/a"), None);
        assert_eq!(layers_at("/run/b").unwrap(), ["/s/9/fs"]);
        assert_eq!(layers_at("/run"), None);
    }

    #[test]
    fn lines_of_another_form_are_passed_over() {
        for line in ["", "-", "1 2 3", "1 2 3:4 / /x rw - overlay", "1 2 3 / /x\\9 rw overlay none rw"] {
            assert_eq!(overlay_in(line.as_bytes(), Path::new("/x")), None, "{line}");
        }
    }
}
