//! What `orlop verify` asks: would this image be let in, and by which signatures?

use orlop_metadata::Scope;
use orlop_oci::{Digest, Reference};
use orlop_remote::Client;

use super::evidence::{Local, Shelf};
use super::{Admission, Asked, Cause, Checked, Gate};
use crate::pull::signatures;
use crate::{Error, Images, Result};

/// What to verify.
#[derive(Debug, Clone, Default)]
pub struct VerifyRequest {
    /// A name, a digest, an image ID, or a prefix of one.
    pub name: String,
    /// Decides instead of the store's own gate.
    pub gate: Option<Gate>,
}

/// What the gate says of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The name.
    pub name: String,
    /// Its target.
    pub digest: Digest,
    /// The rule that applies, if there is a policy.
    pub rule: Option<String>,
    /// By what it is verified.
    pub verified_by: Vec<String>,
    /// The signatures that were looked at; not all there are, if the first ones were enough.
    pub signatures: Vec<Checked>,
    /// Why it would not be let in, with what to do.
    pub refused: Option<(String, &'static str)>,
}

impl Images {
    /// Asks the gate about each name of an image that is in the store, with the signatures that the store has and,
    /// given a `client`, those of the registry. Changes nothing.
    ///
    /// # Errors
    /// As [`Images::resolve_name`], and if signatures cannot be looked for. A refusal is no error but a verdict.
    pub async fn verify(
        &self,
        scope: &Scope,
        request: &VerifyRequest,
        client: Option<&Client>,
    ) -> Result<Vec<Verdict>> {
        let found = self.resolve_name(scope, &request.name).await?;
        let settings = self.settings();
        let gate = request.gate.as_ref().unwrap_or(&settings.gate);
        let named = |name: &&String| !matches!(name.parse(), Ok(Reference::Id(_)));
        let mut names: Vec<String> = found.names.iter().filter(named).cloned().collect();
        if names.is_empty() {
            names.push(request.name.clone());
        }
        let mut verdicts = Vec::new();
        for name in names {
            let reference = name.parse::<Reference>().ok();
            let asked = Asked { name: &name, reference: reference.as_ref(), target: &found.target };
            let repository = reference.as_ref().and_then(Reference::repository);
            let local = Local::new(self.store(), scope, repository);
            let remote = client.zip(repository).map(|(client, repository)| signatures(client, repository));
            let mut shelves: Vec<&dyn Shelf> = vec![&local];
            shelves.extend(remote.iter().flatten().map(|shelf| shelf as &dyn Shelf));
            verdicts.push(asked.verdict(gate.admit(&asked, &shelves).await)?);
        }
        Ok(verdicts)
    }
}

impl Asked<'_> {
    fn verdict(&self, decided: Result<Admission>) -> Result<Verdict> {
        let verdict = Verdict {
            name: self.name.to_owned(),
            digest: self.target.digest.clone(),
            rule: None,
            verified_by: Vec::new(),
            signatures: Vec::new(),
            refused: None,
        };
        match decided {
            Ok(admission) => Ok(Verdict {
                verified_by: admission.verified_by(),
                rule: admission.rule,
                signatures: admission.signatures,
                ..verdict
            }),
            Err(Error::Refused(refusal)) => {
                let refused = Some((refusal.to_string(), refusal.advice()));
                let (rule, signatures) = match refusal.cause {
                    Cause::Rejected { rule } => (Some(rule), Vec::new()),
                    Cause::Unsigned { rule, found, .. } => (Some(rule), found),
                    Cause::Verifier(_) => (None, Vec::new()),
                };
                Ok(Verdict { rule, signatures, refused, ..verdict })
            }
            Err(error) => Err(error),
        }
    }
}
