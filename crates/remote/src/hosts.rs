//! Which hosts stand for a registry: `certs.d` directories, and what holds where there are none.
//!
//! # The rules, as containerd has them (core/remotes/docker/config/hosts.go)
//! - In each directory, in order: `<host>_<port>_`, `<host>:<port>`, then `_default`; the first that exists counts.
//! - With a `hosts.toml`: its hosts in order, then its `server`, or the registry itself where it names none.
//! - Without one: the registry itself, with `*.crt` as CAs and `*.cert` with `*.key` as client certificates.
//! - `docker.io` is reached at `registry-1.docker.io`.
//! - A loopback registry that no file describes: on port 80 by HTTP; on port 443 or without a port by HTTPS; on any other by
//!   HTTPS and, if what answers does not speak TLS, by HTTP. Its certificate is not checked.
//! - A host with `http://` and TLS options, on another port than 80: HTTPS first, then HTTP.
//!
//! Departures: a `hosts.toml` that cannot be read is an error (containerd goes on without it), and several directories may
//! be given: the first that has an entry for the host itself counts, then the first with `_default`.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use url::Url;

use crate::error::{ConfigError, Error, Result};
use crate::hosts_toml::{self, Capability, HostEntry};
use crate::tls::{Pem, TlsOptions};
use crate::{ClientOptions, VIA};

const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// One host, ready to be talked to. Two equal ones can share connections.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HostConfig {
    /// Scheme, host, port and path; the path has no slash at its end.
    pub(crate) base: Url,
    /// Whether to go on by HTTP when what answers does not speak TLS.
    pub(crate) http_fallback: bool,
    /// What it may be asked for.
    pub(crate) capabilities: Vec<Capability>,
    /// How to do TLS.
    pub(crate) tls: TlsOptions,
    /// Sent with every request.
    pub(crate) headers: HeaderMap,
    /// How long to try to connect.
    pub(crate) dial_timeout: Option<Duration>,
    /// The registry itself, or its `server`: not a mirror.
    pub(crate) upstream: bool,
}

impl HostConfig {
    /// The same with the headers that are sent to every host.
    fn with_headers(mut self, options: &ClientOptions) -> Self {
        for (name, value) in &options.headers {
            self.headers.append(name, value.clone());
        }
        if let Some(value) = HeaderValue::from_str(&options.via).ok().filter(|value| !value.is_empty()) {
            self.headers.insert(VIA, value);
        }
        self
    }

    /// Host and, where it is not the scheme's own, port.
    pub(crate) fn authority(&self) -> String {
        authority(&self.base)
    }
}

/// Host and, where it is not the scheme's own, port.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Whether a host, with or without a port, is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = split_port(host).0.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Reads what holds for a registry now. Blocks on files.
pub(crate) fn load(options: &ClientOptions, registry: &str) -> Result<Vec<HostConfig>> {
    let Some(directory) = find_directory(&options.hosts_dirs, registry)? else {
        let host = resolve(HostEntry::default(), registry, options.plain_http, true)?;
        return Ok(vec![host.with_headers(options)]);
    };
    let path = directory.join("hosts.toml");
    let entries = match std::fs::read_to_string(&path) {
        Ok(text) if !text.is_empty() => {
            hosts_toml::parse(&text, &directory).map_err(|reason| Error::Config { path: path.clone(), reason })?
        }
        Ok(_) => vec![legacy(&directory)?],
        Err(e) if e.kind() == io::ErrorKind::NotFound => vec![legacy(&directory)?],
        Err(e) => return Err(Error::Config { path, reason: e.into() }),
    };
    let last = entries.len() - 1;
    let mut hosts = Vec::with_capacity(entries.len());
    for (at, entry) in entries.into_iter().enumerate() {
        hosts.push(resolve(entry, registry, options.plain_http, at == last)?.with_headers(options));
    }
    Ok(hosts)
}

