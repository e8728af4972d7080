//! Each snapshotter's own `metadata.db`: what its snapshots are and take, and in which directories they are.
//!
//! Its buckets are `v1/snapshots/KEY`; the key is what `meta.db` has as a snapshot's `name`.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop_bolt::{Db, Entry};
use orlop_graph::model::{Gap, Labels, SnapshotKind, SnapshotRow, Usage};

use super::fields::{Broken, Fields, text};
use super::file;
use super::metadata::Named;
use super::places::{self, SNAPSHOTTER};
use super::{Error, Stored, Unlisted, own};
use crate::trees::Tree;

/// What a snapshotter's database is called.
const DATABASE: &str = "metadata.db";

/// Snapshotters that count a snapshot together with those below and take the difference when they are asked, or ask their
/// pool: what they wrote down is not what a snapshot takes.
const OWN_COUNT: [&str; 2] = ["blockfile", "devmapper"];

/// A snapshot as its snapshotter knows it.
struct Backend {
    id: u64,
    kind: SnapshotKind,
    usage: Option<Usage>,
    labels: Labels,
}

/// What a snapshotter's database says.
#[derive(Default)]
pub(super) struct Snapshotter {
    snapshots: HashMap<String, Backend>,
    gaps: Vec<(String, String)>,
}

/// Databases of snapshotters that were read before it was known whose snapshots are listed.
#[derive(Default)]
pub(super) struct Ahead(HashMap<String, Result<Snapshotter, String>>);

impl Ahead {
    /// Reads those of every snapshotter that was ever used.
    pub(super) fn read(root: &Path) -> Self {
        let databases = directories(root).unwrap_or_default().into_iter();
        let used = databases.map(|(name, at)| (name, at.join(DATABASE))).filter(|(_, path)| path.exists());
        let found = used.map(|(name, path)| {
            let known = file::database(&path, |db| read(db, &name));
            (name, known)
        });
        Self(found.collect())
    }

    fn take(&mut self, name: &str, path: &Path) -> Result<Snapshotter, String> {
        self.0.remove(name).unwrap_or_else(|| file::database(path, |db| read(db, name)))
    }
}

/// Fills in what snapshots are, as far as `ahead` has it not read already; what no namespace has is looked for if `others` says so.
pub(super) fn fill(
    root: &Path,
    named: Vec<Named>,
    others: bool,
    mut ahead: Ahead,
    stored: &mut Stored,
) -> Result<(), Error> {
    let mut by_snapshotter: HashMap<Arc<str>, Vec<Named>> = HashMap::new();
    for one in named {
        by_snapshotter.entry(one.row.snapshotter.clone()).or_default().push(one);
    }
    let listed = file::names(root).map_err(Error::io("listing", root))?;
    let mut here: Vec<&str> = listed.iter().filter_map(|name| name.to_str()?.strip_prefix(SNAPSHOTTER)).collect();
    here.sort_unstable();
    for name in here {
        let of_it = by_snapshotter.remove(name).unwrap_or_default();
        // Whether a snapshotter was ever used, its database says: made when it first is.
        let directory = places::snapshotter(root, name);
        if !of_it.is_empty() || (others && directory.join(DATABASE).exists()) {
            let known = ahead.take(name, &directory.join(DATABASE));
            one(name, &directory, known, of_it, others, stored);
        }
    }
    let mut elsewhere: Vec<_> = by_snapshotter.into_iter().collect();
    elsewhere.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, of_it) in elsewhere {
        let what = format!("what the {} snapshots of {name} are and take", of_it.len());
        let why = format!("there is no {SNAPSHOTTER}{name} in this root: the snapshotter keeps its files elsewhere");
        stored.inventory.gaps.push(Gap { what, why });
        stored.inventory.snapshots.extend(of_it.into_iter().map(|named| named.row));
    }
    stored
        .inventory
        .snapshots
        .sort_by(|a, b| (a.namespace, &a.snapshotter, &a.key).cmp(&(b.namespace, &b.snapshotter, &b.key)));
    Ok(())
}

