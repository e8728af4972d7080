//! The error codes of the specification (distribution-spec, "Error Codes") and what maps to them.

use axum::body::Body;
use http::{Response, StatusCode, header};
use orlop_content as content;
use orlop_oci::DocumentError;
use serde::Serialize;

use crate::IndexError;

/// After how many seconds a client may try again when the database or the bucket is away, or too many log in.
const RETRY_AFTER: u64 = 2;

/// A code of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    Collected,
    Denied,
    Unauthorized,
    ReadOnly,
    InUse,
    RangeInvalid,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    PageInvalid,
    SizeInvalid,
    TagInvalid,
    Unsupported,
    NotFound,
    TooManyRequests,
    Busy,
    Limited,
    Upstream,
    TimedOut,
    NoSpace,
    Unavailable,
    Unknown,
}

impl Code {
    const fn parts(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Self::BlobUnknown => ("BLOB_UNKNOWN", StatusCode::NOT_FOUND, "this repository has no such blob"),
            Self::BlobUploadInvalid => ("BLOB_UPLOAD_INVALID", StatusCode::BAD_REQUEST, "the upload is not valid"),
            Self::BlobUploadUnknown => ("BLOB_UPLOAD_UNKNOWN", StatusCode::NOT_FOUND, "no such upload"),
            Self::Collected => {
                ("BLOB_UPLOAD_UNKNOWN", StatusCode::NOT_FOUND, "it was removed from the store just now; send it again")
            }
            Self::Denied => ("DENIED", StatusCode::FORBIDDEN, "this is not allowed"),
            Self::Unauthorized => ("UNAUTHORIZED", StatusCode::UNAUTHORIZED, "authentication is required"),
            Self::ReadOnly => ("UNSUPPORTED", StatusCode::METHOD_NOT_ALLOWED, "this registry takes no changes"),
            Self::InUse => ("UNSUPPORTED", StatusCode::METHOD_NOT_ALLOWED, "the repository needs it"),
            Self::RangeInvalid => (
                "BLOB_UPLOAD_INVALID",
                StatusCode::RANGE_NOT_SATISFIABLE,
                "the range is outside the blob or does not continue the upload",
            ),
            Self::DigestInvalid => ("DIGEST_INVALID", StatusCode::BAD_REQUEST, "the digest is malformed or wrong"),
            Self::ManifestBlobUnknown => (
                "MANIFEST_BLOB_UNKNOWN",
                StatusCode::BAD_REQUEST,
                "the manifest refers to what the repository does not have",
            ),
            Self::ManifestInvalid => ("MANIFEST_INVALID", StatusCode::BAD_REQUEST, "the manifest is not valid"),
            Self::ManifestTooLarge => {
                ("SIZE_INVALID", StatusCode::PAYLOAD_TOO_LARGE, "the manifest is larger than this registry takes")
            }
            Self::ManifestUnknown => ("MANIFEST_UNKNOWN", StatusCode::NOT_FOUND, "no such manifest"),
            Self::NameInvalid => ("NAME_INVALID", StatusCode::BAD_REQUEST, "the repository name is not valid"),
            Self::NameUnknown => ("NAME_UNKNOWN", StatusCode::NOT_FOUND, "no such repository"),
            Self::PageInvalid => {
                ("PAGINATION_NUMBER_INVALID", StatusCode::BAD_REQUEST, "the length of a page is not valid")
            }
            Self::SizeInvalid => ("SIZE_INVALID", StatusCode::BAD_REQUEST, "the body has not the length it claims"),
            Self::TagInvalid => ("MANIFEST_INVALID", StatusCode::BAD_REQUEST, "the tag is not valid"),
            Self::Unsupported => ("UNSUPPORTED", StatusCode::METHOD_NOT_ALLOWED, "this method is not supported here"),
            Self::NotFound => ("UNSUPPORTED", StatusCode::NOT_FOUND, "no such endpoint"),
            Self::TooManyRequests => {
                ("TOOMANYREQUESTS", StatusCode::TOO_MANY_REQUESTS, "this is being written now; try again")
            }
            Self::Busy => ("TOOMANYREQUESTS", StatusCode::TOO_MANY_REQUESTS, "too much is asked at once"),
            Self::Limited => {
                ("TOOMANYREQUESTS", StatusCode::TOO_MANY_REQUESTS, "the registry that is mirrored limits requests")
            }
            Self::Upstream => {
                ("UNAVAILABLE", StatusCode::BAD_GATEWAY, "the registry that is mirrored does not give it")
            }
            Self::TimedOut => ("UNKNOWN", StatusCode::REQUEST_TIMEOUT, "the body did not go on arriving"),
            Self::NoSpace => ("UNKNOWN", StatusCode::INSUFFICIENT_STORAGE, "the registry has no space left"),
            Self::Unavailable => (
                "UNAVAILABLE",
                StatusCode::SERVICE_UNAVAILABLE,
                "what the registry keeps things in does not answer; try again",
            ),
            Self::Unknown => ("UNKNOWN", StatusCode::INTERNAL_SERVER_ERROR, "the registry failed; its log says why"),
        }
    }
}

