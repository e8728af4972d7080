//! The least a server can do: takes what `load` writes and gives what it reads, and keeps nothing.
//!
//! `sink SOCKET`. It answers Content.Write with a digest that is none, and Content.Read with as many zeros as were written
//! last. What it takes is the client's share and gRPC's of what `api.py` measures: no server on this transport is faster,
//! and one that has to hash and keep the bytes takes that in addition.

use std::error::Error;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{Stream, stream};
use orlop_api::MAX_MESSAGE_BYTES;
use orlop_api::containerd::services::content::v1 as content;
use orlop_api::containerd::services::leases::v1 as leases;
use prost::bytes::Bytes;
use tonic::{Request, Response, Status, Streaming};

/// What a server sends at a time.
const PIECE: usize = 1 << 20;
const NO_DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

#[derive(Clone, Default)]
struct Sink {
    written: Arc<AtomicU64>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let socket = std::env::args().nth(1).ok_or("sink SOCKET")?;
    let listener = tokio::net::UnixListener::bind(Path::new(&socket))?;
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let sink = Sink::default();
    let contents = content::content_server::ContentServer::new(sink.clone());
    let contents = contents.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
    tonic::transport::Server::builder()
        .add_service(contents)
        .add_service(leases::leases_server::LeasesServer::new(sink))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

/// What a sink has no use for.
fn refused<T>() -> Answer<T> {
    Err(Status::unimplemented("a sink takes writes and answers reads, nothing else"))
}

fn answer_write(written: &AtomicU64, message: &content::WriteContentRequest) -> content::WriteContentResponse {
    let offset = message.offset + message.data.len() as i64;
    written.fetch_max(offset.unsigned_abs(), Ordering::Relaxed);
    content::WriteContentResponse { action: message.action, offset, digest: NO_DIGEST.to_owned(), ..Default::default() }
}

#[tonic::async_trait]
impl content::content_server::Content for Sink {
    type ListStream = Answers<content::ListContentResponse>;
    type ReadStream = Answers<content::ReadContentResponse>;
    type WriteStream = Answers<content::WriteContentResponse>;

    async fn write(&self, request: Request<Streaming<content::WriteContentRequest>>) -> Answer<Self::WriteStream> {
        let written = self.written.clone();
        // A commit is the last message that is answered.
        let answers = stream::unfold(Some(request.into_inner()), move |messages| {
            let written = written.clone();
            async move {
                let mut messages = messages?;
                let message = messages.message().await.transpose()?;
                let committed = message.as_ref().is_ok_and(|said| said.action() == content::WriteAction::Commit);
                Some((message.map(|said| answer_write(&written, &said)), (!committed).then_some(messages)))
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn read(&self, _: Request<content::ReadContentRequest>) -> Answer<Self::ReadStream> {
        let piece = Bytes::from(vec![0; PIECE]);
        let pieces = self.written.load(Ordering::Relaxed) / PIECE as u64;
        let answer = move |n| Ok(content::ReadContentResponse { offset: n as i64 * PIECE as i64, data: piece.clone() });
        Ok(Response::new(Box::pin(stream::iter((0..pieces).map(answer)))))
    }

    async fn info(&self, _: Request<content::InfoRequest>) -> Answer<content::InfoResponse> {
        refused()
    }

    async fn update(&self, _: Request<content::UpdateRequest>) -> Answer<content::UpdateResponse> {
        refused()
    }

    async fn list(&self, _: Request<content::ListContentRequest>) -> Answer<Self::ListStream> {
        refused()
    }

    async fn delete(&self, _: Request<content::DeleteContentRequest>) -> Answer<()> {
        refused()
    }

    async fn status(&self, _: Request<content::StatusRequest>) -> Answer<content::StatusResponse> {
        refused()
    }

    async fn list_statuses(&self, _: Request<content::ListStatusesRequest>) -> Answer<content::ListStatusesResponse> {
        refused()
    }

    async fn abort(&self, _: Request<content::AbortRequest>) -> Answer<()> {
        refused()
    }
}

#[tonic::async_trait]
impl leases::leases_server::Leases for Sink {
    async fn create(&self, _: Request<leases::CreateRequest>) -> Answer<leases::CreateResponse> {
        Ok(Response::new(leases::CreateResponse::default()))
    }

    async fn delete(&self, _: Request<leases::DeleteRequest>) -> Answer<()> {
        refused()
    }

    async fn list(&self, _: Request<leases::ListRequest>) -> Answer<leases::ListResponse> {
        refused()
    }

    async fn add_resource(&self, _: Request<leases::AddResourceRequest>) -> Answer<()> {
        refused()
    }

    async fn delete_resource(&self, _: Request<leases::DeleteResourceRequest>) -> Answer<()> {
        refused()
    }

    async fn list_resources(&self, _: Request<leases::ListResourcesRequest>) -> Answer<leases::ListResourcesResponse> {
        refused()
    }
}
