//! The decision.

use std::collections::BTreeMap;

use orlop_oci::{Descriptor, Digest, Document, Reference};

use super::claim::{Flaw, Form, Wanted};
use super::evidence::{self, Artifact, MAX_SIGNATURE_BYTES, Shelf};
use super::policy::{Requirement, Rule, Signed};
use super::refusal::{Cause, Refusal};
use super::{Gate, PublicKey};
use crate::{Error, Result};

/// What wants to come in, and under which name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) name: &'a str,
    /// The name, if it is one of a repository.
    pub(crate) reference: Option<&'a Reference>,
    pub(crate) target: &'a Descriptor,
}

/// A signature that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The manifest that it is in.
    pub manifest: Digest,
    /// Its form.
    pub form: Form,
    /// Whether it counts.
    pub outcome: Outcome,
}

/// Whether a signature counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It does, by this key.
    Good(PublicKey),
    /// It does not.
    Flawed(Flaw),
}

/// What was let in, and why.
#[derive(Debug, Clone, Default)]
pub(crate) struct Admission {
    /// The rule that applied; none without a policy.
    pub(crate) rule: Option<String>,
    /// Signatures looked at, with those that do not count.
    pub(crate) signatures: Vec<Checked>,
    /// Keys that vouch for it.
    pub(crate) keys: Vec<PublicKey>,
    /// Verifiers that agreed, with their reasons.
    pub(crate) verifiers: Vec<(String, String)>,
    /// What holds the signatures that count.
    pub(crate) kept: Vec<Artifact>,
}

impl Admission {
    /// By what it was verified; empty if nothing was wanted.
    pub(crate) fn verified_by(&self) -> Vec<String> {
        let keys = self.keys.iter().map(|key| format!("key {key}"));
        let verifiers = self.verifiers.iter().map(|(program, reason)| match reason.as_str() {
            "" => format!("verifier {program}"),
            reason => format!("verifier {program}: {reason}"),
        });
        keys.chain(verifiers).collect()
    }
}

impl Gate {
    /// Decides about one name.
    ///
    /// # Errors
    /// [`Error::Refused`]; [`Error::Remote`] and others if signatures could not be looked for everywhere and those that
    /// were found do not suffice.
    pub(crate) async fn admit(&self, asked: &Asked<'_>, shelves: &[&dyn Shelf]) -> Result<Admission> {
        let mut admission = match &self.policy {
            Some(policy) => {
                let repository = asked.reference.and_then(Reference::repository);
                self.by_rule(policy.rule_for(repository), asked, shelves).await?
            }
            None => Admission::default(),
        };
        if let Some(verifiers) = &self.verifiers {
            let judged = verifiers.judge(asked.name, asked.target).await;
            admission.verifiers = judged.map_err(|objection| asked.refused(Cause::Verifier(objection)))?;
        }
        Ok(admission)
    }

    async fn by_rule(&self, rule: &Rule, asked: &Asked<'_>, shelves: &[&dyn Shelf]) -> Result<Admission> {
        match &rule.requirement {
            Requirement::Accept => Ok(Admission { rule: Some(rule.to_string()), ..Admission::default() }),
            Requirement::Reject => Err(asked.refused(Cause::Rejected { rule: rule.to_string() })),
            Requirement::Signed(signed) => {
                let mut search = Search::new(asked, signed);
                for shelf in shelves {
                    search.look(*shelf).await;
                    if search.is_enough() {
                        return Ok(search.admission(rule));
                    }
                }
                if is_signature(asked.target, shelves).await? {
                    return Ok(Admission { rule: Some(rule.to_string()), ..Admission::default() });
                }
                Err(search.into_error(rule))
            }
        }
    }
}

/// Whether a target is nothing but signatures, which nobody signs and nobody can run.
async fn is_signature(target: &Descriptor, shelves: &[&dyn Shelf]) -> Result<bool> {
    for shelf in shelves {
        let Some(raw) = shelf.read(target).await? else { continue };
        let document = Document::parse_as(raw, Some(&target.media_type), target.digest.algorithm()).ok();
        return Ok(document.as_ref().and_then(Document::manifest).is_some_and(evidence::is_signature));
    }
    Ok(false)
}

impl Asked<'_> {
    fn refused(&self, cause: Cause) -> Error {
        let (image, digest) = (self.name.to_owned(), self.target.digest.clone());
        Error::Refused(Box::new(Refusal { image, digest, cause }))
    }
}

/// Looking for enough signatures in one place after the other.
struct Search<'a> {
    asked: &'a Asked<'a>,
    signed: &'a Signed,
    found: Vec<Checked>,
    keys: BTreeMap<Digest, PublicKey>,
    kept: Vec<Artifact>,
    /// The first place that could not be asked.
    failed: Option<Error>,
}

impl<'a> Search<'a> {
    fn new(asked: &'a Asked<'a>, signed: &'a Signed) -> Self {
        Self { asked, signed, found: Vec::new(), keys: BTreeMap::new(), kept: Vec::new(), failed: None }
    }

    fn is_enough(&self) -> bool {
        self.keys.len() >= self.signed.threshold.max(1)
    }

    /// Looks at all that a place has. One that cannot be asked does not matter if another has enough.
    async fn look(&mut self, shelf: &dyn Shelf) {
        match evidence::gather(shelf, &self.asked.target.digest).await {
            Ok(artifacts) => artifacts.into_iter().for_each(|artifact| self.take(artifact)),
            Err(error) => {
                tracing::debug!(%error, "signatures cannot be looked for here");
                self.failed.get_or_insert(error);
            }
        }
    }

    fn take(&mut self, artifact: Artifact) {
        let manifest = artifact.document.digest().digest();
        if self.kept.iter().any(|k| k.document.digest().digest() == manifest) {
            return;
        }
        let wanted = Wanted {
            digest: &self.asked.target.digest,
            repository: self.asked.reference.and_then(Reference::repository),
            identity: self.signed.identity,
            keys: &self.signed.keys,
        };
        let mut counts = false;
        for (layer, form, bytes) in &artifact.layers {
            let checked = match bytes {
                Some(bytes) => wanted.check(*form, layer, bytes),
                None if layer.size > MAX_SIGNATURE_BYTES => Err(Flaw::TooLarge(layer.size)),
                None => Err(Flaw::Missing),
            };
            let outcome = match checked {
                Ok(key) => {
                    counts = true;
                    self.keys.insert(key.id().clone(), key.clone());
                    Outcome::Good(key)
                }
                Err(flaw) => Outcome::Flawed(flaw),
            };
            let checked = Checked { manifest: manifest.clone(), form: *form, outcome };
            if !self.found.contains(&checked) {
                self.found.push(checked);
            }
        }
        if counts {
            self.kept.push(artifact);
        }
    }

    fn admission(self, rule: &Rule) -> Admission {
        Admission {
            rule: Some(rule.to_string()),
            signatures: self.found,
            keys: self.keys.into_values().collect(),
            verifiers: Vec::new(),
            kept: self.kept,
        }
    }

    fn into_error(self, rule: &Rule) -> Error {
        let cause = Cause::Unsigned { rule: rule.to_string(), wanted: self.signed.clone(), found: self.found };
        self.failed.unwrap_or_else(|| self.asked.refused(cause))
    }
}