fn one(
    name: &str,
    directory: &Path,
    known: Result<Snapshotter, String>,
    named: Vec<Named>,
    others: bool,
    stored: &mut Stored,
) {
    let path = directory.join(DATABASE);
    let mut known = match known {
        Ok(known) => known,
        Err(why) => {
            let what = format!("what the {} snapshots of {name} are and take", named.len());
            stored.inventory.gaps.push(Gap { what, why });
            // Which directory is whose, nobody knows.
            if named.is_empty() && others {
                unlisted(name, directory, &HashSet::new(), HashMap::new(), stored);
            }
            stored.inventory.snapshots.extend(named.into_iter().map(|named| named.row));
            return;
        }
    };
    let (whole, nothing) = (known.gaps.is_empty(), named.is_empty());
    let told = |(what, why)| Gap { what, why: format!("{}: {why}", path.display()) };
    stored.inventory.gaps.extend(known.gaps.drain(..).map(told));
    let mut used = HashSet::new();
    for Named { row, backend } in named {
        match known.snapshots.remove(&backend) {
            Some(found) => {
                used.insert(found.id);
                known_to(others.then_some(directory), row, found, stored);
            }
            // containerd leaves it out of its lists.
            None if whole => {
                let what = format!("snapshot {} of {name}", row.key);
                let why = format!("{} has no {backend:?}: the snapshotter does not know it", path.display());
                stored.inventory.gaps.push(Gap { what, why });
            }
            None => stored.inventory.snapshots.push(row),
        }
    }
    // Otherwise which directory is whose, nobody knows.
    if others && (whole || nothing) {
        unlisted(name, directory, &used, known.snapshots, stored);
    }
}

/// Takes in a snapshot that both databases have, with its place if somebody wants to know.
fn known_to(directory: Option<&Path>, mut row: SnapshotRow, found: Backend, stored: &mut Stored) {
    row.kind = found.kind;
    row.usage = found.usage;
    // As over the API: what the snapshotter has, and over it what the namespace has.
    if !found.labels.is_empty() {
        row.labels = found.labels.iter().chain(row.labels.iter()).collect();
    }
    if let Some(directory) = directory {
        let at = directory.join("snapshots").join(found.id.to_string());
        stored.directories.insert((row.namespace, row.snapshotter.clone(), row.key.clone()), at);
    }
    stored.inventory.snapshots.push(row);
}

/// What of a snapshotter no namespace has.
fn unlisted(name: &str, directory: &Path, used: &HashSet<u64>, rest: HashMap<String, Backend>, stored: &mut Stored) {
    let snapshotter: Arc<str> = name.into();
    let mut keys: HashMap<u64, String> = rest.into_iter().map(|(key, found)| (found.id, key)).collect();
    let trees = directory.join("snapshots");
    let mut names = file::names(&trees).unwrap_or_default();
    names.sort_unstable();
    let number = |name: &std::ffi::OsString| name.to_str().and_then(|name| name.parse::<u64>().ok());
    for name in names.into_iter().filter(|name| number(name).is_none_or(|id| !used.contains(&id))) {
        let key = number(&name).and_then(|id| keys.remove(&id));
        let directory = Some(trees.join(name));
        stored.unlisted.push(Unlisted::Snapshot { snapshotter: snapshotter.clone(), directory, key });
    }
    let mut rest: Vec<String> = keys.into_values().collect();
    rest.sort_unstable();
    let without = |key| Unlisted::Snapshot { snapshotter: snapshotter.clone(), directory: None, key: Some(key) };
    stored.unlisted.extend(rest.into_iter().map(without));
}

fn read(db: &Db<'_>, name: &str) -> Snapshotter {
    let mut read = Snapshotter::default();
    if let Some(damaged) = db.damaged_meta() {
        read.gaps
            .push((format!("the last changes of the snapshots of {name}, if there were any"), damaged.to_string()));
    }
    let bucket = db.root().bucket(b"v1").and_then(|v1| v1.map_or(Ok(None), |v1| v1.bucket(b"snapshots")));
    let bucket = match bucket {
        Ok(Some(bucket)) => bucket,
        Ok(None) => return read,
        Err(error) => {
            read.gaps.push((format!("what the snapshots of {name} are and take"), error.to_string()));
            return read;
        }
    };
    for entry in bucket.iter() {
        let (key, bucket) = match entry {
            Ok((key, Entry::Bucket(bucket))) => (key, bucket),
            Ok(_) => continue,
            Err(error) => {
                read.gaps.push((format!("what some snapshots of {name} are and take"), error.to_string()));
                continue;
            }
        };
        let found = text("a key", &key).and_then(|key| Ok((key.to_owned(), backend(name, &Fields::of(&bucket)?)?)));
        match found {
            Ok((key, found)) => drop(read.snapshots.insert(key, found)),
            Err(error) => {
                let what = format!("what snapshot {} of {name} is and takes", String::from_utf8_lossy(&key));
                read.gaps.push((what, error.to_string()));
            }
        }
    }
    read
}

