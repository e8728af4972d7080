//! History, removals and checks: what needs more than a translation.

use std::collections::BTreeMap;

use orlop_api::orlop::v1 as pb;
use orlop_api::orlop::v1::check_response::Event;
use orlop_image::RemoveRequest;
use orlop_metadata::{HistoryEntry, Scope, Store};
use orlop_oci::Reference;
use tonic::Status;

use crate::blocking::blocking;
use crate::status::ToStatus;
use crate::{AnswerStream, Server};

/// Changes of a record that may be gone: its name is looked up as written, then as a reference (`busybox` is
/// `docker.io/library/busybox:latest`).
pub(super) fn history(
    store: &Store,
    namespace: &str,
    name: &str,
    limit: usize,
) -> orlop_metadata::Result<Vec<HistoryEntry>> {
    if name.is_empty() {
        return store.history(namespace, None, limit);
    }
    let found = store.history(namespace, Some(name), limit)?;
    match name.parse::<Reference>() {
        Ok(reference) if found.is_empty() => store.history(namespace, Some(&reference.to_string()), limit),
        _ => Ok(found),
    }
}

pub(super) fn removal(request: pb::RemoveRequest) -> RemoveRequest {
    RemoveRequest {
        names: request.names,
        plan: (!request.plan.is_empty()).then_some(request.plan),
        force: request.force,
        no_trash: request.no_trash,
        keep_pushed: false,
        reason: (!request.reason.is_empty()).then_some(request.reason),
    }
}

/// The problems one by one, then how much was looked at.
pub(super) async fn check(
    server: &Server,
    scope: Scope,
    request: pb::CheckRequest,
) -> Result<AnswerStream<pb::CheckResponse>, Status> {
    let name = (!request.name.is_empty()).then_some(request.name);
    let wanted = orlop_image::CheckRequest { deep: request.deep, name };
    let problems = server.images().check(&scope, &wanted).await.map_err(|e| e.to_status())?;
    let summary = match &wanted.name {
        Some(name) => of_image(server, &scope, name).await?,
        None => {
            let (store, scope) = (server.store().clone(), scope.clone());
            blocking(move || of_store(&store, &scope)).await?
        }
    };
    let problems = problems.into_iter().map(|p| {
        Event::Problem(pb::Problem { class: p.class.to_owned(), subject: p.subject, detail: p.detail, fix: p.fix })
    });
    let events = problems.chain([Event::Summary(summary)]);
    Ok(Box::pin(futures::stream::iter(events.map(|event| Ok(pb::CheckResponse { event: Some(event) })))))
}

/// Without a name a check looks at every namespace; what they share counts once.
fn of_store(store: &Store, scope: &Scope) -> orlop_metadata::Result<pb::CheckSummary> {
    let mut summary = pb::CheckSummary::default();
    let mut blobs = BTreeMap::new();
    for namespace in store.namespaces()? {
        let scope = Scope { namespace: namespace.name, ..scope.clone() };
        summary.records += store.images(&scope.namespace, &[])?.len() as u64;
        blobs.extend(store.content(&scope).find(&[])?.into_iter().map(|b| (b.digest, b.size)));
        for driver in store.drivers() {
            summary.snapshots += store.snapshots(&scope, driver.name())?.list(&[])?.len() as u64;
        }
    }
    summary.blobs = blobs.len() as u64;
    summary.blob_bytes = blobs.values().sum();
    Ok(summary)
}

async fn of_image(server: &Server, scope: &Scope, name: &str) -> Result<pb::CheckSummary, Status> {
    let found = server.images().inspect(scope, name).await.map_err(|e| e.to_status())?;
    let mut blobs = BTreeMap::new();
    for document in found.documents.iter().filter(|d| !d.missing) {
        blobs.insert(document.descriptor.digest.clone(), document.descriptor.size);
        let parsed = orlop_oci::Document::parse(document.raw.clone(), Some(document.descriptor.media_type.as_str()));
        // A config is no document with children; what does not parse was told as a problem.
        let Ok(parsed) = parsed else { continue };
        if let Some(manifest) = parsed.manifest() {
            blobs.extend(manifest.layers.iter().map(|l| (l.digest.clone(), l.size)));
        }
    }
    Ok(pb::CheckSummary {
        records: (found.row.names.len() + found.row.hash_references.len()) as u64,
        blobs: blobs.len() as u64,
        blob_bytes: blobs.values().sum(),
        snapshots: found.snapshots.len() as u64,
    })
}
