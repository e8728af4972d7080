//! Who may do what in a registry that this program serves, the daemon's or a gateway's: from the files that the configuration names.
//!
//! # Invariants
//! - All of a new configuration counts or nothing of it: [`Guard::read`] reads and checks, [`Guard::apply`] cannot fail.
//! - What is reached from other machines never becomes open to everybody by a reload.
//! - The key of tokens stays while the process lives: a reload in the middle of a push takes nobody's token.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use orlop_registry::{Access, Audit, Certificate, Decision, Registry as Server, TokenKey, Tokens, Users};
use serde::Serialize;

use crate::config::{Authentication, Registry};
use crate::error::{Class, CliError, Result};

/// What a registry that is served goes by, and what of it stays over reloads. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Guard {
    address: SocketAddr,
    token_key: TokenKey,
    certificate: Option<Certificate>,
    audit: Option<Arc<Lines>>,
}

/// A configuration that was read and is right.
pub(crate) struct Rules {
    access: Access,
    certificate: Option<Certificate>,
    audit: Option<File>,
}

impl Guard {
    /// Reads everything that the configuration names, for a registry that listens there.
    ///
    /// # Errors
    /// [`Class::Usage`] with file and line if one of the files is not right, or if nothing says who may do what at an address that other
    /// machines reach.
    pub(crate) fn new(section: &Registry, address: SocketAddr) -> Result<(Self, Rules)> {
        let audit = section.audit.as_deref().map(Lines::open).transpose()?.map(Arc::new);
        let token_key = token_key(section)?;
        let mut guard = Self { address, token_key, certificate: None, audit };
        let rules = guard.read(section)?;
        guard.certificate.clone_from(&rules.certificate);
        if guard.certificate.is_none() && section.users.is_some() && !address.ip().is_loopback() {
            tracing::warn!("the registry is reached from other machines without TLS: passwords can be read on the way");
        }
        Ok((guard, rules))
    }

    /// Reads a configuration anew; nothing of it counts yet.
    pub(crate) fn read(&self, section: &Registry) -> Result<Rules> {
        // A socket that was handed over, a name that means something else than one thinks, and an option in the place of a key
        // are nowhere else looked at.
        if !self.address.ip().is_loopback() && !section.says_who() {
            let address = self.address;
            let message =
                format!("the registry at {address} is reached from other machines, and nobody said who may do what");
            return Err(CliError::new(Class::Usage, message).hint("set registry.users or registry.permissions"));
        }
        let access = access(section, || Ok(self.token_key.clone()))?;
        let audit = self.audit.as_ref().map(|lines| lines.reopened()).transpose()?;
        Ok(Rules { access, certificate: certificate(section)?, audit })
    }

    /// Goes by what was read from now on, in requests, connections and lines that begin.
    pub(crate) fn apply(&self, rules: Rules, registry: &Server) {
        let Rules { access, certificate, audit } = rules;
        if let (Some(lines), Some(file)) = (&self.audit, audit) {
            lines.replace(file);
        }
        registry.set_access(Access { audit: self.audit.clone().map(|lines| lines as Arc<dyn Audit>), ..access });
        match (&self.certificate, certificate) {
            (Some(own), Some(new)) => own.replace(&new),
            (None, Some(_)) => tracing::warn!("the certificate counts when this program is started again"),
            (Some(_), None) => {
                tracing::warn!("TLS is spoken with the old certificate until this program is started again")
            }
            (None, None) => {}
        }
    }

    /// How TLS is spoken; none: plain HTTP.
    pub(crate) fn tls(&self) -> Result<Option<Arc<rustls::ServerConfig>>> {
        let tls = self.certificate.as_ref().map(Certificate::config).transpose();
        tls.map_err(|e| CliError::new(Class::Failed, format!("the registry's TLS: {e}")))
    }
}

/// Reads everything that the configuration names without serving anything.
pub(crate) fn check(section: &Registry) -> Result<()> {
    access(section, || token_key(section))?;
    certificate(section)?;
    Ok(())
}

fn access(section: &Registry, key: impl FnOnce() -> Result<TokenKey>) -> Result<Access> {
    let users = section.users.as_deref().map(users).transpose()?;
    let tokens = match section.authentication {
        Authentication::Basic => None,
        Authentication::Token => Some(Tokens::new(key()?, section.token_realm.clone())),
    };
    let permissions = section.permissions();
    if let (Some(users), Some(path)) = (&users, &section.users)
        && let Some(name) = permissions.users().find(|name| !users.contains(name))
    {
        let message = format!("registry.permissions: there is no user {name:?} in {}", path.display());
        return Err(CliError::new(Class::Usage, message));
    }
    Ok(Access { users: users.map(Arc::new), permissions, tokens, read_only: section.read_only, audit: None })
}

fn users(path: &Path) -> Result<Users> {
    let text = std::fs::read_to_string(path).map_err(CliError::at("read users", path))?;
    Users::parse(&text).map_err(|error| CliError::new(Class::Usage, format!("{}: {error}", path.display())))
}

fn token_key(section: &Registry) -> Result<TokenKey> {
    let Some(path) = &section.token_key else { return Ok(TokenKey::random()) };
    let bytes = std::fs::read(path).map_err(CliError::at("read token key", path))?;
    TokenKey::new(&bytes).ok_or_else(|| {
        let (found, least) = (bytes.len(), TokenKey::MIN_BYTES);
        CliError::new(Class::Usage, format!("{}: expected at least {least} bytes, found {found}", path.display()))
            .hint("head -c 32 /dev/urandom makes one")
    })
}

/// Reads the certificate; none: plain HTTP.
fn certificate(section: &Registry) -> Result<Option<Certificate>> {
    let (Some(certificate), Some(key)) = (&section.tls_certificate, &section.tls_key) else { return Ok(None) };
    let pem = std::fs::read(certificate).map_err(CliError::at("read certificate", certificate))?;
    let secret = std::fs::read(key).map_err(CliError::at("read key", key))?;
    let wrong = |error| {
        let (certificate, key) = (certificate.display(), key.display());
        CliError::new(Class::Usage, format!("registry.tls_certificate {certificate}, registry.tls_key {key}: {error}"))
    };
    Certificate::from_pem(&pem, &secret).map(Some).map_err(wrong)
}

/// A line of JSON for each decision.
struct Lines {
    path: PathBuf,
    file: Mutex<File>,
}

impl Lines {
    /// Opens the log of decisions, to be appended to.
    fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), file: Mutex::new(append(path)?) })
    }

    /// The file that has the name now: somebody may have moved the old one away.
    fn reopened(&self) -> Result<File> {
        append(&self.path)
    }

    fn replace(&self, file: File) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
    }
}

/// Who is in it is nobody's business but the operator's: the mode of a new one is 0640.
fn append(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path);
    file.map_err(CliError::at("open audit log", path))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    action: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    repository: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<&'a str>,
    allowed: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
}

impl Audit for Lines {
    fn record(&self, decision: &Decision<'_>) {
        let Decision { address, user, action, repository, reference, allowed, reason } = decision;
        let line = Line {
            at: Timestamp::now().to_string(),
            address: address.map(|address| address.to_string()),
            user: *user,
            action,
            repository: *repository,
            reference: *reference,
            allowed: *allowed,
            reason,
        };
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        // One write, so that lines of several processes do not mix.
        let written = self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&text);
        if let Err(error) = written {
            tracing::error!(%error, "a decision of the registry could not be written down");
        }
    }
}