/// An answer that says why not.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    detail: Option<String>,
    headers: Vec<(&'static str, String)>,
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self { code, detail: None, headers: Vec::new() }
    }
}

impl Code {
    /// A failure that says more.
    pub(crate) fn because(self, detail: impl ToString) -> Failure {
        Failure { code: self, detail: Some(detail.to_string()), headers: Vec::new() }
    }
}

#[derive(Serialize)]
struct Document<'a> {
    errors: [Entry<'a>; 1],
}

#[derive(Serialize)]
struct Entry<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

impl Failure {
    pub(crate) fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn into_response(self) -> Response<Body> {
        let (code, status, message) = self.code.parts();
        let document = Document { errors: [Entry { code, message, detail: self.detail.as_deref() }] };
        let mut response = crate::json(status, "application/json", serde_json::to_vec(&document).unwrap_or_default());
        if matches!(self.code, Code::Unavailable | Code::Busy) {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER.into());
        }
        for (name, value) in self.headers {
            response.headers_mut().insert(name, crate::text(value));
        }
        response
    }
}

impl From<content::Error> for Failure {
    fn from(error: content::Error) -> Self {
        use std::io::ErrorKind;
        match &error {
            content::Error::NotFound { kind: "ingest", .. } => Code::BlobUploadUnknown.into(),
            content::Error::NotFound { .. } => Code::BlobUnknown.into(),
            content::Error::DigestMismatch { expected, actual, .. } => {
                Code::DigestInvalid.because(format!("expected {expected}, the bytes hash to {actual}"))
            }
            content::Error::SizeMismatch { expected, actual, .. } => {
                Code::SizeInvalid.because(format!("expected {expected} bytes, got {actual}"))
            }
            content::Error::Locked(_) => Code::TooManyRequests.into(),
            content::Error::Unavailable { what, .. } => {
                tracing::warn!(error = %error, "content store is not available");
                Code::Unavailable.because(format!("{what} is not available"))
            }
            _ => {
                tracing::error!(error = %error, "content store failed");
                match error.io_kind() {
                    Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => Code::NoSpace.into(),
                    _ => Code::Unknown.into(),
                }
            }
        }
    }
}

impl From<IndexError> for Failure {
    fn from(error: IndexError) -> Self {
        match error {
            IndexError::NoRepository => Code::NameUnknown.into(),
            IndexError::NoManifest => Code::ManifestUnknown.into(),
            IndexError::NoBlob => Code::BlobUnknown.into(),
            IndexError::Denied(reason) => Code::Denied.because(reason),
            IndexError::TooLarge(reason) => Code::ManifestTooLarge.because(reason),
            IndexError::NoSpace => Code::NoSpace.into(),
            IndexError::InUse(reason) => Code::InUse.because(reason),
            IndexError::NoChild(digest) => Code::ManifestBlobUnknown.because(digest),
            IndexError::Limited { reason, retry_after } => {
                let failure = Code::Limited.because(reason);
                match retry_after {
                    // Rounded up, lest they come too early.
                    Some(wait) => failure.with_header("retry-after", wait.as_secs().saturating_add(1).to_string()),
                    None => failure,
                }
            }
            IndexError::Upstream(reason) => Code::Upstream.because(reason),
            IndexError::Unavailable(source) => {
                tracing::warn!(error = %source, "index is not available");
                Code::Unavailable.because("the database is not available")
            }
            IndexError::Backend(source) => {
                tracing::error!(error = %source, "index failed");
                Code::Unknown.into()
            }
        }
    }
}

impl From<DocumentError> for Failure {
    fn from(error: DocumentError) -> Self {
        match error {
            DocumentError::TooLarge { .. } => Code::ManifestTooLarge.because(error),
            error => Code::ManifestInvalid.because(error),
        }
    }
}
