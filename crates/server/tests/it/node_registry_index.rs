//! The node's image records pass the suite of registry indexes, in a namespace that CRI looks after and in one of its own.

use orlop_registry::suite::Fixture;
use orlop_server::NodeRegistry;

use crate::common::Node;

async fn index(namespace: &str) -> Fixture {
    let node = Node::new();
    let registry = NodeRegistry { host: "localhost:32000".into(), namespace: namespace.into() };
    let images = node.images.clone();
    let index = tokio::task::spawn_blocking(move || registry.index(&images)).await.unwrap().unwrap();
    Fixture::new(index, node)
}

async fn managed() -> Fixture {
    index("k8s.io").await
}

async fn other() -> Fixture {
    index("other").await
}

mod managed_namespace {
    orlop_registry::index_suite!(super::managed);
}

mod other_namespace {
    orlop_registry::index_suite!(super::other);
}
