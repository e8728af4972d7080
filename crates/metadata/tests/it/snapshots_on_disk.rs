//! The same rules over the real drivers: what was written into a layer is seen through those above it, and what is
//! removed leaves the disk with the next collection.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::support::{labels, scope};
use orlop_content::MemoryStore;
use orlop_metadata::gc::Disposal;
use orlop_metadata::{OpenOptions, ScopedSnapshots, Store};
use orlop_snapshot::{Driver, NativeDriver, OverlayDriver, TempMount};

fn layer(snapshots: &ScopedSnapshots, name: &str, parent: &str, files: &[(&str, &str)]) {
    let key = format!("extract {name}");
    snapshots.prepare(&key, parent, labels([])).unwrap();
    let target = snapshots.apply_target(&key).unwrap();
    for (path, text) in files {
        fs::write(target.root.join(path), text).unwrap();
    }
    snapshots.commit(name, &key, None, labels([])).unwrap();
}

fn files(tree: &Path) -> Vec<(String, String)> {
    let mut files: Vec<_> = fs::read_dir(tree)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap()))
        .collect();
    files.sort();
    files
}

fn layers_stack_up(directory: &Path, driver: Arc<dyn Driver>) {
    let options =
        OpenOptions { content: Arc::new(MemoryStore::new()), drivers: vec![driver.clone()], read_only: false };
    let store = Store::open(directory, options).unwrap();
    store.create_lease("test", "held", labels([])).unwrap();
    let s = store.snapshots(&scope().with_lease("held"), "").unwrap();
    layer(&s, "one", "", &[("a", "1"), ("b", "1")]);
    layer(&s, "two", "one", &[("b", "2"), ("c", "2")]);
    let mounts = s.view("look", "two", labels([])).unwrap();
    assert_eq!(mounts, s.mounts("look").unwrap());
    let seen = {
        let mounted = TempMount::new(&mounts, directory).unwrap();
        assert!(fs::write(mounted.path().join("x"), "").is_err(), "a view is read-only");
        files(mounted.path())
    };
    let pairs: Vec<_> = seen.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    assert_eq!(pairs, [("a", "1"), ("b", "2"), ("c", "2")]);
    assert!(s.usage("two").unwrap().inodes > 0);

    store.collect(Disposal::Reclaim).unwrap();
    assert_eq!(driver.list().unwrap().len(), 3, "all is leased");
    s.remove("look").unwrap();
    s.remove("two").unwrap();
    store.collect(Disposal::Reclaim).unwrap();
    assert_eq!(driver.list().unwrap().len(), 1);
    store.delete_lease("test", "held").unwrap();
    store.collect(Disposal::Reclaim).unwrap();
    assert!(driver.list().unwrap().is_empty());
    assert!(s.list(&[]).unwrap().is_empty());
}

#[test]
fn native() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can mount");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let driver = NativeDriver::open(directory.path().join("snapshots/native")).unwrap();
    layers_stack_up(directory.path(), Arc::new(driver));
}

#[test]
fn overlayfs() {
    let directory = tempfile::tempdir().unwrap();
    match OverlayDriver::open(directory.path().join("snapshots/overlayfs")) {
        Ok(driver) => layers_stack_up(directory.path(), Arc::new(driver)),
        Err(error) => eprintln!("skipped: {error}"),
    }
}
