//! Which images containers stand on: those whose top layer is what a container's snapshot was prepared on. The name of an
//! image that a container's record has is not asked, for it may mean another image by now.

use std::collections::{BTreeMap, BTreeSet};

use orlop_oci::Digest;

use crate::catalog::Catalog;
use crate::{Images, Result};

/// Containers by the chain ID they stand on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Users(BTreeMap<String, BTreeSet<String>>);

impl Users {
    /// The containers of a target's images, of whatever platform.
    pub(crate) fn of(&self, catalog: &Catalog, target: &Digest) -> BTreeSet<&str> {
        if self.0.is_empty() {
            return BTreeSet::new();
        }
        let leaves = catalog.leaves(target);
        let tops = leaves.iter().filter_map(|leaf| leaf.summary?.chain.last());
        let containers = tops.filter_map(|top| self.0.get(&top.to_string()));
        containers.flatten().map(String::as_str).collect()
    }
}

impl Images {
    /// Who uses what in a namespace.
    pub(crate) async fn users(&self, namespace: &str) -> Result<Users> {
        let namespace = namespace.to_owned();
        let parents = self.blocking(move |store| Ok(store.container_parents(&namespace)?)).await?;
        let mut users = Users::default();
        for (container, chain) in parents {
            users.0.entry(chain).or_default().insert(container);
        }
        Ok(users)
    }
}
