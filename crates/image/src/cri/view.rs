//! A picture of a namespace's images that does not change, and what names mean in it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use orlop_oci::{Descriptor, Digest, Reference, RepositoryName};

use super::Gist;
use crate::{Error, Result};

/// An image.
#[derive(Debug, Clone, PartialEq)]
pub struct CriImage {
    /// What follows from its target.
    pub gist: Arc<Gist>,
    /// What its oldest name points at.
    pub target: Arc<Descriptor>,
    /// All its records, by name.
    pub names: Vec<Arc<str>>,
    /// The names with a tag that CRI shows.
    pub repo_tags: Vec<Arc<str>>,
    /// The names with a digest that CRI shows.
    pub repo_digests: Vec<Arc<str>>,
    /// Why kubelet is asked to keep it; none: it is not.
    pub pinned: Vec<Pinned>,
}

/// Why an image is pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pinned {
    /// A record has the label.
    Label {
        /// The record.
        name: String,
    },
    /// The configuration names it.
    Configured {
        /// The record.
        name: String,
    },
    /// No registry is known to supply it any more.
    Unsupplied {
        /// How that is known.
        reason: String,
    },
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label { name } => write!(f, "the record {name} is labelled as pinned"),
            Self::Configured { name } => write!(f, "the configuration pins {name}"),
            Self::Unsupplied { reason } => {
                write!(f, "this may be the only copy: {reason}")
            }
        }
    }
}

/// The images of a namespace at one moment.
#[derive(Debug, Default)]
pub struct CriView {
    images: Vec<CriImage>,
    by_name: HashMap<Arc<str>, usize>,
}

impl CriView {
    /// `images` are ordered by ID.
    pub(super) fn new(images: Vec<CriImage>) -> Self {
        let names = images.iter().enumerate().flat_map(|(at, image)| image.names.iter().map(move |n| (n.clone(), at)));
        let by_name = names.collect();
        Self { images, by_name }
    }

    /// All images, by ID.
    pub fn images(&self) -> &[CriImage] {
        &self.images
    }

    /// The image that a text means: a whole image ID; else a name, in normal form or as it stands; else the start of an
    /// image ID, with or without `sha256:`.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Ambiguous`] if several IDs start so.
    pub fn resolve(&self, text: &str) -> Result<&CriImage> {
        let not_found = || Error::NotFound(text.to_owned());
        if let Ok(digest) = text.parse::<Digest>() {
            return self.images.iter().find(|image| *image.gist.id.digest() == digest).ok_or_else(not_found);
        }
        if let Some(image) = self.named(text) {
            return Ok(image);
        }
        match self.starting(text)[..] {
            [] => Err(not_found()),
            [image] => Ok(image),
            ref several => {
                let candidates = several.iter().map(|image| image.gist.id.to_string()).collect();
                Err(Error::Ambiguous { text: text.to_owned(), candidates })
            }
        }
    }

    /// The images that a filter lets through: of a repository's name all that have a name in it, else what the text
    /// means, else all whose ID starts so. An empty text is no filter.
    pub fn matching(&self, text: &str) -> Vec<&CriImage> {
        if text.is_empty() {
            return self.images.iter().collect();
        }
        let of_repository = self.in_repository(text);
        if !of_repository.is_empty() {
            return of_repository;
        }
        match self.resolve(text) {
            Ok(image) => vec![image],
            Err(_) => self.starting(text),
        }
    }

    fn named(&self, text: &str) -> Option<&CriImage> {
        let normal = text.parse::<Reference>().ok().map(|reference| reference.to_string());
        let at = normal.and_then(|normal| self.by_name.get(normal.as_str())).or_else(|| self.by_name.get(text))?;
        Some(&self.images[*at])
    }

    fn starting(&self, text: &str) -> Vec<&CriImage> {
        let (algorithm, hex) = match text.split_once(':') {
            Some((algorithm, hex)) => (Some(algorithm), hex),
            None => (None, text),
        };
        let fits = |digest: &Digest| {
            let same = algorithm.is_none_or(|algorithm| digest.algorithm().as_str() == algorithm);
            same && !hex.is_empty() && digest.hex().starts_with(hex)
        };
        self.images.iter().filter(|image| fits(image.gist.id.digest())).collect()
    }

    fn in_repository(&self, text: &str) -> Vec<&CriImage> {
        let Ok(repository) = RepositoryName::parse(text) else { return Vec::new() };
        let repository = repository.to_string();
        let within = |name: &Arc<str>| {
            name.strip_prefix(repository.as_str()).is_some_and(|rest| rest.starts_with(':') || rest.starts_with('@'))
        };
        self.images.iter().filter(|i| i.repo_tags.iter().chain(&i.repo_digests).any(within)).collect()
    }
}
