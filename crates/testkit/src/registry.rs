//! Debian's `docker-registry`, started for one test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Daemon, need};
use crate::tls::Certificates;
use crate::token::TokenServer;

/// The name and password that [`Options::basic`] accepts.
pub const USER: &str = "user";
/// See [`USER`].
pub const PASSWORD: &str = "secret";
/// `user:secret` in the only form that the registry reads: bcrypt, at its lowest cost.
const HTPASSWD: &str = "user:$2b$04$gNDzUKgmLVVjcvlL.ORTWeMlLwrvafm.dGXGQQ.yLZjfMV19bECKy\n";

/// Who may use the registry.
#[derive(Debug, Clone, Default)]
enum Auth {
    #[default]
    Anyone,
    /// By these lines of an htpasswd file.
    Basic(String),
    Token {
        realm: String,
        certificate: PathBuf,
    },
}

/// What a registry is to be.
#[derive(Debug, Clone, Default)]
pub struct Options {
    auth: Auth,
    tls: Option<(Certificates, bool)>,
    proxy: Option<String>,
    no_delete: bool,
}

impl Options {
    /// Plain HTTP for anyone, deletion allowed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for [`USER`] and [`PASSWORD`] by Basic authentication.
    #[must_use]
    pub fn basic(self) -> Self {
        self.htpasswd(HTPASSWD)
    }

    /// Asks for what an htpasswd file has, by Basic authentication.
    #[must_use]
    pub fn htpasswd(mut self, lines: &str) -> Self {
        self.auth = Auth::Basic(lines.to_owned());
        self
    }

    /// Sends clients to a token server.
    #[must_use]
    pub fn token(mut self, server: &TokenServer) -> Self {
        self.auth = Auth::Token { realm: server.realm(), certificate: server.certificate().to_owned() };
        self
    }

    /// Talks TLS.
    #[must_use]
    pub fn tls(mut self, certificates: &Certificates) -> Self {
        self.tls = Some((certificates.clone(), false));
        self
    }

    /// Talks TLS and asks for a client certificate.
    #[must_use]
    pub fn client_certificates(mut self, certificates: &Certificates) -> Self {
        self.tls = Some((certificates.clone(), true));
        self
    }

    /// Is a pull-through cache of another registry, e.g. `http://127.0.0.1:5000`: a mirror.
    #[must_use]
    pub fn mirror_of(mut self, url: &str) -> Self {
        self.proxy = Some(url.to_owned());
        self
    }

    /// Refuses to delete.
    #[must_use]
    pub fn no_delete(mut self) -> Self {
        self.no_delete = true;
        self
    }

    /// JSON is YAML, and quotes itself.
    fn config(&self, dir: &Path) -> serde_json::Value {
        let mut config = serde_json::json!({
            "version": 0.1,
            "log": {"level": "info", "accesslog": {"disabled": false}},
            "storage": {
                "filesystem": {"rootdirectory": dir.join("data")},
                "delete": {"enabled": !self.no_delete},
                "maintenance": {"uploadpurging": {"enabled": false}},
            },
            "http": {"addr": "127.0.0.1:0"},
        });
        match &self.auth {
            Auth::Anyone => {}
            Auth::Basic(_) => {
                config["auth"]["htpasswd"] = serde_json::json!({"realm": "orlop", "path": dir.join("htpasswd")})
            }
            Auth::Token { realm, certificate } => {
                config["auth"]["token"] = serde_json::json!({
                    "realm": realm,
                    "service": crate::token::SERVICE,
                    "issuer": crate::token::ISSUER,
                    "rootcertbundle": certificate,
                });
            }
        }
        if let Some((certificates, clients)) = &self.tls {
            config["http"]["tls"] =
                serde_json::json!({"certificate": certificates.server, "key": certificates.server_key});
            if *clients {
                config["http"]["tls"]["clientcas"] = serde_json::json!([certificates.ca]);
            }
        }
        if let Some(url) = &self.proxy {
            config["proxy"]["remoteurl"] = serde_json::json!(url);
        }
        config
    }
}

/// A running registry with a directory of its own; both go when it is dropped.
#[derive(Debug)]
pub struct Registry {
    daemon: Daemon,
    address: SocketAddr,
    tls: bool,
    dir: tempfile::TempDir,
}

impl Registry {
    /// Starts one on a free port; `None`, with a word on standard error, where it is not installed.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(options: &Options) -> Option<Self> {
        let program = need("docker-registry", "docker-registry")?;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            path
        };
        if let Auth::Basic(lines) = &options.auth {
            write("htpasswd", lines);
        }
        let config = write("config.yml", &options.config(dir.path()).to_string());
        let mut command = Command::new(program);
        command.arg("serve").arg(config).env_clear();
        let mut daemon =
            Daemon::start(&mut command, &dir.path().join("log")).unwrap_or_else(|e| panic!("docker-registry: {e}"));
        let address = daemon.wait_for(|d| listening(&d.log()));
        Some(Self { daemon, address, tls: options.tls.is_some(), dir })
    }

    /// `127.0.0.1:PORT`: the host part of references.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`, or https.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }

    /// The directory with `data`, where the registry keeps its blobs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The file of a blob, to damage or remove it.
    pub fn blob_path(&self, digest: &orlop_oci::Digest) -> PathBuf {
        let hex = digest.hex();
        let blobs = self.dir.path().join("data/docker/registry/v2/blobs");
        blobs.join(digest.algorithm().as_str()).join(&hex[..2]).join(hex).join("data")
    }

    /// What it has logged: one line a request.
    pub fn log(&self) -> String {
        self.daemon.log()
    }
}

/// The address in the line that says where it listens. Port 0 was asked for, so nobody can take it in between.
fn listening(log: &str) -> Option<SocketAddr> {
    let at = log.rfind("listening on ")? + "listening on ".len();
    let rest = &log[at..];
    let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'))?;
    rest[..end].parse().ok()
}
