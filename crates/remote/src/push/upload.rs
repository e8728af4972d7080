//! One upload session: begin, send, ask how far it came, go on (distribution-spec, "Pushing blobs").
//!
//! A blob up to [`crate::Tuning::upload_chunk_bytes`] is sent by one PUT. A larger one, and whatever is left after a broken
//! connection, goes by PATCH in chunks and is closed by an empty PUT. After a failure the host is asked how far it is; a
//! session that it no longer knows is begun anew, and one that takes no chunks is sent again by one PUT.
//!
//! docker-registry (2.8) forgets a session of which it has got a part of a chunk: its `Location` carries the offset,
//! and it gives the session up when that is not what it has. There a broken chunk means to begin anew.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{Method, StatusCode};
use url::Url;

use crate::answer::Answer;
use crate::endpoint::{Body, Endpoint, Target};
use crate::error::{Error, Result};
use crate::hosts::authority;
use crate::{BlobSource, UploadProgress, retry};

use super::Pushing;
use super::feed::{Feed, channel};

const OCTETS: &str = "application/octet-stream";
/// How long to wait until an upload that is given up is cancelled.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// Where an upload stands.
struct Session {
    location: Url,
    offset: u64,
    /// The smallest chunk the host takes (`OCI-Chunk-Min-Length`).
    chunk_min: u64,
}

/// What one step came to.
enum Step {
    Done,
    Further(Session),
}

pub(super) struct Upload<'a> {
    pushing: &'a Pushing<'a>,
    source: BlobSource<'a>,
    progress: UploadProgress<'a>,
    /// The host refused a chunk: everything goes by one PUT.
    whole: bool,
}

impl<'a> Upload<'a> {
    pub(super) const fn new(pushing: &'a Pushing<'a>, source: BlobSource<'a>, progress: UploadProgress<'a>) -> Self {
        Self { pushing, source, progress, whole: false }
    }

    /// Sends the blob; `location` is a session that a refused mount has begun.
    pub(super) async fn run(mut self, location: Option<Url>) -> Result<()> {
        let mut session = match location {
            Some(location) => Session { location, offset: 0, chunk_min: 0 },
            None => self.begin().await?,
        };
        let tuning = self.pushing.client.tuning().clone();
        let (mut failures, mut reached) = (0, 0);
        loop {
            let error = match self.step(&session).await {
                Ok(Step::Done) => return Ok(()),
                Ok(Step::Further(next)) => {
                    session = next;
                    continue;
                }
                Err(error) => error,
            };
            failures = if session.offset > reached { 1 } else { failures + 1 };
            reached = reached.max(session.offset);
            let broken_session = self.refused_chunk(&error, &session);
            if !broken_session && retry::pause(&tuning, failures, &error).is_none() || failures >= tuning.attempts {
                self.cancel(&session).await;
                return Err(error);
            }
            let pause = retry::pause(&tuning, failures, &error).unwrap_or_default();
            tracing::debug!(offset = session.offset, failures, ?pause, %error, "resuming an upload");
            tokio::time::sleep(pause).await;
            session = self.resume(session).await?;
            (self.progress)(session.offset);
        }
    }

    /// Lets the host forget what it has; if it does not answer, it will clean up by itself.
    async fn cancel(&self, session: &Session) {
        let request = self.pushing.request(Method::DELETE, Target::Url(session.location.clone()));
        let answer = self.pushing.endpoint.send(self.pushing.client.auth(), &request);
        let _ = tokio::time::timeout(CANCEL_TIMEOUT, answer).await;
    }

    /// Whether the host does not take this step but may take the blob in another way; remembers which.
    fn refused_chunk(&mut self, error: &Error, session: &Session) -> bool {
        match error {
            // The session is gone, or stands elsewhere than we think: asking it tells.
            Error::NotFound { .. } | Error::Status { status: 416, .. } => true,
            // A token that ran out while bytes were sent.
            Error::Unauthorized { .. } => true,
            Error::Status { status: 400 | 405 | 411 | 501, .. } if !self.whole && self.by_chunks(session) => {
                self.whole = true;
                true
            }
            _ => false,
        }
    }

