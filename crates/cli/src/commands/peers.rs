//! `orlop peers`: the other nodes; and who was asked for the blobs of an image.

use std::time::Duration;

use serde::Serialize;

use super::Context;
use crate::args::Format;
use crate::client::pb;
use crate::error::{Class, CliError, Result};
use crate::output::{self, Table, size};
use crate::paint::Tone;

/// Options of `peers`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Asks the daemon that serves the root, which takes part if its configuration says so ([peers], docs/operations/fleet.md).
`orlop explain pull X` shows who was asked for each blob of an image.

Examples:
  orlop peers
  orlop peers -o json | jq '.received, .fromRegistries'")]
pub(crate) struct Args {}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Peer {
    id: String,
    addresses: Vec<String>,
    connected: bool,
    near: bool,
    /// Seconds; not there: not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_second: Option<u64>,
    received: u64,
    blobs: u64,
    failures: u64,
    lies: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    excluded_seconds: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema: &'static str,
    enabled: bool,
    id: String,
    addresses: Vec<String>,
    serves: String,
    announced: u64,
    sent: u64,
    received: u64,
    from_registries: u64,
    disproved: u64,
    /// Transfers that moved from a registry to a peer that was ahead.
    moved: u64,
    requests: Requests,
    peers: Vec<Peer>,
}

#[derive(Serialize)]
struct Requests {
    given: u64,
    missing: u64,
    busy: u64,
    /// Of those that were given: while the blob still came.
    relayed: u64,
}

/// Runs `peers`.
pub(crate) async fn run(context: &Context, _args: &Args) -> Result<()> {
    let found = context.clients.orlop().peers(pb::PeersRequest {}).await?.into_inner();
    let peers: Vec<Peer> = found.peers.iter().map(peer).collect();
    if output::is_document(context.global.output) {
        let document = Document {
            schema: "orlop.peers/v1",
            enabled: found.enabled,
            id: found.id,
            addresses: found.addresses,
            serves: found.serves,
            announced: found.announced,
            sent: found.sent,
            received: found.received,
            from_registries: found.from_registries,
            disproved: found.disproved,
            moved: found.moved,
            requests: Requests { given: found.given, missing: found.missing, busy: found.busy, relayed: found.relayed },
            peers,
        };
        return output::document(context.global.output, &document);
    }
    if context.global.output == Format::Name {
        return output::names(peers.iter().map(|peer| peer.id.as_str()));
    }
    if !found.enabled {
        context.say("this store takes no part among peers: [peers] enabled in the daemon's configuration");
        return Ok(());
    }
    let wide = context.global.output == Format::Wide;
    let mut table =
        Table::new(&["PEER", "ADDRESS", "STATE", "ANSWERS IN", "PER SECOND", "BLOBS", "RECEIVED", "FAILURES", "LIES"]);
    for peer in &peers {
        table.row(row(peer, wide));
    }
    table.print()?;
    let addresses = found.addresses.join(", ");
    output::line(format!("\nthis node  {}, found at {addresses}, gives at {}", found.id, found.serves))?;
    output::line(format!(
        "bytes      {} given to peers, {} taken from peers, {} from registries",
        size(found.sent),
        size(found.received),
        size(found.from_registries)
    ))?;
    output::line(format!(
        "announced  {} digests; asked for {} times: {} given, {} of them as they came, {} not here, {} told to come back; {} blobs of peers were wrong",
        found.announced,
        found.given + found.missing + found.busy,
        found.given,
        found.relayed,
        found.missing,
        found.busy,
        found.disproved
    ))
}

fn peer(peer: &pb::Peer) -> Peer {
    let some = |value: u64| (value > 0).then_some(value);
    Peer {
        id: peer.id.clone(),
        addresses: peer.addresses.clone(),
        connected: peer.connected,
        near: peer.near,
        latency_seconds: some(peer.latency_microseconds).map(|micros| micros as f64 / 1e6),
        bytes_per_second: some(peer.bytes_per_second),
        received: peer.received,
        blobs: peer.blobs,
        failures: peer.failures,
        lies: peer.lies,
        excluded_seconds: some(peer.excluded_seconds),
    }
}

