//! What snapshots take: one call each, since containerd has no list of it.

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use orlop_api::containerd::services::snapshots::v1::{UsageRequest, UsageResponse};
use orlop_graph::model::{Inventory, SnapshotRow, Usage};
use tonic::Code;

use crate::read::AT_ONCE;
use crate::{Error, Reader};

impl Reader {
    /// Asks for the usage of snapshots of which it is not known yet and that `wanted` takes, and writes it into their rows. One
    /// that went meanwhile stays unknown.
    ///
    /// # Errors
    /// If a call fails.
    pub async fn measure(&self, inventory: &mut Inventory, wanted: impl Fn(&SnapshotRow) -> bool) -> Result<(), Error> {
        for (at, usage) in self.usage(inventory, wanted).await? {
            inventory.snapshots[at].usage = Some(usage);
        }
        Ok(())
    }

    /// The same for who holds the rows elsewhere: by position in the list of snapshots what each takes. The rows are free again
    /// when this returns; nothing is asked before the future is polled.
    ///
    /// # Errors
    /// If a call fails.
    pub fn usage(
        &self,
        inventory: &Inventory,
        wanted: impl Fn(&SnapshotRow) -> bool,
    ) -> BoxFuture<'static, Result<Vec<(usize, Usage)>, Error>> {
        let unknown = inventory.snapshots.iter().enumerate().filter(|(_, s)| s.usage.is_none() && wanted(s));
        let place = |(at, row): (usize, &SnapshotRow)| {
            let namespace = inventory.namespaces[usize::from(row.namespace)].name.clone();
            (at, namespace, row.snapshotter.clone(), row.key.clone())
        };
        let places: Vec<_> = unknown.map(place).collect();
        let reader = self.clone();
        async move {
            let calls = places.into_iter().map(|(at, namespace, snapshotter, key)| {
                let request = UsageRequest { snapshotter: snapshotter.to_string(), key: key.to_string() };
                let client = reader.snapshots(&namespace);
                async move {
                    match client?.usage(request).await {
                        Ok(answer) => Ok(Some((at, answer.into_inner()))),
                        Err(status) if status.code() == Code::NotFound => Ok(None),
                        Err(status) => Err(Error::call("snapshots.Usage", &namespace)(status)),
                    }
                }
            });
            let measured: Vec<_> = stream::iter(calls).buffer_unordered(AT_ONCE).try_collect().await?;
            let bytes = |n: i64| n.try_into().unwrap_or(0);
            let usage = |u: UsageResponse| Usage { bytes: bytes(u.size), inodes: bytes(u.inodes) };
            Ok(measured.into_iter().flatten().map(|(at, answer)| (at, usage(answer))).collect())
        }
        .boxed()
    }
}
