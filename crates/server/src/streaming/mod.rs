//! containerd.services.streaming.v1: streams that a client opens under a name, for other calls to use.
//!
//! # Invariants
//! - A name is taken from the acknowledgement until the stream is closed by its user or the client goes away; in one
//!   namespace no two streams have it at a time.
//! - Neither direction is buffered beyond a few messages: who sends waits for who takes.

pub(crate) mod bytes;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use orlop_api::containerd::services::streaming::v1::StreamInit;
use orlop_api::containerd::services::streaming::v1::streaming_server::Streaming as Service;
use prost::{Message, Name};
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::any::{broken, pack, unpack};
use crate::{Answer, AnswerStream, Server, call};

/// Answers made and not yet taken.
const QUEUE: usize = 16;

/// How long a closed stream may take to hand over what was sent last.
const HAND_OVER: Duration = Duration::from_secs(2);

/// What acknowledges a stream.
const EMPTY: &str = "google.protobuf.Empty";

type Sender = mpsc::Sender<Result<Any, Status>>;

/// One stream, as the server's side uses it.
pub(crate) struct Link {
    messages: tokio::sync::Mutex<Streaming<Any>>,
    /// `None` once closed.
    answers: Mutex<Option<Sender>>,
    /// Cancelled when all answers were handed over, or the client is gone.
    over: CancellationToken,
}

/// The other side is gone.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the client has closed the stream")]
pub(crate) struct Gone;

impl Link {
    /// Sends a message; waits until there is room.
    pub(crate) async fn send<M: Message + Name>(&self, message: &M) -> Result<(), Gone> {
        let sender = lock(&self.answers).clone().ok_or(Gone)?;
        sender.send(Ok(pack(message))).await.map_err(|_| Gone)
    }

    /// The next message; `None` after the last. A client that went away has not said that it was the last.
    pub(crate) async fn receive(&self) -> Result<Option<Any>, Status> {
        let message = self.messages.lock().await.message().await?;
        if message.is_none() && self.over.is_cancelled() {
            return Err(Status::cancelled("the client has gone away"));
        }
        Ok(message)
    }

    async fn close(&self) {
        drop(lock(&self.answers).take());
        // What was sent last must not be overtaken by the answer to the call that sent it.
        let _ = tokio::time::timeout(HAND_OVER, self.over.cancelled()).await;
    }
}

type Key = (String, String);

/// The streams that are open, by namespace and name.
#[derive(Clone, Default)]
pub(crate) struct Streams {
    open: Arc<Mutex<HashMap<Key, Arc<Link>>>>,
}

impl Streams {
    /// An open stream.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Result<Arc<Link>, Status> {
        let found = lock(&self.open).get(&(namespace.to_owned(), name.to_owned())).cloned();
        found.ok_or_else(|| Status::not_found(format!("stream {name:?}: not found; it must be opened first")))
    }

    /// Ends a stream after what was sent on it.
    pub(crate) async fn close(&self, namespace: &str, name: &str) {
        let link = lock(&self.open).remove(&(namespace.to_owned(), name.to_owned()));
        if let Some(link) = link {
            link.close().await;
        }
    }

    fn register(&self, key: Key, link: Arc<Link>) -> Result<(), Status> {
        let mut open = lock(&self.open);
        if open.contains_key(&key) {
            return Err(Status::already_exists(format!("stream {:?}: already exists", key.1)));
        }
        open.insert(key, link);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the client receives; when it ends or is dropped, its name is free.
struct Answers {
    receiver: mpsc::Receiver<Result<Any, Status>>,
    streams: Streams,
    key: Key,
    link: std::sync::Weak<Link>,
    over: CancellationToken,
}

impl Stream for Answers {
    type Item = Result<Any, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(context)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.over.cancel();
        let mut open = lock(&self.streams.open);
        if open.get(&self.key).is_some_and(|link| std::ptr::eq(Arc::as_ptr(link), self.link.as_ptr())) {
            open.remove(&self.key);
        }
    }
}

#[tonic::async_trait]
impl Service for Server {
    type StreamStream = AnswerStream<Any>;

    async fn stream(&self, request: Request<Streaming<Any>>) -> Answer<Self::StreamStream> {
        let namespace = call::scope(&request)?.namespace;
        let (streams, messages) = (self.streams().clone(), request.into_inner());
        // The first message may take its time: the headers go at once.
        let opening = futures::stream::once(open(streams, namespace, messages));
        let answers = futures::StreamExt::flat_map(opening, |opened| -> AnswerStream<Any> {
            match opened {
                Ok(answers) => Box::pin(answers),
                Err(status) => Box::pin(futures::stream::iter([Err(status)])),
            }
        });
        Ok(Response::new(self.until_shutdown(Box::pin(answers))))
    }
}

async fn open(streams: Streams, namespace: String, mut messages: Streaming<Any>) -> Result<Answers, Status> {
    // containerd's code for a call that ends before it begins.
    let first =
        messages.message().await?.ok_or_else(|| Status::unknown("the stream ended before its name was said"))?;
    let init = unpack::<StreamInit>(&first).ok_or_else(|| {
        let expected = StreamInit::full_name();
        Status::unknown(format!("a stream begins with {expected}, found {:?}", first.type_url))
    })?;
    let init = init.map_err(|e| broken(&first, "the beginning of a stream", &e))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let acknowledged = sender.try_send(Ok(Any { type_url: EMPTY.to_owned(), value: Vec::new() }));
    acknowledged.expect("a new queue has room");
    let over = CancellationToken::new();
    let link = Arc::new(Link {
        messages: tokio::sync::Mutex::new(messages),
        answers: Mutex::new(Some(sender)),
        over: over.clone(),
    });
    let (key, weak) = ((namespace, init.id), Arc::downgrade(&link));
    streams.register(key.clone(), link)?;
    Ok(Answers { receiver, streams, key, link: weak, over })
}
