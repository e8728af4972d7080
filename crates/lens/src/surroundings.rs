//! Reading what surrounds one thing, of a server that can tell (`orlop.v1`): Orlop's own.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use orlop_api::orlop::v1 as pb;
use orlop_api::orlop::v1::orlop_client::OrlopClient;
use orlop_api::orlop::v1::thing::Kind;
use orlop_graph::model::{Inventory, NamespaceId};

use crate::Error;
use crate::convert::{self, Interned};
use crate::read::{Reader, gap, in_namespace};

/// The call, for errors.
const CALL: &str = "orlop.Surroundings";

impl Reader {
    /// All namespaces, and of what is in them what surrounds everything that a text may mean, in the order of the lists; `None`
    /// if that is so much that the lists are read sooner.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn surroundings(&self, namespace: &str, text: &str) -> Result<Option<Inventory>, Error> {
        let mut inventory = Inventory { taken: Timestamp::now(), ..Inventory::default() };
        inventory.namespaces = self.namespaces().await?;
        let numbers = inventory.namespaces.iter().enumerate().map(|(id, row)| (row.name.clone(), id as NamespaceId));
        let numbers: HashMap<Arc<str>, NamespaceId> = numbers.collect();
        let mut client = OrlopClient::with_interceptor(self.channel.clone(), in_namespace(namespace)?)
            .max_decoding_message_size(usize::MAX);
        let request = pb::SurroundingsRequest { text: text.to_owned(), most: 0 };
        let failed = || Error::call(CALL, namespace);
        let mut stream = client.surroundings(request).await.map_err(failed())?.into_inner();
        let mut texts = Interned::default();
        while let Some(page) = stream.message().await.map_err(failed())? {
            if page.too_many {
                return Ok(None);
            }
            for thing in page.things {
                // One that was made since the namespaces were listed.
                let Some(id) = numbers.get(&*thing.namespace) else { continue };
                if let Err(error) = add(&mut inventory, *id, thing.kind, &mut texts) {
                    inventory.gaps.push(gap("something", &thing.namespace, &error));
                }
            }
        }
        Ok(Some(inventory))
    }
}

fn add(inventory: &mut Inventory, id: NamespaceId, kind: Option<Kind>, texts: &mut Interned) -> Result<(), Error> {
    match kind {
        Some(Kind::Image(image)) => inventory.records.push(convert::record(id, image, texts)?),
        Some(Kind::Blob(info)) => inventory.blobs.push(convert::blob(id, info)?),
        Some(Kind::Snapshot(of)) => {
            let snapshotter = texts.get(of.snapshotter);
            inventory.snapshots.push(convert::snapshot(id, &snapshotter, of.info.unwrap_or_default()));
        }
        Some(Kind::Lease(with)) => {
            let mut row = convert::lease(id, with.lease.unwrap_or_default());
            row.resources = with.resources.into_iter().map(convert::resource).collect();
            inventory.leases.push(row);
        }
        Some(Kind::Ingest(status)) => inventory.ingests.push(convert::ingest(id, status)),
        Some(Kind::Container(container)) => inventory.containers.push(convert::container(id, container, texts)),
        // Of a newer server.
        None => {}
    }
    Ok(())
}
