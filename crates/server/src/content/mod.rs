//! containerd.services.content.v1.

mod read;
pub(crate) mod write;

use std::borrow::Cow;

use orlop_api::containerd::services::content::v1 as pb;
use orlop_api::containerd::services::content::v1::content_server::Content;
use orlop_content::{IngestManager, Status as IngestStatus};
use orlop_metadata::{ContentInfo, Filter, Labels, ScopedContent};
use tonic::{Request, Response, Status, Streaming};

use crate::blocking::blocking;
use crate::convert::{digest, mask, required, signed, timestamp};
use crate::page::pages;
use crate::status::ToStatus;
use crate::{Answer, AnswerStream, Server, call};

impl Server {
    pub(crate) fn content_of<T>(&self, request: &Request<T>) -> Result<ScopedContent, Status> {
        Ok(self.store().content(&call::scope(request)?))
    }
}

#[tonic::async_trait]
impl Content for Server {
    type ListStream = AnswerStream<pb::ListContentResponse>;
    type ReadStream = AnswerStream<pb::ReadContentResponse>;
    type WriteStream = AnswerStream<pb::WriteContentResponse>;

    async fn info(&self, request: Request<pb::InfoRequest>) -> Answer<pb::InfoResponse> {
        let content = self.content_of(&request)?;
        let digest = digest(&request.into_inner().digest)?;
        let found = blocking(move || content.stat(&digest)).await?;
        Ok(Response::new(pb::InfoResponse { info: Some(info(found)) }))
    }

    async fn update(&self, request: Request<pb::UpdateRequest>) -> Answer<pb::UpdateResponse> {
        let content = self.content_of(&request)?;
        let request = request.into_inner();
        let wanted = required(request.info, "info")?;
        let (digest, mask) = (digest(&wanted.digest)?, mask(request.update_mask));
        let updated = blocking(move || content.update(&digest, wanted.labels, &mask)).await?;
        Ok(Response::new(pb::UpdateResponse { info: Some(info(updated)) }))
    }

    async fn list(&self, request: Request<pb::ListContentRequest>) -> Answer<Self::ListStream> {
        let content = self.content_of(&request)?;
        let found = blocking(move || content.find(&request.into_inner().filters)).await?;
        Ok(Response::new(pages(found.into_iter().map(info), |info| pb::ListContentResponse { info })))
    }

    async fn delete(&self, request: Request<pb::DeleteContentRequest>) -> Answer<()> {
        let content = self.content_of(&request)?;
        let digest = digest(&request.into_inner().digest)?;
        blocking(move || content.forget(&digest)).await?;
        self.collector().request();
        Ok(Response::new(()))
    }

    async fn read(&self, request: Request<pb::ReadContentRequest>) -> Answer<Self::ReadStream> {
        let content = self.content_of(&request)?;
        Ok(Response::new(read::stream(&content, &request.into_inner()).await?))
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Answer<pb::StatusResponse> {
        let content = self.content_of(&request)?;
        let found = content.status(&request.into_inner().r#ref).await.map_err(|e| e.to_status())?;
        Ok(Response::new(pb::StatusResponse { status: Some(ingest(found)) }))
    }

    async fn list_statuses(&self, request: Request<pb::ListStatusesRequest>) -> Answer<pb::ListStatusesResponse> {
        let content = self.content_of(&request)?;
        let filter = Filter::parse(&request.into_inner().filters).map_err(|e| e.to_status())?;
        let mut found = content.statuses().await.map_err(|e| e.to_status())?;
        found.retain(|status| filter.matches(|path| ingest_field(status, path)));
        Ok(Response::new(pb::ListStatusesResponse { statuses: found.into_iter().map(ingest).collect() }))
    }

    async fn write(&self, request: Request<Streaming<pb::WriteContentRequest>>) -> Answer<Self::WriteStream> {
        let content = self.content_of(&request)?;
        Ok(Response::new(write::stream(content, request.into_inner(), Labels::new())))
    }

    async fn abort(&self, request: Request<pb::AbortRequest>) -> Answer<()> {
        let content = self.content_of(&request)?;
        content.abort(&request.into_inner().r#ref).await.map_err(|e| e.to_status())?;
        Ok(Response::new(()))
    }
}

pub(crate) fn info(info: ContentInfo) -> pb::Info {
    pb::Info {
        digest: info.digest.to_string(),
        size: signed(info.size),
        created_at: Some(timestamp(info.created_at)),
        updated_at: Some(timestamp(info.updated_at)),
        labels: info.labels,
    }
}

pub(crate) fn ingest(status: IngestStatus) -> pb::Status {
    pb::Status {
        started_at: Some(timestamp(status.started_at)),
        updated_at: Some(timestamp(status.updated_at)),
        r#ref: status.reference,
        offset: signed(status.offset),
        total: signed(status.total),
        expected: status.expected.map(|d| d.to_string()).unwrap_or_default(),
    }
}

fn ingest_field<'a>(status: &'a IngestStatus, path: &[String]) -> Option<Cow<'a, str>> {
    (path == ["ref"]).then_some(Cow::Borrowed(status.reference.as_str()))
}
