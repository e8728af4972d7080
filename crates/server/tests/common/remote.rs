//! The roles of a content store played over gRPC, so that the contract of content stores tries the service.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use orlop_api::containerd::services::content::v1 as pb;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_content::{
    BlobReader, Error, Info, IngestManager, IngestOptions, Ingester, Manager, Provider, Result, Status, Writer,
};
use orlop_oci::Digest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::request;

type Answers = Streaming<pb::WriteContentResponse>;

/// A store on the other side of a channel.
#[derive(Clone)]
pub struct Remote {
    client: ContentClient<Channel>,
    /// Calls whose end was announced: a ref is free, and its status the last one, when its call has ended.
    closing: Arc<Mutex<HashMap<String, Vec<Answers>>>>,
}

impl Remote {
    pub fn new(channel: Channel) -> Self {
        Self { client: ContentClient::new(channel), closing: Arc::default() }
    }

    async fn closed(&self, reference: &str) {
        let closing = self.closing.lock().unwrap().remove(reference).unwrap_or_default();
        for mut answers in closing {
            while let Ok(Some(_)) = answers.message().await {}
        }
    }

    async fn session(&self, options: IngestOptions) -> Result<RemoteWriter> {
        self.closed(&options.reference).await;
        let failed = |status| failure(&status, "blob", &options.reference, options.expected.as_ref());
        let (sender, receiver) = mpsc::channel(4);
        let first = pb::WriteContentRequest {
            action: pb::WriteAction::Stat.into(),
            r#ref: options.reference.clone(),
            total: options.total as i64,
            expected: text(options.expected.as_ref()),
            ..pb::WriteContentRequest::default()
        };
        sender.send(first).await.unwrap();
        let call = self.client.clone().write(request(ReceiverStream::new(receiver))).await;
        let mut answers = call.map_err(failed)?.into_inner();
        let answer = answers.message().await.map_err(failed)?.unwrap();
        let status = IngestManager::status(self, &options.reference).await?;
        assert_eq!(answer.offset as u64, status.offset);
        let digest = answer.digest.parse().unwrap();
        Ok(RemoteWriter { remote: self.clone(), call: Some((sender, answers)), status, digest })
    }
}

fn text(digest: Option<&Digest>) -> String {
    digest.map(ToString::to_string).unwrap_or_default()
}

fn time(time: Option<prost_types::Timestamp>) -> Timestamp {
    let time = time.unwrap();
    Timestamp::new(time.seconds, time.nanos).unwrap()
}

/// What a status says, about the object that the caller knows.
fn failure(status: &tonic::Status, kind: &'static str, name: &str, digest: Option<&Digest>) -> Error {
    let name = name.to_owned();
    match status.code() {
        Code::NotFound => Error::NotFound { kind, name },
        Code::AlreadyExists => Error::AlreadyExists(digest.unwrap().clone()),
        Code::Unavailable => Error::Locked(name),
        Code::InvalidArgument => Error::Invalid("as the server said"),
        _ => panic!("{status:?}"),
    }
}

#[async_trait]
impl Provider for Remote {
    async fn open(&self, digest: &Digest) -> Result<Arc<dyn BlobReader>> {
        let info = self.info(digest).await?;
        Ok(Arc::new(RemoteReader { client: self.client.clone(), digest: digest.clone(), size: info.size }))
    }

    async fn info(&self, digest: &Digest) -> Result<Info> {
        let call = self.client.clone().info(request(pb::InfoRequest { digest: digest.to_string() })).await;
        let info = call.map_err(|s| failure(&s, "blob", digest.as_str(), None))?.into_inner().info.unwrap();
        Ok(to_info(info))
    }
}

fn to_info(info: pb::Info) -> Info {
    Info {
        digest: info.digest.parse().unwrap(),
        size: info.size as u64,
        created_at: time(info.created_at),
        updated_at: time(info.updated_at),
    }
}

struct RemoteReader {
    client: ContentClient<Channel>,
    digest: Digest,
    size: u64,
}

#[async_trait]
impl BlobReader for RemoteReader {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        // On the wire, no length means to the end.
        if length == 0 || offset >= self.size {
            return Ok(Bytes::new());
        }
        let size = i64::try_from(length).unwrap_or(i64::MAX);
        let wanted = pb::ReadContentRequest { digest: self.digest.to_string(), offset: offset as i64, size };
        let call = self.client.clone().read(request(wanted)).await;
        let mut pieces = call.map_err(|s| failure(&s, "blob", self.digest.as_str(), None))?.into_inner();
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.message().await.unwrap() {
            assert_eq!(piece.offset, bytes.len() as i64, "offsets count from the start of the answer");
            bytes.extend_from_slice(&piece.data);
        }
        Ok(bytes.into())
    }
}

#[async_trait]
impl Ingester for Remote {
    async fn writer(&self, options: IngestOptions) -> Result<Box<dyn Writer>> {
        Ok(Box::new(self.session(options).await?))
    }
}

struct RemoteWriter {
    remote: Remote,
    call: Option<(mpsc::Sender<pb::WriteContentRequest>, Answers)>,
    status: Status,
    digest: Digest,
}

impl RemoteWriter {
    fn finished(&self) -> Error {
        Error::NotFound { kind: "ingest", name: self.status.reference.clone() }
    }

