//! What a request's path names (distribution-spec, "Endpoints").

use http::{Method, Uri};
use orlop_oci::{Digest, DigestError, RepositoryName};
use url::form_urlencoded;

use crate::ManifestKey;
use crate::access::Action;
use crate::error::{Code, Failure};

/// Everything that has a path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `/v2/`: does this speak the protocol?
    Root,
    /// `/v2/_catalog`, which is Docker's.
    Catalog,
    /// Something in a repository.
    Repository(String, Route),
}

/// What is in a repository.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Blob(Digest),
    Uploads,
    Upload(String),
    Manifest(ManifestKey),
    Tags,
    Referrers(Digest),
}

impl Target {
    pub(crate) fn parse(uri: &Uri) -> Result<Self, Failure> {
        let path = percent_decode(uri.path()).ok_or(Code::NotFound)?;
        let path = path.strip_prefix("/v2").ok_or(Code::NotFound)?;
        match path {
            "" | "/" => return Ok(Self::Root),
            "/_catalog" => return Ok(Self::Catalog),
            _ => {}
        }
        let path = path.strip_prefix('/').ok_or(Code::NotFound)?;
        let (name, route) = Route::parse(path)?;
        match repository(name) {
            Some(_) => Ok(Self::Repository(name.to_owned(), route)),
            None => Err(Code::NameInvalid.because(name)),
        }
    }
}

impl Route {
    /// What somebody must be allowed to do for it.
    pub(crate) fn action(&self, method: &Method) -> Action {
        let read = method == Method::GET || method == Method::HEAD;
        match self {
            // How far an upload has come is its sender's matter.
            Self::Uploads | Self::Upload(_) => Action::Push,
            _ if read => Action::Pull,
            _ if method == Method::DELETE => Action::Delete,
            _ => Action::Push,
        }
    }

    /// The tag or digest that is asked for.
    pub(crate) fn reference(&self) -> Option<String> {
        match self {
            Self::Blob(digest) | Self::Referrers(digest) | Self::Manifest(ManifestKey::Digest(digest)) => {
                Some(digest.to_string())
            }
            Self::Manifest(ManifestKey::Tag(tag)) => Some(tag.clone()),
            Self::Uploads | Self::Upload(_) | Self::Tags => None,
        }
    }

    /// Splits from the end, since a repository may be called `blobs/uploads`.
    fn parse(path: &str) -> Result<(&str, Self), Failure> {
        if let Some(name) = path.strip_suffix("/blobs/uploads/").or_else(|| path.strip_suffix("/blobs/uploads")) {
            return Ok((name, Self::Uploads));
        }
        if let Some(name) = path.strip_suffix("/tags/list") {
            return Ok((name, Self::Tags));
        }
        let (front, last) = path.rsplit_once('/').ok_or(Code::NotFound)?;
        if let Some(name) = front.strip_suffix("/blobs/uploads") {
            return Ok((name, Self::Upload(last.to_owned())));
        }
        if let Some(name) = front.strip_suffix("/blobs") {
            return Ok((name, Self::Blob(digest(last)?)));
        }
        if let Some(name) = front.strip_suffix("/referrers") {
            return Ok((name, Self::Referrers(digest(last)?)));
        }
        if let Some(name) = front.strip_suffix("/manifests") {
            let key =
                if last.contains(':') { ManifestKey::Digest(digest(last)?) } else { ManifestKey::Tag(tag(last)?) };
            return Ok((name, Self::Manifest(key)));
        }
        Err(Code::NotFound.into())
    }
}

/// The name of a repository, if it is one.
pub(crate) fn repository(name: &str) -> Option<RepositoryName> {
    RepositoryName::parse(&format!("localhost/{name}")).ok().filter(|parsed| parsed.path() == name)
}

/// A tag that a client gave.
pub(crate) fn tag(text: &str) -> Result<String, Failure> {
    let valid = repository("any").is_some_and(|any| any.with_tag(text).is_ok());
    if valid { Ok(text.to_owned()) } else { Err(Code::TagInvalid.because(text)) }
}

/// A digest that a client gave.
pub(crate) fn digest(text: &str) -> Result<Digest, Failure> {
    text.parse().map_err(|error: DigestError| Code::DigestInvalid.because(error))
}

/// The first value of a query parameter.
pub(crate) fn query(uri: &Uri, name: &str) -> Option<String> {
    queries(uri, name).next()
}

/// All values of a query parameter.
pub(crate) fn queries(uri: &Uri, name: &str) -> impl Iterator<Item = String> {
    let query = uri.query().unwrap_or_default();
    let pairs = form_urlencoded::parse(query.as_bytes());
    pairs.filter(move |(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// Text for a query parameter.
pub(crate) fn query_encode(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

fn percent_decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digit = |b: Option<u8>| char::from(b?).to_digit(16);
            let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
            decoded.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str) -> Option<Target> {
        Target::parse(&path.parse().unwrap()).ok()
    }

    #[test]
    fn repositories_may_be_named_like_endpoints() {
        let digest = Digest::of(b"");
        let expected = Some(Target::Repository("blobs/uploads".into(), Route::Blob(digest.clone())));
        assert_eq!(parse(&format!("/v2/blobs/uploads/blobs/{digest}")), expected);
        let expected = Some(Target::Repository("a/manifests".into(), Route::Tags));
        assert_eq!(parse("/v2/a/manifests/tags/list"), expected);
    }

    #[test]
    fn digests_may_be_percent_encoded() {
        let digest = Digest::of(b"");
        let expected = Some(Target::Repository("a".into(), Route::Blob(digest.clone())));
        assert_eq!(parse(&format!("/v2/a/blobs/sha256%3A{}", digest.hex())), expected);
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for path in ["/", "/v1/", "/v2x", "/v2/a", "/v2/a/b", "/v2/A/tags/list", "/v2/a//b/tags/list", "/v2/%zz"] {
            assert_eq!(parse(path), None, "{path}");
        }
        for path in ["/v2/a/blobs/sha256:1", "/v2/a/manifests/.tag", "/v2/../tags/list", "/v2/a/manifests/a%20b"] {
            assert_eq!(parse(path), None, "{path}");
        }
    }
}
