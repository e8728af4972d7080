//! Giving back: blobs and trees of this store, at a place of another one.

use std::path::Path;

use orlop_content::{self as content, Shared};
use orlop_metadata::Scope;
use orlop_oci::{Descriptor, Digest};
use orlop_snapshot::Linked;

use super::DRIVER;
use crate::pull::Stored;
use crate::walk::{self, Select};
use crate::{Images, Result};

/// What an image of this store consists of, for whoever gives it to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainOf {
    /// Its config.
    pub config: Digest,
    /// The chain IDs of its layers, lowest first.
    pub chain: Vec<String>,
}

impl Images {
    /// The images of a target that can be loaded, of any platform; none if it is an artifact or not here.
    ///
    /// # Errors
    /// If a document is damaged.
    pub async fn chains(&self, scope: &Scope, name: &str, target: &Descriptor) -> Result<Vec<ChainOf>> {
        let content = Stored(self.store().content(scope));
        let tree = walk::walk(&content, name, target, &Select::Present).await?;
        let chain = |node: &walk::Node| {
            let (image, manifest) = (node.image.as_ref()?, node.document.manifest()?);
            let chain = image.chain.iter().map(ToString::to_string).collect();
            Some(ChainOf { config: manifest.config.digest.clone(), chain })
        };
        Ok(tree.manifests().filter_map(chain).collect())
    }

    /// What a name, digest, image ID or prefix points at.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound), or that it is ambiguous.
    pub async fn find_target(&self, scope: &Scope, text: &str) -> Result<Digest> {
        match self.named_record(scope, text).await? {
            Some(record) => Ok(record.target.digest),
            None => Ok(self.resolve_name(scope, text).await?.target.digest),
        }
    }

    /// Lets a blob be at `to` too, without copying it; it is hashed before. `None` if it is not here.
    ///
    /// # Errors
    /// As [`content::Linking::give`].
    pub async fn give_blob(&self, digest: &Digest, to: &Path) -> Result<Option<Shared>> {
        let Some(linking) = self.store().raw_content().linking() else { return Ok(None) };
        match linking.give(digest, to).await {
            Ok(shared) => Ok(Some(shared)),
            Err(content::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets the empty directory `to` be what a committed snapshot is, in overlayfs' form, without copying content.
    pub async fn give_tree(&self, scope: &Scope, key: &str, to: &Path) -> Result<Linked> {
        let (scope, key, to) = (scope.clone(), key.to_owned(), to.to_owned());
        self.blocking(move |store| Ok(store.snapshots(&scope, DRIVER)?.give(&key, &to)?)).await
    }
}
