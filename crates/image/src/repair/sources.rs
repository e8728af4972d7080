//! Who may have a blob, and what it is: its type says how a registry is asked for it.

use orlop_content::read_verified;
use orlop_metadata::{Scope, Store};
use orlop_oci::{Descriptor, Digest, Document, MAX_MANIFEST_BYTES, Reference, RepositoryName};

use crate::{Images, Result, labels};

/// What is assumed of a blob that no document names.
const UNKNOWN: &str = "application/octet-stream";

/// Where a blob can be asked for.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// A namespace that has it.
    pub(super) namespace: String,
    /// Repositories, the likeliest first.
    pub(super) repositories: Vec<RepositoryName>,
}

impl Sources {
    /// Those that the names of its images name, then those that its labels say it came from. Labels have no ports: one whose
    /// host an image's name has too is of that one.
    pub(super) fn of(store: &Store, digest: &Digest) -> Result<Self> {
        let mut sources = Self::default();
        let rows = store.blob_rows(digest)?;
        let affected = store.affected(&orlop_metadata::Damaged::Blob(digest.clone()))?;
        affected.iter().flat_map(|affected| &affected.images).for_each(|name| sources.add_named(name));
        let named = sources.repositories.clone();
        for (namespace, _, found) in rows {
            for (key, paths) in &found {
                let Some(host) = key.strip_prefix(labels::SOURCE) else { continue };
                // The host alone only where no name says more.
                let same = named.iter().find(|name| labels::at_host(labels::SOURCE, name) == *key);
                let domain = same.map_or(host, RepositoryName::domain);
                for path in paths.split(',').filter(|path| !path.is_empty()) {
                    sources.repositories_of(domain, path);
                }
            }
            sources.namespace = namespace;
        }
        Ok(sources)
    }

    /// The repository that an image's name names.
    pub(super) fn add_named(&mut self, name: &str) {
        if let Some(repository) = name.parse::<Reference>().ok().and_then(|name| name.repository().cloned()) {
            self.add(repository);
        }
    }

    /// Those of something else that has it too.
    pub(super) fn append(&mut self, other: Self) {
        other.repositories.into_iter().for_each(|repository| self.add(repository));
    }

    fn repositories_of(&mut self, domain: &str, path: &str) {
        if let Ok(repository) = RepositoryName::parse(&format!("{domain}/{path}")) {
            self.add(repository);
        }
    }

    fn add(&mut self, repository: RepositoryName) {
        if !self.repositories.contains(&repository) {
            self.repositories.push(repository);
        }
    }
}

impl Images {
    /// What a blob is by the record that points at it, or by a document that names it; `None` if neither can be read now.
    pub(super) async fn described(&self, namespace: &str, digest: &Digest, size: u64) -> Result<Option<Descriptor>> {
        let (namespace, wanted) = (namespace.to_owned(), digest.clone());
        let owned = namespace.clone();
        let (target, parents) = self
            .blocking(move |store| Ok((store.target(&owned, &wanted)?, store.naming_documents(&owned, &wanted)?)))
            .await?;
        if target.is_some() {
            return Ok(target);
        }
        let content = self.store().content(&Scope::new(namespace, "repair"));
        for parent in parents {
            // One that is damaged or lost itself says nothing.
            let Ok(raw) = read_verified(&content, &parent, MAX_MANIFEST_BYTES).await else { continue };
            let Ok(document) = Document::parse_as(raw, None, parent.algorithm()) else { continue };
            let named = document.children().into_iter().find(|child| child.digest == *digest && child.size == size);
            if let Some(named) = named {
                return Ok(Some(named.clone()));
            }
        }
        Ok(None)
    }
}

/// A blob that nothing here describes.
pub(super) fn unknown(digest: &Digest, size: u64) -> Descriptor {
    Descriptor::new(UNKNOWN, digest.clone(), size)
}
