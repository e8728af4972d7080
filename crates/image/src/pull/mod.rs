//! Pulling: resolve, plan, one pipeline a layer, records.

use orlop_metadata::Scope;
use orlop_oci::Platform;
use orlop_remote::Client;

use crate::{Images, Outcome, Result, Sink};

/// What to pull.
#[derive(Debug, Clone, Default)]
pub struct PullRequest {
    /// As the user wrote it.
    pub reference: String,
    /// Platforms; none: the host's.
    pub platforms: Vec<Platform>,
    /// Every platform, attestations included.
    pub all_platforms: bool,
    /// Content only, no snapshots.
    pub no_unpack: bool,
    /// The snapshot driver; empty: the default.
    pub snapshotter: String,
    /// Pin what is pulled.
    pub pin: bool,
    /// Layers at once; 0: the default.
    pub concurrency: usize,
}

impl Images {
    /// Pulls one image.
    ///
    /// # Errors
    /// Nothing becomes visible on an error; what was fetched stays under its lease and is used by the next try.
    pub async fn pull(&self, scope: &Scope, client: &Client, request: &PullRequest, sink: Sink<'_>) -> Result<Outcome> {
        let _ = (scope, client, request, sink);
        todo!()
    }
}
