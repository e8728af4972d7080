//! Who asks: known to an index while it answers a request, for its history and its log.

use std::net::IpAddr;

tokio::task_local! {
    static CURRENT: Caller;
}

/// Who made the request that is being answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// From where, if the request came over a network.
    pub address: Option<IpAddr>,
    /// Under which name; none: nobody asked for one.
    pub user: Option<String>,
}

impl Caller {
    /// Who made the request that this task answers; none outside of a request.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Answers a request of this caller.
    pub(crate) async fn scope<F: Future>(self, answering: F) -> F::Output {
        CURRENT.scope(self, answering).await
    }
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.user, &self.address) {
            (Some(user), Some(address)) => write!(f, "{user} at {address}"),
            (Some(user), None) => f.write_str(user),
            (None, Some(address)) => write!(f, "{address}"),
            (None, None) => f.write_str("somebody"),
        }
    }
}
