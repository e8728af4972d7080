//! The rows of what surrounds a thing, as the lists of containerd's API have them.
//!
//! Which things these are is found in one snapshot of the database, their rows are read afterwards: what has gone meanwhile
//! is left out, as it would be from a list.

use std::collections::BTreeMap;

use orlop_api::orlop::v1 as pb;
use orlop_api::orlop::v1::thing::Kind;
use orlop_content::IngestManager;
use orlop_metadata::{Error, Scope, Store, Surroundings};
use tonic::Status;

use crate::blocking::blocking;
use crate::page::pages;
use crate::status::ToStatus;
use crate::{AnswerStream, Server, containers, content, images, leases, snapshots};

/// As many things are sent at most: what is left of a store then is read sooner by its lists.
const MOST: usize = 5_000;

/// Streams what surrounds everything that the request's text may mean.
pub(super) async fn surroundings(
    server: &Server,
    scope: &Scope,
    request: pb::SurroundingsRequest,
) -> Result<AnswerStream<pb::SurroundingsResponse>, Status> {
    let store = server.store().clone();
    let most = if request.most == 0 { MOST } else { request.most as usize };
    let found = blocking(move || store.surroundings(&request.text, most)).await?;
    let Some(found) = found else {
        let too_many = pb::SurroundingsResponse { too_many: true, ..Default::default() };
        return Ok(Box::pin(futures::stream::iter([Ok(too_many)])));
    };
    let mut ingests = BTreeMap::new();
    for (namespace, near) in &found {
        ingests.insert(namespace.clone(), ingests_of(server, scope, namespace, near).await?);
    }
    let (store, scope) = (server.store().clone(), scope.clone());
    let things = blocking(move || {
        let mut things = Vec::new();
        for (namespace, near) in found {
            let scope = Scope { namespace: namespace.clone(), ..scope.clone() };
            let mut kinds = rows(&store, &scope, near)?;
            kinds.extend(ingests.remove(&namespace).unwrap_or_default());
            things.extend(kinds.into_iter().map(|kind| pb::Thing { namespace: namespace.clone(), kind: Some(kind) }));
        }
        Ok::<_, Error>(things)
    });
    Ok(pages(things.await?, |things| pb::SurroundingsResponse { things, too_many: false }))
}

async fn ingests_of(server: &Server, scope: &Scope, namespace: &str, near: &Surroundings) -> Result<Vec<Kind>, Status> {
    if near.ingests.is_empty() {
        return Ok(Vec::new());
    }
    let scope = Scope { namespace: namespace.to_owned(), ..scope.clone() };
    let mut found = server.store().content(&scope).statuses().await.map_err(|e| e.to_status())?;
    found.retain(|status| near.ingests.contains(&status.reference));
    Ok(found.into_iter().map(content::ingest).map(Kind::Ingest).collect())
}

/// Everything but writes in progress. Blocks.
fn rows(store: &Store, scope: &Scope, near: Surroundings) -> Result<Vec<Kind>, Error> {
    let namespace = &scope.namespace;
    let images = store.images_named(namespace, &near.images)?;
    let mut kinds: Vec<Kind> = images.into_iter().map(images::to_wire).map(Kind::Image).collect();
    let content = store.content(scope);
    for digest in near.blobs.iter().filter_map(|digest| digest.parse().ok()) {
        kinds.extend(there(content.stat(&digest))?.map(content::info).map(Kind::Blob));
    }
    for (driver, key) in near.snapshots {
        // A driver that this store no longer has lists nothing either.
        let Some(of) = there(store.snapshots(scope, &driver))? else { continue };
        let info = there(of.stat(&key))?.map(snapshots::to_wire);
        kinds.extend(info.map(|info| Kind::Snapshot(pb::SnapshotOf { snapshotter: driver, info: Some(info) })));
    }
    for lease in store.leases(namespace, &[])?.into_iter().filter(|lease| near.leases.contains(&lease.id)) {
        let resources = there(store.resources(namespace, &lease.id))?.unwrap_or_default();
        let resources = resources.into_iter().map(leases::resource_to_wire).collect();
        kinds.push(Kind::Lease(pb::LeaseWith { lease: Some(leases::to_wire(lease)), resources }));
    }
    for id in &near.containers {
        kinds.extend(there(store.container(namespace, id))?.map(containers::to_wire).map(Kind::Container));
    }
    Ok(kinds)
}

/// Nothing if it has gone, or never was.
fn there<T>(found: Result<T, Error>) -> Result<Option<T>, Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
