//! Uploads: monolithic, chunked, resumed; and mounting from another repository.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::BytesMut;
use futures::StreamExt as _;
use http::{HeaderMap, Request, Response, StatusCode, header};
use jiff::Timestamp;
use orlop_content::{Error as ContentError, IngestOptions, Writer};
use orlop_oci::Digest;
use tokio::sync::OwnedMutexGuard;

use crate::access::Session;
use crate::error::{Code, Failure};
use crate::route::{digest as parse_digest, query, repository};
use crate::{Held, Inner, empty, text};

/// Uploads whose writers stay open between requests, each with two file descriptors. More are closed, the longest idle
/// first, and opened again when their next request comes, at the price of hashing what is there once more.
const OPEN_UPLOADS: usize = 64;

/// How long a body may pause. Longer is a client that is gone; its upload can be resumed.
pub(crate) const BODY_PAUSE: Duration = Duration::from_secs(60);

/// Smaller frames are joined, so that the store is not called for every packet.
const JOIN_BYTES: usize = 256 << 10;

/// Uploads whose writers are open, or wanted. One request at a time has its turn with each; others wait for theirs.
#[derive(Default)]
pub(crate) struct Uploads {
    open: Mutex<HashMap<String, Upload>>,
}

struct Upload {
    /// `None` when it is to be opened by whoever has his turn next. Cloned under the lock of all, so that who counts the
    /// clones there knows whether anybody has it or waits for it.
    writer: Arc<tokio::sync::Mutex<Option<Box<dyn Writer>>>>,
    used: Instant,
}

impl Upload {
    fn is_wanted(&self, but_for: usize) -> bool {
        Arc::strong_count(&self.writer) > 1 + but_for
    }
}

impl Uploads {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Upload>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn with an upload, which may be open.
    async fn turn(&self, reference: String) -> Turn<'_> {
        let writer = {
            let mut open = self.lock();
            let new = || Upload { writer: Arc::default(), used: Instant::now() };
            let upload = open.entry(reference.clone()).or_insert_with(new);
            upload.used = Instant::now();
            upload.writer.clone()
        };
        Turn { uploads: self, reference, writer: writer.lock_owned().await, stays_open: false }
    }

    /// Closes the one that was not used for the longest, if there are too many.
    fn make_room(&self) {
        let mut open = self.lock();
        if open.len() <= OPEN_UPLOADS {
            return;
        }
        let idle = open.iter().filter(|(_, upload)| !upload.is_wanted(0));
        let longest = idle.min_by_key(|(_, upload)| upload.used).map(|(reference, _)| reference.clone());
        longest.and_then(|reference| open.remove(&reference));
    }
}

/// A request's turn with an upload. Dropped before its [`Turn::end`], as a request is whose client is gone, it closes the
/// upload: the next one opens it where it was.
struct Turn<'a> {
    uploads: &'a Uploads,
    reference: String,
    writer: OwnedMutexGuard<Option<Box<dyn Writer>>>,
    stays_open: bool,
}

impl Turn<'_> {
    fn writer(&mut self) -> Result<&mut dyn Writer, Failure> {
        match self.writer.as_mut() {
            Some(writer) => Ok(writer.as_mut()),
            None => Err(Code::BlobUploadUnknown.into()),
        }
    }

    /// Between requests an upload belongs to no process, where several share the store.
    async fn end(mut self) -> Result<(), Failure> {
        if let Some(writer) = self.writer.as_mut() {
            self.stays_open = !writer.release().await?;
        }
        Ok(())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.stays_open {
            return;
        }
        *self.writer = None;
        let mut open = self.uploads.lock();
        if open.get(&self.reference).is_some_and(|upload| !upload.is_wanted(1)) {
            open.remove(&self.reference);
        }
    }
}

const PREFIX: &str = "registry-upload ";

/// The ingest of an upload. The repository is part of it, so that an upload is known in its own only.
fn reference(name: &str, id: &str) -> String {
    format!("{PREFIX}{name} {id}")
}

