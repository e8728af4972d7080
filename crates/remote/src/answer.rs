//! What came back: a response whose body is read with bounds on size and time.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use orlop_oci::Digest;
use url::Url;

use crate::error::{Error, Result};
use crate::failure::{self, Refusal};
use crate::hosts::authority;
use crate::rates::RateLimit;
use crate::retry;

/// More of an error body is not read.
const MAX_ERROR_BYTES: usize = 16 * 1024;
/// A body up to here is read to its end so that its connection can be used again.
const MAX_DRAIN_BYTES: usize = 64 * 1024;
/// Nobody waits longer than this for the text of an error.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A response and where it came from.
pub(crate) struct Answer {
    response: reqwest::Response,
    url: Url,
    idle: Duration,
}

impl Answer {
    pub(crate) const fn new(response: reqwest::Response, url: Url, idle: Duration) -> Self {
        Self { response, url, idle }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Where it came from, after redirects.
    pub(crate) const fn url(&self) -> &Url {
        &self.url
    }

    /// Who gave it.
    pub(crate) fn host(&self) -> String {
        authority(&self.url)
    }

    /// A header as text, if it is there and not empty.
    pub(crate) fn text(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok().map(str::trim).filter(|text| !text.is_empty())
    }

    /// `Content-Length` as the header says it; also in the answer to HEAD, which has no body.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.text(CONTENT_LENGTH)?.parse().ok()
    }

    /// `Content-Type` without its parameters, in lower case.
    pub(crate) fn media_type(&self) -> Option<String> {
        let text = self.text(CONTENT_TYPE)?;
        Some(text.split(';').next().unwrap_or("").trim().to_ascii_lowercase()).filter(|t| !t.is_empty())
    }

    /// `Docker-Content-Digest` (distribution-spec, "Pulling manifests").
    pub(crate) fn content_digest(&self) -> Option<Digest> {
        self.text("docker-content-digest")?.parse().ok()
    }

    /// Refuses a body that was packed although it was asked for as it is: its bytes would have another digest.
    pub(crate) fn unpacked(self, what: &str) -> Result<Self> {
        match self.text(CONTENT_ENCODING) {
            Some(encoding) if !encoding.eq_ignore_ascii_case("identity") => Err(Error::Protocol {
                what: what.to_owned(),
                host: self.host(),
                expected: "a body without Content-Encoding",
                found: encoding.to_owned(),
            }),
            _ => Ok(self),
        }
    }

    /// This answer if its status is one of these, otherwise the error that it means.
    pub(crate) async fn expect(self, statuses: &[StatusCode], what: &str) -> Result<Self> {
        if statuses.contains(&self.status()) { Ok(self) } else { Err(self.failure(what).await) }
    }

    /// The error that this answer means.
    pub(crate) async fn failure(mut self, what: &str) -> Error {
        let (status, host) = (self.status(), self.host());
        let now = jiff::Timestamp::now();
        let said = RateLimit::read(self.headers(), now);
        let wait =
            retry::retry_after(self.headers(), now).or_else(|| said.as_ref().and_then(|said| said.exhausted(now)));
        let mut body = Vec::new();
        let reading = async {
            while let Ok(Some(chunk)) = self.response.chunk().await {
                let room = MAX_ERROR_BYTES - body.len();
                body.extend_from_slice(&chunk[..chunk.len().min(room)]);
                if body.len() == MAX_ERROR_BYTES {
                    break;
                }
            }
        };
        // What came until then is enough.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, reading).await;
        let mut error = Refusal::parse(status, &body, wait).into_error(what, &host);
        if let (Error::TooManyRequests { reason, .. }, Some(said)) = (&mut error, said) {
            reason.push_str(&format!(" ({said})"));
        }
        error
    }

    /// Reads a short body to its end, so that the connection can be used again.
    pub(crate) async fn drain(mut self) {
        let reading = async {
            let mut read = 0;
            while let Ok(Some(chunk)) = self.response.chunk().await {
                read += chunk.len();
                if read > MAX_DRAIN_BYTES {
                    break;
                }
            }
        };
        // Otherwise the connection is closed, which is all that is lost.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, reading).await;
    }

    /// The next bytes of the body; an error after `idle_timeout` without any.
    pub(crate) async fn chunk(&mut self, what: &str) -> Result<Option<Bytes>> {
        let next = tokio::time::timeout(self.idle, self.response.chunk()).await;
        let next =
            next.map_err(|_| Error::Timeout { what: what.to_owned(), host: authority(&self.url), after: self.idle })?;
        next.map_err(|e| failure::of_exchange(e, &authority(&self.url), what, self.idle))
    }

    /// The whole body, refused when it has more than `limit` bytes.
    pub(crate) async fn bytes(mut self, limit: u64, what: &str) -> Result<Bytes> {
        let host = self.host();
        let too_large = || Error::TooLarge { what: what.to_owned(), host: host.clone(), limit };
        if self.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(what).await? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.into())
    }
}
