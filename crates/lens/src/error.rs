//! What can go wrong when a store is read.

/// A store could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call failed.
    #[error("{call} in namespace {namespace:?}: {}", .status.message())]
    Call {
        /// `service.method`, as containerd calls it.
        call: &'static str,
        /// The namespace; empty where a call has none.
        namespace: String,
        /// What the store answered.
        #[source]
        status: Box<tonic::Status>,
    },
    /// The store's answer breaks the protocol.
    #[error("{call} answers with {what}, expected {expected}")]
    Answer {
        /// `service.method`.
        call: &'static str,
        /// What was found.
        what: String,
        /// What should have been there.
        expected: &'static str,
    },
}

impl Error {
    pub(crate) fn call(call: &'static str, namespace: &str) -> impl FnOnce(tonic::Status) -> Self {
        let namespace = namespace.to_owned();
        move |status| Self::Call { call, namespace, status: Box::new(status) }
    }

    /// The gRPC code, if a call failed.
    pub fn code(&self) -> Option<tonic::Code> {
        match self {
            Self::Call { status, .. } => Some(status.code()),
            Self::Answer { .. } => None,
        }
    }
}
