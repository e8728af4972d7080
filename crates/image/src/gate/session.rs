//! The gate as the ways in use it: ask, keep what vouched, remember it on the record.

use std::collections::BTreeMap;

use orlop_metadata::{Labels, Replacement, Scope};
use orlop_oci::{Descriptor, Digest, Reference};
use tracing::field::Empty;

use super::evidence::{Artifact, Local, Shelf};
use super::{Admission, Asked};
use crate::pull::{Session, document_labels};
use crate::span::within;
use crate::{Images, Result, labels};

/// Longer lists of who vouched are cut: a label has at most 4096 bytes with its key.
const MAX_LABEL_BYTES: usize = 1024;

impl Images {
    /// Asks the gate about a record that is about to be written, with nothing but what the store has. Returns by what
    /// it was verified, empty if nothing was wanted.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused).
    pub async fn admit(&self, scope: &Scope, name: &str, target: &Descriptor) -> Result<Vec<String>> {
        let reference = name.parse::<Reference>().ok();
        let asked = Asked { name, reference: reference.as_ref(), target };
        Ok(self.ask(scope, &asked, &[]).await?.verified_by())
    }

    /// The store is the first place to look: what it has costs nothing.
    async fn ask(&self, scope: &Scope, asked: &Asked<'_>, shelves: &[&dyn Shelf]) -> Result<Admission> {
        let settings = self.settings();
        let gate = &settings.gate;
        if gate.is_open() {
            return Ok(Admission::default());
        }
        let span = tracing::info_span!("admit", image = asked.name, error = Empty);
        let local = Local::new(self.store(), scope, asked.reference.and_then(Reference::repository));
        let all: Vec<&dyn Shelf> = std::iter::once(&local as &dyn Shelf).chain(shelves.iter().copied()).collect();
        within(span, gate.admit(asked, &all)).await
    }
}

impl Session<'_> {
    /// Asks the gate about a name that this operation is to give. Signatures that count are brought in.
    pub(crate) async fn admit(&self, name: &str, target: &Descriptor, shelves: &[&dyn Shelf]) -> Result<Vec<String>> {
        let reference = name.parse::<Reference>().ok();
        let asked = Asked { name, reference: reference.as_ref(), target };
        let admission = self.images.ask(&self.scope, &asked, shelves).await?;
        for artifact in &admission.kept {
            self.keep(&target.digest, artifact).await?;
        }
        let by = admission.verified_by();
        self.vouched.add(&by);
        Ok(by)
    }

    /// The same for whole records, which remember it.
    pub(crate) async fn admit_records(&self, records: &mut [Replacement], shelves: &[&dyn Shelf]) -> Result<()> {
        for record in records {
            let by = self.admit(&record.name, &record.target, shelves).await?;
            remember(record, &by);
        }
        Ok(())
    }

    async fn keep(&self, target: &Digest, artifact: &Artifact) -> Result<()> {
        let document = &artifact.document;
        self.put(&document.descriptor(), "manifest", document.raw().clone()).await?;
        for (layer, _, bytes) in &artifact.layers {
            if let Some(bytes) = bytes {
                self.put(layer, "blob", bytes.clone()).await?;
            }
        }
        self.vouched.keep(target, document.digest().digest(), document_labels(document));
        Ok(())
    }
}

/// What an operation learned from the gate.
#[derive(Debug, Default)]
pub(crate) struct Vouched(std::sync::Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    by: Vec<String>,
    labels: BTreeMap<Digest, Labels>,
}

impl Vouched {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn add(&self, by: &[String]) {
        let mut inner = self.inner();
        for text in by {
            if !inner.by.contains(text) {
                inner.by.push(text.clone());
            }
        }
    }

    fn keep(&self, target: &Digest, signature: &Digest, own: Labels) {
        let mut inner = self.inner();
        let place = format!("{}.{}", signature.algorithm().as_str(), &signature.hex()[..12]);
        let held = (format!("{}{place}", labels::GC_REFERRER), signature.to_string());
        inner.labels.entry(target.clone()).or_default().extend([held]);
        inner.labels.entry(signature.clone()).or_default().extend(own);
    }

    /// By what the names of the operation were verified, each once.
    pub(crate) fn by(&self) -> Vec<String> {
        self.inner().by.clone()
    }

    /// The labels that hold the signatures with their images.
    pub(crate) fn labels(&self) -> BTreeMap<Digest, Labels> {
        self.inner().labels.clone()
    }
}

/// Puts on a record by what it was verified.
pub(crate) fn remember(record: &mut Replacement, by: &[String]) {
    if !by.is_empty() {
        record.labels.insert(labels::VERIFIED.to_owned(), label(&record.target.digest, by));
    }
}

/// What a record says of its verification; empty, which removes it, if there was none. The digest comes first, so that
/// it cannot be taken for one of another target after a client has moved the record.
pub(crate) fn label(target: &Digest, by: &[String]) -> String {
    if by.is_empty() {
        return String::new();
    }
    let mut text = format!("{target} {}", by.join("; "));
    text.truncate(text.floor_char_boundary(MAX_LABEL_BYTES));
    text
}

/// By what a record that points at this target was verified, as its labels say; nothing if they speak of another target.
pub fn verified_by(target: &Digest, record: &Labels) -> Vec<String> {
    let said = record.get(labels::VERIFIED).and_then(|label| label.split_once(' '));
    let about = said.filter(|(digest, _)| *digest == target.as_str());
    about.map(|(_, by)| by.split("; ").map(str::to_owned).collect()).unwrap_or_default()
}
