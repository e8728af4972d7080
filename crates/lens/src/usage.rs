//! What snapshots take: one call each, since containerd has no list of it.

use futures::{StreamExt, TryStreamExt, stream};
use orlop_api::containerd::services::snapshots::v1::UsageRequest;
use orlop_graph::model::{Inventory, SnapshotRow, Usage};
use tonic::Code;

use crate::read::AT_ONCE;
use crate::{Error, Reader};

impl Reader {
    /// Asks for the usage of snapshots of which it is not known yet and that `wanted` takes. One that went meanwhile stays
    /// unknown.
    ///
    /// # Errors
    /// If a call fails.
    pub async fn measure(&self, inventory: &mut Inventory, wanted: impl Fn(&SnapshotRow) -> bool) -> Result<(), Error> {
        let names: Vec<_> = inventory.namespaces.iter().map(|n| n.name.clone()).collect();
        let unknown = inventory.snapshots.iter().enumerate().filter(|(_, s)| s.usage.is_none() && wanted(s));
        let calls = unknown.map(|(at, row)| {
            let namespace = names[usize::from(row.namespace)].clone();
            let request = UsageRequest { snapshotter: row.snapshotter.to_string(), key: row.key.to_string() };
            async move {
                match self.snapshots(&namespace)?.usage(request).await {
                    Ok(answer) => Ok((at, Some(answer.into_inner()))),
                    Err(status) if status.code() == Code::NotFound => Ok((at, None)),
                    Err(status) => Err(Error::call("snapshots.Usage", &namespace)(status)),
                }
            }
        });
        let measured: Vec<_> = stream::iter(calls).buffer_unordered(AT_ONCE).try_collect().await?;
        for (at, usage) in measured {
            let bytes = |n: i64| n.try_into().unwrap_or(0);
            inventory.snapshots[at].usage = usage.map(|u| Usage { bytes: bytes(u.size), inodes: bytes(u.inodes) });
        }
        Ok(())
    }
}