    async fn ask(&mut self, message: pb::WriteContentRequest) -> Result<(), tonic::Status> {
        let (sender, answers) = self.call.as_mut().expect("checked by the caller");
        // A call that has ended tells why in its answer.
        let _ = sender.send(message).await;
        let answer = match answers.message().await {
            Ok(answer) => answer.expect("an answer for each message"),
            Err(status) => {
                self.call = None;
                return Err(status);
            }
        };
        self.status.offset = answer.offset as u64;
        self.digest = answer.digest.parse().unwrap();
        Ok(())
    }

    async fn append(&mut self, offset: u64, data: Bytes) -> Result<()> {
        if self.call.is_none() {
            return Err(self.finished());
        }
        let action = pb::WriteAction::Write.into();
        let message = pb::WriteContentRequest { action, offset: offset as i64, data, ..Default::default() };
        let asked = self.ask(message).await;
        asked.map_err(|status| failure(&status, "ingest", &self.status.reference, None))
    }

    fn mismatch(&self, size: u64, expected: Option<&Digest>) -> Error {
        let (reference, actual) = (self.status.reference.clone(), self.status.offset);
        let size = if size == 0 { self.status.total } else { size };
        if size != 0 && size != actual {
            return Error::SizeMismatch { reference, expected: size, actual };
        }
        let expected = expected.or(self.status.expected.as_ref()).unwrap().clone();
        Error::DigestMismatch { reference, expected, actual: self.digest.clone() }
    }
}

#[async_trait]
impl Writer for RemoteWriter {
    fn status(&self) -> Status {
        self.status.clone()
    }

    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.append(self.status.offset, bytes).await
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        match size {
            0 => self.append(0, Bytes::new()).await,
            _ if size == self.status.offset => Ok(()),
            _ => Err(Error::Invalid("only 0 and the current offset are supported")),
        }
    }

    async fn commit(&mut self, size: u64, expected: Option<&Digest>) -> Result<Digest> {
        if self.call.is_none() {
            return Err(self.finished());
        }
        let message = pb::WriteContentRequest {
            action: pb::WriteAction::Commit.into(),
            offset: self.status.offset as i64,
            total: size as i64,
            expected: text(expected),
            ..Default::default()
        };
        match self.ask(message).await {
            Ok(()) => {
                let (_, mut answers) = self.call.take().unwrap();
                assert!(answers.message().await.unwrap().is_none(), "a commit ends the call");
                Ok(self.digest.clone())
            }
            Err(status) if status.code() == Code::FailedPrecondition => {
                let error = self.mismatch(size, expected);
                // The call has ended; the ingest must be there for another one.
                let options = IngestOptions { reference: self.status.reference.clone(), ..Default::default() };
                *self = self.remote.session(options).await?;
                Err(error)
            }
            Err(status) => {
                let digest = expected.unwrap_or(&self.digest);
                Err(failure(&status, "ingest", &self.status.reference, Some(digest)))
            }
        }
    }

    fn digest(&self) -> Digest {
        self.digest.clone()
    }
}

impl Drop for RemoteWriter {
    fn drop(&mut self) {
        if let Some((_, answers)) = self.call.take() {
            self.remote.closing.lock().unwrap().entry(self.status.reference.clone()).or_default().push(answers);
        }
    }
}

#[async_trait]
impl IngestManager for Remote {
    async fn status(&self, reference: &str) -> Result<Status> {
        self.closed(reference).await;
        let wanted = pb::StatusRequest { r#ref: reference.to_owned() };
        let call = self.client.clone().status(request(wanted)).await;
        let found = call.map_err(|s| failure(&s, "ingest", reference, None))?.into_inner();
        Ok(to_status(found.status.unwrap()))
    }

    async fn statuses(&self) -> Result<Vec<Status>> {
        let ending: Vec<String> = self.closing.lock().unwrap().keys().cloned().collect();
        for reference in ending {
            self.closed(&reference).await;
        }
        let found = self.client.clone().list_statuses(request(pb::ListStatusesRequest::default())).await.unwrap();
        Ok(found.into_inner().statuses.into_iter().map(to_status).collect())
    }

    async fn abort(&self, reference: &str) -> Result<()> {
        let call = self.client.clone().abort(request(pb::AbortRequest { r#ref: reference.to_owned() })).await;
        call.map(|_| ()).map_err(|s| failure(&s, "ingest", reference, None))
    }
}

fn to_status(status: pb::Status) -> Status {
    Status {
        reference: status.r#ref,
        offset: status.offset as u64,
        total: status.total as u64,
        expected: (!status.expected.is_empty()).then(|| status.expected.parse().unwrap()),
        started_at: time(status.started_at),
        updated_at: time(status.updated_at),
    }
}

#[async_trait]
impl Manager for Remote {
    async fn list(&self) -> Result<Vec<Info>> {
        let mut pages =
            self.client.clone().list(request(pb::ListContentRequest::default())).await.unwrap().into_inner();
        let mut found = Vec::new();
        while let Some(page) = pages.message().await.unwrap() {
            found.extend(page.info.into_iter().map(to_info));
        }
        Ok(found)
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        let wanted = pb::DeleteContentRequest { digest: digest.to_string() };
        let call = self.client.clone().delete(request(wanted)).await;
        call.map(|_| ()).map_err(|s| failure(&s, "blob", digest.as_str(), None))
    }
}
