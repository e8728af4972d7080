//! Reading and unlinking blobs.

use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use orlop_content::BlobReader;
use orlop_oci::Digest;

use crate::error::{Code, Failure};
use crate::{Inner, conditions, empty, text};

/// How much is read from the store at once.
const PIECE: u64 = 1 << 20;

impl Inner {
    pub(crate) async fn get_blob(
        &self,
        name: &str,
        digest: &Digest,
        request: &Parts,
    ) -> Result<Response<Body>, Failure> {
        if !self.index.has_blob(name, digest).await? {
            return Err(Code::BlobUnknown.because(digest));
        }
        if conditions::has_it(&request.headers, digest) {
            return Ok(conditions::not_modified(digest));
        }
        response(self.content.open(digest).await?, digest, request).await
    }

    pub(crate) async fn delete_blob(&self, name: &str, digest: &Digest) -> Result<Response<Body>, Failure> {
        self.index.unlink_blob(name, digest).await?;
        Ok(empty(StatusCode::ACCEPTED))
    }
}

/// What a request for a blob is given of it.
pub(crate) async fn response(
    reader: Arc<dyn BlobReader>,
    digest: &Digest,
    request: &Parts,
) -> Result<Response<Body>, Failure> {
    if conditions::has_it(&request.headers, digest) {
        return Ok(conditions::not_modified(digest));
    }
    if request.method == Method::GET
        && let Some(url) = reader.redirect().await?
    {
        let mut response = empty(StatusCode::TEMPORARY_REDIRECT);
        response.headers_mut().insert(header::LOCATION, text(url));
        response.headers_mut().insert("docker-content-digest", text(digest.as_str()));
        return Ok(response);
    }
    let size = reader.size();
    let ranged = request.method == Method::GET && conditions::range_counts(&request.headers, digest);
    let asked = if ranged { asked_range(&request.headers, size) } else { Asked::All };
    let (status, range) = match asked {
        Asked::All => (StatusCode::OK, 0..size),
        Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Asked::Impossible => {
            return Err(Code::RangeInvalid.because(digest).with_header("content-range", format!("bytes */{size}")));
        }
    };
    let mut response = empty(status);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, (range.end - range.start).into());
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::ETAG, conditions::etag(digest));
    headers.insert("docker-content-digest", text(digest.as_str()));
    if status == StatusCode::PARTIAL_CONTENT {
        let value = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        headers.insert(header::CONTENT_RANGE, text(value));
    }
    if request.method == Method::GET {
        *response.body_mut() = body(reader, range);
    }
    Ok(response)
}

fn body(reader: Arc<dyn BlobReader>, range: Range<u64>) -> Body {
    let pieces = stream::try_unfold((reader, range), |(reader, range)| async move {
        if range.is_empty() {
            return Ok::<_, orlop_content::Error>(None);
        }
        let length = PIECE.min(range.end - range.start);
        let piece: Bytes = reader.read_at(range.start, usize::try_from(length).unwrap_or(usize::MAX)).await?;
        // A shorter body than was announced breaks the connection, which is how the client learns of it.
        let start = if piece.is_empty() { range.end } else { range.start + piece.len() as u64 };
        Ok(Some((piece, (reader, start..range.end))))
    });
    Body::from_stream(pieces)
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    All,
    Part(Range<u64>),
    Impossible,
}

/// What a `Range` header asks for (RFC 9110, section 14.2). What it does not understand, and more than one range, it
/// ignores, as it may. A range that ends before it starts is refused as one that the blob does not have: the
/// specification's conformance suite wants it so.
fn asked_range(headers: &HeaderMap, size: u64) -> Asked {
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let Some((first, last)) = range.and_then(|r| r.strip_prefix("bytes=")).and_then(|r| r.trim().split_once('-'))
    else {
        return Asked::All;
    };
    let parsed = match (first.is_empty(), last.is_empty()) {
        (true, _) => last.parse::<u64>().map(|count| (size.saturating_sub(count), size)),
        (false, true) => first.parse().map(|first| (first, size)),
        (false, false) => match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(first), Ok(last)) if first <= last => Ok((first, last.saturating_add(1).min(size))),
            (Ok(_), Ok(_)) => return Asked::Impossible,
            (Err(error), _) | (_, Err(error)) => Err(error),
        },
    };
    match parsed {
        Ok((start, end)) if start < end => Asked::Part(start..end),
        Ok(_) => Asked::Impossible,
        Err(_) => Asked::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let asked = |value: &'static str, size| {
            asked_range(&HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static(value))]), size)
        };
        assert_eq!(asked("bytes=0-0", 10), Asked::Part(0..1));
        assert_eq!(asked("bytes=3-", 10), Asked::Part(3..10));
        assert_eq!(asked("bytes=-3", 10), Asked::Part(7..10));
        assert_eq!(asked("bytes=-30", 10), Asked::Part(0..10));
        assert_eq!(asked("bytes=5-18446744073709551615", 10), Asked::Part(5..10));
        for impossible in ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=5-3"] {
            assert_eq!(asked(impossible, 10), Asked::Impossible, "{impossible}");
        }
        assert_eq!(asked("bytes=0-", 0), Asked::Impossible);
        for ignored in ["bytes=0-1,3-4", "lines=1-2", "bytes=a-b", "bytes=-", "bytes="] {
            assert_eq!(asked(ignored, 10), Asked::All, "{ignored}");
        }
    }
}
