//! containerd.services.events.v1: what happens here, and what others publish, to whoever asks for it.
//!
//! # Invariants
//! - Publishers never wait for subscribers. A subscriber that falls behind by more than [`BACKLOG`] events is told that it
//!   has missed some, and its stream ends: it has to look at the state anew.
//! - Events of this process come in the order of the commits.

mod fields;
mod message;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use orlop_api::containerd::services::events::v1 as pb;
use orlop_api::containerd::services::events::v1::events_server::Events;
use orlop_api::containerd::types::Envelope;
use orlop_metadata::{Filter, Notice, Store, Watcher, validate_identifier};
use prost_types::Any;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status};

use crate::blocking::blocking;
use crate::convert::{required, timestamp};
use crate::status::{ToStatus, uncoded};
use crate::{Answer, AnswerStream, Server, call};

/// Events that a subscriber may be behind: a pull of a large image makes some hundreds.
const BACKLOG: usize = 8192;

/// How often the history is looked at for what other processes did.
const FOLLOW: Duration = Duration::from_millis(500);

/// Where publishers and subscribers meet. Without subscribers an event costs nothing.
#[derive(Clone, Default)]
pub(crate) struct Exchange {
    sender: Arc<OnceLock<broadcast::Sender<Arc<Envelope>>>>,
}

impl Exchange {
    /// Publishes what this process changes in the store, as long as the returned value lives.
    pub(crate) fn listen(&self, store: &Store) -> Arc<Watcher> {
        let exchange = self.clone();
        let watcher: Arc<Watcher> = Arc::new(move |notices: &[Notice]| {
            if let Some(sender) = exchange.wanted() {
                for notice in notices {
                    send(sender, message::envelope(notice));
                }
            }
        });
        store.watch(&watcher);
        watcher
    }

    /// Publishes what other processes do to image records, for ever.
    pub(crate) async fn follow(store: Store) {
        let began = store.clone();
        let mut follower = match blocking(move || began.follow()).await {
            Ok(follower) => follower,
            Err(error) => return tracing::warn!(%error, "changes of other processes give no events"),
        };
        loop {
            tokio::time::sleep(FOLLOW).await;
            let stepped = blocking(move || {
                let done = follower.step();
                Ok::<_, Status>((follower, done))
            });
            let Ok((next, done)) = stepped.await else { return };
            follower = next;
            if let Err(error) = done {
                tracing::warn!(%error, "the history could not be followed; it is tried again");
            }
        }
    }

    fn wanted(&self) -> Option<&broadcast::Sender<Arc<Envelope>>> {
        self.sender.get().filter(|sender| sender.receiver_count() > 0)
    }

    fn publish(&self, envelope: Envelope) {
        if let Some(sender) = self.wanted() {
            send(sender, envelope);
        }
    }

    /// Publishes what no change of the store tells.
    pub(crate) fn tell<M: prost::Message + prost::Name>(&self, namespace: &str, topic: &str, event: &M) {
        let (timestamp, namespace) = (Some(timestamp(jiff::Timestamp::now())), namespace.to_owned());
        self.publish(Envelope { timestamp, namespace, topic: topic.to_owned(), event: Some(crate::any::pack(event)) });
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<Envelope>> {
        self.sender.get_or_init(|| broadcast::channel(BACKLOG).0).subscribe()
    }
}

/// The last subscriber may just have gone.
fn send(sender: &broadcast::Sender<Arc<Envelope>>, envelope: Envelope) {
    drop(sender.send(Arc::new(envelope)));
}

#[tonic::async_trait]
impl Events for Server {
    type SubscribeStream = AnswerStream<Envelope>;

    async fn publish(&self, request: Request<pb::PublishRequest>) -> Answer<()> {
        let namespace = call::scope(&request)?.namespace;
        let pb::PublishRequest { topic, event } = request.into_inner();
        check_topic(&topic)?;
        let timestamp = Some(timestamp(jiff::Timestamp::now()));
        self.exchange().publish(Envelope { timestamp, namespace, topic, event: Some(event.unwrap_or_default()) });
        Ok(Response::new(()))
    }

    async fn forward(&self, request: Request<pb::ForwardRequest>) -> Answer<()> {
        let envelope = required(request.into_inner().envelope, "envelope")?;
        validate_identifier("namespace of the event", &envelope.namespace).map_err(|e| e.to_status())?;
        check_topic(&envelope.topic)?;
        required(envelope.timestamp, "timestamp of the event")?;
        self.exchange().publish(envelope);
        Ok(Response::new(()))
    }

    async fn subscribe(&self, request: Request<pb::SubscribeRequest>) -> Answer<Self::SubscribeStream> {
        let filter = Filter::parse(&request.into_inner().filters).map_err(|e| uncoded(&e))?;
        let events = matching(self.exchange().subscribe(), filter);
        Ok(Response::new(self.until_shutdown(events)))
    }
}

fn matching(receiver: broadcast::Receiver<Arc<Envelope>>, filter: Filter) -> AnswerStream<Envelope> {
    Box::pin(futures::stream::unfold(Some((receiver, filter)), |state| async {
        let (mut receiver, filter) = state?;
        loop {
            match receiver.recv().await {
                Ok(envelope) if fields::matches(&filter, &envelope) => {
                    return Some((Ok(Envelope::clone(&envelope)), Some((receiver, filter))));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => return Some((Err(lost(missed)), None)),
                Err(RecvError::Closed) => return None,
            }
        }
    }))
}

fn lost(missed: u64) -> Status {
    Status::resource_exhausted(format!(
        "this subscriber was too slow and missed {missed} events: subscribe again and look at the state anew"
    ))
}

/// A topic is `/` and identifiers joined by `/`.
fn check_topic(topic: &str) -> Result<(), Status> {
    let words = topic.strip_prefix('/').filter(|words| !words.is_empty());
    let words = words.ok_or_else(|| {
        Status::invalid_argument(format!("topic {topic:?}: expected '/' and at least one word, as in /images/create"))
    })?;
    words.split('/').try_for_each(|word| validate_identifier("topic", word).map_err(|e| e.to_status()))
}

/// An event and its topic.
type Message = (&'static str, Any);

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn a_slow_subscriber_learns_what_it_missed_and_holds_nobody_up() {
        let exchange = Exchange::default();
        let mut slow = matching(exchange.subscribe(), Filter::default());
        let mut quick = matching(exchange.subscribe(), Filter::default());
        for number in 0..BACKLOG + 10 {
            exchange.publish(Envelope { topic: format!("/{number}"), ..Envelope::default() });
            assert_eq!(quick.next().await.unwrap().unwrap().topic, format!("/{number}"));
        }
        let told = slow.next().await.unwrap().unwrap_err();
        assert_eq!(told.code(), Code::ResourceExhausted);
        assert!(told.message().contains("missed 10 events"), "{}", told.message());
        assert!(slow.next().await.is_none());
    }
}
