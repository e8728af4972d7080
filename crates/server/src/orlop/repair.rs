//! Repairs: an archive as a stream, and what became of everything that is damaged.

use orlop_api::orlop::v1 as pb;
use orlop_api::orlop::v1::mending::End as Ended;
use orlop_api::orlop::v1::repair_response::Event;
use orlop_image::{Bringer, End, Mending, RepairRequest, Repaired};
use orlop_metadata::{Affected, Damaged, Scope};
use tokio_util::io::StreamReader;
use tonic::{Status, Streaming};

use super::archive::pieces;
use crate::status::ToStatus;
use crate::{AnswerStream, Server};

/// Reads the options, does all of it, and then tells what came of it.
pub(super) async fn repair(
    server: &Server,
    scope: Scope,
    mut messages: Streaming<pb::RepairRequest>,
) -> Result<AnswerStream<pb::RepairResponse>, Status> {
    use pb::repair_request::Step;
    let Some(Step::Options(options)) = messages.message().await?.and_then(|m| m.step) else {
        return Err(Status::invalid_argument("the first message must be the options"));
    };
    let name = (!options.name.is_empty()).then_some(options.name);
    let request = RepairRequest { name, known: options.known, plan: options.plan };
    let images = server.images();
    let repaired = if options.archive {
        let data = |message: pb::RepairRequest| match message.step {
            Some(Step::Data(data)) => Some(data),
            _ => None,
        };
        let mut archive = StreamReader::new(Box::pin(pieces(messages, data)));
        images.repair(&scope, Bringer::Archive(&mut archive), &request, &|_| {}).await
    } else {
        let client = super::client(server, options.registry);
        images.repair(&scope, Bringer::Registries(&client), &request, &|_| {}).await
    };
    let repaired = repaired.map_err(|e| e.to_status())?;
    if options.archive && !options.plan {
        // What else was in the archive.
        server.collector().request();
    }
    server.metrics().repaired(&repaired);
    Ok(Box::pin(futures::stream::iter(events(repaired).map(|event| Ok(pb::RepairResponse { event: Some(event) })))))
}

fn events(repaired: Repaired) -> impl Iterator<Item = Event> {
    let Repaired { blobs, blob_bytes, trees, tree_bytes, .. } = repaired;
    let summary = pb::RepairSummary { blobs, blob_bytes, trees, tree_bytes };
    repaired.mendings.into_iter().map(|m| Event::Mending(mending(m))).chain([Event::Summary(summary)])
}

fn mending(mending: Mending) -> pb::Mending {
    let kind = match mending.what {
        Damaged::Blob(_) => "blob",
        Damaged::Snapshot { .. } => "snapshot",
    };
    let mut row = pb::Mending {
        kind: kind.to_owned(),
        subject: mending.subject,
        size: mending.size,
        fault: mending.fault,
        detail: mending.detail,
        affected: mending.affected.into_iter().map(affected).collect(),
        sources: mending.sources,
        quarantine: mending.quarantine.unwrap_or_default(),
        ..pb::Mending::default()
    };
    match mending.end {
        End::Planned => {}
        End::Mended { from } => {
            row.set_end(Ended::Mended);
            row.from = from;
        }
        End::Left { reason, advice } => {
            row.set_end(Ended::Left);
            (row.reason, row.advice) = (reason, advice);
        }
    }
    row
}

fn affected(affected: Affected) -> pb::Affected {
    let Affected { namespace, images, snapshots, containers, .. } = affected;
    pb::Affected { namespace, images, snapshots, containers }
}
