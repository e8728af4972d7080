//! What a reference means, and documents.

use http::header::ACCEPT;
use http::{Method, StatusCode};
use orlop_oci::media_type::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use orlop_oci::{
    Algorithm, Descriptor, Digest, Digester, Document, MAX_MANIFEST_BYTES, MediaKind, Reference, RepositoryName,
};

use crate::Resolved;
use crate::answer::Answer;
use crate::client::Client;
use crate::endpoint::{Endpoint, Patience, Request, Target};
use crate::error::{Error, Result};
use crate::hosts_toml::Capability;

/// What Orlop can read. The last entry lets old registries give what they have, to be refused with a reason.
pub(crate) fn accept() -> String {
    [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, "*/*"].join(", ")
}

/// The hash of bytes by an algorithm.
pub(crate) fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let mut digester = Digester::new(algorithm);
    digester.update(bytes);
    digester.finish()
}

/// See [`Client::resolve`]. Tags need the capability `resolve`, digests only `pull`, since they cannot be answered wrongly.
pub(crate) async fn resolve(client: &Client, reference: &Reference) -> Result<Resolved> {
    let what = reference.to_string();
    let Some(repository) = reference.repository() else { return Err(Error::ImageId(what)) };
    let capability = if reference.digest().is_some() { Capability::Pull } else { Capability::Resolve };
    let mut tour = client.tour(repository.domain(), capability).await?;
    while let Some((endpoint, patience)) = tour.next() {
        let asking = Asking { client, endpoint: &endpoint, patience, repository: repository.path(), what: &what };
        match asking.resolve(reference).await {
            Ok(descriptor) => {
                tour.succeeded(&endpoint);
                return Ok(Resolved { descriptor, host: endpoint.host().to_owned() });
            }
            Err(error) => tour.failed(&endpoint, error),
        }
    }
    Err(tour.into_error(&what))
}

/// See [`Client::document`].
pub(crate) async fn document(
    client: &Client,
    repository: &RepositoryName,
    descriptor: &Descriptor,
) -> Result<Document> {
    let what = format!("{repository}@{}", descriptor.digest);
    if descriptor.size > MAX_MANIFEST_BYTES {
        return Err(Error::TooLarge { what, host: repository.domain().to_owned(), limit: MAX_MANIFEST_BYTES });
    }
    let mut tour = client.tour(repository.domain(), Capability::Pull).await?;
    while let Some((endpoint, patience)) = tour.next() {
        let asking = Asking { client, endpoint: &endpoint, patience, repository: repository.path(), what: &what };
        match asking.document(descriptor).await {
            Ok(document) => {
                tour.succeeded(&endpoint);
                return Ok(document);
            }
            Err(error) => tour.failed(&endpoint, error),
        }
    }
    Err(tour.into_error(&what))
}

/// One host being asked for one thing.
struct Asking<'a> {
    client: &'a Client,
    endpoint: &'a Endpoint,
    patience: Patience,
    repository: &'a str,
    what: &'a str,
}

impl Asking<'_> {
    async fn ask(&self, method: Method, path: &str) -> Result<Answer> {
        let target = Target::Path(format!("{}/{path}", self.repository));
        let request = Request::new(method, target, self.repository, self.what).header(ACCEPT, accept());
        self.endpoint.call(self.client.auth(), &request, self.patience).await
    }

    async fn resolve(&self, reference: &Reference) -> Result<Descriptor> {
        let wanted = reference.digest();
        let name = wanted.map_or_else(|| reference.tag().unwrap_or_default(), Digest::as_str);
        let mut path = format!("manifests/{name}");
        let mut answer = self.ask(Method::HEAD, &path).await?;
        if let Some(digest) = wanted.filter(|_| answer.status() == StatusCode::NOT_FOUND) {
            path = format!("blobs/{digest}");
            answer = self.ask(Method::HEAD, &path).await?;
        }
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(answer.failure(self.what).await),
            // Some hosts do not take HEAD; GET also brings the reason of a refusal.
            _ => return self.resolve_by_get(&path, wanted).await,
        }
        let digest = wanted.cloned().or_else(|| answer.content_digest());
        let media_type = answer.media_type().filter(|t| is_document(t));
        match (digest, answer.content_length(), media_type) {
            (Some(digest), Some(size), Some(media_type)) => {
                self.check_digest(wanted, answer.content_digest())?;
                self.check_size(size)?;
                Ok(Descriptor::new(media_type, digest, size))
            }
            _ => self.resolve_by_get(&path, wanted).await,
        }
    }

    async fn resolve_by_get(&self, path: &str, wanted: Option<&Digest>) -> Result<Descriptor> {
        let answer = self.ask(Method::GET, path).await?.expect(&[StatusCode::OK], self.what).await?;
        let said = answer.content_digest();
        let declared = answer.media_type();
        let algorithm = wanted.or(said.as_ref()).map_or(Algorithm::Sha256, Digest::algorithm);
        let raw = answer.unpacked(self.what)?.bytes(MAX_MANIFEST_BYTES, self.what).await?;
        self.check_digest(wanted.or(said.as_ref()), Some(digest_of(algorithm, &raw)))?;
        let document = Document::parse_as(raw, declared.as_deref(), algorithm).map_err(|e| self.bad_document(e))?;
        Ok(document.descriptor())
    }

    async fn document(&self, descriptor: &Descriptor) -> Result<Document> {
        let digest = &descriptor.digest;
        let mut answer = self.ask(Method::GET, &format!("manifests/{digest}")).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            answer.drain().await;
            answer = self.ask(Method::GET, &format!("blobs/{digest}")).await?;
        }
        let answer = answer.expect(&[StatusCode::OK], self.what).await?.unpacked(self.what)?;
        let declared = Some(descriptor.media_type.clone()).filter(|t| !t.is_empty()).or_else(|| answer.media_type());
        let raw = answer.bytes(MAX_MANIFEST_BYTES, self.what).await?;
        if raw.len() as u64 != descriptor.size {
            return Err(Error::SizeMismatch {
                what: self.what.to_owned(),
                host: self.host(),
                expected: descriptor.size,
                actual: raw.len() as u64,
            });
        }
        self.check_digest(Some(digest), Some(digest_of(digest.algorithm(), &raw)))?;
        Document::parse_as(raw, declared.as_deref(), digest.algorithm()).map_err(|e| self.bad_document(e))
    }

    fn check_digest(&self, expected: Option<&Digest>, actual: Option<Digest>) -> Result<()> {
        match (expected, actual) {
            // A host may name the same bytes by another algorithm.
            (Some(expected), Some(actual)) if expected.algorithm() == actual.algorithm() && *expected != actual => {
                Err(Error::DigestMismatch {
                    what: self.what.to_owned(),
                    host: self.host(),
                    expected: expected.clone(),
                    actual,
                })
            }
            _ => Ok(()),
        }
    }

    fn check_size(&self, size: u64) -> Result<()> {
        if size <= MAX_MANIFEST_BYTES {
            return Ok(());
        }
        Err(Error::TooLarge { what: self.what.to_owned(), host: self.host(), limit: MAX_MANIFEST_BYTES })
    }

    fn bad_document(&self, source: orlop_oci::DocumentError) -> Error {
        Error::Document { what: self.what.to_owned(), host: self.host(), source }
    }

    fn host(&self) -> String {
        self.endpoint.host().to_owned()
    }
}

fn is_document(media_type: &str) -> bool {
    matches!(MediaKind::of(media_type), MediaKind::Manifest | MediaKind::Index)
}
