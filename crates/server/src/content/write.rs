//! Writing: one ingest for each call, one answer for each message.
//!
//! # Invariants
//! - The writer is closed before the last answer or the error leaves, so that the client may open the ref again at once.
//! - Offset 0 begins again, even with a commit; any other offset must be where the ingest ends.
//! - A client that goes away leaves the ingest, to be resumed.

use orlop_api::containerd::services::content::v1 as pb;
use orlop_content::{IngestManager, IngestOptions, Writer};
use orlop_metadata::{Labels, ScopedContent, ScopedWriter};
use orlop_oci::Digest;
use tonic::{Status, Streaming};

use crate::AnswerStream;
use crate::blocking::blocking;
use crate::convert::{optional_digest, signed, timestamp, unsigned};
use crate::status::ToStatus;

/// A call between two messages.
struct Session {
    content: ScopedContent,
    messages: Streaming<pb::WriteContentRequest>,
    open: Option<Open>,
}

/// The write that the first message opened.
struct Open {
    writer: ScopedWriter,
    reference: String,
    total: u64,
    expected: Option<Digest>,
}

/// What a message led to.
enum Step {
    More(pb::WriteContentResponse),
    Last(pb::WriteContentResponse),
}

/// Answers each message as it comes.
pub(super) fn stream(
    content: ScopedContent,
    messages: Streaming<pb::WriteContentRequest>,
) -> AnswerStream<pb::WriteContentResponse> {
    let session = Session { content, messages, open: None };
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
        let Some(message) = self.messages.message().await? else { return Ok(None) };
        let expected = optional_digest(&message.expected)?;
        let total = unsigned(message.total, "total")?;
        let open = match self.open.take() {
            None => open(&self.content, message.r#ref.clone(), total, expected).await?,
            Some(open) => self.revise(open, total, expected).await?,
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
                open.commit(message.labels).await.map(|answer| Some(Step::Last(answer)))
            }
        }
    }

    /// Takes over what a later message says about the whole. A digest that has become visible ends the write.
    async fn revise(&mut self, mut open: Open, total: u64, expected: Option<Digest>) -> Result<Open, Status> {
        if total > 0 {
            open.total = total;
        }
        let Some(expected) = expected else { return Ok(open) };
        let (content, wanted) = (self.content.clone(), expected.clone());
        if blocking(move || content.stat(&wanted)).await.is_ok() {
            let reference = open.reference.clone();
            drop(open);
            // The ref must be free; that it is gone already is as good.
            let _ = self.content.abort(&reference).await;
            return Err(orlop_content::Error::AlreadyExists(expected).to_status());
        }
        open.expected = Some(expected);
        Ok(open)
    }
}

async fn open(
    content: &ScopedContent,
    reference: String,
    total: u64,
    expected: Option<Digest>,
) -> Result<Open, Status> {
    if reference.is_empty() {
        return Err(Status::invalid_argument("ref is required in the first message"));
    }
    let options = IngestOptions { reference: reference.clone(), total, expected: expected.clone() };
    let writer = content.scoped_writer(options).await.map_err(|e| e.to_status())?;
    Ok(Open { writer, reference, total, expected })
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
        self.writer.set_labels(labels).map_err(|e| e.to_status())?;
        let mut answer = self.answer(pb::WriteAction::Commit);
        let digest = self.writer.commit(self.total, self.expected.as_ref()).await.map_err(|e| e.to_status())?;
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
            total: signed(self.total),
            digest: self.writer.digest().to_string(),
        }
    }
}
