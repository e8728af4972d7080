//! Long operations as streams of progress.
//!
//! # Invariants
//! - The operation never waits for a slow client: of each blob only the latest state is kept, and of messages the last
//!   few. So memory is bounded by the number of blobs.
//! - When the client goes away the operation's future is dropped, which stops it.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use orlop_api::orlop::v1 as pb;
use orlop_image::{BlobEvent, Event, Limit, Outcome, Stage};
use orlop_oci::{Descriptor, Digest};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::rows::descriptor;
use crate::AnswerStream;
use crate::status::ToStatus;

/// Answers made and not yet taken.
const QUEUE: usize = 32;

/// Messages for people that may wait.
const MAX_MESSAGES: usize = 64;

/// What the operation told and the client was not sent yet.
#[derive(Default)]
pub(super) struct Events {
    pending: Mutex<Pending>,
    news: Notify,
}

#[derive(Default)]
struct Pending {
    target: Option<Descriptor>,
    messages: VecDeque<String>,
    blobs: BTreeMap<Digest, BlobEvent>,
}

impl Events {
    /// Takes an event; never blocks for long.
    pub(super) fn push(&self, event: Event) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Target(target) => pending.target = Some(target),
            Event::Message(message) => {
                if pending.messages.len() == MAX_MESSAGES {
                    pending.messages.pop_front();
                }
                pending.messages.push_back(message);
            }
            Event::Blob(blob) => {
                pending.blobs.insert(blob.digest.clone(), blob);
            }
        }
        drop(pending);
        self.news.notify_one();
    }

    fn take(&self) -> Vec<pb::Progress> {
        let pending = std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        let target = pending.target.map(|t| pb::Progress { target: Some(descriptor(&t)), ..pb::Progress::default() });
        let messages = pending.messages.into_iter().map(|message| pb::Progress { message, ..pb::Progress::default() });
        let blobs =
            pending.blobs.into_values().map(|b| pb::Progress { blob: Some(blob(b)), ..pb::Progress::default() });
        target.into_iter().chain(messages).chain(blobs).collect()
    }
}

/// Runs an operation and streams what it tells; the last answer is `done` or the error.
pub(super) fn stream<F, W>(operation: F) -> AnswerStream<pb::Progress>
where
    F: FnOnce(Arc<Events>) -> W,
    W: Future<Output = orlop_image::Result<Outcome>> + Send + 'static,
{
    let events = Arc::new(Events::default());
    let work = operation(events.clone());
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let outcome = tokio::select! {
            outcome = work => outcome,
            () = sender.closed() => return,
            () = forward(&events, &sender) => return,
        };
        for progress in events.take() {
            if sender.send(Ok(progress)).await.is_err() {
                return;
            }
        }
        let last = outcome.map(done).map_err(|e| e.to_status());
        // A client that is gone does not miss it.
        let _ = sender.send(last).await;
    });
    Box::pin(ReceiverStream::new(receiver))
}

/// Sends what there is whenever there is something; returns when the client is gone.
async fn forward(events: &Events, sender: &mpsc::Sender<Result<pb::Progress, Status>>) {
    loop {
        events.news.notified().await;
        for progress in events.take() {
            if sender.send(Ok(progress)).await.is_err() {
                return;
            }
        }
    }
}

fn done(outcome: Outcome) -> pb::Progress {
    let done = pb::Done {
        names: outcome.names,
        target: Some(descriptor(&outcome.target)),
        image_ids: outcome.image_ids.iter().map(ToString::to_string).collect(),
        bytes_transferred: outcome.bytes_transferred,
        bytes_present: outcome.bytes_present,
    };
    pb::Progress { done: Some(done), ..pb::Progress::default() }
}

fn blob(event: BlobEvent) -> pb::BlobProgress {
    use pb::blob_progress::{Limit as WireLimit, Stage as WireStage};
    let stage = match event.stage {
        Stage::Waiting => WireStage::Waiting,
        Stage::Fetching => WireStage::Fetching,
        Stage::Verifying => WireStage::Verifying,
        Stage::Unpacking => WireStage::Unpacking,
        Stage::Complete => WireStage::Complete,
        Stage::Present => WireStage::Present,
        Stage::Pushing => WireStage::Pushing,
        Stage::Mounted => WireStage::Mounted,
    };
    let limit = match event.limit {
        Limit::Unknown => WireLimit::Unknown,
        Limit::Network => WireLimit::Network,
        Limit::Inflate => WireLimit::Inflate,
        Limit::Disk => WireLimit::Disk,
    };
    pb::BlobProgress {
        digest: event.digest.to_string(),
        kind: event.kind.to_owned(),
        stage: stage.into(),
        offset: event.offset,
        total: event.total,
        unpacked: event.unpacked,
        limit: limit.into(),
    }
}