fn is_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl Inner {
    /// `POST /v2/<name>/blobs/uploads/`
    pub(crate) async fn start_upload(
        &self,
        name: &str,
        request: Request<Body>,
        session: &Session,
    ) -> Result<Response<Body>, Failure> {
        if let Some(mount) = query(request.uri(), "mount") {
            let digest = parse_digest(&mount)?;
            if let Some(from) = query(request.uri(), "from")
                && repository(&from).is_some()
                && session.may_mount(&from, &digest)
                && self.index.has_blob(&from, &digest).await?
                && let Ok(mounted) = self.created(name, &digest).await
            {
                return Ok(mounted);
            }
        }
        let expected = query(request.uri(), "digest").map(|text| parse_digest(&text)).transpose()?;
        let id = format!("{:032x}", rand::random::<u128>());
        let reference = reference(name, &id);
        let writer = self.content.writer(IngestOptions { reference: reference.clone(), ..Default::default() }).await?;
        match expected {
            Some(digest) => {
                let mut writer = writer;
                if let Err(failure) = append(writer.as_mut(), None, request).await {
                    // The client does not know the upload's name and cannot resume it.
                    drop(writer);
                    let _ = self.content.abort(&reference).await;
                    return Err(failure);
                }
                self.commit(name, &reference, &mut Some(writer), &digest).await
            }
            None => {
                let mut turn = self.uploads.turn(reference).await;
                *turn.writer = Some(writer);
                self.uploads.make_room();
                turn.end().await?;
                Ok(accepted(StatusCode::ACCEPTED, name, &id, 0))
            }
        }
    }

    /// `GET /v2/<name>/blobs/uploads/<id>`
    pub(crate) async fn upload_status(&self, name: &str, id: &str) -> Result<Response<Body>, Failure> {
        let mut turn = self.find_upload(name, id).await?;
        let offset = turn.writer()?.status().offset;
        turn.end().await?;
        Ok(accepted(StatusCode::NO_CONTENT, name, id, offset))
    }

    /// `PATCH /v2/<name>/blobs/uploads/<id>`
    pub(crate) async fn continue_upload(
        &self,
        name: &str,
        id: &str,
        request: Request<Body>,
    ) -> Result<Response<Body>, Failure> {
        let mut turn = self.find_upload(name, id).await?;
        let writer = turn.writer()?;
        let offset = writer.status().offset;
        let appended = match check_range(request.headers(), offset) {
            Ok(end) => append(writer, end, request).await,
            Err(failure) => Err(at(failure, name, id, offset)),
        };
        let offset = writer.status().offset;
        // Also of a body that broke off: the rest of it may come to another process. That is said before the chunk is.
        let ended = turn.end().await;
        appended?;
        ended?;
        Ok(accepted(StatusCode::ACCEPTED, name, id, offset))
    }

    /// `PUT /v2/<name>/blobs/uploads/<id>?digest=<digest>`
    pub(crate) async fn finish_upload(
        &self,
        name: &str,
        id: &str,
        request: Request<Body>,
    ) -> Result<Response<Body>, Failure> {
        let mut turn = self.find_upload(name, id).await?;
        let answer = match self.last_chunk(name, id, request, turn.writer()?).await {
            Ok(digest) => self.commit(name, &turn.reference, &mut turn.writer, &digest).await,
            Err(failure) => Err(failure),
        };
        // Why it was not finished is said before what became of what came with it.
        let ended = turn.end().await;
        let created = answer?;
        ended?;
        Ok(created)
    }

    /// Appends what comes with the closing request; returns the digest that it names.
    async fn last_chunk(
        &self,
        name: &str,
        id: &str,
        request: Request<Body>,
        writer: &mut dyn Writer,
    ) -> Result<Digest, Failure> {
        let offset = writer.status().offset;
        let digest =
            query(request.uri(), "digest").ok_or_else(|| Code::DigestInvalid.because("the digest is missing"))?;
        let digest = parse_digest(&digest)?;
        let end = check_range(request.headers(), offset).map_err(|failure| at(failure, name, id, offset))?;
        append(writer, end, request).await?;
        Ok(digest)
    }

    /// `DELETE /v2/<name>/blobs/uploads/<id>`
    pub(crate) async fn cancel_upload(&self, name: &str, id: &str) -> Result<Response<Body>, Failure> {
        let mut turn = self.find_upload(name, id).await?;
        *turn.writer = None;
        self.content.abort(&turn.reference).await?;
        Ok(empty(StatusCode::NO_CONTENT))
    }

    /// Drops uploads that were last written to before `limit`, and returns how many.
    pub(crate) async fn drop_idle(&self, limit: Timestamp) -> Result<usize, ContentError> {
        let mut dropped = 0;
        for status in self.content.statuses().await? {
            if !status.reference.starts_with(PREFIX) || status.updated_at >= limit {
                continue;
            }
            self.uploads.lock().remove(&status.reference);
            match self.content.abort(&status.reference).await {
                Ok(()) => dropped += 1,
                Err(ContentError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(dropped)
    }

    /// The turn with an upload, which is opened if it is not.
    async fn find_upload(&self, name: &str, id: &str) -> Result<Turn<'_>, Failure> {
        if !is_id(id) {
            return Err(Code::BlobUploadUnknown.into());
        }
        let mut turn = self.uploads.turn(reference(name, id)).await;
        if turn.writer.is_none() {
            // Opening one that is not there would make it.
            self.content.status(&turn.reference).await?;
            let options = IngestOptions { reference: turn.reference.clone(), ..Default::default() };
            *turn.writer = Some(self.content.writer(options).await?);
            self.uploads.make_room();
        }
        Ok(turn)
    }

    /// Verifies and links. The writer is gone afterwards.
    async fn commit(
        &self,
        name: &str,
        reference: &str,
        writer: &mut Option<Box<dyn Writer>>,
        digest: &Digest,
    ) -> Result<Response<Body>, Failure> {
        let open = writer.as_mut().ok_or(Code::BlobUploadUnknown)?;
        let committed = open.commit(0, Some(digest)).await;
        *writer = None;
        match committed {
            Ok(_) | Err(ContentError::AlreadyExists(_)) => self.created(name, digest).await,
            // The bytes are right and may be asked for once more.
            Err(error) if error.is_temporary() => Err(error.into()),
            Err(error) => {
                // Nothing that the client could still send would make these bytes the right ones.
                let _ = self.content.abort(reference).await;
                Err(error.into())
            }
        }
    }

    /// Holds a blob that the content store had, and looks whether it still has it: a collection may have been between.
    pub(crate) async fn still_there(&self, digest: &Digest) -> Result<Held, Failure> {
        let held = self.index.hold(std::slice::from_ref(digest)).await?;
        match self.content.info(digest).await {
            Ok(_) => Ok(held),
            Err(ContentError::NotFound { .. }) => Err(Code::Collected.because(digest)),
            Err(error) => Err(error.into()),
        }
    }

    /// Links a blob that is in the content store.
    async fn created(&self, name: &str, digest: &Digest) -> Result<Response<Body>, Failure> {
        let _held = self.still_there(digest).await?;
        self.index.link_blob(name, digest).await?;
        let mut response = empty(StatusCode::CREATED);
        response.headers_mut().insert(header::LOCATION, text(format!("/v2/{name}/blobs/{digest}")));
        response.headers_mut().insert("docker-content-digest", text(digest.as_str()));
        Ok(response)
    }
}

/// `0-<last byte>`; of nothing, as Docker's registry says it too, `0-0`.
fn range_so_far(offset: u64) -> String {
    format!("0-{}", offset.saturating_sub(1))
}

fn location(name: &str, id: &str) -> String {
    format!("/v2/{name}/blobs/uploads/{id}")
}

fn accepted(status: StatusCode, name: &str, id: &str, offset: u64) -> Response<Body> {
    let mut response = empty(status);
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, text(location(name, id)));
    headers.insert(header::RANGE, text(range_so_far(offset)));
    headers.insert("docker-upload-uuid", text(id));
    response
}

/// Adds to a failure where the upload is and how far it has come.
fn at(failure: Failure, name: &str, id: &str, offset: u64) -> Failure {
    failure.with_header("location", location(name, id)).with_header("range", range_so_far(offset))
}

/// A chunk that says where it belongs must continue what is there. Returns where it says that it ends.
fn check_range(headers: &HeaderMap, offset: u64) -> Result<Option<u64>, Failure> {
    let Some(value) = headers.get(header::CONTENT_RANGE) else { return Ok(None) };
    let value = value.to_str().unwrap_or_default();
    let Some((start, end)) = parse_content_range(value) else {
        return Err(Code::BlobUploadInvalid.because(format!("Content-Range {value:?} is not <first>-<last>")));
    };
    if start != offset {
        return Err(
            Code::RangeInvalid.because(format!("the chunk starts at {start}, the upload continues at {offset}"))
        );
    }
    match content_length(headers) {
        Some(length) if length != end - start => {
            Err(Code::SizeInvalid
                .because(format!("Content-Range names {} bytes, Content-Length {length}", end - start)))
        }
        _ => Ok(Some(end)),
    }
}

/// `<first>-<last>` (the specification's form) or `bytes <first>-<last>/<total>` (HTTP's): start and end, end excluded.
fn parse_content_range(value: &str) -> Option<(u64, u64)> {
    let value = value.trim().strip_prefix("bytes").unwrap_or(value).trim_start_matches([' ', '=']);
    let (first, last) = value.split('/').next()?.split_once('-')?;
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    (first <= last).then_some((first, last.checked_add(1)?))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Appends a body. Of one that breaks off, what came stays: the client may ask how far it came and go on. Of one that is
/// not as long as its `Content-Range` said, nothing stays.
async fn append(writer: &mut dyn Writer, end: Option<u64>, request: Request<Body>) -> Result<(), Failure> {
    let start = writer.status().offset;
    append_frames(writer, end.unwrap_or(u64::MAX), request).await?;
    let offset = writer.status().offset;
    match end {
        Some(end) if end != offset => {
            writer.truncate(start).await?;
            Err(Code::SizeInvalid.because(format!("Content-Range ends at {end}, the body at {offset}")))
        }
        _ => Ok(()),
    }
}

/// Appends frames until one goes past `end`.
async fn append_frames(writer: &mut dyn Writer, end: u64, request: Request<Body>) -> Result<(), Failure> {
    let mut frames = request.into_body().into_data_stream();
    let mut joined = BytesMut::new();
    let mut broken = None;
    while writer.status().offset <= end {
        match tokio::time::timeout(BODY_PAUSE, frames.next()).await {
            Ok(Some(Ok(frame))) if joined.is_empty() && frame.len() >= JOIN_BYTES => writer.write(frame).await?,
            Ok(Some(Ok(frame))) => joined.extend_from_slice(&frame),
            Ok(None) => break,
            Ok(Some(Err(error))) => {
                broken = Some(Code::BlobUploadInvalid.because(error));
                break;
            }
            Err(_) => {
                broken = Some(Code::TimedOut.into());
                break;
            }
        }
        if joined.len() >= JOIN_BYTES {
            writer.write(joined.split().freeze()).await?;
        }
    }
    if !joined.is_empty() {
        writer.write(joined.freeze()).await?;
    }
    broken.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        assert_eq!(parse_content_range("0-9"), Some((0, 10)));
        assert_eq!(parse_content_range("bytes 5-5/10"), Some((5, 6)));
        assert_eq!(parse_content_range("bytes=5-9"), Some((5, 10)));
        for bad in ["", "-", "5", "9-5", "a-b", "-5", "5-", "0-18446744073709551615"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
