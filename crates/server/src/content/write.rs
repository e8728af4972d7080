//! Writing: one ingest for each call, one answer for each message.
//!
//! # Invariants
//! - The writer is closed before the last answer or the error leaves, so that the client may open the ref again at once.
//! - Offset 0 begins again, even with a commit; any other offset must be where the ingest ends.
//! - A total or a digest that cannot be holds up no byte: as in containerd the commit fails, and the ingest stays.
//! - A client that goes away leaves the ingest, to be resumed.

use orlop_api::containerd::services::content::v1 as pb;
use orlop_content::{IngestManager, IngestOptions, Writer};
use orlop_metadata::{Labels, ScopedContent, ScopedWriter};
use orlop_oci::{Digest, DigestError};
use tonic::{Status, Streaming};

use crate::AnswerStream;
use crate::blocking::blocking;
use crate::convert::{signed, timestamp};
use crate::raw::set_claim;
use crate::status::ToStatus;

/// A call between two messages.
struct Session {
    content: ScopedContent,
    messages: Streaming<pb::WriteContentRequest>,
    /// Labels that a blob gets beside those of the client.
    claim: Labels,
    open: Option<Open>,
}

/// The write that the first message opened.
struct Open {
    writer: ScopedWriter,
    reference: String,
    whole: Whole,
}

/// What the client says about the whole: the last word counts.
struct Whole {
    total: i64,
    expected: Option<Result<Digest, DigestError>>,
}

impl Whole {
    fn of(message: &pb::WriteContentRequest) -> Self {
        let expected = (!message.expected.is_empty()).then(|| message.expected.parse());
        Self { total: message.total, expected }
    }

    /// As a size; there is none if nothing that can be was said.
    fn total(&self) -> u64 {
        u64::try_from(self.total).unwrap_or(0)
    }

    fn digest(&self) -> Option<&Digest> {
        self.expected.as_ref().and_then(|expected| expected.as_ref().ok())
    }

    /// What no bytes can be.
    fn check(&self) -> Result<(), Status> {
        if self.total < 0 {
            let total = self.total;
            return Err(Status::failed_precondition(format!(
                "total is {total}: expected 0 or more; nothing is committed"
            )));
        }
        match &self.expected {
            Some(Err(error)) => Err(Status::failed_precondition(format!(
                "expected: {error}; no bytes have it, and nothing is committed"
            ))),
            _ => Ok(()),
        }
    }
}

/// What a message led to.
enum Step {
    More(pb::WriteContentResponse),
    Last(pb::WriteContentResponse),
}

/// Answers each message as it comes. What is committed gets `claim` beside the client's labels, which go before it.
pub(crate) fn stream(
    content: ScopedContent,
    messages: Streaming<pb::WriteContentRequest>,
    claim: Labels,
) -> AnswerStream<pb::WriteContentResponse> {
    let session = Session { content, messages, claim, open: None };
    Box::pin(futures::stream::unfold(Some(session), |session| async {
        let mut session = session?;
        match session.step().await {
            Ok(Some(Step::More(answer))) => Some((Ok(answer), Some(session))),
            Ok(Some(Step::Last(answer))) => Some((Ok(answer), None)),
            Ok(None) => None,
            Err(status) => Some((Err(status), None)),
        }
    }))
}

impl Session {
    async fn step(&mut self) -> Result<Option<Step>, Status> {
        let Some(message) = self.messages.message().await? else {
            // containerd's code for a call that ends before it begins.
            let begun = self.open.is_some();
            return if begun { Ok(None) } else { Err(Status::unknown("the call ended before its first message")) };
        };
        let whole = Whole::of(&message);
        let open = match self.open.take() {
            None => open(&self.content, message.r#ref.clone(), whole).await?,
            Some(open) => self.revise(open, whole).await?,
        };
        match message.action() {
            pb::WriteAction::Stat => {
                let answer = open.answer(pb::WriteAction::Stat);
                self.open = Some(open);
                Ok(Some(Step::More(answer)))
            }
            pb::WriteAction::Write => {
                let open = open.append(message.offset, message.data).await?;
                let answer = open.answer(pb::WriteAction::Write);
                self.open = Some(open);
                Ok(Some(Step::More(answer)))
            }
            pb::WriteAction::Commit => {
                let open = open.append(message.offset, message.data).await?;
                let mut labels = message.labels;
                set_claim(&mut labels, &self.claim);
                open.commit(labels).await.map(|answer| Some(Step::Last(answer)))
            }
        }
    }

    /// Takes over what a later message says about the whole. A digest that has become visible ends the write.
    async fn revise(&mut self, mut open: Open, said: Whole) -> Result<Open, Status> {
        if said.total != 0 {
            open.whole.total = said.total;
        }
        if let Some(expected) = said.digest() {
            let (content, wanted) = (self.content.clone(), expected.clone());
            if blocking(move || content.stat(&wanted)).await.is_ok() {
                let reference = open.reference.clone();
                drop(open);
                // The ref must be free; that it is gone already is as good.
                let _ = self.content.abort(&reference).await;
                return Err(orlop_content::Error::AlreadyExists(expected.clone()).to_status());
            }
        }
        if said.expected.is_some() {
            open.whole.expected = said.expected;
        }
        Ok(open)
    }
}

async fn open(content: &ScopedContent, reference: String, whole: Whole) -> Result<Open, Status> {
    if reference.is_empty() {
        return Err(Status::invalid_argument("ref is required in the first message"));
    }
    let (total, expected) = (whole.total(), whole.digest().cloned());
    let options = IngestOptions { reference: reference.clone(), total, expected };
    let writer = content.scoped_writer(options).await.map_err(|e| e.to_status())?;
    Ok(Open { writer, reference, whole })
}

impl Open {
    async fn append(mut self, offset: i64, data: bytes::Bytes) -> Result<Self, Status> {
        let current = self.writer.status().offset;
        if offset == 0 && current > 0 {
            self.writer.truncate(0).await.map_err(|e| e.to_status())?;
        } else if offset != signed(current) {
            return Err(Status::out_of_range(format!(
                "ingest {:?}: offset {offset} does not continue at {current}",
                self.reference
            )));
        }
        if !data.is_empty() {
            self.writer.write(data).await.map_err(|e| e.to_status())?;
        }
        Ok(self)
    }

    /// Commits and closes the writer.
    async fn commit(mut self, labels: Labels) -> Result<pb::WriteContentResponse, Status> {
        self.whole.check()?;
        self.writer.set_labels(labels).map_err(|e| e.to_status())?;
        let mut answer = self.answer(pb::WriteAction::Commit);
        let digest = self.writer.commit(self.whole.total(), self.whole.digest()).await.map_err(|e| e.to_status())?;
        answer.digest = digest.to_string();
        Ok(answer)
    }

    fn answer(&self, action: pb::WriteAction) -> pb::WriteContentResponse {
        let status = self.writer.status();
        pb::WriteContentResponse {
            action: action.into(),
            started_at: Some(timestamp(status.started_at)),
            updated_at: Some(timestamp(status.updated_at)),
            offset: signed(status.offset),
            total: signed(self.whole.total()),
            digest: self.writer.digest().to_string(),
        }
    }
}
