//! A pass over all blobs and trees that a client asked for.

use std::sync::{Mutex, PoisonError};

use orlop_api::orlop::v1 as pb;
use orlop_api::orlop::v1::scrub_response::Event;
use orlop_image::{Bandwidth, Scrubbing};
use orlop_metadata::{Damage, Damaged, Scrub, Store};
use tonic::Status;

use crate::blocking::blocking;
use crate::status::ToStatus;
use crate::{AnswerStream, Server};

/// Makes the pass, and then tells what was found and what it came to. A client that goes stops it; the next one goes on.
pub(super) async fn scrub(
    server: &Server,
    request: pb::ScrubRequest,
) -> Result<AnswerStream<pb::ScrubResponse>, Status> {
    let bandwidth = Bandwidth::new(request.bytes_per_second);
    let found: Mutex<Vec<Damage>> = Mutex::default();
    let told = |event: Scrubbing<'_>| {
        server.metrics().scrubbing(&event);
        if let Scrubbing::Found(damage) = event {
            found.lock().unwrap_or_else(PoisonError::into_inner).push(damage.clone());
        }
    };
    let scrub = server.images().scrub(&bandwidth, request.anew, &told).await.map_err(|e| e.to_status())?;
    server.metrics().scrubs.inc();
    let (found, store) = (found.into_inner().unwrap_or_else(PoisonError::into_inner), server.store().clone());
    let rows = move || found.into_iter().map(|damage| row(&store, damage)).collect::<Result<Vec<_>, _>>();
    let found = blocking(rows).await?;
    let events = found.into_iter().map(Event::Found).chain([Event::Summary(summary(scrub))]);
    let answers: Vec<_> = events.map(|event| Ok(pb::ScrubResponse { event: Some(event) })).collect();
    Ok(Box::pin(futures::stream::iter(answers)))
}

fn row(store: &Store, damage: Damage) -> Result<pb::Found, orlop_metadata::Error> {
    let Damage { what, fault, detail, quarantine, .. } = damage;
    let subject = match &what {
        Damaged::Blob(digest) => digest.to_string(),
        Damaged::Snapshot { driver, id } => {
            let key = store.affected(&what)?.into_iter().next().map_or_else(|| id.0.to_string(), |at| at.name);
            format!("{driver}/{key}")
        }
    };
    Ok(pb::Found { subject, fault, detail, quarantine: quarantine.unwrap_or_default() })
}

fn summary(scrub: Scrub) -> pb::ScrubSummary {
    let Scrub { blobs, bytes, found, trees, tree_bytes, unrecorded, .. } = scrub;
    pb::ScrubSummary { blobs, blob_bytes: bytes, found, trees, tree_bytes, unrecorded }
}