fn backend(snapshotter: &str, fields: &Fields<'_, '_>) -> Result<Backend, Broken> {
    let kind = match fields.byte("kind") {
        Some(1) => SnapshotKind::View,
        Some(2) => SnapshotKind::Active,
        Some(3) => SnapshotKind::Committed,
        other => {
            let expected = "1 (view), 2 (active) or 3 (committed)";
            return Err(Broken::Field { name: "kind", found: format!("{other:?}"), expected });
        }
    };
    let id = fields.unsigned("id")?;
    let id = id.ok_or(Broken::Field { name: "id", found: "nothing".into(), expected: "a number" })?;
    let count = |number: Option<i64>| number.and_then(|number| number.try_into().ok());
    let (bytes, inodes) = (count(fields.number("size")?), count(fields.number("inodes")?));
    let usage = match (kind, bytes, inodes) {
        _ if OWN_COUNT.contains(&snapshotter) => None,
        (SnapshotKind::Committed, Some(bytes), Some(inodes)) => Some(Usage { bytes, inodes }),
        // Nobody writes to it, and it has no files of its own.
        (SnapshotKind::View, None, None) if tree(snapshotter, Path::new("")).is_some() => Some(Usage::default()),
        _ => None,
    };
    Ok(Backend { id, kind, usage, labels: fields.labels()? })
}

/// Every snapshotter with files in a root, and its directory.
pub(crate) fn directories(root: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let listed = file::names(root).map_err(Error::io("listing", root))?;
    let named = |name: OsString| name.to_str()?.strip_prefix(SNAPSHOTTER).map(|s| (s.to_owned(), root.join(&name)));
    Ok(listed.into_iter().filter_map(named).collect())
}

/// The trees in a snapshotter's directory.
///
/// # Errors
/// In words: its form is not known, or it cannot be read.
pub(crate) fn trees(snapshotter: &str, directory: &Path) -> Result<Vec<Tree>, String> {
    if tree(snapshotter, directory).is_none() {
        return Err(format!("in which form {snapshotter} keeps them is not known"));
    }
    let path = directory.join(DATABASE);
    if !path.exists() {
        return own::trees(snapshotter, directory);
    }
    let known = file::database(&path, |db| read(db, snapshotter))?;
    // `NAMESPACE/NUMBER/KEY`; what else may be there, no containerd has written.
    let place = |(name, found): (String, Backend)| {
        let mut parts = name.splitn(3, '/');
        let (namespace, _, key) = (parts.next()?, parts.next()?, parts.next()?);
        let directory = directory.join("snapshots").join(found.id.to_string());
        Some(Tree {
            namespace: namespace.to_owned(),
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            files: tree(snapshotter, &directory)?,
            directory,
        })
    };
    let mut trees: Vec<Tree> = known.snapshots.into_iter().filter_map(place).collect();
    trees.sort_by(|a, b| (&a.namespace, &a.key).cmp(&(&b.namespace, &b.key)));
    Ok(trees)
}

/// Where the files of a snapshot are, of snapshotters whose usage is what those take.
pub(super) fn tree(snapshotter: &str, directory: &Path) -> Option<PathBuf> {
    match snapshotter {
        "overlayfs" => Some(directory.join("fs")),
        "native" => Some(directory.to_owned()),
        _ => None,
    }
}

/// What a tree takes: the blocks of each inode once, its own too.
pub(super) fn disk_usage(tree: &Path) -> io::Result<Usage> {
    let (mut usage, mut seen) = (Usage::default(), HashSet::new());
    let mut ahead = vec![tree.to_owned()];
    while let Some(path) = ahead.pop() {
        let context = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let metadata = path.symlink_metadata().map_err(context)?;
        if seen.insert((metadata.dev(), metadata.ino())) {
            usage.bytes += metadata.blocks() * 512;
            usage.inodes += 1;
        }
        if metadata.is_dir() {
            ahead.extend(file::names(&path).map_err(context)?.into_iter().map(|name| path.join(name)));
        }
    }
    Ok(usage)
}
