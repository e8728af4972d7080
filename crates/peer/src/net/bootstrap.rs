//! Where the first peers are found: by DNS, by HTTP, at addresses that are known.
//!
//! As Spegel does it: of a name the first three addresses of each family, in their order; of `/id` the first three peers
//! of a JSON list of `{"ID": "…", "Addrs": ["/ip4/…/tcp/…"]}`. A peer need not be known by its ID: whoever answers there is one.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use futures::StreamExt;
use libp2p_core::Multiaddr;
use libp2p_core::multiaddr::Protocol;
use libp2p_identity::PeerId;
use serde::{Deserialize, Serialize};
use url::Url;

use super::multiaddr;

/// Peers that are taken of one source, or of one family of addresses.
const TAKEN: usize = 3;
/// Bytes of an answer to `/id` that are read.
const MAX_BYTES: usize = 64 << 10;
/// How long a source may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A source of first peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bootstrap {
    /// A name that has an address for every node, and the port if it is not this node's own.
    Dns(String, Option<u16>),
    /// A URL that lists peers.
    Http(Url),
    /// A peer itself.
    Peer(Multiaddr),
    /// A peer's IP, at this node's own port.
    Ip(IpAddr),
}

/// Why a text names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: {reason}; expected dns:NAME, dns:NAME:PORT, an http URL, /ip4/…/tcp/…, IP or IP:PORT")]
pub struct BootstrapError {
    text: String,
    reason: String,
}

impl FromStr for Bootstrap {
    type Err = BootstrapError;

    fn from_str(text: &str) -> Result<Self, BootstrapError> {
        let wrong = |reason: &dyn fmt::Display| BootstrapError { text: text.to_owned(), reason: reason.to_string() };
        if let Some(name) = text.strip_prefix("dns:") {
            let (name, port) = match name.rsplit_once(':') {
                Some((name, port)) => (name, Some(port.parse().map_err(|_| wrong(&"the port is no number"))?)),
                None => (name, None),
            };
            let fits = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
            return if fits { Ok(Self::Dns(name.to_owned(), port)) } else { Err(wrong(&"that is no name")) };
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            return Url::parse(text).map(Self::Http).map_err(|e| wrong(&e));
        }
        if text.starts_with('/') {
            let address: Multiaddr = text.parse().map_err(|e| wrong(&e))?;
            let has_tcp = address.iter().any(|part| matches!(part, Protocol::Tcp(_)));
            let has_ip = matches!(address.iter().next(), Some(Protocol::Ip4(_) | Protocol::Ip6(_)));
            return if has_ip && has_tcp { Ok(Self::Peer(address)) } else { Err(wrong(&"it has no IP and TCP port")) };
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Ip(ip));
        }
        text.parse::<SocketAddr>().map(|address| Self::Peer(multiaddr(address))).map_err(|e| wrong(&e))
    }
}

/// A peer, as `/id` tells of it.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(rename = "Addrs", default)]
    addresses: Vec<String>,
}

/// What `/id` answers.
pub(crate) fn id_document(id: PeerId, addresses: &[String]) -> Vec<u8> {
    let told = Told { id: id.to_string(), addresses: addresses.to_vec() };
    serde_json::to_vec(&[told]).unwrap_or_default()
}

impl Bootstrap {
    /// The peers that it has now, to be dialled. `port` is this node's own.
    pub(super) async fn find(&self, port: u16, http: &reqwest::Client) -> Result<Vec<Multiaddr>, String> {
        let looking = async {
            match self {
                Self::Peer(address) => Ok(vec![address.clone()]),
                Self::Ip(ip) => Ok(vec![multiaddr(SocketAddr::new(*ip, port))]),
                Self::Dns(name, other) => by_dns(name, other.unwrap_or(port)).await,
                Self::Http(url) => by_http(url, port, http).await,
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
    }
}

async fn by_dns(name: &str, port: u16) -> Result<Vec<Multiaddr>, String> {
    let found = tokio::net::lookup_host((name, port)).await.map_err(|e| e.to_string())?;
    Ok(first_of_each_family(found.collect()).into_iter().map(multiaddr).collect())
}

fn first_of_each_family(mut found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    found.sort_unstable();
    found.dedup();
    let (v4, v6): (Vec<_>, Vec<_>) = found.into_iter().partition(SocketAddr::is_ipv4);
    v4.into_iter().take(TAKEN).chain(v6.into_iter().take(TAKEN)).collect()
}

async fn by_http(url: &Url, port: u16, http: &reqwest::Client) -> Result<Vec<Multiaddr>, String> {
    let answer = http.get(url.clone()).send().await.map_err(|e| e.to_string())?;
    if !answer.status().is_success() {
        return Err(format!("it answered {}", answer.status()));
    }
    let (mut body, mut bytes) = (answer.bytes_stream(), Vec::new());
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece.map_err(|e| e.to_string())?);
        if bytes.len() > MAX_BYTES {
            return Err(format!("its answer has more than {MAX_BYTES} bytes"));
        }
    }
    told(&bytes, port)
}

