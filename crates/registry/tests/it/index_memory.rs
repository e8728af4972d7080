//! The contract of an index, over the one in memory.

use orlop_registry::MemoryIndex;
use orlop_registry::suite::Fixture;

async fn factory() -> Fixture {
    Fixture::new(MemoryIndex::new(), ())
}

orlop_registry::index_suite!(factory);
