//! Which records were given: on the row of their target, in the label [`GIVEN`], as short hashes of their names.
//!
//! So it is known as long as the target is there, a change of it is no change of a record, and it goes with the image. What is
//! not known was not given: giving it again costs nothing but time.

use std::collections::{BTreeMap, BTreeSet};

use orlop_metadata::{self as metadata, Labels, Scope, Store};
use orlop_oci::Digest;

use super::ACTOR;
use super::merge::Own;
use crate::cri::NAMESPACE;

const GIVEN: &str = "io.orlop.given";

/// Characters of a name's hash: two of a thousand names are the same once in a hundred million stores.
const HASH: usize = 12;

/// As many fit into a label; names beyond it are given again and again, which changes nothing.
const MAX_NAMES: usize = 300;

/// How a name is marked.
fn hash(name: &str) -> String {
    Digest::of(name.as_bytes()).hex()[..HASH].to_owned()
}

/// The names of a target that were given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Given(BTreeSet<String>);

impl Given {
    fn of(labels: &Labels) -> Self {
        let words = labels.get(GIVEN).map(String::as_str).unwrap_or_default().split(',');
        Self(words.filter(|word| !word.is_empty()).map(str::to_owned).collect())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains(&hash(name))
    }
}

/// What is known of one target. Blocks.
pub(super) fn given(store: &Store, target: &Digest) -> metadata::Result<Given> {
    let labels = store.look(NAMESPACE, |look| look.labels(target, &[GIVEN]))?;
    Ok(labels.as_ref().map(Given::of).unwrap_or_default())
}

/// All records of kubelet's namespace. Blocks.
pub(super) fn records(store: &Store) -> metadata::Result<BTreeMap<String, Own>> {
    let images = store.images(NAMESPACE, &[])?;
    store.look(NAMESPACE, |look| {
        let mut given: BTreeMap<Digest, Given> = BTreeMap::new();
        let mut all = BTreeMap::new();
        for image in images {
            let target = image.target.digest;
            if !given.contains_key(&target) {
                let labels = look.labels(&target, &[GIVEN])?.unwrap_or_default();
                given.insert(target.clone(), Given::of(&labels));
            }
            let given = given[&target].has(&image.name);
            all.insert(image.name, Own { target, given });
        }
        Ok(all)
    })
}

/// Notes that records of a target were given, or are not any more. A target that is gone takes its marks with it. Blocks.
pub(super) fn mark(store: &Store, target: &Digest, names: &[String], given: bool) -> metadata::Result<()> {
    let labels = store.look(NAMESPACE, |look| look.labels(target, &[GIVEN]))?;
    let Some(labels) = labels else { return Ok(()) };
    let before = Given::of(&labels);
    let mut after = before.clone();
    for name in names {
        if given && after.0.len() < MAX_NAMES {
            after.0.insert(hash(name));
        } else if !given {
            after.0.remove(&hash(name));
        }
    }
    if after == before {
        return Ok(());
    }
    let value = after.0.into_iter().collect::<Vec<_>>().join(",");
    let labels = Labels::from([(GIVEN.to_owned(), value)]);
    let content = store.content(&Scope::new(NAMESPACE, ACTOR));
    match content.update(target, labels, &[format!("labels.{GIVEN}")]) {
        Ok(_) | Err(metadata::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
