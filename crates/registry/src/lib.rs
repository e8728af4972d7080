//! A registry: the OCI distribution specification 1.1 over HTTP.
//!
//! Bytes are in a content store (`orlop-content`); what they belong to, and what tags mean, is in a [`RegistryIndex`].
//! Both are traits: `orlop demo` runs a registry over a store in memory, a node over its own image records, a shared
//! gateway over PostgreSQL and object storage.
//!
//! # Invariants
//! - A blob is readable through a repository only if it was uploaded to it or mounted into it: having a digest somewhere
//!   in the content store opens nothing.
//! - An upload is verified against its digest before anything says that it is there; also when the store has the blob
//!   already, since naming a digest proves nothing.
//! - A manifest is accepted only if its bytes hash to the digest it was put under and its repository has everything it
//!   refers to (its subject may come later, as the specification says).
//! - Nothing here deletes bytes. Deleting a blob or manifest drops what the index says; the garbage collector does the rest.
//! - Every body, wait and table is bounded by a named constant.
//!
//! # Concurrency
//! [`Registry`] is cheap to clone. An upload's requests are taken one at a time, in the order they come; everything else
//! runs at once. An upload survives a lost connection and, if the content store does, a restart.

mod access;
mod blobs;
mod caller;
mod conditions;
mod error;
mod health;
mod index;
mod lists;
mod manifests;
mod memory;
pub mod metrics;
mod mirror;
mod route;
mod server;
#[cfg(feature = "suite")]
pub mod suite;
mod tls;
mod uploads;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

pub use access::{
    Access, Action, Audit, Decision, Permissions, RepositoryPattern, RepositoryRule, TokenKey, Tokens, Users,
    UsersError, Verdict, Who, WhoError,
};
pub use axum::body::{Body, to_bytes as body_bytes};
pub use caller::Caller;
pub use health::Health;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
pub use index::{
    BlobIndex, Held, IndexError, IndexResult, ManifestIndex, ManifestKey, ManifestRecord, RegistryIndex, TagIndex,
};
use jiff::Timestamp;
pub use memory::MemoryIndex;
pub use mirror::{Mirror, MirroredManifest};
use orlop_content::Store;
pub use server::{ServeOptions, Server};
pub use tls::{Certificate, CertificateError};

use crate::access::{Session, tokens};
use crate::error::{Code, Failure};
use crate::route::{Route, Target};
use crate::uploads::Uploads;

/// A registry over a content store and an index.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    content: Arc<dyn Store>,
    index: Arc<dyn RegistryIndex>,
    uploads: Uploads,
    access: RwLock<Arc<Access>>,
    mirror: OnceLock<Arc<dyn Mirror>>,
}

/// From where a request comes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Origin {
    /// None: from this process.
    pub(crate) address: Option<SocketAddr>,
    /// By TLS.
    pub(crate) secure: bool,
}

impl Registry {
    /// A registry that keeps bytes in `content` and everything else in `index`, and lets everybody do everything.
    pub fn new(content: Arc<dyn Store>, index: Arc<dyn RegistryIndex>) -> Self {
        let access = RwLock::new(Arc::new(Access::open()));
        let (uploads, mirror) = (Uploads::default(), OnceLock::new());
        Self { inner: Arc::new(Inner { content, index, uploads, access, mirror }) }
    }

    /// Replaces the rules about who may do what, for requests that begin from now on.
    pub fn set_access(&self, access: Access) {
        *self.inner.access.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(access);
    }

    /// Gives repositories of other registries too. The first one that is set counts.
    pub fn set_mirror(&self, mirror: Arc<dyn Mirror>) {
        let _ = self.inner.mirror.set(mirror);
    }

    /// Drops uploads that were last written to before `limit`, and returns how many. A [`Server`] does it by itself, for
    /// uploads idle for a day.
    pub async fn drop_idle_uploads(&self, limit: Timestamp) -> Result<usize, orlop_content::Error> {
        self.inner.drop_idle(limit).await
    }

    /// Answers one request. Errors are answers too.
    pub async fn handle(&self, request: Request<Body>) -> Response<Body> {
        self.handle_from(request, Origin::default()).await
    }