fn find_directory(roots: &[PathBuf], registry: &str) -> Result<Option<PathBuf>> {
    let (host, port) = split_port(registry);
    let mut names = Vec::new();
    if let Some(port) = port {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    let own = roots.iter().flat_map(|root| names.iter().map(move |name| root.join(name)));
    for path in own.chain(roots.iter().map(|root| root.join("_default"))) {
        match std::fs::metadata(&path) {
            Ok(found) if found.is_dir() => return Ok(Some(path)),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(e) => return Err(Error::Config { path, reason: e.into() }),
        }
    }
    Ok(None)
}

/// Docker's layout: certificates lie in the directory without a file that names them.
fn legacy(directory: &Path) -> Result<HostEntry> {
    let fail = |reason: io::Error| Error::Config { path: directory.to_owned(), reason: reason.into() };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(fail)? {
        names.push(entry.map_err(fail)?.path());
    }
    names.sort();
    let mut host = HostEntry::default();
    for path in names {
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => host.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                let key = key.exists().then_some(key);
                host.clients.push((path, key));
            }
            _ => {}
        }
    }
    Ok(host)
}

fn resolve(entry: HostEntry, registry: &str, plain_http: bool, upstream: bool) -> Result<HostConfig> {
    let explicit_tls = !entry.ca.is_empty() || !entry.clients.is_empty() || entry.skip_verify.is_some();
    let mut skip_verify = entry.skip_verify.unwrap_or(false);
    let mut ambiguous = explicit_tls;
    let mut base = match entry.url {
        Some(url) => url,
        None => {
            let (host, port) = split_port(registry);
            let loopback = is_loopback(registry);
            if loopback && !plain_http && port != Some("80") && !explicit_tls {
                skip_verify = true;
                ambiguous = true;
            }
            let plain = match port {
                _ if host == DOCKER_HUB => false,
                _ if plain_http => true,
                None | Some("443") => false,
                Some(_) => loopback,
            };
            let scheme = if plain { "http" } else { "https" };
            parse_base(&format!("{scheme}://{registry}/v2"), registry)?
        }
    };
    if matches!(base.host_str(), Some(DOCKER_HUB | "index.docker.io")) {
        base.set_host(Some(DOCKER_HUB_HOST)).map_err(|_| not_a_host(registry))?;
    }
    let http_fallback = ambiguous && base.scheme() == "http" && base.port_or_known_default() != Some(80);
    if http_fallback {
        base.set_scheme("https").map_err(|()| not_a_host(registry))?;
    }
    let mut clients = Vec::with_capacity(entry.clients.len());
    for (cert, key) in &entry.clients {
        clients.push((read_pem(cert)?, read_pem(key.as_ref().unwrap_or(cert))?));
    }
    let ca = entry.ca.iter().map(|path| read_pem(path)).collect::<Result<_>>()?;
    Ok(HostConfig {
        base,
        http_fallback,
        capabilities: entry.capabilities,
        tls: TlsOptions { ca, clients, skip_verify },
        headers: entry.headers,
        dial_timeout: entry.dial_timeout,
        upstream,
    })
}

fn parse_base(text: &str, registry: &str) -> Result<Url> {
    Url::parse(text).ok().filter(Url::has_host).ok_or_else(|| not_a_host(registry))
}

fn not_a_host(registry: &str) -> Error {
    let reason = ConfigError::Value {
        key: "registry".to_owned(),
        expected: "a host name with an optional port",
        found: format!("{registry:?}"),
    };
    Error::Config { path: PathBuf::new(), reason }
}

fn read_pem(path: &Path) -> Result<Pem> {
    let bytes = std::fs::read(path).map_err(|e| Error::Config { path: path.to_owned(), reason: e.into() })?;
    Ok(Pem { path: path.to_owned(), bytes })
}

