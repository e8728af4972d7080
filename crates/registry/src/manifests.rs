//! Manifests: reading, taking, dropping.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::request::Parts;
use http::{Request, Response, StatusCode, Uri, header};
use orlop_content::{Error as ContentError, IngestOptions, read_verified};
use orlop_oci::{Algorithm, Descriptor, Digest, Document, MAX_MANIFEST_BYTES};

use crate::error::{Code, Failure};
use crate::index::may_be_elsewhere;
use crate::route::{queries, tag};
use crate::uploads::BODY_PAUSE;
use crate::{IndexError, Inner, ManifestKey, ManifestRecord, conditions, empty, text};

/// What a request for a manifest is given.
pub(crate) fn response(digest: &Digest, media_type: &str, bytes: Bytes, request: &Parts) -> Response<Body> {
    if conditions::has_it(&request.headers, digest) {
        return conditions::not_modified(digest);
    }
    let mut response = empty(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, text(media_type));
    headers.insert(header::CONTENT_LENGTH, bytes.len().into());
    headers.insert(header::ETAG, conditions::etag(digest));
    headers.insert("docker-content-digest", text(digest.as_str()));
    *response.body_mut() = bytes.into();
    response
}

/// Tags that one request may set.
const MAX_TAGS: usize = 64;

impl Inner {
    /// `GET /v2/<name>/manifests/<tag or digest>`
    pub(crate) async fn get_manifest(
        &self,
        name: &str,
        key: &ManifestKey,
        request: &Parts,
    ) -> Result<Response<Body>, Failure> {
        let record = self.index.manifest(name, key).await?;
        if conditions::has_it(&request.headers, &record.digest) {
            return Ok(conditions::not_modified(&record.digest));
        }
        let bytes = read_verified(&*self.content, &record.digest, MAX_MANIFEST_BYTES).await?;
        Ok(response(&record.digest, &record.media_type, bytes, request))
    }

    /// `PUT /v2/<name>/manifests/<tag or digest>`
    pub(crate) async fn put_manifest(
        &self,
        name: &str,
        key: &ManifestKey,
        request: Request<Body>,
    ) -> Result<Response<Body>, Failure> {
        let tags = tags(key, request.uri())?;
        let declared = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let raw = bounded_body(request).await?;
        let algorithm = match key {
            ManifestKey::Digest(digest) => digest.algorithm(),
            ManifestKey::Tag(_) => Algorithm::Sha256,
        };
        let document = Document::parse_as(raw, declared.as_deref(), algorithm)?;
        let actual = document.digest().digest();
        if let ManifestKey::Digest(expected) = key
            && expected != actual
        {
            return Err(Code::DigestInvalid.because(format!("expected {expected}, the bytes hash to {actual}")));
        }
        let record = ManifestRecord::of(&document);
        let pushed = [&record.children[..], std::slice::from_ref(&record.digest)].concat();
        let held = self.index.hold(&pushed).await?;
        self.check_children(name, &document).await?;
        self.keep(name, &document).await?;
        let subject = record.subject.clone();
        self.index.put_manifest(name, record.clone(), &tags).await?;
        self.index.settle(name, record, held).await;
        let mut response = empty(StatusCode::CREATED);
        let headers = response.headers_mut();
        headers.insert(header::LOCATION, text(format!("/v2/{name}/manifests/{actual}")));
        headers.insert("docker-content-digest", text(actual.as_str()));
        if let Some(subject) = subject {
            headers.insert("oci-subject", text(subject.as_str()));
        }
        if matches!(key, ManifestKey::Digest(_)) {
            for tag in tags {
                headers.append("oci-tag", text(tag));
            }
        }
        Ok(response)
    }

    /// `DELETE /v2/<name>/manifests/<tag or digest>`
    pub(crate) async fn delete_manifest(&self, name: &str, key: &ManifestKey) -> Result<Response<Body>, Failure> {
        self.index.delete_manifest(name, key).await?;
        Ok(empty(StatusCode::ACCEPTED))
    }

