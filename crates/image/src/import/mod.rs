//! Importing archives and layouts.

use std::path::Path;

use orlop_metadata::Scope;
use orlop_oci::Platform;
use tokio::io::AsyncRead;

use crate::{Images, Outcome, Result, Sink};

/// What to import.
#[derive(Debug, Clone, Default)]
pub struct ImportRequest {
    /// Platforms; none: everything that is in the archive, the host's platform among it if the image has it.
    pub platforms: Vec<Platform>,
    /// Every platform that the archive's indexes name must be there.
    pub all_platforms: bool,
    /// Content only, no snapshots.
    pub no_unpack: bool,
    /// The snapshot driver; empty: the default.
    pub snapshotter: String,
    /// Names images that the archive does not name: `PREFIX:tag`, else `PREFIX@digest`.
    pub base_name: String,
}

impl Images {
    /// Reads an archive (OCI layout or docker-archive in a tar; plain, gzip or zstd) to its end.
    ///
    /// # Errors
    /// Nothing becomes visible unless every image in it is complete.
    pub async fn import(
        &self,
        scope: &Scope,
        archive: &mut (dyn AsyncRead + Send + Unpin),
        request: &ImportRequest,
        sink: Sink<'_>,
    ) -> Result<Outcome> {
        let _ = (scope, archive, request, sink);
        todo!()
    }

    /// The same from an OCI layout in a directory.
    pub async fn import_directory(
        &self,
        scope: &Scope,
        directory: &Path,
        request: &ImportRequest,
        sink: Sink<'_>,
    ) -> Result<Outcome> {
        let _ = (scope, directory, request, sink);
        todo!()
    }
}
