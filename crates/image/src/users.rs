//! Which images containers stand on: those whose top layer is what a container's snapshot was prepared on.
//!
//! Several images may have the same layers. Which of them it is says the name of an image that a container's record has, by
//! what it meant when the container was made: it may mean another image by now. Where that name says nothing, for it was
//! no record then, or one of an image with other layers, a container stands on all of them: what it needs is kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use orlop_metadata::{ContainerBase, Scope, Store};
use orlop_oci::{Digest, ImageId};

use crate::catalog::Catalog;
use crate::{Images, Result};

/// Containers by the chain ID they stand on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Users(BTreeMap<String, Vec<User>>);

#[derive(Debug, Clone)]
struct User {
    container: String,
    /// The images with the layers it stands on that it may be of; `None`: any.
    only: Option<BTreeSet<ImageId>>,
}

impl Users {
    /// The containers of a target's images, of whatever platform.
    pub(crate) fn of(&self, catalog: &Catalog, target: &Digest) -> BTreeSet<&str> {
        if self.0.is_empty() {
            return BTreeSet::new();
        }
        let leaves = catalog.leaves(target);
        let images = leaves.iter().filter_map(|leaf| {
            let summary = leaf.summary?;
            Some((self.0.get(&summary.chain.last()?.to_string())?, summary.image_id.as_ref()))
        });
        let of_image = images.flat_map(|(users, id)| users.iter().filter(move |user| user.may_be_of(id)));
        of_image.map(|user| user.container.as_str()).collect()
    }

    /// Reads who uses what in a namespace. Blocks.
    pub(crate) fn read(store: &Store, namespace: &str) -> Result<Self> {
        let scope = Scope::new(namespace, "");
        let mut users = Self::default();
        let mut seen: HashMap<(Digest, String), Option<BTreeSet<ImageId>>> = HashMap::new();
        for ContainerBase { container, snapshot, target } in store.container_bases(namespace)? {
            let only = match target {
                None => None,
                Some(target) => match seen.get(&(target.clone(), snapshot.clone())) {
                    Some(known) => known.clone(),
                    None => {
                        let found = standing_on(store, &scope, &target, &snapshot)?;
                        seen.insert((target, snapshot.clone()), found.clone());
                        found
                    }
                },
            };
            users.0.entry(snapshot).or_default().push(User { container, only });
        }
        Ok(users)
    }
}

impl User {
    fn may_be_of(&self, image: Option<&ImageId>) -> bool {
        self.only.as_ref().is_none_or(|only| image.is_some_and(|image| only.contains(image)))
    }
}

/// The images of a target whose top layer has this chain ID; `None`: there is none, or nobody has read of it.
fn standing_on(store: &Store, scope: &Scope, target: &Digest, chain: &str) -> Result<Option<BTreeSet<ImageId>>> {
    let catalog = Catalog::of_target(store, scope, target)?;
    let leaves = catalog.leaves(target);
    let tops = leaves.iter().filter_map(|leaf| leaf.summary);
    let same = tops.filter(|summary| summary.chain.last().is_some_and(|top| top.to_string() == chain));
    let images: BTreeSet<ImageId> = same.filter_map(|summary| summary.image_id.clone()).collect();
    Ok((!images.is_empty()).then_some(images))
}

impl Images {
    /// Who uses what in a namespace.
    pub(crate) async fn users(&self, namespace: &str) -> Result<Users> {
        let namespace = namespace.to_owned();
        self.blocking(move |store| Users::read(store, &namespace)).await
    }
}
