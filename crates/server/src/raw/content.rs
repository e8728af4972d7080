//! containerd.services.content.v1 for an owner.

use futures::StreamExt;
use orlop_api::containerd::services::content::v1 as pb;
use orlop_api::containerd::services::content::v1::content_server::Content;
use orlop_content::{IngestManager as _, IngestOptions, Manager as _, Writer as _};
use orlop_metadata::{Labels, Scope};
use orlop_oci::Digest;
use tonic::{Request, Response, Status, Streaming};

use super::{LENDER, Raw};
use crate::content::write;
use crate::status::ToStatus;
use crate::{Answer, AnswerStream};

impl Raw {
    fn in_content<T>(&self, request: Request<T>) -> Result<Request<T>, Status> {
        Self::owned(&self.owner.content(), request)
    }

    fn show(&self, info: Option<&mut pb::Info>) {
        if let Some(info) = info {
            self.unmark(&mut info.labels);
        }
    }
}

impl Raw {
    /// Makes the owner have a blob whose bytes are here; returns whether it had it not.
    pub(crate) async fn lend_blob(&self, digest: &Digest, size: u64) -> Result<bool, Status> {
        let content = self.server.store().content(&Scope::new(self.owner.content(), LENDER));
        let reference = format!("lend-{:016x}-{digest}", rand::random::<u64>());
        let options = IngestOptions { reference: reference.clone(), total: size, expected: Some(digest.clone()) };
        let mut writer = match content.scoped_writer(options).await {
            Err(orlop_content::Error::AlreadyExists(_)) => return Ok(false),
            other => other.map_err(|e| e.to_status())?,
        };
        let (held, mut claim) = (writer.status().offset, Labels::new());
        self.mark(&mut claim);
        writer.set_labels(claim).map_err(|e| e.to_status())?;
        // The bytes went meanwhile.
        let lent = if held == size { writer.commit(size, Some(digest)).await.map(drop) } else { Err(gone(digest)) };
        match lent {
            Ok(()) => Ok(true),
            Err(orlop_content::Error::AlreadyExists(_)) => Ok(false),
            Err(error) => {
                drop(writer);
                drop(content.abort(&reference).await);
                Err(error.to_status())
            }
        }
    }

    /// Takes a blob from the owner again.
    pub(crate) async fn take_back_blob(&self, digest: &Digest) -> Result<(), Status> {
        let content = self.server.store().content(&Scope::new(self.owner.content(), LENDER));
        match content.delete(digest).await {
            Ok(()) | Err(orlop_content::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.to_status()),
        }
    }
}

fn gone(digest: &Digest) -> orlop_content::Error {
    orlop_content::Error::NotFound { kind: "blob", name: digest.to_string() }
}

#[tonic::async_trait]
impl Content for Raw {
    type ListStream = AnswerStream<pb::ListContentResponse>;
    type ReadStream = AnswerStream<pb::ReadContentResponse>;
    type WriteStream = AnswerStream<pb::WriteContentResponse>;

    async fn info(&self, request: Request<pb::InfoRequest>) -> Answer<pb::InfoResponse> {
        let mut answer = self.server.info(self.in_content(request)?).await?;
        self.show(answer.get_mut().info.as_mut());
        Ok(answer)
    }

    async fn update(&self, mut request: Request<pb::UpdateRequest>) -> Answer<pb::UpdateResponse> {
        let asked = request.get_mut();
        if let Some(info) = &mut asked.info {
            self.mark_masked(&mut info.labels, asked.update_mask.as_ref());
        }
        let mut answer = Content::update(&self.server, self.in_content(request)?).await?;
        self.show(answer.get_mut().info.as_mut());
        Ok(answer)
    }

    async fn list(&self, request: Request<pb::ListContentRequest>) -> Answer<Self::ListStream> {
        let pages = Content::list(&self.server, self.in_content(request)?).await?.into_inner();
        let raw = self.clone();
        let shown = pages.map(move |page| {
            let mut page = page?;
            page.info.iter_mut().for_each(|info| raw.show(Some(info)));
            Ok(page)
        });
        Ok(Response::new(Box::pin(shown)))
    }

    async fn delete(&self, request: Request<pb::DeleteContentRequest>) -> Answer<()> {
        Content::delete(&self.server, self.in_content(request)?).await
    }

    async fn read(&self, request: Request<pb::ReadContentRequest>) -> Answer<Self::ReadStream> {
        self.server.read(self.in_content(request)?).await
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Answer<pb::StatusResponse> {
        Content::status(&self.server, self.in_content(request)?).await
    }

    async fn list_statuses(&self, request: Request<pb::ListStatusesRequest>) -> Answer<pb::ListStatusesResponse> {
        self.server.list_statuses(self.in_content(request)?).await
    }

    async fn write(&self, request: Request<Streaming<pb::WriteContentRequest>>) -> Answer<Self::WriteStream> {
        let request = self.in_content(request)?;
        let content = self.server.content_of(&request)?;
        let mut claim = Labels::new();
        self.mark(&mut claim);
        Ok(Response::new(write::stream(content, request.into_inner(), claim)))
    }

    async fn abort(&self, request: Request<pb::AbortRequest>) -> Answer<()> {
        self.server.abort(self.in_content(request)?).await
    }
}