    fn size(&self) -> u64 {
        self.pushing.descriptor.size
    }

    fn by_chunks(&self, session: &Session) -> bool {
        !self.whole && (session.offset > 0 || self.size() > self.pushing.client.tuning().upload_chunk_bytes)
    }

    async fn begin(&self) -> Result<Session> {
        // An empty body, so that a length of 0 is sent: some hosts answer 411 without one.
        let request = self
            .pushing
            .request(Method::POST, self.pushing.uploads())
            .header(CONTENT_LENGTH, "0")
            .body(Body::Bytes(bytes::Bytes::new()));
        let answer = self.pushing.call(&request).await?.expect(&[StatusCode::ACCEPTED], &self.pushing.what()).await?;
        let session = self.session(&answer, 0)?;
        answer.drain().await;
        Ok(session)
    }

    fn session(&self, answer: &Answer, offset: u64) -> Result<Session> {
        let location = location(self.pushing.endpoint, answer, &self.pushing.what())?;
        let chunk_min = answer.text("oci-chunk-min-length").and_then(|t| t.parse().ok()).unwrap_or(0);
        Ok(Session { location, offset, chunk_min })
    }

    async fn step(&self, session: &Session) -> Result<Step> {
        let size = self.size();
        if !self.by_chunks(session) {
            let answer = self.send(Method::PUT, session, 0, size, true).await?;
            return self.completed(answer).await;
        }
        if session.offset == size {
            let request = self
                .pushing
                .request(Method::PUT, Target::Url(with_digest(&session.location, self)))
                .header(CONTENT_LENGTH, "0")
                .body(Body::Bytes(bytes::Bytes::new()));
            return self.completed(self.pushing.endpoint.send(self.pushing.client.auth(), &request).await?).await;
        }
        let chunk = self.pushing.client.tuning().upload_chunk_bytes.max(session.chunk_min).max(1);
        let end = size.min(session.offset.saturating_add(chunk));
        let answer = self.send(Method::PATCH, session, session.offset, end, false).await?;
        let answer = answer.expect(&[StatusCode::ACCEPTED, StatusCode::NO_CONTENT], &self.pushing.what()).await?;
        // The host says how far it is; that may be less than was sent.
        let offset = received(&answer).unwrap_or(end).min(end);
        let mut next = self.session(&answer, offset)?;
        next.chunk_min = next.chunk_min.max(session.chunk_min);
        answer.drain().await;
        if offset <= session.offset {
            return Err(Error::Protocol {
                what: self.pushing.what(),
                host: self.pushing.endpoint.host().to_owned(),
                expected: "a Range that grows with each chunk",
                found: offset.to_string(),
            });
        }
        Ok(Step::Further(next))
    }

    async fn completed(&self, answer: Answer) -> Result<Step> {
        let what = self.pushing.what();
        let answer = answer.expect(&[StatusCode::CREATED, StatusCode::OK, StatusCode::NO_CONTENT], &what).await?;
        let expected = &self.pushing.descriptor.digest;
        match answer.content_digest() {
            Some(actual) if actual.algorithm() == expected.algorithm() && actual != *expected => {
                Err(Error::DigestMismatch { what, host: answer.host(), expected: expected.clone(), actual })
            }
            _ => {
                answer.drain().await;
                Ok(Step::Done)
            }
        }
    }

    /// Sends `start..end` of the blob; fails when the source fails or nothing moves.
    async fn send(&self, method: Method, session: &Session, start: u64, end: u64, last: bool) -> Result<Answer> {
        let (sender, body) = channel();
        let url = if last { with_digest(&session.location, self) } else { session.location.clone() };
        let mut request = self
            .pushing
            .request(method, Target::Url(url))
            .header(CONTENT_TYPE, OCTETS)
            .header(CONTENT_LENGTH, (end - start).to_string())
            .body(Body::Once(Mutex::new(Some(body))));
        if !last {
            request = request.header(CONTENT_RANGE, format!("{start}-{}", end - 1));
        }
        let feed =
            Feed { source: self.source, progress: self.progress, start, length: end - start, moved: AtomicU64::new(0) };
        let (endpoint, tuning) = (self.pushing.endpoint, self.pushing.client.tuning());
        let exchange = endpoint.send_once(self.pushing.client.auth(), &request);
        let fed = async {
            feed.run(sender).await?;
            // The answer decides from here on.
            std::future::pending::<Result<Answer>>().await
        };
        let stalled = feed.standstill(tuning.idle_timeout.max(tuning.response_timeout));
        tokio::select! {
            biased;
            answer = exchange => answer,
            failed = fed => failed,
            () = stalled => Err(Error::Timeout {
                what: self.pushing.what(),
                host: endpoint.host().to_owned(),
                after: tuning.idle_timeout,
            }),
        }
    }

