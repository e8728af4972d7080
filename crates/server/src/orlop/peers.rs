//! The other nodes, and who was asked for which blob.

use std::time::Duration;

use orlop_api::orlop::v1 as pb;
use orlop_image::{Asking, BlobSource, Images, Neighbour, Neighbourhood, Source};
use orlop_metadata::Scope;
use tonic::Status;

use crate::blocking::blocking;
use crate::convert::timestamp;
use crate::page::pages;
use crate::status::ToStatus;
use crate::{AnswerStream, Server};

/// How it is among peers.
pub(super) fn report(images: &Images) -> pb::PeersResponse {
    let from_registries = images.pulled_bytes();
    let Some(neighbours) = images.nearby() else {
        return pb::PeersResponse { from_registries, ..Default::default() };
    };
    let report = neighbours.report();
    let [given, missing, busy] = report.served;
    pb::PeersResponse {
        enabled: true,
        id: report.id,
        addresses: report.addresses,
        serves: report.serves,
        announced: report.announced,
        sent: report.sent,
        received: report.received,
        from_registries,
        disproved: report.disproved,
        given,
        missing,
        busy,
        relayed: report.relayed,
        moved: report.moved,
        peers: report.neighbours.into_iter().map(peer).collect(),
    }
}

fn peer(neighbour: Neighbour) -> pb::Peer {
    pb::Peer {
        id: neighbour.id,
        addresses: neighbour.addresses,
        connected: neighbour.is_connected,
        near: neighbour.is_near,
        latency_microseconds: neighbour.latency.map(micros).unwrap_or_default(),
        bytes_per_second: neighbour.rate.unwrap_or_default(),
        received: neighbour.received,
        blobs: neighbour.blobs,
        failures: neighbour.failures,
        lies: neighbour.lies,
        excluded_seconds: neighbour.excluded_for.map_or(0, |rest| rest.as_secs().max(1)),
    }
}

/// Who was asked for the blobs of an image, or for all.
pub(super) async fn sources(
    server: &Server,
    scope: &Scope,
    name: &str,
) -> Result<AnswerStream<pb::SourcesResponse>, Status> {
    let mut digests = Vec::new();
    if !name.is_empty() {
        let found = server.images().inspect(scope, name).await.map_err(|e| e.to_status())?;
        digests.extend(found.row.targets.iter().cloned());
        let mut names = found.row.names;
        names.extend(found.row.hash_references);
        let (store, namespace) = (server.store().clone(), scope.namespace.clone());
        let reached = blocking(move || {
            let reached = names.iter().map(|name| store.reached_blobs(&namespace, name));
            reached.collect::<Result<Vec<_>, _>>()
        });
        digests.extend(reached.await?.into_iter().flatten());
        digests.sort();
        digests.dedup();
    }
    let blobs = server.images().ledger().of(&digests).into_iter().map(blob);
    Ok(pages(blobs, |blobs| pb::SourcesResponse { blobs }))
}

fn blob(source: BlobSource) -> pb::BlobSource {
    let BlobSource { at, repository, digest, size, asked } = source;
    let asked = asked.into_iter().map(asking).collect();
    pb::BlobSource { at: Some(timestamp(at)), repository, digest: digest.to_string(), size, asked }
}

fn asking(asking: Asking) -> pb::Asking {
    let source = match asking.source {
        Source::Neighbour => "peer",
        Source::Registry => "registry",
    };
    let Asking { host, said, bytes, took, .. } = asking;
    pb::Asking { source: source.to_owned(), host, said, bytes, microseconds: micros(took) }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Numbers of peers for Prometheus, before the end mark of what there is.
pub(crate) fn add_metrics(text: &mut String, report: &Neighbourhood) {
    let end = text.trim_end().trim_end_matches("# EOF").len();
    text.truncate(end);
    let count = |is: fn(&Neighbour) -> bool| report.neighbours.iter().filter(|n| is(n)).count() as u64;
    let [given, missing, busy] = report.served;
    for (name, kind, help, values) in [
        (
            "orlop_peers",
            "gauge",
            "Other nodes by what they are",
            vec![
                ("{state=\"known\"}", report.neighbours.len() as u64),
                ("{state=\"connected\"}", count(|n| n.is_connected)),
                ("{state=\"excluded\"}", count(|n| n.excluded_for.is_some())),
            ],
        ),
        ("orlop_peers_announced", "gauge", "Digests that are announced", vec![("", report.announced)]),
        ("orlop_peers_sent_bytes", "counter", "Bytes given to other nodes", vec![("_total", report.sent)]),
        ("orlop_peers_received_bytes", "counter", "Bytes that other nodes gave", vec![("_total", report.received)]),
        (
            "orlop_peers_disproved",
            "counter",
            "Blobs of other nodes that were wrong",
            vec![("_total", report.disproved)],
        ),
        (
            "orlop_peers_requests",
            "counter",
            "Requests of other nodes by what they were answered",
            vec![
                ("_total{result=\"given\"}", given),
                ("_total{result=\"missing\"}", missing),
                ("_total{result=\"busy\"}", busy),
            ],
        ),
        (
            "orlop_peers_relayed",
            "counter",
            "Requests of other nodes that were answered with a blob which was still coming",
            vec![("_total", report.relayed)],
        ),
        (
            "orlop_peers_moved",
            "counter",
            "Transfers that moved from a registry to a node that was ahead",
            vec![("_total", report.moved)],
        ),
    ] {
        text.push_str(&format!("# HELP {name} {help}.\n# TYPE {name} {kind}\n"));
        for (rest, value) in values {
            text.push_str(&format!("{name}{rest} {value}\n"));
        }
    }
    text.push_str("# EOF\n");
}
