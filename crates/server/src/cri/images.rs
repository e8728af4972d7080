//! runtime.v1.ImageService.

use orlop_api::MAX_MESSAGE_BYTES;
use orlop_api::runtime::v1 as pb;
use orlop_api::runtime::v1::image_service_server::ImageService;
use orlop_image::{CriImage, Error};
use prost::Message;
use tonic::{Request, Response, Status};

use super::listing::{filtered, message};
use super::status::cri_status;
use super::{Cri, info, scope};
use crate::page::pages;
use crate::{Answer, AnswerStream};

#[tonic::async_trait]
impl ImageService for Cri {
    type StreamImagesStream = AnswerStream<pb::StreamImagesResponse>;

    async fn list_images(&self, request: Request<pb::ListImagesRequest>) -> Answer<pb::ListImagesResponse> {
        let view = self.catalog().view().await.map_err(|e| cri_status(&e))?;
        let images = filtered(&self.inner.listing, &view, request.into_inner().filter);
        let response = pb::ListImagesResponse { images: images.to_vec() };
        let bytes = response.encoded_len();
        if bytes > MAX_MESSAGE_BYTES {
            return Err(Status::resource_exhausted(format!(
                "the list of {} images has {bytes} bytes, and a message at most {MAX_MESSAGE_BYTES}: use StreamImages",
                images.len()
            )));
        }
        Ok(Response::new(response))
    }

    async fn stream_images(&self, request: Request<pb::StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        let view = self.catalog().view().await.map_err(|e| cri_status(&e))?;
        let images = filtered(&self.inner.listing, &view, request.into_inner().filter);
        let rows = (0..images.len()).map(move |at| images[at].clone());
        Ok(Response::new(pages(rows, |images| pb::StreamImagesResponse { images })))
    }

    async fn image_status(&self, request: Request<pb::ImageStatusRequest>) -> Answer<pb::ImageStatusResponse> {
        let request = request.into_inner();
        let name = named(request.image)?;
        let view = self.catalog().view().await.map_err(|e| cri_status(&e))?;
        let image: &CriImage = match view.resolve(&name) {
            Err(Error::NotFound(_)) => return Ok(Response::new(pb::ImageStatusResponse::default())),
            other => other.map_err(|e| cri_status(&e))?,
        };
        let info = if request.verbose { info::of(self.images(), image).await? } else { Default::default() };
        Ok(Response::new(pb::ImageStatusResponse { image: Some(message(image)), info }))
    }

    async fn pull_image(&self, request: Request<pb::PullImageRequest>) -> Answer<pb::PullImageResponse> {
        let image_ref = self.pull(request.into_inner()).await?;
        Ok(Response::new(pb::PullImageResponse { image_ref }))
    }

    async fn remove_image(&self, request: Request<pb::RemoveImageRequest>) -> Answer<pb::RemoveImageResponse> {
        let name = named(request.into_inner().image)?;
        let removed = self.catalog().remove(&scope(), &name).await.map_err(|e| cri_status(&e))?;
        tracing::info!(image = name, records = removed.len(), "image removed");
        Ok(Response::new(pb::RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<pb::ImageFsInfoRequest>) -> Answer<pb::ImageFsInfoResponse> {
        let usage = self.inner.filesystems.usage(self.images().store()).await?;
        Ok(Response::new(usage))
    }
}

/// What the caller calls the image.
///
/// # Errors
/// `INVALID_ARGUMENT` for an empty name. containerd takes it for the start of every ID, and so for the image itself where
/// there is only one; who forgets to say what to remove would lose it.
fn named(image: Option<pb::ImageSpec>) -> Result<String, Status> {
    let name = image.map(|image| image.image).unwrap_or_default();
    if name.is_empty() {
        return Err(Status::invalid_argument("image: it is empty; give a name, an image ID or the start of one"));
    }
    Ok(name)
}
