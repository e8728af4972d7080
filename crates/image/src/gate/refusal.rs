//! What people hear when an image is not let in.

use std::fmt;

use orlop_oci::Digest;

use super::bindir::Objection;
use super::policy::Signed;
use super::{Checked, Outcome};

/// Signatures that a message tells of; `orlop verify` shows all.
const SHOWN: usize = 5;

/// An image that is not let in under a name.
#[derive(Debug)]
pub struct Refusal {
    /// The name.
    pub image: String,
    /// What it would have pointed at.
    pub digest: Digest,
    /// Why.
    pub cause: Cause,
}

/// Why an image is not let in.
#[derive(Debug)]
#[non_exhaustive]
pub enum Cause {
    /// A rule keeps it out.
    Rejected {
        /// The rule.
        rule: String,
    },
    /// A rule wants signatures that were not found.
    Unsigned {
        /// The rule.
        rule: String,
        /// What it wants.
        wanted: Signed,
        /// What was found.
        found: Vec<Checked>,
    },
    /// A verifier objects.
    Verifier(Objection),
}

impl Refusal {
    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match &self.cause {
            Cause::Rejected { .. } => "pull it from a repository that the policy allows, or change the policy",
            Cause::Unsigned { found, .. } if found.is_empty() => {
                "sign exactly this digest (cosign sign --key KEY NAME@DIGEST), or change the policy; \
                 `orlop verify` shows what is found"
            }
            Cause::Unsigned { .. } => {
                "`orlop verify` shows every signature; sign exactly this digest with a key of the rule, or change the \
                 policy"
            }
            Cause::Verifier(Objection::Refused { .. }) => "ask whoever runs the verifier what it wants",
            Cause::Verifier(_) => "repair the verifier, or take it out of its directory",
        }
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.cause {
            Cause::Verifier(objection) => Some(objection),
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image, digest, cause } = self;
        write!(f, "{image} refused: ")?;
        match cause {
            Cause::Rejected { rule } => write!(f, "{rule} rejects it ({digest})"),
            Cause::Unsigned { rule, wanted, found } => {
                write!(f, "{rule} expects {wanted} on {digest}, found {}", Found(found))
            }
            Cause::Verifier(objection) => write!(f, "{objection} ({digest})"),
        }
    }
}

struct Found<'a>(&'a [Checked]);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no signature");
        }
        for (at, checked) in self.0.iter().take(SHOWN).enumerate() {
            let separator = if at > 0 { "; " } else { "" };
            match &checked.outcome {
                Outcome::Good(key) => write!(f, "{separator}one by {key}")?,
                Outcome::Flawed(flaw) => {
                    write!(f, "{separator}one in {} that does not count: {flaw}", checked.manifest)?
                }
            }
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}
