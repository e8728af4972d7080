//! Pushing.

use orlop_metadata::Scope;
use orlop_oci::Platform;
use orlop_remote::Client;

use crate::{Images, Outcome, Result, Sink};

/// What to push.
#[derive(Debug, Clone, Default)]
pub struct PushRequest {
    /// Anything [`Images::resolve_name`] finds.
    pub source: String,
    /// Where to; empty: the source.
    pub destination: String,
    /// Platforms; none: everything the target names, attestations included.
    pub platforms: Vec<Platform>,
    /// Blobs at once; 0: the default.
    pub concurrency: usize,
}

impl Images {
    /// Pushes one image. Everything it needs must be in this store.
    pub async fn push(&self, scope: &Scope, client: &Client, request: &PushRequest, sink: Sink<'_>) -> Result<Outcome> {
        let _ = (scope, client, request, sink);
        todo!()
    }
}
