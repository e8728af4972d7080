//! A store on a temporary root, and a driver whose trees are plain directories.

#![allow(dead_code, unreachable_pub, reason = "a module of several test programs, each of which uses a part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use orlop_content::MemoryStore;
use orlop_metadata::{Image, Labels, OpenOptions, Scope, Store};
use orlop_oci::{Descriptor, Digest};
use orlop_snapshot::{ApplyTarget, Driver, Error, Meta, Mount, Result, SnapshotId, Usage, Whiteouts};

/// A root that goes when dropped.
pub struct Root {
    pub store: Store,
    pub driver: Arc<PlainDriver>,
    pub content: MemoryStore,
    pub directory: tempfile::TempDir,
}

impl Root {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let content = MemoryStore::new();
        let driver = Arc::new(PlainDriver::new(directory.path()));
        let store = open(directory.path(), &content, &driver, false).unwrap();
        Self { store, driver, content, directory }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The same root opened again, as another process would.
    pub fn reopened(&self) -> Store {
        open(self.path(), &self.content, &self.driver, false).unwrap()
    }
}

pub fn open(
    root: &Path,
    content: &MemoryStore,
    driver: &Arc<PlainDriver>,
    read_only: bool,
) -> orlop_metadata::Result<Store> {
    let driver: Arc<dyn Driver> = driver.clone();
    Store::open(root, OpenOptions { content: Arc::new(content.clone()), drivers: vec![driver], read_only })
}

pub fn scope() -> Scope {
    Scope::new("test", "tests")
}

pub fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

pub fn target(text: &str) -> Descriptor {
    Descriptor::new("application/vnd.oci.image.manifest.v1+json", digest(text), text.len().max(1) as u64)
}

pub fn image(name: &str, text: &str) -> Image {
    let now = jiff::Timestamp::now();
    Image { name: name.to_owned(), target: target(text), labels: Labels::new(), created_at: now, updated_at: now }
}

pub fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

pub fn texts<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).to_vec()
}

type Hook = Box<dyn FnMut(&str) -> Result<()> + Send>;

/// Trees are `ROOT/snapshots/plain/<id>/fs`; `meta` is beside. A hook sees each call and may fail it.
pub struct PlainDriver {
    root: PathBuf,
    hook: Mutex<Option<Hook>>,
    rebase: bool,
}

impl PlainDriver {
    pub fn new(root: &Path) -> Self {
        let root = root.join("snapshots/plain");
        fs::create_dir_all(&root).unwrap();
        Self { root, hook: Mutex::new(None), rebase: true }
    }

    pub fn without_rebase(mut self) -> Self {
        self.rebase = false;
        self
    }

    /// Has `hook` called with `create`, `mounts`, `commit` at the start of these calls.
    pub fn hook(&self, hook: impl FnMut(&str) -> Result<()> + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }

    pub fn unhook(&self) {
        *self.hook.lock().unwrap() = None;
    }

    fn call(&self, name: &str) -> Result<()> {
        let hook = self.hook.lock().unwrap().take();
        let Some(mut hook) = hook else { return Ok(()) };
        let result = hook(name);
        self.hook.lock().unwrap().get_or_insert(hook);
        result
    }

    fn tree(&self, id: SnapshotId) -> PathBuf {
        self.root.join(id.0.to_string())
    }

    fn write_meta(&self, id: SnapshotId, meta: &Meta) -> Result<()> {
        let text = format!("{}\n{}\n{}\n{:?}", meta.namespace, meta.key, meta.kind, meta.parent);
        fs::write(self.tree(id).join("meta"), text).map_err(|e| io("write", &self.tree(id), e))
    }
}

pub fn refused() -> Error {
    Error::Unsupported { what: "this", reason: "the test says so".to_owned() }
}

fn io(operation: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io { operation, path: path.to_owned(), source }
}

impl Driver for PlainDriver {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn create(&self, id: SnapshotId, parents: &[SnapshotId], meta: &Meta) -> Result<()> {
        self.call("create")?;
        assert_eq!(meta.parent, parents.first().map(|p| p.0));
        assert!(!self.tree(id).exists(), "an id is never used twice");
        for parent in parents {
            assert!(self.tree(*parent).is_dir(), "a parent's tree is there");
        }
        fs::create_dir_all(self.tree(id).join("fs")).map_err(|e| io("create", &self.tree(id), e))?;
        self.write_meta(id, meta)
    }

    fn mounts(&self, id: SnapshotId, parents: &[SnapshotId], writable: bool) -> Result<Vec<Mount>> {
        self.call("mounts")?;
        let mut options = vec![if writable { "rw" } else { "ro" }.to_owned()];
        options.extend(parents.iter().map(|p| format!("below={}", p.0)));
        let source = self.tree(id).join("fs").to_string_lossy().into_owned();
        Ok(vec![Mount { kind: "bind".to_owned(), source, options }])
    }

    fn commit(&self, id: SnapshotId, parents: &[SnapshotId], meta: &Meta) -> Result<Usage> {
        self.call("commit")?;
        assert_eq!(meta.parent, parents.first().map(|p| p.0));
        assert!(self.tree(id).is_dir());
        self.write_meta(id, meta)?;
        self.usage(id)
    }

    fn usage(&self, id: SnapshotId) -> Result<Usage> {
        let entries = fs::read_dir(self.tree(id).join("fs")).map_err(|e| io("read", &self.tree(id), e))?;
        let mut usage = Usage::default();
        for entry in entries.flatten() {
            usage.inodes += 1;
            usage.bytes += entry.metadata().map_or(0, |m| m.len());
        }
        Ok(usage)
    }

    fn remove(&self, id: SnapshotId, trash: Option<&Path>) -> Result<()> {
        let tree = self.tree(id);
        let removed = match trash {
            Some(trash) => fs::create_dir_all(trash).and_then(|()| fs::rename(&tree, trash.join(id.0.to_string()))),
            None => fs::remove_dir_all(&tree),
        };
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io("remove", &tree, e)),
            _ => Ok(()),
        }
    }

    fn list(&self) -> Result<Vec<(SnapshotId, Option<Meta>)>> {
        let entries = fs::read_dir(&self.root).map_err(|e| io("read", &self.root, e))?;
        Ok(entries
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
            .map(|id| (SnapshotId(id), None))
            .collect())
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn supports_rebase(&self) -> bool {
        self.rebase
    }

    fn apply_target(&self, id: SnapshotId) -> ApplyTarget {
        ApplyTarget {
            root: self.tree(id).join("fs"),
            whiteouts: Whiteouts::Delete,
            deferred: None,
            applied: None,
            image: None,
        }
    }
}
