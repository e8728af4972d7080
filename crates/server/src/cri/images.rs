//! runtime.v1.ImageService.

use orlop_api::rows::ImageRows;
use orlop_api::runtime::v1 as pb;
use orlop_api::runtime::v1::image_service_server::ImageService;
use orlop_image::{CriImage, Error};
use tonic::{Request, Response, Status};

use super::listing::{encoded, message, wanted};
use super::status::cri_status;
use super::{Cri, info, scope};
use crate::page::pages;
use crate::{Answer, AnswerStream};

#[tonic::async_trait]
impl ImageService for Cri {
    type StreamImagesStream = AnswerStream<pb::StreamImagesResponse>;

    async fn list_images(&self, request: Request<pb::ListImagesRequest>) -> Answer<ImageRows<pb::Image>> {
        let view = self.catalog().view().await.map_err(|e| cri_status(&e))?;
        let encoded = match wanted(request.into_inner().filter) {
            Some(text) => encoded(view.matching(&text).into_iter())?,
            None => self.inner.listing.all(&view)?,
        };
        Ok(Response::new(encoded.into()))
    }

    async fn stream_images(&self, request: Request<pb::StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        let view = self.catalog().view().await.map_err(|e| cri_status(&e))?;
        let wrap = |images| pb::StreamImagesResponse { images };
        let Some(text) = wanted(request.into_inner().filter) else {
            let rows = (0..view.images().len()).map(move |at| message(&view.images()[at]));
            return Ok(Response::new(pages(rows, wrap)));
        };
        let images: Vec<pb::Image> = view.matching(&text).into_iter().map(message).collect();
        Ok(Response::new(pages(images, wrap)))
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
