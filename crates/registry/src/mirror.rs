//! Repositories of other registries, for clients that name this one as their mirror.
//!
//! Such a client says which registry it means by the parameter `ns` (containerd's hosts.toml), or writes the registry before the
//! repository, as in `/v2/docker.io/library/busybox/…` (the rewritten names of registries.conf). What is meant so, and mirrored, is
//! [`Mirror`]'s; every other request is for this registry's own repositories, whatever `ns` says.
//!
//! # Invariants
//! - Mirrored repositories are read and never written. What is not there is a 404, so that clients go on to their next host; also
//!   their lists of tags and of referrers, which a mirror could give only in part.
//! - A tag whose registry could not be asked is given with `Warning: 111` (RFC 7234, section 5.5.2).

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response, Uri};
use orlop_content::BlobReader;
use orlop_oci::Digest;

use crate::error::{Code, Failure};
use crate::route::{Route, query};
use crate::{IndexResult, Inner, ManifestKey, blobs, manifests, text};

/// Says through which mirrors a request came.
const VIA: &str = "orlop-via";

/// A manifest of another registry.
#[derive(Debug, Clone)]
pub struct MirroredManifest {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// It.
    pub bytes: Bytes,
    /// The registry could not be asked whether the tag still means it.
    pub is_stale: bool,
}

/// What this registry gives of others. Errors are those of an index.
#[async_trait]
pub trait Mirror: Send + Sync {
    /// The whole name, `HOST/path`, of what a client means by a registry and a path; none if that is not mirrored.
    fn repository(&self, registry: &str, path: &str) -> Option<String>;

    /// A manifest of a repository that was named so. `via` is what the request says of the mirrors that it came through.
    async fn manifest(&self, repository: &str, key: &ManifestKey, via: &str) -> IndexResult<MirroredManifest>;

    /// A blob of such a repository. It may still be coming: then reading waits, and ends with an error if it turns out to be wrong.
    /// Only its size is wanted unless `is_read`.
    async fn blob(
        &self,
        repository: &str,
        digest: &Digest,
        via: &str,
        is_read: bool,
    ) -> IndexResult<Arc<dyn BlobReader>>;
}

impl Inner {
    /// The mirrored repository that a request means.
    pub(crate) fn mirrored(&self, name: &str, uri: &Uri) -> Option<String> {
        let mirror = self.mirror.get()?;
        match query(uri, "ns") {
            Some(registry) => mirror.repository(&registry, name),
            None => {
                let (registry, path) = name.split_once('/').filter(|(registry, _)| registry.contains('.'))?;
                mirror.repository(registry, path)
            }
        }
    }

    pub(crate) async fn read_mirrored(
        &self,
        repository: &str,
        route: Route,
        request: Request<Body>,
    ) -> Result<Response<Body>, Failure> {
        let Some(mirror) = self.mirror.get() else { return Err(Code::NameUnknown.into()) };
        let (request, _) = request.into_parts();
        let is_get = request.method == Method::GET;
        if !is_get && request.method != Method::HEAD {
            return Err(Code::Unsupported.because(format!("{repository} is another registry's: it is only read here")));
        }
        match route {
            Route::Manifest(key) => {
                let found = mirror.manifest(repository, &key, via(&request)).await?;
                let mut response = manifests::response(&found.digest, &found.media_type, found.bytes, &request);
                if found.is_stale {
                    response.headers_mut().insert("warning", text("111 orlop \"Revalidation Failed\""));
                }
                Ok(response)
            }
            Route::Blob(digest) => {
                let reader = mirror.blob(repository, &digest, via(&request), is_get).await?;
                blobs::response(reader, &digest, &request).await
            }
            Route::Tags | Route::Referrers(_) => Err(Code::NameUnknown.because("a mirror does not list")),
            Route::Uploads | Route::Upload(_) => Err(Code::BlobUploadUnknown.into()),
        }
    }
}

fn via(request: &Parts) -> &str {
    request.headers.get(VIA).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
