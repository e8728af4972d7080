//! `[peers]`: nodes that give each other blobs.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_image::Pattern;
use orlop_peer::schedule::Rules;
use orlop_peer::{Bootstrap, Network, Settings, Tls};
use serde::{Deserialize, Serialize};

use crate::error::{Class, CliError, Result};

/// `[peers]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Peers {
    pub(crate) enabled: bool,
    pub(crate) listen: SocketAddr,
    pub(crate) serve: SocketAddr,
    pub(crate) bootstrap: Vec<String>,
    pub(crate) mdns: bool,
    pub(crate) shared_key_file: Option<PathBuf>,
    pub(crate) tls_certificate: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) tls_authority: Option<PathBuf>,
    pub(crate) withhold: Vec<String>,
    pub(crate) near: Vec<String>,
    pub(crate) fallback_milliseconds: u64,
    pub(crate) slow_bytes_per_second: u64,
    pub(crate) upload_bytes_per_second: u64,
    pub(crate) download_bytes_per_second: u64,
    pub(crate) relay: bool,
    pub(crate) fan_out: usize,
    pub(crate) max_uploads: usize,
    pub(crate) max_connections: usize,
}

impl Default for Peers {
    fn default() -> Self {
        let settings = Settings::default();
        Self {
            enabled: false,
            listen: settings.listen,
            serve: settings.serve,
            bootstrap: Vec::new(),
            mdns: settings.mdns,
            shared_key_file: None,
            tls_certificate: None,
            tls_key: None,
            tls_authority: None,
            withhold: Vec::new(),
            near: Vec::new(),
            fallback_milliseconds: u64::try_from(settings.rules.budget.as_millis()).unwrap_or(u64::MAX),
            slow_bytes_per_second: settings.rules.slow,
            upload_bytes_per_second: settings.upload_rate,
            download_bytes_per_second: settings.download_rate,
            relay: settings.relay,
            fan_out: settings.rules.fan_out,
            max_uploads: settings.uploads,
            max_connections: settings.connections,
        }
    }
}

