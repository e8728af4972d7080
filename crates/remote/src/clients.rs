//! The HTTP clients of one host: each is made when somebody needs it, since whoever may speak TLS has all authorities of the system at
//! hand, and reading those takes milliseconds.

use std::sync::OnceLock;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::error::Result;
use crate::failure::{self, DnsError};
use crate::hosts::{HostConfig, is_loopback};
use crate::{Tuning, USER_AGENT, tls};

pub(crate) struct Clients {
    /// For the host itself, with its identity.
    own: reqwest::Client,
    /// For other places.
    foreign: OnceLock<reqwest::Client>,
    /// For other places on this machine.
    nearby: OnceLock<reqwest::Client>,
    host: String,
    connect: Duration,
    idle: Duration,
}

impl Clients {
    /// # Errors
    /// If certificates that the configuration names are none.
    pub(crate) fn new(config: &HostConfig, host: &str, connect: Duration, tuning: &Tuning) -> Result<Self> {
        // A host that is configured by HTTP is never asked by TLS: what another scheme leads to is another place. Beyond this machine a
        // proxy may be, which can speak it.
        let is_plain = config.base.scheme() == "http" && is_loopback(host) && !config.tls.has_certificates();
        let tls = if is_plain { tls::without_roots()? } else { tls::client_config(&config.tls, true)? };
        Ok(Self {
            own: build(tls, is_loopback(host), host, connect, tuning.pool_idle_timeout)?,
            foreign: OnceLock::new(),
            nearby: OnceLock::new(),
            host: host.to_owned(),
            connect,
            idle: tuning.pool_idle_timeout,
        })
    }

    pub(crate) const fn own(&self) -> &reqwest::Client {
        &self.own
    }

    /// The one for what is not the host, on this machine or elsewhere.
    pub(crate) fn other(&self, config: &HostConfig, nearby: bool) -> Result<&reqwest::Client> {
        let place = if nearby { &self.nearby } else { &self.foreign };
        if let Some(client) = place.get() {
            return Ok(client);
        }
        let tls = tls::client_config(&config.tls, false)?;
        let client = build(tls, nearby, &self.host, self.connect, self.idle)?;
        Ok(place.get_or_init(|| client))
    }
}

fn build(
    tls: rustls::ClientConfig,
    nearby: bool,
    host: &str,
    connect: Duration,
    idle: Duration,
) -> Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(connect)
        .pool_idle_timeout(idle)
        .tcp_nodelay(true)
        .http1_only()
        .dns_resolver(SystemResolver)
        .tls_backend_preconfigured(tls);
    if nearby {
        // As Go's clients: a proxy never stands between this machine and itself.
        builder = builder.no_proxy();
    }
    builder.build().map_err(|e| failure::of_exchange(e, host, "setting up the client", connect))
}

/// getaddrinfo, with errors that can be told from others.
struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await.map_err(DnsError)?;
            let addresses: Addrs = Box::new(found.collect::<Vec<_>>().into_iter());
            Ok(addresses)
        })
    }
}
