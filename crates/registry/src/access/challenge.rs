//! `WWW-Authenticate`, and the credentials that answer it (RFC 7617, RFC 6750, Docker's registry token specification).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::request::Parts;

use super::Scope;

/// The longest credentials that are looked at.
const MAX_BASIC: usize = 4096;

/// Where a registry was asked: what its clients call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    host: Option<String>,
    secure: bool,
}

impl Place {
    pub(super) fn of(request: &Parts, secure: bool) -> Self {
        let named = || request.uri.authority().and_then(|authority| plain_host(authority.as_str()));
        // Whoever ends TLS before this says so. A client that says it itself tells only itself to speak TLS.
        let ended_before = || request.headers.get("x-forwarded-proto").is_some_and(|by| by.as_bytes() == b"https");
        Self { host: super::host(&request.headers).or_else(named), secure: secure || ended_before() }
    }

    /// What tokens are for: the host that the client says.
    pub(crate) fn service(&self) -> String {
        self.host.clone().unwrap_or_else(|| "orlop".to_owned())
    }

    /// Where this registry issues tokens.
    pub(super) fn own_realm(&self) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://{}/token", self.host.as_deref().unwrap_or("localhost"))
    }
}

/// A host with its port, if it is one.
pub(super) fn plain_host(host: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    (!host.is_empty() && host.len() <= 255 && host.chars().all(plain)).then(|| host.to_owned())
}

pub(super) fn basic_realm(service: &str) -> String {
    format!("Basic realm=\"{service}\", charset=\"UTF-8\"")
}

pub(super) fn bearer(realm: &str, service: &str, scopes: &[Scope], error: Option<&str>) -> String {
    let mut value = format!("Bearer realm=\"{realm}\",service=\"{service}\"");
    if !scopes.is_empty() {
        let scopes: Vec<String> = scopes.iter().map(Scope::to_string).collect();
        value.push_str(&format!(",scope=\"{}\"", scopes.join(" ")));
    }
    if let Some(error) = error {
        value.push_str(&format!(",error=\"{error}\""));
    }
    value
}

/// Name and password of `Basic` credentials.
pub(super) fn basic(value: &str) -> Option<(String, String)> {
    if value.len() > MAX_BASIC {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(value).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_decoded() {
        assert_eq!(basic("YTpiOmM="), Some(("a".into(), "b:c".into())));
        assert_eq!(basic("Og=="), Some((String::new(), String::new())));
        for bad in ["", "!", "YQ==", "/////w==", &"A".repeat(5000)] {
            assert_eq!(basic(bad), None, "{bad}");
        }
    }
}
