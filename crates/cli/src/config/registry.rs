//! `[registry]`: the registry that the daemon serves.

use std::net::IpAddr;
use std::path::PathBuf;

use orlop_registry::{Permissions, RepositoryPattern, RepositoryRule, Who};
use orlop_server::NodeRegistry;
use serde::{Deserialize, Serialize};

/// The section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Registry {
    pub(crate) address: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) namespace: String,
    pub(crate) tls_certificate: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) users: Option<PathBuf>,
    pub(crate) authentication: Authentication,
    pub(crate) token_key: Option<PathBuf>,
    pub(crate) token_realm: Option<String>,
    pub(crate) permissions: Vec<Permission>,
    pub(crate) read_only: bool,
    pub(crate) audit: Option<PathBuf>,
}

/// How clients say who they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Authentication {
    #[default]
    Basic,
    Token,
}

/// A rule of `permissions`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Permission {
    pub(crate) repositories: Vec<String>,
    pub(crate) users: Vec<String>,
    pub(crate) actions: Vec<Action>,
}

/// What may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    Pull,
    Push,
    Delete,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            address: None,
            name: None,
            namespace: "k8s.io".into(),
            tls_certificate: None,
            tls_key: None,
            users: None,
            authentication: Authentication::default(),
            token_key: None,
            token_realm: None,
            permissions: Vec::new(),
            read_only: false,
            audit: None,
        }
    }
}

impl Registry {
    /// What is wrong, with the key.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        if let Some(address) = &self.address {
            let Some((_, port)) = split(address) else {
                return Err(("registry.address", format!("expected HOST:PORT, found {address:?}")));
            };
            let named = port == 0 || is_name(&name_of(address, port));
            if !named && self.name.is_none() {
                let message = format!("images cannot be called after {address:?}: set registry.name");
                return Err(("registry.address", message));
            }
            if !self.is_local() && !self.says_who() {
                let message = format!(
                    "{address:?} is reached from other machines: say who may do what (registry.users, registry.permissions)"
                );
                return Err(("registry.address", message));
            }
        }
        match &self.name {
            Some(name) if !is_name(name) => {
                let message = format!("expected a host, with its port if clients say one, found {name:?}");
                Err(("registry.name", message))
            }
            _ if self.namespace.is_empty() => Err(("registry.namespace", "expected a namespace, found \"\"".into())),
            _ => self.check_access(),
        }
    }

    fn check_access(&self) -> Result<(), (&'static str, String)> {
        match (&self.tls_certificate, &self.tls_key) {
            (Some(_), None) => {
                return Err(("registry.tls_certificate", "its key is missing: set registry.tls_key".into()));
            }
            (None, Some(_)) => return Err(("registry.tls_key", "set registry.tls_certificate too".into())),
            _ => {}
        }
        if self.authentication == Authentication::Token && self.users.is_none() {
            return Err(("registry.authentication", "tokens are issued for passwords: set registry.users".into()));
        }
        for rule in &self.permissions {
            if rule.repositories.is_empty() || rule.users.is_empty() || rule.actions.is_empty() {
                let message = "a rule needs repositories, users and actions, at least one of each".to_owned();
                return Err(("registry.permissions", message));
            }
            for user in &rule.users {
                let who = user.parse::<Who>().map_err(|error| ("registry.permissions", error.to_string()))?;
                if self.users.is_none() && !matches!(who, Who::Anonymous | Who::Local) {
                    let message = format!("{user:?} cannot log in: set registry.users");
                    return Err(("registry.permissions", message));
                }
            }
        }
        Ok(())
    }

    /// Whether it is said who may do what.
    pub(crate) fn says_who(&self) -> bool {
        self.users.is_some() || !self.permissions.is_empty()
    }

    /// Whether only this machine reaches the address.
    pub(crate) fn is_local(&self) -> bool {
        let host = self.address.as_deref().and_then(split).map(|(host, _)| host.trim_matches(['[', ']']));
        host.is_none_or(|host| host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
    }

    /// Who may do what.
    pub(crate) fn permissions(&self) -> Permissions {
        if self.permissions.is_empty() {
            return match &self.users {
                Some(_) => Permissions::everywhere(Who::Authenticated),
                None => Permissions::all(),
            };
        }
        Permissions::new(self.permissions.iter().map(Permission::rule).collect())
    }

    /// What stands before the repositories in the names of records, as far as that is known before anybody listens.
    pub(crate) fn host(&self) -> Option<String> {
        let of_address = || {
            let address = self.address.as_deref()?;
            let (_, port) = split(address)?;
            (port != 0).then(|| name_of(address, port))
        };
        self.name.clone().or_else(of_address)
    }
}

