//! Writing: blobs by mount or upload, documents by tag or digest.

mod feed;
mod upload;

use http::header::CONTENT_TYPE;
use http::{Method, StatusCode};
use orlop_oci::{Descriptor, Digest, Document, Reference, RepositoryName};

use crate::client::Client;
use crate::endpoint::{Body, Endpoint, Patience, Request, Target};
use crate::error::{Error, Result};
use crate::resolve::digest_of;
use crate::scope::Scopes;
use crate::{BlobSource, UploadProgress, Uploaded, referrers};

use upload::Upload;

/// More repositories are not asked for a mount: each costs a round trip.
const MAX_MOUNTS: usize = 4;

/// See [`Client::push_blob`].
pub(crate) async fn push_blob(
    client: &Client,
    repository: &RepositoryName,
    descriptor: &Descriptor,
    mount_from: &[RepositoryName],
    source: BlobSource<'_>,
    progress: UploadProgress<'_>,
) -> Result<Uploaded> {
    let endpoint = client.push_endpoint(repository.domain()).await?;
    let pushing = Pushing { client, endpoint: &endpoint, repository: repository.path(), descriptor };
    if pushing.exists().await? {
        return Ok(Uploaded::Present);
    }
    let same_host = |from: &&RepositoryName| from.domain() == repository.domain() && from.path() != repository.path();
    let mut session = None;
    for from in mount_from.iter().filter(same_host).take(MAX_MOUNTS) {
        match pushing.mount(from).await? {
            Mount::Done => return Ok(Uploaded::Mounted),
            // An upload was begun instead: it serves as well as a new one.
            Mount::Session(location) => session = Some(location),
            Mount::Refused => {}
        }
    }
    Upload::new(&pushing, source, progress).run(session).await?;
    Ok(Uploaded::Sent)
}

/// See [`Client::push_document`].
pub(crate) async fn push_document(client: &Client, reference: &Reference, document: &Document) -> Result<()> {
    let what = reference.to_string();
    let Some(repository) = reference.repository() else { return Err(Error::ImageId(what)) };
    if let Some(expected) = reference.digest() {
        let actual = digest_of(expected.algorithm(), document.raw());
        if actual != *expected {
            let host = "the caller".to_owned();
            return Err(Error::DigestMismatch { what, host, expected: expected.clone(), actual });
        }
    }
    let endpoint = client.push_endpoint(repository.domain()).await?;
    let name = reference.digest().map_or_else(|| reference.tag().unwrap_or_default(), Digest::as_str);
    let subject_kept = put_document(client, &endpoint, repository.path(), name, document, &what).await?;
    let subject = document
        .manifest()
        .and_then(|m| m.subject.as_ref())
        .or_else(|| document.index().and_then(|i| i.subject.as_ref()));
    match subject {
        Some(subject) if !subject_kept => {
            referrers::add_to_tag(client, &endpoint, repository, &subject.digest, document).await
        }
        _ => Ok(()),
    }
}

/// Puts a document under a tag or digest; whether the host says that it keeps its subject's referrers (`OCI-Subject`).
pub(crate) async fn put_document(
    client: &Client,
    endpoint: &Endpoint,
    repository: &str,
    name: &str,
    document: &Document,
    what: &str,
) -> Result<bool> {
    let target = Target::Path(format!("{repository}/manifests/{name}"));
    let request = Request::new(Method::PUT, target, repository, what)
        .writing()
        .header(CONTENT_TYPE, document.media_type())
        .body(Body::Bytes(document.raw().clone()));
    let answer = endpoint.call(client.auth(), &request, Patience::Patient).await?;
    let answer = answer.expect(&[StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED], what).await?;
    if let Some(actual) = answer.content_digest() {
        let expected = digest_of(actual.algorithm(), document.raw());
        if expected != actual {
            return Err(Error::DigestMismatch { what: what.to_owned(), host: answer.host(), expected, actual });
        }
    }
    let kept = answer.text("oci-subject").is_some();
    answer.drain().await;
    Ok(kept)
}

enum Mount {
    Done,
    Session(url::Url),
    Refused,
}

/// One blob on its way to one repository.
struct Pushing<'a> {
    client: &'a Client,
    endpoint: &'a Endpoint,
    repository: &'a str,
    descriptor: &'a Descriptor,
}

impl Pushing<'_> {
    fn what(&self) -> String {
        format!("{}/{}@{}", self.endpoint.host(), self.repository, self.descriptor.digest)
    }

    fn request(&self, method: Method, target: Target) -> Request {
        Request::new(method, target, self.repository, self.what()).writing()
    }

    fn uploads(&self) -> Target {
        Target::Path(format!("{}/blobs/uploads/", self.repository))
    }

    async fn call(&self, request: &Request) -> Result<crate::answer::Answer> {
        self.endpoint.call(self.client.auth(), request, Patience::Patient).await
    }

    async fn exists(&self) -> Result<bool> {
        let target = Target::Path(format!("{}/blobs/{}", self.repository, self.descriptor.digest));
        let answer = self.call(&self.request(Method::HEAD, target)).await?;
        match answer.expect(&[StatusCode::OK], &self.what()).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks for the blob of another repository (distribution-spec, "Mounting a blob from another repository").
    async fn mount(&self, from: &RepositoryName) -> Result<Mount> {
        let mut request = self
            .request(Method::POST, self.uploads())
            .query("mount", self.descriptor.digest.as_str())
            .query("from", from.path());
        request.scopes.merge(&Scopes::pull(from.path()));
        let answer = self.call(&request).await?;
        match answer.status() {
            StatusCode::CREATED => {
                answer.drain().await;
                Ok(Mount::Done)
            }
            StatusCode::ACCEPTED => {
                let location = upload::location(self.endpoint, &answer, &self.what())?;
                answer.drain().await;
                Ok(Mount::Session(location))
            }
            status => {
                tracing::debug!(%status, %from, "mount refused, the blob is sent instead");
                answer.drain().await;
                Ok(Mount::Refused)
            }
        }
    }
}