/// What is wrong with a value: its key and why.
type Wrong = (&'static str, String);

impl Peers {
    /// What types do not say.
    pub(super) fn check(&self) -> std::result::Result<(), Wrong> {
        self.parts().map(drop)?;
        for (key, found, least, most) in [
            ("peers.fallback_milliseconds", self.fallback_milliseconds, 10, 60_000),
            ("peers.fan_out", self.fan_out as u64, 1, 4096),
            ("peers.max_uploads", self.max_uploads as u64, 1, 4096),
            ("peers.max_connections", self.max_connections as u64, 1, 65_536),
            ("peers.listen", self.listen.port().into(), 1, 65_535),
            ("peers.serve", self.serve.port().into(), 1, 65_535),
        ] {
            if !(least..=most).contains(&found) {
                return Err((key, format!("expected {least} to {most}, found {found}")));
            }
        }
        if self.listen == self.serve {
            return Err(("peers.serve", "it is peers.listen: expected another port".to_owned()));
        }
        let certificates = [&self.tls_certificate, &self.tls_key, &self.tls_authority].map(Option::is_some);
        if certificates.contains(&true) && certificates.contains(&false) {
            let why = "expected tls_certificate, tls_key and tls_authority, or none of them".to_owned();
            return Err(("peers.tls_certificate", why));
        }
        if self.tls_certificate.is_none() && self.bootstrap.iter().any(|source| source.starts_with("https:")) {
            let why =
                "an https URL needs tls_certificate, tls_key and tls_authority, by which it is verified".to_owned();
            return Err(("peers.bootstrap", why));
        }
        Ok(())
    }

    #[expect(clippy::type_complexity, reason = "three lists that were read")]
    fn parts(&self) -> std::result::Result<(Vec<Bootstrap>, Vec<Pattern>, Vec<Network>), Wrong> {
        fn all<T: std::str::FromStr>(key: &'static str, texts: &[String]) -> std::result::Result<Vec<T>, Wrong>
        where
            T::Err: std::fmt::Display,
        {
            texts.iter().map(|text| text.parse().map_err(|error: T::Err| (key, error.to_string()))).collect()
        }
        Ok((
            all("peers.bootstrap", &self.bootstrap)?,
            all("peers.withhold", &self.withhold)?,
            all("peers.near", &self.near)?,
        ))
    }

    /// How the node takes part; `None`: it does not. The key of the node is in the root.
    pub(crate) fn settings(&self, root: &Path) -> Result<Option<Settings>> {
        if !self.enabled {
            return Ok(None);
        }
        let wrong = |(key, why): Wrong| CliError::new(Class::Usage, format!("{key}: {why}"));
        self.check().map_err(wrong)?;
        let (bootstrap, withheld, near) = self.parts().map_err(wrong)?;
        let tls = match (&self.tls_certificate, &self.tls_key, &self.tls_authority) {
            (Some(certificate), Some(key), Some(authority)) => {
                Some(Tls { certificate: certificate.clone(), key: key.clone(), authority: authority.clone() })
            }
            _ => None,
        };
        let rules = Rules {
            budget: Duration::from_millis(self.fallback_milliseconds),
            slow: self.slow_bytes_per_second,
            fan_out: self.fan_out,
            ..Rules::default()
        };
        Ok(Some(Settings {
            listen: self.listen,
            serve: self.serve,
            bootstrap,
            mdns: self.mdns,
            identity: root.join("peer.key"),
            shared_key: self.shared_key_file.as_deref().map(shared_key).transpose()?,
            tls,
            withheld,
            near,
            upload_rate: self.upload_bytes_per_second,
            download_rate: self.download_bytes_per_second,
            relay: self.relay,
            uploads: self.max_uploads,
            connections: self.max_connections,
            rules,
            ..Settings::default()
        }))
    }
}

/// The key in a file: 64 hex digits, alone or below the two lines that libp2p's key files begin with.
fn shared_key(path: &Path) -> Result<[u8; 32]> {
    let text = std::fs::read_to_string(path).map_err(CliError::at("read the shared key", path))?;
    let mode = std::fs::metadata(path).map_err(CliError::at("read the shared key", path))?.mode() & 0o777;
    let refuse = |why: String| CliError::new(Class::Usage, format!("peers.shared_key_file {}: {why}", path.display()));
    if mode & 0o077 != 0 {
        return Err(refuse(format!("its mode is {mode:04o}, expected 0600: whoever has the key is a node")));
    }
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let digits = match (lines.next(), lines.next(), lines.next(), lines.next()) {
        (Some(digits), None, ..) | (Some("/key/swarm/psk/1.0.0/"), Some("/base16/"), Some(digits), None) => digits,
        _ => "",
    };
    let bytes = |digits: &str| -> Option<[u8; 32]> {
        let mut bytes = [0; 32];
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(bytes)
    };
    bytes(digits).ok_or_else(|| {
        refuse("expected 64 hex digits, alone or in a key file of libp2p".to_owned())
            .hint("make one: openssl rand -hex 32 > FILE; chmod 600 FILE")
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_shared_key_is_the_owner_s_alone_and_has_its_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let read = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            shared_key(&path).map_err(|error| error.message)
        };
        let digits = "0f".repeat(32);
        assert_eq!(read(&format!("{digits}\n"), 0o600), Ok([15; 32]));
        assert_eq!(read(&format!("/key/swarm/psk/1.0.0/\n/base16/\n{digits}"), 0o600), Ok([15; 32]));
        assert!(read(&digits, 0o644).unwrap_err().contains("0644"));
        for text in ["", "0f", "/key/swarm/psk/1.0.0/\n/base64/\nabc", &format!("{digits}0"), &"+f".repeat(32)] {
            assert!(read(text, 0o600).unwrap_err().contains("expected 64 hex digits"), "{text}");
        }
    }
}
