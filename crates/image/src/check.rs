//! Looking for damage and contradictions.

use orlop_metadata::Scope;

use crate::{Images, Result};

/// What to check.
#[derive(Debug, Clone, Default)]
pub struct CheckRequest {
    /// Hash every blob again.
    pub deep: bool,
    /// Only this image.
    pub name: Option<String>,
}

/// Something is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// A stable word: `blob-damaged`, `blob-missing`, `blob-size`, `snapshot-missing`, `hash-reference-missing`,
    /// `hash-reference-stranded`, `image-incomplete`, `document-invalid`.
    pub class: &'static str,
    /// What it is about.
    pub subject: String,
    /// What was expected and what was found.
    pub detail: String,
    /// What to do.
    pub fix: String,
}

impl Images {
    /// Looks for damage; finds nothing in a sound store.
    pub async fn check(&self, scope: &Scope, request: &CheckRequest) -> Result<Vec<Problem>> {
        let _ = (scope, request);
        todo!()
    }
}
