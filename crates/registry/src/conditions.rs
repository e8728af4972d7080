//! Conditional requests (RFC 9110, section 13). What a digest names never changes, so the digest is its entity tag.

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use orlop_oci::Digest;

use crate::{empty, text};

/// The entity tag of what a digest names.
pub(crate) fn etag(digest: &Digest) -> HeaderValue {
    text(format!("\"{digest}\""))
}

/// Whether `If-None-Match` says that the client has it already. `*` does: whatever it is, it is there.
pub(crate) fn has_it(headers: &HeaderMap, digest: &Digest) -> bool {
    let lists = headers.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(str::trim).any(|tag| tag == "*" || names(tag, digest))
}

/// Whether a `Range` counts: with an `If-Range` only if that names what is there. A date never does: nothing here has one.
pub(crate) fn range_counts(headers: &HeaderMap, digest: &Digest) -> bool {
    let Some(condition) = headers.get(header::IF_RANGE) else { return true };
    condition.to_str().is_ok_and(|tag| !tag.starts_with("W/") && names(tag.trim(), digest))
}

/// The answer to a client that has it already.
pub(crate) fn not_modified(digest: &Digest) -> Response<Body> {
    let mut response = empty(StatusCode::NOT_MODIFIED);
    response.headers_mut().insert(header::ETAG, etag(digest));
    response.headers_mut().insert("docker-content-digest", text(digest.as_str()));
    response
}

/// Weak tags count as strong ones: bytes with the same digest are the same. Docker's registry once had tags without quotes.
fn names(tag: &str, digest: &Digest) -> bool {
    tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"') == digest.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn a_list_of_tags_is_looked_through() {
        let (digest, other) = (Digest::of(b"a"), Digest::of(b"b"));
        let has = |value: &str| has_it(&headers(header::IF_NONE_MATCH, value), &digest);
        for yes in ["*", &format!("\"{digest}\""), &format!("W/\"{digest}\""), &format!("\"{other}\", \"{digest}\"")] {
            assert!(has(yes), "{yes}");
        }
        for no in ["", "\"\"", &format!("\"{other}\""), "W/"] {
            assert!(!has(no), "{no}");
        }
        assert!(!has_it(&HeaderMap::new(), &digest));
    }

    #[test]
    fn a_range_of_something_else_does_not_count() {
        let digest = Digest::of(b"a");
        let counts = |value: &str| range_counts(&headers(header::IF_RANGE, value), &digest);
        assert!(counts(&format!("\"{digest}\"")) && range_counts(&HeaderMap::new(), &digest));
        for no in ["\"other\"", "Sat, 29 Oct 1994 19:43:31 GMT", &format!("W/\"{digest}\"")] {
            assert!(!counts(no), "{no}");
        }
    }
}
