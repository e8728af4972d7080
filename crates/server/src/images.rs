//! containerd.services.images.v1. After each change the hash references of CRI-managed namespaces are brought in order
//! before the answer, so that a client that lists next sees them.

use orlop_api::containerd::services::images::v1 as pb;
use orlop_api::containerd::services::images::v1::images_server::Images;
use orlop_api::rows::{EncodedRows, ImageRows};
use orlop_metadata::gc::Disposal;
use orlop_metadata::{Image, Scope, Store};
use tonic::{Request, Response, Status};

use crate::blocking::blocking;
use crate::convert::{descriptor_from_wire, mask, required, signed, timestamp};
use crate::page::too_long;
use crate::status::ToStatus;
use crate::{Answer, Server, call};

#[tonic::async_trait]
impl Images for Server {
    async fn get(&self, request: Request<pb::GetImageRequest>) -> Answer<pb::GetImageResponse> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let name = request.into_inner().name;
        let image = blocking(move || store.image(&scope.namespace, &name)).await?;
        Ok(Response::new(pb::GetImageResponse { image: Some(to_wire(image)) }))
    }

    async fn list(&self, request: Request<pb::ListImagesRequest>) -> Answer<ImageRows<pb::Image>> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let filters = request.into_inner().filters;
        let rows = blocking(move || {
            let (mut rows, mut full, mut row) = (EncodedRows::default(), None, pb::Image::default());
            store.visit_images(&scope.namespace, &filters, |image| {
                write_row(image, &mut row);
                full = rows.push(&row).err();
                full.is_none()
            })?;
            Ok::<_, orlop_metadata::Error>(full.map_or(Ok(rows), Err))
        });
        let rows = rows.await?.map_err(|bytes| too_long("records", bytes, "ask with filters"))?;
        Ok(Response::new(rows.into()))
    }

    async fn create(&self, request: Request<pb::CreateImageRequest>) -> Answer<pb::CreateImageResponse> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let image = from_wire(required(request.into_inner().image, "image")?, None)?;
        self.admit(&scope, &image).await?;
        let asked = scope.clone();
        let created = blocking(move || store.create_image(&asked, image)).await?;
        self.reconcile(&scope.namespace, &created.name).await;
        Ok(Response::new(pb::CreateImageResponse { image: Some(to_wire(created)) }))
    }

    async fn update(&self, request: Request<pb::UpdateImageRequest>) -> Answer<pb::UpdateImageResponse> {
        let scope = call::scope(&request)?;
        let request = request.into_inner();
        let (image, mask) = (required(request.image, "image")?, mask(request.update_mask));
        let (store, namespace, paths) = (self.store().clone(), scope.namespace.clone(), mask.clone());
        let (image, moves) = blocking(move || prepared(&store, &namespace, image, &paths)).await?;
        if moves {
            self.admit(&scope, &image).await?;
        }
        let (store, asked) = (self.store().clone(), scope.clone());
        let updated = blocking(move || store.update_image(&asked, image, &mask)).await?;
        self.reconcile(&scope.namespace, &updated.name).await;
        Ok(Response::new(pb::UpdateImageResponse { image: Some(to_wire(updated)) }))
    }

    async fn delete(&self, request: Request<pb::DeleteImageRequest>) -> Answer<()> {
        let scope = call::scope(&request)?;
        let request = request.into_inner();
        let target = request.target.map(descriptor_from_wire).transpose()?;
        let (store, asked, name) = (self.store().clone(), scope.clone(), request.name.clone());
        blocking(move || store.delete_image(&asked, &name, target.as_ref().map(|t| &t.digest))).await?;
        self.reconcile(&scope.namespace, &request.name).await;
        if request.sync {
            let store = self.store().clone();
            blocking(move || store.collect(Disposal::Reclaim)).await?;
        } else {
            self.collector().request();
        }
        Ok(Response::new(()))
    }
}

impl Server {
    /// A record that a client writes comes in like any other: by what the store itself has, policy decides.
    async fn admit(&self, scope: &Scope, image: &Image) -> Result<(), Status> {
        self.images().admit(scope, &image.name, &image.target).await.map(drop).map_err(|e| e.to_status())
    }
}

/// The image of an update, and whether the record would point elsewhere. With a mask that leaves the target alone the
/// request may come without one, or with an empty one.
fn prepared(store: &Store, namespace: &str, image: pb::Image, mask: &[String]) -> Result<(Image, bool), Status> {
    let of_target = |path: &String| path == "target" || path.starts_with("target.") || path.starts_with("annotations");
    let given = image.target.as_ref().is_some_and(|target| !target.digest.is_empty());
    let keeps = !mask.is_empty() && !mask.iter().any(of_target);
    let old = store.image(namespace, &image.name);
    if keeps && !given {
        return Ok((from_wire(image, Some(old.map_err(|e| e.to_status())?))?, false));
    }
    let image = from_wire(image, None)?;
    // A record that is not there is refused by the update itself.
    let moves = !keeps && old.is_ok_and(|old| old.target.digest != image.target.digest);
    Ok((image, moves))
}

fn from_wire(image: pb::Image, old: Option<Image>) -> Result<Image, Status> {
    let target = match old {
        Some(old) => old.target,
        None => descriptor_from_wire(required(image.target, "image target")?)?,
    };
    // The store sets the times.
    let now = jiff::Timestamp::UNIX_EPOCH;
    Ok(Image { name: image.name, target, labels: image.labels, created_at: now, updated_at: now })
}

pub(crate) fn to_wire(image: Image) -> pb::Image {
    let mut row = pb::Image::default();
    write_row(&image, &mut row);
    row
}

/// Makes a message say what a record says, in the memory that it has from the record before.
fn write_row(image: &Image, row: &mut pb::Image) {
    let target = row.target.get_or_insert_default();
    image.name.clone_into(&mut row.name);
    image.target.media_type.clone_into(&mut target.media_type);
    image.target.digest.as_str().clone_into(&mut target.digest);
    target.size = signed(image.target.size);
    if target.annotations != image.target.annotations {
        target.annotations.clone_from(&image.target.annotations);
    }
    if row.labels != image.labels {
        row.labels.clone_from(&image.labels);
    }
    row.created_at = Some(timestamp(image.created_at));
    row.updated_at = Some(timestamp(image.updated_at));
}
