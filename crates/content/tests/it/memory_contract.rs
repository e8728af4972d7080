//! The contract, over the store in memory.

use orlop_content::MemoryStore;
use orlop_content::suite::Fixture;

async fn factory() -> Fixture {
    Fixture::new(MemoryStore::new())
}

orlop_content::content_suite!(factory);
