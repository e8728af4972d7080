//! A pass over all blobs that a client asked for.

use std::sync::{Mutex, PoisonError};

use orlop_api::orlop::v1 as pb;
use orlop_api::orlop::v1::scrub_response::Event;
use orlop_image::{Bandwidth, Scrubbing};
use orlop_metadata::{Damage, Damaged, Scrub};
use tonic::Status;

use crate::status::ToStatus;
use crate::{AnswerStream, Server};

/// Makes the pass, and then tells what was found and what it came to. A client that goes stops it; the next one goes on.
pub(super) async fn scrub(
    server: &Server,
    request: pb::ScrubRequest,
) -> Result<AnswerStream<pb::ScrubResponse>, Status> {
    let bandwidth = Bandwidth::new(request.bytes_per_second);
    let found: Mutex<Vec<pb::Found>> = Mutex::default();
    let told = |event: Scrubbing<'_>| {
        server.metrics().scrubbing(&event);
        if let Scrubbing::Found(damage) = event {
            found.lock().unwrap_or_else(PoisonError::into_inner).push(row(damage));
        }
    };
    let scrub = server.images().scrub(&bandwidth, request.anew, &told).await.map_err(|e| e.to_status())?;
    server.metrics().scrubs.inc();
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let events = found.into_iter().map(Event::Found).chain([Event::Summary(summary(scrub))]);
    let answers: Vec<_> = events.map(|event| Ok(pb::ScrubResponse { event: Some(event) })).collect();
    Ok(Box::pin(futures::stream::iter(answers)))
}

fn row(damage: &Damage) -> pb::Found {
    let subject = match &damage.what {
        Damaged::Blob(digest) => digest.to_string(),
        Damaged::Snapshot { driver, id } => format!("{driver}/{}", id.0),
    };
    pb::Found {
        subject,
        fault: damage.fault.clone(),
        detail: damage.detail.clone(),
        quarantine: damage.quarantine.clone().unwrap_or_default(),
    }
}

fn summary(scrub: Scrub) -> pb::ScrubSummary {
    pb::ScrubSummary { blobs: scrub.blobs, blob_bytes: scrub.bytes, found: scrub.found }
}
