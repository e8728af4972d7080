//! The daemon's registry: where it listens, and what it is called.

use std::path::Path;
use std::sync::Arc;

use orlop_image::{Images, Mirror};
use orlop_registry::{Registry, ServeOptions, Server};
use orlop_server::{NodeMirror, NodeRegistry};
use tokio::net::TcpListener;

use crate::config::{Registry as Section, registry_name};
use crate::error::{Class, CliError, Result};
use crate::registry::{Guard, Rules};

/// A registry that will be served: who connects waits.
pub(super) struct Bound {
    listener: TcpListener,
    registry: NodeRegistry,
    guard: Guard,
    rules: Rules,
}

impl Bound {
    /// Listens where the configuration says, or takes what was handed over. None: there is no registry.
    pub(super) async fn new(section: &Section, passed: Option<std::net::TcpListener>) -> Result<Option<Self>> {
        let listener = match (passed, &section.address) {
            (Some(listener), _) => {
                let made = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
                made.map_err(|e| CliError::io("listen for the registry", None, e))?
            }
            (None, Some(address)) => {
                let bound = TcpListener::bind(address.as_str()).await;
                bound.map_err(|e| CliError::io("listen on", Some(Path::new(address)), e))?
            }
            (None, None) => return Ok(None),
        };
        let own = listener.local_addr().map_err(|e| CliError::io("listen for the registry", None, e))?;
        let (guard, rules) = Guard::new(section, own)?;
        let host = match section.host() {
            Some(host) => host,
            None => registry_name(section.address.as_deref().unwrap_or(&own.to_string()), own.port()),
        };
        if !NodeRegistry::is_host(&host) {
            return Err(CliError::new(Class::Usage, format!("images cannot be called after the registry {host:?}"))
                .hint("set registry.name to the host that clients say"));
        }
        let registry = NodeRegistry { host, namespace: section.namespace.clone() };
        Ok(Some(Self { listener, registry, guard, rules }))
    }

    /// What it is called.
    pub(super) fn host(&self) -> &str {
        &self.registry.host
    }

    /// Serves it, with what a mirror gives of other registries, by what the configuration said of who may do what.
    pub(super) async fn serve(self, images: &Images, mirror: Option<Mirror>) -> Result<(Server, Live)> {
        let Self { listener, registry: node, guard, rules } = self;
        let (own, images) = (node.clone(), images.clone());
        let opened = tokio::task::spawn_blocking(move || own.open(&images)).await;
        let opened = opened.map_err(|e| CliError::new(Class::Failed, format!("open the registry: {e}")))?;
        let registry = opened.map_err(|e| CliError::from(orlop_server::status_of(&e.into())))?;
        guard.apply(rules, &registry);
        if let Some(mirror) = mirror {
            registry.set_mirror(Arc::new(NodeMirror::new(mirror, &node.host)));
        }
        let options = ServeOptions { tls: guard.tls()?, ..ServeOptions::default() };
        let server = registry.clone().serve(listener, options);
        let server = server.map_err(|e| CliError::io("serve the registry", None, e))?;
        tracing::info!(address = %server.address(), host = node.host, namespace = node.namespace, "serving the registry");
        Ok((server, Live { host: node.host, registry, guard }))
    }
}

/// A registry that is served, whose rules may change.
#[derive(Clone)]
pub(super) struct Live {
    host: String,
    registry: Registry,
    guard: Guard,
}

impl Live {
    /// What it is called.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Reads other rules; nothing of them counts yet.
    pub(super) fn read(&self, section: &Section) -> Result<Rules> {
        self.guard.read(section)
    }

    /// Goes by other rules, and shows another certificate, from now on.
    pub(super) fn apply(&self, rules: Rules) {
        self.guard.apply(rules, &self.registry);
    }
}
