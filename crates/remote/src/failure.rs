//! From what the network and the host said to an [`Error`].

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;

use crate::error::Error;

/// The part of an error body that is shown (distribution-spec, "Error Codes").
const MAX_REASON: usize = 300;

/// A host name could not be resolved; marks the resolver's errors within reqwest's.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DnsError(pub(crate) io::Error);

/// Says what a failed exchange was, without the URL, whose query may hold a signature.
pub(crate) fn of_exchange(error: reqwest::Error, host: &str, what: &str, waited: Duration) -> Error {
    let error = error.without_url();
    let (host, what) = (host.to_owned(), what.to_owned());
    if let Some(DnsError(e)) = find::<DnsError>(&error) {
        return Error::Dns { host, source: io::Error::new(e.kind(), e.to_string()) };
    }
    if let Some(tls) = find::<rustls::Error>(&error) {
        return Error::Tls { host, source: tls.clone(), advice: advice(tls) };
    }
    if error.is_timeout() && error.is_connect() {
        return Error::Connect { host, source: "nobody answered in time".into() };
    }
    if error.is_timeout() {
        return Error::Timeout { what, host, after: waited };
    }
    let source = root_cause(&error).into();
    if error.is_connect() { Error::Connect { host, source } } else { Error::Broken { what, host, source } }
}

/// Whether what answered does not speak TLS.
pub(crate) fn is_not_tls(error: &reqwest::Error) -> bool {
    let rubbish = find::<rustls::Error>(error).is_some_and(|e| matches!(e, rustls::Error::InvalidMessage(_)));
    // The first one may only wrap the one that tells.
    let hung_up = causes(error).filter_map(|e| e.downcast_ref::<io::Error>()).any(|e| {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        matches!(e.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
    });
    error.is_connect() && (rubbish || hung_up)
}

fn advice(error: &rustls::Error) -> &'static str {
    use rustls::CertificateError as C;
    match error {
        rustls::Error::InvalidCertificate(reason) => match reason {
            C::UnknownIssuer => {
                "its certificate is signed by a CA unknown here: name the CA's file as `ca` in the host's hosts.toml, \
                 or add it to the system's CA store"
            }
            C::Expired | C::ExpiredContext { .. } => "renew the server's certificate, or check this machine's clock",
            C::NotValidYet | C::NotValidYetContext { .. } => "check this machine's clock",
            C::NotValidForName | C::NotValidForNameContext { .. } => {
                "use a name that the server's certificate holds, or give the server one that holds this name"
            }
            C::Revoked => "the server's certificate was revoked: ask its administrator",
            _ => "the server's certificate is not usable: ask its administrator",
        },
        rustls::Error::InvalidMessage(_) => {
            "what answered does not speak TLS: if it is a plain HTTP registry, write `http://` in its hosts.toml or ask \
             for plain HTTP"
        }
        rustls::Error::AlertReceived(_) => {
            "the server ended the handshake: it may want a client certificate, `client` in the host's hosts.toml"
        }
        _ => "check that the address is right and that the server speaks TLS 1.2 or 1.3",
    }
}

/// An error and its causes; `io::Error` hides what it wraps from `source()`.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
        Some(error)
    })
}

/// Looks for an error of a type among an error and its causes.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    causes(error).find_map(|error| error.downcast_ref())
}

/// What lies at the bottom: reqwest's and hyper's own words say little.
pub(crate) fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    errors: Vec<ErrorItem>,
    /// What token servers say.
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    error_description: Option<String>,
    #[serde(default)]
    details: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Deserialize)]
struct ErrorItem {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// What a host said about its refusal: codes and messages, or the beginning of the text.
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: String,
    pub(crate) reason: String,
    pub(crate) retry_after: Option<Duration>,
}

impl Refusal {
    /// Reads an error body; anything is accepted.
    pub(crate) fn parse(status: StatusCode, body: &[u8], retry_after: Option<Duration>) -> Self {
        let (code, reason) = read_body(body).unwrap_or_default();
        let reason = if reason.is_empty() {
            status.canonical_reason().map_or_else(|| format!("status {status}"), str::to_owned)
        } else {
            reason
        };
        Self { status, code, reason, retry_after }
    }

    /// The error it means.
    pub(crate) fn into_error(self, what: &str, host: &str) -> Error {
        let (what, host) = (what.to_owned(), host.to_owned());
        let Self { status, code, reason, retry_after } = self;
        if status == StatusCode::TOO_MANY_REQUESTS || code == "TOOMANYREQUESTS" {
            return Error::TooManyRequests { what, host, reason, retry_after };
        }
        match status {
            StatusCode::NOT_FOUND => Error::NotFound { what, host },
            StatusCode::UNAUTHORIZED => Error::Unauthorized { what, host, reason },
            StatusCode::FORBIDDEN => Error::Denied { what, host, reason },
            _ => Error::Status { what, host, status: status.as_u16(), reason, retry_after },
        }
    }
}

fn read_body(body: &[u8]) -> Option<(String, String)> {
    let text = String::from_utf8_lossy(body);
    let Ok(parsed) = serde_json::from_str::<ErrorBody>(&text) else {
        // A proxy's error page says nothing that its status does not.
        let text = text.trim();
        return (!text.starts_with('<')).then(|| (String::new(), clean(text)));
    };
    if let Some(first) = parsed.errors.first() {
        let parts: Vec<String> = parsed.errors.iter().map(ErrorItem::text).collect();
        return Some((first.code.to_ascii_uppercase(), clean(&parts.join("; "))));
    }
    let said = [parsed.error, parsed.error_description, parsed.details, parsed.message];
    let said: Vec<String> = said.into_iter().flatten().collect();
    Some((String::new(), clean(&said.join(": "))))
}

impl ErrorItem {
    fn text(&self) -> String {
        match (self.code.as_str(), self.message.as_str()) {
            ("", message) => message.to_owned(),
            (code, "") => code.to_owned(),
            (code, message) => format!("{code}: {message}"),
        }
    }
}

/// One line, of bounded length, without control characters: it goes to terminals and logs.
fn clean(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON).collect();
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(status: u16, body: &str) -> Error {
        Refusal::parse(StatusCode::from_u16(status).unwrap(), body.as_bytes(), None).into_error("x:1", "h")
    }

    #[test]
    fn error_bodies_become_codes_and_messages() {
        let body = r#"{"errors":[{"code":"DENIED","message":"not yours","detail":{}},{"code":"X"}]}"#;
        assert_eq!(error(403, body).to_string(), "h does not allow x:1: DENIED: not yours; X");
        assert_eq!(error(500, "<html>oops").to_string(), "h answered x:1 with status 500: Internal Server Error");
        assert_eq!(error(400, "bad\r\n\x1b[31mthing").to_string(), "h answered x:1 with status 400: bad   [31mthing");
        assert!(matches!(error(404, ""), Error::NotFound { .. }));
        assert!(matches!(error(401, "{}"), Error::Unauthorized { .. }));
    }

    #[test]
    fn too_many_requests_is_known_by_status_or_code() {
        let body = r#"{"errors":[{"code":"toomanyrequests","message":"slow down"}]}"#;
        for (status, body) in [(429, ""), (403, body)] {
            assert!(matches!(error(status, body), Error::TooManyRequests { .. }), "{status}");
        }
    }

    proptest! {
        #[test]
        fn any_body_is_survived_and_one_line(body in prop::collection::vec(any::<u8>(), 0..400)) {
            let refusal = Refusal::parse(StatusCode::BAD_REQUEST, &body, None);
            prop_assert!(!refusal.reason.chars().any(char::is_control));
        }
    }
}