fn row(peer: &Peer, wide: bool) -> [String; 9] {
    // The beginning of an ID is the same for all.
    let id =
        if wide { peer.id.as_str() } else { &peer.id[peer.id.floor_char_boundary(peer.id.len().saturating_sub(12))..] };
    let state = match (peer.excluded_seconds, peer.connected) {
        (Some(seconds), _) => Tone::Bad.paint(&format!("not asked for {seconds} s")).to_string(),
        (None, true) => Tone::Good.paint("connected").to_string(),
        (None, false) => Tone::Faint.paint("known").to_string(),
    };
    let address = if wide { peer.addresses.join(",") } else { peer.addresses.first().cloned().unwrap_or_default() };
    let latency = peer.latency_seconds.map(|seconds| format!("{:.1} ms", seconds * 1e3)).unwrap_or_default();
    [
        id.to_owned(),
        address,
        state,
        latency,
        peer.bytes_per_second.map(size).unwrap_or_default(),
        peer.blobs.to_string(),
        size(peer.received),
        peer.failures.to_string(),
        peer.lies.to_string(),
    ]
}

#[derive(Serialize)]
struct Asking {
    source: String,
    host: String,
    said: String,
    bytes: u64,
    seconds: f64,
}

#[derive(Serialize)]
struct Blob {
    at: String,
    repository: String,
    digest: String,
    size: u64,
    asked: Vec<Asking>,
}

#[derive(Serialize)]
struct Sources {
    schema: &'static str,
    blobs: Vec<Blob>,
}

/// Shows who was asked for each blob of an image: `orlop explain pull X`.
pub(crate) async fn explain(context: &Context, name: &str) -> Result<()> {
    let mut stream = context.clients.orlop().sources(pb::SourcesRequest { name: name.to_owned() }).await?.into_inner();
    let mut blobs = Vec::new();
    while let Some(page) = stream.message().await? {
        blobs.extend(page.blobs.into_iter().map(blob));
    }
    if output::is_document(context.global.output) {
        return output::document(context.global.output, &Sources { schema: "orlop.explain.pull/v1", blobs });
    }
    if blobs.is_empty() {
        return Err(CliError::new(Class::NotFound, format!("nothing is remembered of where the blobs of {name} came from"))
            .hint("a daemon remembers it until it ends, a command without one not at all; `orlop log NAME` shows the host of each change"));
    }
    if context.global.output == Format::Name {
        return output::names(blobs.iter().map(|blob| blob.digest.as_str()));
    }
    let mut table = Table::new(&["BLOB", "SIZE", "WHEN", "ASKED", "SAID", "BYTES", "TOOK", "PER SECOND"]);
    for blob in &blobs {
        let mut first = [output::short(&blob.digest).to_owned(), size(blob.size), blob.at.clone()];
        for asking in &blob.asked {
            let [digest, bytes, at] = std::mem::take(&mut first);
            table.row([
                digest,
                bytes,
                at,
                asked(asking),
                asking.said.clone(),
                size(asking.bytes),
                took(asking),
                rate(asking),
            ]);
        }
    }
    table.print()
}

fn blob(blob: pb::BlobSource) -> Blob {
    let asked = blob.asked.into_iter().map(|asking| Asking {
        source: asking.source,
        host: asking.host,
        said: asking.said,
        bytes: asking.bytes,
        seconds: Duration::from_micros(asking.microseconds).as_secs_f64(),
    });
    Blob {
        at: output::time(blob.at.as_ref()),
        repository: blob.repository,
        digest: blob.digest,
        size: blob.size,
        asked: asked.collect(),
    }
}

fn asked(asking: &Asking) -> String {
    if asking.host.is_empty() { format!("{}s", asking.source) } else { format!("{} {}", asking.source, asking.host) }
}

fn took(asking: &Asking) -> String {
    format!("{:.1} ms", asking.seconds * 1e3)
}

fn rate(asking: &Asking) -> String {
    if asking.bytes == 0 { String::new() } else { size((asking.bytes as f64 / asking.seconds.max(1e-6)) as u64) }
}
