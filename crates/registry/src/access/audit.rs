//! What was decided, one line each.

use std::net::IpAddr;

/// A decision about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<'a> {
    /// From where it came.
    pub address: Option<IpAddr>,
    /// Who asked; none: nobody who logged in.
    pub user: Option<&'a str>,
    /// `pull`, `push`, `delete`; `login` of a wrong password; `token` of one that was issued.
    pub action: &'a str,
    /// Where.
    pub repository: Option<&'a str>,
    /// The tag or digest.
    pub reference: Option<&'a str>,
    /// Whether it was allowed.
    pub allowed: bool,
    /// Why not.
    pub reason: &'a str,
}

/// Takes decisions down. It is called while a request waits, and must not block for long.
pub trait Audit: Send + Sync {
    /// Takes one down.
    fn record(&self, decision: &Decision<'_>);
}

/// Tells the log, under a target of its own, and whoever takes decisions down.
pub(super) fn tell(audit: Option<&dyn Audit>, decision: &Decision<'_>) {
    let Decision { address, user, action, repository, reference, allowed, reason } = decision;
    let address = address.map(|address| address.to_string()).unwrap_or_default();
    tracing::debug!(
        target: "orlop_registry::audit",
        address,
        user = user.unwrap_or_default(),
        action,
        repository = repository.unwrap_or_default(),
        reference = reference.unwrap_or_default(),
        allowed,
        reason,
        "decided"
    );
    if let Some(audit) = audit {
        audit.record(decision);
    }
}