/// Splits `host:port`; the colons of a bare IPv6 address are no port.
fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') && (name.ends_with(']') || !name.contains(':')) => (name, Some(port)),
        _ => (host, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(registry: &str, plain_http: bool) -> HostConfig {
        let options = ClientOptions { plain_http, ..ClientOptions::default() };
        load(&options, registry).unwrap().remove(0)
    }

    fn shape(registry: &str, plain_http: bool) -> (String, bool, bool) {
        let host = host(registry, plain_http);
        (host.base.to_string(), host.http_fallback, host.tls.skip_verify)
    }

    #[test]
    fn loopback_registries_follow_the_port() {
        let at = |url: &str, fallback, skip| (url.to_owned(), fallback, skip);
        assert_eq!(shape("localhost:5000", false), at("https://localhost:5000/v2", true, true));
        assert_eq!(shape("127.0.0.2:5000", false), at("https://127.0.0.2:5000/v2", true, true));
        assert_eq!(shape("[::1]:5000", false), at("https://[::1]:5000/v2", true, true));
        assert_eq!(shape("localhost:80", false), at("http://localhost/v2", false, false));
        assert_eq!(shape("localhost:443", false), at("https://localhost/v2", false, true));
        assert_eq!(shape("localhost", false), at("https://localhost/v2", false, true));
        assert_eq!(shape("localhost:5000", true), at("http://localhost:5000/v2", false, false));
        assert_eq!(shape("example.com:5000", false), at("https://example.com:5000/v2", false, false));
        assert_eq!(shape("example.com:5000", true), at("http://example.com:5000/v2", false, false));
        assert_eq!(shape("docker.io", true), at("https://registry-1.docker.io/v2", false, false));
    }

    #[test]
    fn the_first_directory_with_the_host_counts_then_default() {
        let root = tempfile::tempdir().unwrap();
        let (a, b) = (root.path().join("a"), root.path().join("b"));
        for (directory, server) in
            [(a.join("_default"), "default"), (b.join("r.example_5000_"), "port"), (b.join("r.example"), "bare")]
        {
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join("hosts.toml"), format!("server = 'https://{server}'")).unwrap();
        }
        let options = ClientOptions { hosts_dirs: vec![a, b], ..ClientOptions::default() };
        let server = |registry: &str| load(&options, registry).unwrap()[0].authority();
        assert_eq!(server("r.example:5000"), "port");
        assert_eq!(server("r.example"), "bare");
        assert_eq!(server("other.example"), "default");
    }

    #[test]
    fn certificates_without_hosts_toml_are_docker_s_layout() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("r.example");
        std::fs::create_dir_all(&directory).unwrap();
        for name in ["ca.crt", "me.cert", "me.key", "alone.cert"] {
            std::fs::write(directory.join(name), name).unwrap();
        }
        let options = ClientOptions { hosts_dirs: vec![root.path().to_owned()], ..ClientOptions::default() };
        let tls = load(&options, "r.example").unwrap().remove(0).tls;
        let files: Vec<_> = tls.clients.iter().map(|(c, k)| (c.bytes.as_slice(), k.bytes.as_slice())).collect();
        assert_eq!(tls.ca[0].bytes, b"ca.crt");
        assert_eq!(files, [(&b"alone.cert"[..], &b"alone.cert"[..]), (b"me.cert", b"me.key")]);
    }

    #[test]
    fn a_broken_file_is_named_in_the_error() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("r.example");
        std::fs::create_dir_all(&directory).unwrap();
        let options = ClientOptions { hosts_dirs: vec![root.path().to_owned()], ..ClientOptions::default() };
        for text in ["server = ", "ca = 'missing.pem'"] {
            std::fs::write(directory.join("hosts.toml"), text).unwrap();
            let error = load(&options, "r.example").unwrap_err().to_string();
            assert!(error.contains("r.example"), "{error}");
        }
    }

    #[test]
    fn plain_http_with_tls_options_tries_tls_first() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("r.example");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("hosts.toml"), "[host.'http://m:5000']\nskip_verify = true\n[host.'http://n']")
            .unwrap();
        let options = ClientOptions { hosts_dirs: vec![root.path().to_owned()], ..ClientOptions::default() };
        let hosts = load(&options, "r.example").unwrap();
        assert_eq!((hosts[0].base.as_str(), hosts[0].http_fallback), ("https://m:5000/v2", true));
        assert_eq!((hosts[1].base.as_str(), hosts[1].http_fallback), ("http://n/v2", false));
        assert!(!hosts[0].upstream && hosts[2].upstream);
    }
}