impl Permission {
    /// The same for the registry; names were checked.
    fn rule(&self) -> RepositoryRule {
        RepositoryRule {
            repositories: self.repositories.iter().map(RepositoryPattern::new).collect(),
            who: self.users.iter().filter_map(|user| user.parse().ok()).collect(),
            actions: self.actions.iter().map(|action| (*action).into()).collect(),
        }
    }
}

impl From<Action> for orlop_registry::Action {
    fn from(action: Action) -> Self {
        match action {
            Action::Pull => Self::Pull,
            Action::Push => Self::Push,
            Action::Delete => Self::Delete,
        }
    }
}

/// Whether images can be called after this host.
fn is_name(host: &str) -> bool {
    NodeRegistry::is_host(host)
}

fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let is_bracketed = host.starts_with('[') && host.ends_with(']');
    let port = port.parse().ok()?;
    (!host.is_empty() && (is_bracketed || !host.contains(':'))).then_some((host, port))
}

/// How clients on this machine call what listens there: `localhost` where it listens everywhere.
pub(crate) fn name_of(address: &str, port: u16) -> String {
    match split(address) {
        Some(("0.0.0.0" | "[::]", _)) | None => format!("localhost:{port}"),
        Some((host, _)) => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(address: &str) -> Option<String> {
        Registry { address: Some(address.into()), ..Registry::default() }.host()
    }

    #[test]
    fn a_registry_is_called_as_clients_on_the_machine_call_it() {
        assert_eq!(host("127.0.0.1:5000").unwrap(), "127.0.0.1:5000");
        assert_eq!(host("localhost:32000").unwrap(), "localhost:32000");
        assert_eq!(host("0.0.0.0:32000").unwrap(), "localhost:32000");
        assert_eq!(host("[::]:32000").unwrap(), "localhost:32000");
        assert_eq!(host("[::1]:5000").unwrap(), "[::1]:5000");
        assert_eq!(host("127.0.0.1:0"), None);
        let named = Registry { name: Some("registry.local".into()), ..Registry::default() };
        assert_eq!(named.host().unwrap(), "registry.local");
    }

    #[test]
    fn what_no_image_can_be_called_after_is_refused() {
        let check = |address: &str, name: Option<&str>| {
            let (address, name) = (Some(address.to_owned()), name.map(str::to_owned));
            Registry { address, name, ..Registry::default() }.check().map_err(|(key, _)| key)
        };
        assert_eq!(check("127.0.0.1:5000", None), Ok(()));
        assert_eq!(check("[::1]:5000", None), Ok(()));
        assert_eq!(check("localhost:5000", None), Ok(()));
        for reached in ["0.0.0.0:5000", "registry:5000", "192.0.2.1:5000", "[::]:5000"] {
            assert_eq!(check(reached, None), Err("registry.address"), "{reached} is open to other machines");
        }
        for address in ["5000", ":5000", "::1:5000", "localhost", "localhost:x", "localhost:70000"] {
            assert_eq!(check(address, None), Err("registry.address"), "{address}");
        }
        let reached = Registry {
            address: Some("0.0.0.0:5000".into()),
            permissions: vec![Permission {
                repositories: vec!["*".into()],
                users: vec!["anonymous".into()],
                actions: vec![Action::Pull],
            }],
            ..Registry::default()
        };
        assert_eq!(reached.check(), Ok(()), "who says so may");
        for name in ["", "a/b", "UP CASE", "docker.io/library", "host:port"] {
            assert_eq!(check("127.0.0.1:5000", Some(name)), Err("registry.name"), "{name}");
        }
    }
}
