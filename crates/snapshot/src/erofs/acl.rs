//! POSIX access lists as the kernel keeps them: checked, and in step with the mode (acl(5)).
//!
//! On a directory of another file system the kernel does this when the attribute is set and the mode after it; in an image
//! nobody does it but us.

use rustix::io::Errno;

use super::format::take;

const VERSION: u32 = 2;
const ENTRY: usize = 8;

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Entries that have no number of their own have this one.
const NOBODY: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// The access list of a file with these permissions; `None` where the mode says it all.
///
/// # Errors
/// What setting it would fail with.
pub(super) fn access(value: &[u8], mode: u32) -> Result<Option<Vec<u8>>, Errno> {
    let mut entries = parse(value)?;
    if entries.iter().all(|entry| matches!(entry.tag, USER_OBJ | GROUP_OBJ | OTHER)) {
        return Ok(None);
    }
    let masked = entries.iter().any(|entry| entry.tag == MASK);
    for entry in &mut entries {
        entry.permissions = match entry.tag {
            USER_OBJ => (mode >> 6) as u16 & 7,
            MASK => (mode >> 3) as u16 & 7,
            GROUP_OBJ if !masked => (mode >> 3) as u16 & 7,
            OTHER => mode as u16 & 7,
            _ => entry.permissions,
        };
    }
    Ok(Some(encode(&entries)))
}

/// The list that a directory hands down; `None` if it is empty.
///
/// # Errors
/// What setting it would fail with.
pub(super) fn default(value: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let entries = parse(value)?;
    Ok((!entries.is_empty()).then(|| encode(&entries)))
}

fn parse(value: &[u8]) -> Result<Vec<Entry>, Errno> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    if value.len() < 4 || !(value.len() - 4).is_multiple_of(ENTRY) {
        return Err(Errno::INVAL);
    }
    if u32::from_le_bytes(take(value, 0)) != VERSION {
        return Err(Errno::OPNOTSUPP);
    }
    let entries: Vec<Entry> = value[4..]
        .chunks_exact(ENTRY)
        .map(|bytes| Entry {
            tag: u16::from_le_bytes(take(bytes, 0)),
            permissions: u16::from_le_bytes(take(bytes, 2)),
            id: u32::from_le_bytes(take(bytes, 4)),
        })
        .collect();
    if entries.is_empty() || is_valid(&entries) { Ok(entries) } else { Err(Errno::INVAL) }
}

/// One entry for the owner, the group and the others each, in this order, with those of further users and groups in between,
/// and a mask if there are such.
fn is_valid(entries: &[Entry]) -> bool {
    let tags: Vec<u16> = entries.iter().map(|entry| entry.tag).collect();
    let once = |tag| tags.iter().filter(|other| **other == tag).count() == 1;
    let further = |entry: &Entry| matches!(entry.tag, USER | GROUP);
    let named = entries.iter().any(further);
    let masks = tags.iter().filter(|tag| **tag == MASK).count();
    tags.is_sorted()
        && [USER_OBJ, GROUP_OBJ, OTHER].into_iter().all(once)
        && tags.iter().all(|tag| [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].contains(tag))
        && masks <= 1
        && (masks == 1 || !named)
        && entries.iter().all(|entry| entry.permissions <= 7 && (!further(entry) || entry.id != NOBODY))
}

fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for Entry { tag, permissions, id } in entries {
        let id = if matches!(*tag, USER | GROUP) { *id } else { NOBODY };
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use orlop_testkit::process::need_root;

    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entries = entries.iter().map(|&(tag, permissions, id)| Entry { tag, permissions, id });
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for Entry { tag, permissions, id } in entries {
            bytes.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    /// The kernel is the judge: what it makes of a list on a file of its own is what comes out here.
    #[test]
    fn lists_become_what_the_kernel_makes_of_them() {
        if !need_root() {
            return;
        }
        let plain = [(USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 0, NOBODY)];
        let named = [(USER_OBJ, 7, 0), (USER, 6, 5), (GROUP_OBJ, 5, 1), (GROUP, 4, 9), (MASK, 6, 0), (OTHER, 1, 0)];
        let cases = [
            list(&plain),
            list(&named),
            list(&[named[0], named[2], named[4], named[5]]),
            list(&[named[0], named[1], named[2], named[5]]),
            list(&[named[2], named[0], named[5]]),
            list(&[named[0], named[2], named[2], named[5]]),
            list(&[named[0], (USER, 9, 5), named[2], named[4], named[5]]),
            list(&[named[0], (USER, 6, NOBODY), named[2], named[4], named[5]]),
            list(&[named[0], named[2]]),
            list(&[]),
            Vec::new(),
            vec![2, 0, 0],
            vec![3, 0, 0, 0],
            list(&plain)[..13].to_vec(),
        ];
        let dir = tempfile::tempdir().unwrap();
        for (at, case) in cases.iter().enumerate() {
            for mode in [0o640, 0o777, 0o4701] {
                let path = dir.path().join(format!("{at}-{mode}"));
                std::fs::write(&path, "").unwrap();
                let flags = rustix::fs::XattrFlags::empty();
                let set = rustix::fs::setxattr(&path, "system.posix_acl_access", case, flags);
                rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(mode)).unwrap();
                let mut value = vec![0; 1024];
                let theirs = set.map(|()| {
                    let length = rustix::fs::getxattr(&path, "system.posix_acl_access", &mut value[..]);
                    length.ok().map(|length| value[..length].to_vec())
                });
                assert_eq!(access(case, mode), theirs, "{at} {mode:o} {case:?}");
            }
        }
    }
}
