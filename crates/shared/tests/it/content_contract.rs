//! The contract of a content store, over a bucket, with and without a cache.

use orlop_content::MemoryStore;
use orlop_content::suite::Fixture;
use orlop_shared::CacheOptions;

use crate::rig::Place;

async fn bare() -> Fixture {
    // Where there are no servers, which was said, the contract is at least not broken by itself.
    let Some(place) = Place::new() else { return Fixture::new(MemoryStore::new()) };
    Fixture::keeping(place.open().await.store(), place)
}

async fn cached() -> Fixture {
    let Some(place) = Place::new() else { return Fixture::new(MemoryStore::new()) };
    let directory = tempfile::tempdir().unwrap();
    let cache = CacheOptions { directory: directory.path().to_owned(), bytes: 5 << 20, largest: 4 << 20 };
    let options = orlop_shared::Options { cache: Some(cache), ..place.options() };
    let shared = orlop_shared::Shared::open(options).await.unwrap();
    Fixture::keeping(shared.store(), (place, directory))
}

mod bare_bucket {
    orlop_content::content_suite!(super::bare);
}

mod behind_a_cache {
    orlop_content::content_suite!(super::cached);
}
