//! The contract, over local files.

use orlop_content::LocalStore;
use orlop_content::suite::Fixture;

async fn factory() -> Fixture {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = LocalStore::open(directory.path()).expect("a store");
    Fixture::keeping(store, directory)
}

orlop_content::content_suite!(factory);
