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
use tracing::Instrument;

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
            Event::Document(..) => {}
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

    fn take(&self) -> VecDeque<pb::Progress> {
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
    let running = async move {
        // What was taken and not yet sent: it outlives the operation, whenever that ends.
        let mut taken = VecDeque::new();
        let outcome = tokio::select! {
            outcome = work => outcome,
            () = sender.closed() => return,
            () = forward(&events, &mut taken, &sender) => return,
        };
        taken.extend(events.take());
        if send(&mut taken, &sender).await.is_ok() {
            // A client that is gone does not miss the end.
            let _ = sender.send(outcome.map(done).map_err(|e| e.to_status())).await;
        }
    };
    tokio::spawn(running.in_current_span());
    Box::pin(ReceiverStream::new(receiver))
}

type Sender = mpsc::Sender<Result<pb::Progress, Status>>;

/// Sends what there is whenever there is something; returns when the client is gone.
async fn forward(events: &Events, taken: &mut VecDeque<pb::Progress>, sender: &Sender) {
    loop {
        events.news.notified().await;
        *taken = events.take();
        if send(taken, sender).await.is_err() {
            return;
        }
    }
}

/// Sends all of it; what is not sent when this is dropped is still there.
async fn send(taken: &mut VecDeque<pb::Progress>, sender: &Sender) -> Result<(), ()> {
    while !taken.is_empty() {
        let place = sender.reserve().await.map_err(|_| ())?;
        if let Some(progress) = taken.pop_front() {
            place.send(Ok(progress));
        }
    }
    Ok(())
}

fn done(outcome: Outcome) -> pb::Progress {
    let done = pb::Done {
        names: outcome.names,
        target: Some(descriptor(&outcome.target)),
        image_ids: outcome.image_ids.iter().map(ToString::to_string).collect(),
        bytes_transferred: outcome.bytes_transferred,
        bytes_present: outcome.bytes_present,
        verified_by: outcome.verified_by,
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

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use orlop_oci::Digest;

    use super::*;

    fn of_blob(text: &str, offset: u64) -> Event {
        Event::Blob(BlobEvent {
            digest: Digest::of(text.as_bytes()),
            kind: "layer",
            stage: Stage::Fetching,
            offset,
            total: 10,
            unpacked: 0,
            limit: Limit::Network,
        })
    }

    fn outcome() -> Outcome {
        Outcome {
            names: vec!["name".into()],
            target: Descriptor::new("type", Digest::of(b"target"), 6),
            image_ids: Vec::new(),
            verified_by: Vec::new(),
            bytes_transferred: 10,
            bytes_present: 0,
        }
    }

    #[tokio::test]
    async fn the_latest_state_of_each_blob_and_the_end_always_arrive() {
        let mut stream = stream(|events| async move {
            for offset in 0..=1_000_000 {
                events.push(of_blob("a", offset));
            }
            events.push(of_blob("b", 3));
            events.push(Event::Message("almost".into()));
            Ok(outcome())
        });
        let mut last = std::collections::BTreeMap::new();
        let (mut count, mut messages, mut done) = (0, Vec::new(), None);
        while let Some(progress) = stream.next().await {
            let progress = progress.unwrap();
            assert!(done.is_none(), "nothing comes after the end");
            count += 1;
            if let Some(blob) = progress.blob {
                last.insert(blob.digest, blob.offset);
            }
            if !progress.message.is_empty() {
                messages.push(progress.message);
            }
            done = progress.done;
        }
        assert_eq!(last.into_values().collect::<std::collections::BTreeSet<_>>(), [3, 1_000_000].into());
        assert_eq!((messages, done.unwrap().names), (vec!["almost".to_owned()], vec!["name".to_owned()]));
        assert!(count < 1000, "{count} events: states that are overtaken are not sent");
    }

    /// States that were taken while the queue was full used to be lost when the operation ended just then.
    #[tokio::test]
    async fn a_slow_client_misses_no_final_state() {
        const BLOBS: usize = 10 * QUEUE;
        let (ended, mut end) = mpsc::channel::<()>(1);
        let mut stream = stream(move |events| async move {
            let _ended = ended;
            for blob in 0..BLOBS {
                events.push(of_blob(&blob.to_string(), 10));
                // Lets the queue fill up in between.
                tokio::task::yield_now().await;
            }
            Ok(outcome())
        });
        assert!(end.recv().await.is_none(), "the operation does not wait for the client");
        let mut seen = std::collections::BTreeSet::new();
        while let Some(progress) = stream.next().await {
            seen.extend(progress.unwrap().blob.map(|blob| blob.digest));
        }
        assert_eq!(seen.len(), BLOBS);
    }

    #[tokio::test]
    async fn an_error_ends_the_stream_with_its_status() {
        let stream = stream(|_| async { Err(orlop_image::Error::NotFound("x".into())) });
        let answers: Vec<_> = stream.collect().await;
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].as_ref().unwrap_err().code(), tonic::Code::NotFound);
    }

    #[tokio::test]
    async fn the_operation_is_dropped_with_the_stream() {
        let (held, mut dropped) = mpsc::channel::<()>(1);
        let (started, mut running) = mpsc::channel::<()>(1);
        let stream = stream(move |_| async move {
            let _held = held;
            started.send(()).await.unwrap();
            std::future::pending().await
        });
        running.recv().await.unwrap();
        drop(stream);
        assert!(dropped.recv().await.is_none(), "its last value is gone");
    }
}
