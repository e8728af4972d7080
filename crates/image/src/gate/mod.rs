//! The gate: nothing comes into the store under a name that policy refuses.
//!
//! A [`Gate`] is a [`Policy`] (rules by repository: accept, reject, signed by these keys) and [`Verifiers`] (programs by
//! containerd's protocol). Whoever composes the process reads them from files; nothing here reads configuration.
//! [`Gate::admit`] is asked by each way in (pull, import, tag, a record that a client writes) before a record becomes
//! visible, with the places where signatures may be found.
//!
//! # Invariants
//! - What cannot be decided is not let in: a registry that cannot be asked, a verifier that does not answer.
//! - What is let in is the digest that was judged: for an index, the index's.
//! - Signatures that let an image in are kept with it, so that it can be verified again without a network.
//! - Records that were there before a rule stay; the gate is where things come in.

mod admit;
mod bindir;
mod claim;
mod evidence;
mod key;
mod policy;
mod refusal;
mod session;
mod verify;

pub(crate) use admit::{Admission, Asked};
pub use admit::{Checked, Outcome};
pub use bindir::{Objection, Problem as VerifierProblem, Verifiers};
pub use claim::{Flaw, Form};
pub(crate) use evidence::{Archive, Remote, Shelf, Way};
pub use key::{KeyError, MAX_KEY_BYTES, PublicKey};
pub use policy::{Identity, Pattern, PatternError, Policy, Requirement, Rule, Signed};
pub use refusal::{Cause, Refusal};
pub use session::verified_by;
pub(crate) use session::{Vouched, label, remember};
pub use verify::{Verdict, VerifyRequest};

use std::sync::Arc;

/// What decides whether an image may come in; the default lets everything in.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    /// Rules by repository.
    pub policy: Option<Arc<Policy>>,
    /// Programs that are asked too.
    pub verifiers: Option<Verifiers>,
}

impl Gate {
    /// Whether everything is let in unasked.
    pub const fn is_open(&self) -> bool {
        self.policy.is_none() && self.verifiers.is_none()
    }
}
