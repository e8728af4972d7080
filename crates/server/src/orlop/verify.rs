//! Policies and verdicts as messages.

use std::sync::Arc;

use orlop_api::orlop::v1 as pb;
use orlop_image::{Checked, Gate, Identity, Policy, PublicKey, Requirement, Rule, SignatureOutcome, Signed, Verdict};
use tonic::Status;

use crate::convert::required;

/// A gate that a client brings along: a policy and no verifiers.
pub(super) fn gate(policy: pb::Policy) -> Result<Gate, Status> {
    let rules = policy.rules.into_iter().map(rule).collect::<Result<_, _>>()?;
    let default = rule(required(policy.default, "policy default")?)?;
    Ok(Gate { policy: Some(Arc::new(Policy { rules, default })), verifiers: None })
}

fn rule(given: pb::PolicyRule) -> Result<Rule, Status> {
    let invalid = |what: String| Status::invalid_argument(format!("{}: {what}", given.place));
    let images = given.images.iter().map(|text| text.parse().map_err(|e| invalid(format!("{e}"))));
    let images = images.collect::<Result<_, _>>()?;
    let requirement = match given.require.as_str() {
        "accept" => Requirement::Accept,
        "reject" => Requirement::Reject,
        "signed" => {
            let read = |key: &pb::PolicyKey| {
                PublicKey::from_der(&key.name, &key.der).map_err(|e| invalid(format!("{}: {e}", key.name)))
            };
            let keys = given.keys.iter().map(read).collect::<Result<Vec<_>, _>>()?;
            if keys.is_empty() {
                return Err(invalid("signed without keys".to_owned()));
            }
            let identity = match given.identity.as_str() {
                "" | "any" => Identity::Any,
                "repository" => Identity::Repository,
                other => return Err(invalid(format!("identity {other:?}: expected any or repository"))),
            };
            Requirement::Signed(Signed { keys, threshold: given.threshold.max(1) as usize, identity })
        }
        other => return Err(invalid(format!("require {other:?}: expected accept, reject or signed"))),
    };
    Ok(Rule { images, place: given.place, requirement })
}

pub(super) fn verdict(verdict: Verdict) -> pb::Verdict {
    let (refused, advice) = verdict.refused.unwrap_or_default();
    pb::Verdict {
        name: verdict.name,
        digest: verdict.digest.to_string(),
        rule: verdict.rule.unwrap_or_default(),
        verified_by: verdict.verified_by,
        signatures: verdict.signatures.into_iter().map(signature).collect(),
        refused,
        advice: advice.to_owned(),
    }
}

fn signature(checked: Checked) -> pb::Signature {
    let (key, problem) = match checked.outcome {
        SignatureOutcome::Good(key) => (key.to_string(), String::new()),
        SignatureOutcome::Flawed(flaw) => (String::new(), flaw.to_string()),
    };
    pb::Signature { manifest: checked.manifest.to_string(), form: checked.form.as_str().to_owned(), key, problem }
}