    /// Everything that the document refers to is in the repository. Non-distributable layers may be elsewhere.
    async fn check_children(&self, name: &str, document: &Document) -> Result<(), Failure> {
        for child in document.children() {
            let there = match document.index() {
                None if may_be_elsewhere(document, child) => true,
                None => self.has(name, child).await?,
                Some(_) => self.has_manifest(name, child).await?,
            };
            if !there {
                return Err(Code::ManifestBlobUnknown.because(&child.digest));
            }
        }
        Ok(())
    }

    /// An index may name a manifest, or, as some artifacts do, a blob.
    async fn has_manifest(&self, name: &str, child: &Descriptor) -> Result<bool, Failure> {
        match self.index.manifest(name, &ManifestKey::Digest(child.digest.clone())).await {
            Ok(record) => Ok(record.size == child.size),
            Err(IndexError::NoManifest | IndexError::NoRepository) => self.has(name, child).await,
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the repository has a blob, of the size that the document says.
    async fn has(&self, name: &str, child: &Descriptor) -> Result<bool, Failure> {
        if !self.index.has_blob(name, &child.digest).await? {
            return Ok(false);
        }
        match self.content.info(&child.digest).await {
            Ok(info) => Ok(child.size == info.size),
            Err(ContentError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a document's bytes into the content store.
    async fn keep(&self, name: &str, document: &Document) -> Result<(), Failure> {
        let digest = document.digest().digest();
        let options = IngestOptions {
            // Two clients may put the same manifest at once; each writes its own copy and one of them wins.
            reference: format!("registry-manifest {name} {digest} {:032x}", rand::random::<u128>()),
            total: document.raw().len() as u64,
            expected: Some(digest.clone()),
        };
        let mut writer = match self.content.writer(options).await {
            Ok(writer) => writer,
            Err(ContentError::AlreadyExists(_)) => return self.still_there(digest).await.map(drop),
            Err(error) => return Err(error.into()),
        };
        // What the store has already, for others or from a push that was cut, does not come again.
        if writer.status().offset == 0 {
            writer.write(document.raw().clone()).await?;
        }
        match writer.commit(document.raw().len() as u64, Some(digest)).await {
            Ok(_) => Ok(()),
            Err(ContentError::AlreadyExists(_)) => self.still_there(digest).await.map(drop),
            Err(error) => Err(error.into()),
        }
    }
}

/// The tags that a manifest is put under: that of the path, or, with a digest there, `?tag=` (the specification's draft
/// after 1.1).
fn tags(key: &ManifestKey, uri: &Uri) -> Result<Vec<String>, Failure> {
    match key {
        ManifestKey::Tag(tag) => Ok(vec![tag.clone()]),
        ManifestKey::Digest(_) => {
            let tags = queries(uri, "tag").map(|text| tag(&text)).collect::<Result<Vec<_>, _>>()?;
            if tags.len() > MAX_TAGS {
                return Err(
                    Code::TagInvalid.because(format!("{} tags at once, at most {MAX_TAGS} are taken", tags.len()))
                );
            }
            Ok(tags)
        }
    }
}

async fn bounded_body(request: Request<Body>) -> Result<Bytes, Failure> {
    let mut frames = request.into_body().into_data_stream();
    let mut body = BytesMut::new();
    loop {
        let next = tokio::time::timeout(BODY_PAUSE, frames.next()).await;
        let Some(frame) = next.map_err(|_| Code::TimedOut)? else { break };
        let frame = frame.map_err(|error| Code::ManifestInvalid.because(error))?;
        if (body.len() + frame.len()) as u64 > MAX_MANIFEST_BYTES {
            return Err(Code::ManifestTooLarge.because(format!("more than {MAX_MANIFEST_BYTES} bytes")));
        }
        body.extend_from_slice(&frame);
    }
    Ok(body.freeze())
}
