//! Exporting to archives.

use orlop_metadata::Scope;
use orlop_oci::Platform;
use tokio::io::AsyncWrite;

use crate::{Images, Result};

/// The layout of an archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// OCI layout with Docker's `manifest.json` beside it.
    #[default]
    Oci,
    /// `docker save` of old: uncompressed layers and `manifest.json`; one platform.
    Docker,
}

/// What to export.
#[derive(Debug, Clone, Default)]
pub struct ExportRequest {
    /// Anything [`Images::resolve_name`] finds.
    pub names: Vec<String>,
    /// Platforms; none: the host's.
    pub platforms: Vec<Platform>,
    /// Everything the targets name.
    pub all_platforms: bool,
    /// The layout.
    pub format: ArchiveFormat,
}

impl Images {
    /// Writes an archive. The same store content gives the same bytes.
    pub async fn export(
        &self,
        scope: &Scope,
        request: &ExportRequest,
        out: &mut (dyn AsyncWrite + Send + Unpin),
    ) -> Result<()> {
        let _ = (scope, request, out);
        todo!()
    }
}