    /// The same for a request that came from somewhere.
    pub(crate) async fn handle_from(&self, request: Request<Body>, from: Origin) -> Response<Body> {
        let method = request.method().clone();
        let mut response = match self.inner.answer(request, from).await {
            Ok(response) => response,
            Err(failure) => failure.into_response(),
        };
        tracing::debug!(%method, status = response.status().as_u16(), "answered");
        let version = HeaderValue::from_static("registry/2.0");
        response.headers_mut().insert("docker-distribution-api-version", version);
        if method == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        response
    }
}

impl Inner {
    /// Finds out who asks, and answers.
    async fn answer(&self, request: Request<Body>, from: Origin) -> Result<Response<Body>, Failure> {
        let access = self.access.read().unwrap_or_else(PoisonError::into_inner).clone();
        let address = from.address.map(|address| address.ip().to_canonical());
        let (parts, body) = request.into_parts();
        let session = access.identify(&parts, address, from.secure).await?;
        let request = Request::from_parts(parts, body);
        if request.uri().path() == "/token" {
            return tokens::answer(session, request).await;
        }
        let caller = Caller { address, user: session.user().map(str::to_owned) };
        caller.scope(self.route(request, &session)).await
    }

    async fn route(&self, request: Request<Body>, session: &Session) -> Result<Response<Body>, Failure> {
        let read = request.method() == Method::GET || request.method() == Method::HEAD;
        let target = Target::parse(request.uri())?;
        let mirrored = match &target {
            Target::Repository(name, _) => self.mirrored(name, request.uri()),
            _ => None,
        };
        match &target {
            Target::Root | Target::Catalog => session.require_login()?,
            Target::Repository(name, route) => {
                // Rules know a mirrored repository by its whole name.
                let name = mirrored.as_ref().unwrap_or(name);
                session.require(route.action(request.method()), name, route.reference().as_deref())?;
            }
        }
        match target {
            Target::Root if read => Ok(json(StatusCode::OK, "application/json", b"{}".to_vec())),
            Target::Catalog if read => self.catalog(request.uri(), session).await,
            Target::Root | Target::Catalog => Err(Code::Unsupported.into()),
            Target::Repository(_, route) if mirrored.is_some() => {
                self.read_mirrored(&mirrored.unwrap_or_default(), route, request).await
            }
            Target::Repository(name, route) if read => self.read(&name, route, request.into_parts().0).await,
            Target::Repository(name, route) => self.write(&name, route, request, session).await,
        }
    }

    async fn read(&self, name: &str, route: Route, request: Parts) -> Result<Response<Body>, Failure> {
        match route {
            Route::Blob(digest) => self.get_blob(name, &digest, &request).await,
            Route::Manifest(key) => self.get_manifest(name, &key, &request).await,
            Route::Tags => self.tags(name, &request.uri).await,
            Route::Referrers(digest) => self.referrers(name, &digest, &request.uri).await,
            Route::Upload(id) => self.upload_status(name, &id).await,
            Route::Uploads => Err(Code::Unsupported.into()),
        }
    }

    async fn write(
        &self,
        name: &str,
        route: Route,
        request: Request<Body>,
        session: &Session,
    ) -> Result<Response<Body>, Failure> {
        match (route, request.method().as_str()) {
            (Route::Blob(digest), "DELETE") => self.delete_blob(name, &digest).await,
            (Route::Uploads, "POST") => self.start_upload(name, request, session).await,
            (Route::Upload(id), "PATCH") => self.continue_upload(name, &id, request).await,
            (Route::Upload(id), "PUT") => self.finish_upload(name, &id, request).await,
            (Route::Upload(id), "DELETE") => self.cancel_upload(name, &id).await,
            (Route::Manifest(key), "PUT") => self.put_manifest(name, &key, request).await,
            (Route::Manifest(key), "DELETE") => self.delete_manifest(name, &key).await,
            _ => Err(Code::Unsupported.into()),
        }
    }
}

/// A response with a whole body.
fn json(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_LENGTH, body.len().into());
    *response.body_mut() = body.into();
    response
}

/// A response without a body.
fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// A header value of text that this program made.
fn text(value: impl AsRef<str>) -> HeaderValue {
    HeaderValue::from_str(value.as_ref()).unwrap_or_else(|_| HeaderValue::from_static(""))
}
