//! A containerd that is not Orlop, as `adopt --hand-over` and `give-back --to` speak to it: by its API.

use std::path::Path;

use orlop_api::containerd::services::content::v1 as content;
use orlop_api::containerd::services::leases::v1 as leases;
use orlop_api::containerd::services::snapshots::v1 as snapshots;
use orlop_image::GC_SNAPSHOT;
use orlop_oci::Digest;
use tonic::Code;

use crate::client::Clients;
use crate::embed;
use crate::error::{Class, CliError, Result};
use crate::find::probe::Server;

/// Who answers at a socket.
///
/// # Errors
/// [`Class::Usage`] if that is Orlop.
pub(super) async fn answering(socket: &Path) -> Result<Server> {
    let server = embed::answering(socket).await?;
    if server.is_orlop() {
        let message = format!("{} is Orlop's own: expected a containerd's", socket.display());
        return Err(CliError::new(Class::Usage, message));
    }
    Ok(server)
}

/// One namespace of it, and one of its snapshotters.
#[derive(Debug, Clone)]
pub(super) struct Containerd<'s> {
    pub(super) clients: Clients,
    pub(super) snapshotter: &'s str,
}

impl<'s> Containerd<'s> {
    /// Runs `work` with everything that is made held by a lease, which ends with it.
    pub(super) async fn under_lease<T>(&self, work: impl AsyncFnOnce(Containerd<'s>) -> Result<T>) -> Result<T> {
        let id = format!("orlop-{}-{}", std::process::id(), jiff::Timestamp::now().as_nanosecond());
        self.clients.lease_for_an_hour(&id).await?;
        let done = work(Self { clients: self.clients.with_lease(&id)?, snapshotter: self.snapshotter }).await;
        let ended = self.clients.leases().delete(leases::DeleteRequest { id, sync: false }).await;
        let done = done?;
        ended?;
        Ok(done)
    }

    /// Whether a snapshot is there.
    ///
    /// # Errors
    /// [`Class::Usage`] if the snapshotter is not.
    pub(super) async fn has_snapshot(&self, key: &str) -> Result<bool> {
        let request = snapshots::StatSnapshotRequest { snapshotter: self.snapshotter.to_owned(), key: key.to_owned() };
        match self.clients.snapshots().stat(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) if status.code() == Code::InvalidArgument => {
                let message = format!("that containerd has no snapshotter {}: {}", self.snapshotter, status.message());
                Err(CliError::new(Class::Usage, message)
                    .hint("configure it first, and start containerd again: docs/operations/containerd.md"))
            }
            Err(status) => Err(status.into()),
        }
    }

    /// Removes a snapshot that was prepared.
    pub(super) async fn remove_snapshot(&self, key: String) -> Result<()> {
        let request = snapshots::RemoveSnapshotRequest { snapshotter: self.snapshotter.to_owned(), key };
        self.clients.snapshots().remove(request).await?;
        Ok(())
    }

    /// Has an image's config keep the snapshot of its uppermost layer, as after an unpacking.
    pub(super) async fn keep(&self, config: &Digest, top: String) -> Result<()> {
        let key = format!("{GC_SNAPSHOT}{}", self.snapshotter);
        let update_mask = Some(prost_types::FieldMask { paths: vec![format!("labels.{key}")] });
        let info = content::Info {
            digest: config.to_string(),
            labels: [(key, top)].into_iter().collect(),
            ..content::Info::default()
        };
        self.clients.content().update(content::UpdateRequest { info: Some(info), update_mask }).await?;
        Ok(())
    }
}
