//! How far changes were followed: kept with the history that it is about.

use crate::support::{Root, image, open, scope};
use jiff::Timestamp;
use orlop_metadata::Progress;

fn progress(change: i64) -> Progress {
    Progress { change, rules: -7, whole: Timestamp::new(1_700_000_000, 5).unwrap() }
}

#[test]
fn progress_is_what_was_put_last_whoever_opens_the_root_and_never_ahead_of_the_history() {
    let root = Root::new();
    assert_eq!(root.store.progress().unwrap(), None);
    root.store.put_progress(&progress(0)).unwrap();
    assert_eq!(root.reopened().progress().unwrap(), Some(progress(0)), "of a root without a change");
    for name in ["a", "b"] {
        root.store.create_image(&scope(), image(name, name)).unwrap();
    }
    root.reopened().put_progress(&progress(1)).unwrap();
    assert_eq!(root.store.progress().unwrap(), Some(progress(1)));
    root.store.put_progress(&progress(99)).unwrap();
    assert_eq!(root.store.progress().unwrap(), Some(progress(2)));
    assert_eq!(root.store.check_metadata().unwrap(), []);
}

#[test]
fn progress_that_is_about_another_history_counts_as_none() {
    let root = Root::new();
    root.store.create_image(&scope(), image("a", "a")).unwrap();
    root.store.put_progress(&progress(1)).unwrap();
    let raw = rusqlite::Connection::open(root.path().join("meta.db")).unwrap();
    for change in [2, -1] {
        raw.execute("UPDATE sequence SET value = ?1 WHERE name = 'followed'", [change]).unwrap();
        assert_eq!(root.store.progress().unwrap(), None, "{change}");
    }
}

#[test]
fn a_root_that_is_put_back_from_a_copy_has_the_progress_of_then() {
    let Root { store, driver, content, directory } = Root::new();
    store.create_image(&scope(), image("a", "a")).unwrap();
    store.put_progress(&progress(1)).unwrap();
    let (file, copy) = (directory.path().join("meta.db"), directory.path().join("copy"));
    drop(store);
    std::fs::copy(&file, &copy).unwrap();
    let store = open(directory.path(), &content, &driver, false).unwrap();
    for name in ["b", "c"] {
        store.create_image(&scope(), image(name, name)).unwrap();
    }
    store.put_progress(&progress(3)).unwrap();
    drop(store);
    std::fs::rename(&copy, &file).unwrap();
    let store = open(directory.path(), &content, &driver, false).unwrap();
    store.create_image(&scope(), image("d", "d")).unwrap();
    assert_eq!(store.progress().unwrap(), Some(progress(1)));
    let since = store.changes_since(1, 10).unwrap();
    assert_eq!(since.iter().map(|change| change.name.as_str()).collect::<Vec<_>>(), ["d"]);
}