/// The addresses in an answer to `/id`. One without a port has this node's.
fn told(bytes: &[u8], port: u16) -> Result<Vec<Multiaddr>, String> {
    let told: Vec<Told> = serde_json::from_slice(bytes).map_err(|e| format!("its answer is no list of peers: {e}"))?;
    let mut found = Vec::new();
    for peer in told.into_iter().take(TAKEN) {
        let id = peer.id.parse::<PeerId>().ok();
        for address in peer.addresses.iter().take(TAKEN * 2) {
            let Ok(mut address) = address.parse::<Multiaddr>() else { continue };
            if !address.iter().any(|part| matches!(part, Protocol::Tcp(_) | Protocol::Udp(_))) {
                address.push(Protocol::Tcp(port));
            }
            // QUIC, for one.
            if !matches!(address.iter().nth(1), Some(Protocol::Tcp(_))) {
                continue;
            }
            let named = address.iter().any(|part| matches!(part, Protocol::P2p(_)));
            if let Some(id) = id.filter(|_| !named) {
                address.push(Protocol::P2p(id));
            }
            found.push(address);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_every_kind_of_source_and_says_what_is_wrong() {
        let read = |text: &str| text.parse::<Bootstrap>();
        assert_eq!(read("dns:peers.svc"), Ok(Bootstrap::Dns("peers.svc".into(), None)));
        assert_eq!(read("dns:peers.svc:7"), Ok(Bootstrap::Dns("peers.svc".into(), Some(7))));
        assert_eq!(read("10.0.0.1"), Ok(Bootstrap::Ip("10.0.0.1".parse().unwrap())));
        assert_eq!(read("10.0.0.1:7"), Ok(Bootstrap::Peer("/ip4/10.0.0.1/tcp/7".parse().unwrap())));
        assert_eq!(read("[::1]:7"), Ok(Bootstrap::Peer("/ip6/::1/tcp/7".parse().unwrap())));
        assert!(matches!(read("http://10.0.0.1:5000/id"), Ok(Bootstrap::Http(_))));
        assert!(matches!(read("/ip4/10.0.0.1/tcp/5001"), Ok(Bootstrap::Peer(_))));
        for (text, why) in [
            ("dns:", "that is no name"),
            ("dns:a b", "that is no name"),
            ("dns:a:b", "the port is no number"),
            ("/ip4/10.0.0.1/udp/5001/quic-v1", "it has no IP and TCP port"),
            ("/dns4/x/tcp/1", "it has no IP and TCP port"),
            ("peers.svc", "expected dns:NAME"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn of_a_name_the_first_three_of_each_family_count() {
        let found: Vec<SocketAddr> = ["10.0.0.9:1", "10.0.0.1:1", "10.0.0.3:1", "10.0.0.2:1", "[fd00::1]:1"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        let first: Vec<String> = first_of_each_family(found).iter().map(ToString::to_string).collect();
        assert_eq!(first, ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "[fd00::1]:1"]);
    }

    #[test]
    fn the_document_of_id_is_read_back_and_ports_are_filled_in() {
        let id = PeerId::random();
        let document = id_document(id, &["/ip4/10.0.0.1/tcp/5001".into(), "/ip4/10.0.0.1/udp/5001/quic-v1".into()]);
        let found = told(&document, 9).unwrap();
        assert_eq!(found, [format!("/ip4/10.0.0.1/tcp/5001/p2p/{id}").parse::<Multiaddr>().unwrap()]);
        let found = told(br#"[{"Addrs":["/ip4/10.0.0.1"]}]"#, 9).unwrap();
        assert_eq!(found, ["/ip4/10.0.0.1/tcp/9".parse::<Multiaddr>().unwrap()]);
        assert!(told(b"<html>", 9).unwrap_err().contains("no list of peers"));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".*") {
            drop(told(&bytes, 1));
            drop(text.parse::<Bootstrap>());
        }
    }
}