    /// Asks how far the host is; a session it no longer knows is begun anew.
    async fn resume(&self, session: Session) -> Result<Session> {
        if self.whole {
            return self.begin().await;
        }
        let request = self.pushing.request(Method::GET, Target::Url(session.location.clone()));
        let answer = self.pushing.call(&request).await?;
        if !matches!(answer.status(), StatusCode::NO_CONTENT | StatusCode::ACCEPTED | StatusCode::OK) {
            answer.drain().await;
            return self.begin().await;
        }
        let offset = received(&answer).unwrap_or(0).min(self.size());
        let mut next = match answer.headers().contains_key(LOCATION) {
            true => self.session(&answer, offset)?,
            false => Session { offset, ..session },
        };
        next.chunk_min = next.chunk_min.max(session.chunk_min);
        answer.drain().await;
        Ok(next)
    }
}

/// How many bytes the host has: `Range: 0-<last>`, with or without a unit. docker-registry says `0-0` for none, too.
fn received(answer: &Answer) -> Option<u64> {
    parse_received(answer.text(RANGE)?)
}

fn parse_received(text: &str) -> Option<u64> {
    let text = text.trim().trim_start_matches("bytes").trim_start_matches(['=', ' ']);
    let (start, last) = text.split_once('-')?;
    match (start.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?) {
        (0, 0) => Some(0),
        (0, last) => last.checked_add(1),
        _ => None,
    }
}

fn with_digest(location: &Url, upload: &Upload<'_>) -> Url {
    let mut url = location.clone();
    url.query_pairs_mut().append_pair("digest", upload.pushing.descriptor.digest.as_str());
    url
}

/// Where the upload goes on: `Location`, absolute or relative, its query kept.
///
/// A host behind a proxy may call itself by plain HTTP although it was reached by HTTPS: the same name is then reached as
/// before. Another host is taken as it is and gets no credentials, but HTTPS is not left.
pub(super) fn location(endpoint: &Endpoint, answer: &Answer, what: &str) -> Result<Url> {
    let base = endpoint.base();
    let text = answer.text(LOCATION);
    let mut url = text.and_then(|text| answer.url().join(text).ok()).ok_or_else(|| Error::Protocol {
        what: what.to_owned(),
        host: answer.host(),
        expected: "a Location for the upload",
        found: text.unwrap_or("none").to_owned(),
    })?;
    if url.scheme() == base.scheme() || (url.scheme() == "https") {
        return Ok(url);
    }
    if url.scheme() == "http" && url.host_str() == base.host_str() {
        let port = base.port();
        // Cannot fail: both are special schemes and the host is there.
        let _ = url.set_scheme(base.scheme());
        let _ = url.set_port(port);
        return Ok(url);
    }
    url.set_query(None);
    Err(Error::Redirect {
        what: what.to_owned(),
        host: authority(answer.url()),
        location: url.to_string(),
        reason: "an upload would leave HTTPS",
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_how_far_an_upload_is() {
        for (text, expected) in [
            ("0-0", Some(0)),
            ("0-9", Some(10)),
            ("bytes=0-9", Some(10)),
            ("bytes 0-9", Some(10)),
            ("5-9", None),
            ("0-", None),
            ("", None),
            ("0-18446744073709551615", None),
        ] {
            assert_eq!(parse_received(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*") {
            parse_received(&text);
        }
    }
}
