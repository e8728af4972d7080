//! `[registry]`: the registry that the daemon serves.

use orlop_server::NodeRegistry;
use serde::{Deserialize, Serialize};

/// The section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Registry {
    pub(crate) address: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) namespace: String,
}

impl Default for Registry {
    fn default() -> Self {
        Self { address: None, name: None, namespace: "k8s.io".into() }
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
        }
        match &self.name {
            Some(name) if !is_name(name) => {
                let message = format!("expected a host, with its port if clients say one, found {name:?}");
                Err(("registry.name", message))
            }
            _ if self.namespace.is_empty() => Err(("registry.namespace", "expected a namespace, found \"\"".into())),
            _ => Ok(()),
        }
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
        assert_eq!(check("registry:5000", None), Ok(()));
        for address in ["5000", ":5000", "::1:5000", "localhost", "localhost:x", "localhost:70000"] {
            assert_eq!(check(address, None), Err("registry.address"), "{address}");
        }
        for name in ["", "a/b", "UP CASE", "docker.io/library", "host:port"] {
            assert_eq!(check("127.0.0.1:5000", Some(name)), Err("registry.name"), "{name}");
        }
    }
}
