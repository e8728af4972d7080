//! Changes of the store as containerd's events.

use orlop_api::containerd::events as event;
use orlop_api::containerd::services::images::v1 as images;
use orlop_api::containerd::types::Envelope;
use orlop_api::orlop::v1 as pb;
use orlop_metadata::{Change, Notice};

use super::Message;
use crate::any::pack;
use crate::convert::{signed, timestamp};

/// The envelope of a change.
pub(super) fn envelope(notice: &Notice) -> Envelope {
    let (topic, event) = message(notice.change.clone());
    Envelope {
        timestamp: Some(timestamp(notice.at)),
        namespace: notice.namespace.clone(),
        topic: topic.to_owned(),
        event: Some(event),
    }
}

fn message(change: Change) -> Message {
    match change {
        Change::ImageCreate { name, labels } => ("/images/create", pack(&images::ImageCreate { name, labels })),
        Change::ImageUpdate { name, labels } => ("/images/update", pack(&images::ImageUpdate { name, labels })),
        Change::ImageDelete { name } => ("/images/delete", pack(&images::ImageDelete { name })),
        Change::ContentCreate { digest, size } => {
            let media_type = String::new();
            (
                "/content/create",
                pack(&event::ContentCreate { digest: digest.to_string(), size: signed(size), media_type }),
            )
        }
        Change::ContentDelete { digest } => {
            ("/content/delete", pack(&event::ContentDelete { digest: digest.to_string() }))
        }
        Change::SnapshotPrepare { driver, key, parent } => {
            ("/snapshot/prepare", pack(&event::SnapshotPrepare { key, parent, snapshotter: driver }))
        }
        Change::SnapshotCommit { driver, key, name } => {
            ("/snapshot/commit", pack(&event::SnapshotCommit { key, name, snapshotter: driver }))
        }
        Change::SnapshotRemove { driver, key } => {
            ("/snapshot/remove", pack(&event::SnapshotRemove { key, snapshotter: driver }))
        }
        Change::ContainerCreate { id, image, runtime, options } => {
            let options = options.map(|o| prost_types::Any { type_url: o.type_url, value: o.value });
            let runtime = Some(event::container_create::Runtime { name: runtime, options });
            ("/containers/create", pack(&event::ContainerCreate { id, image, runtime }))
        }
        Change::ContainerUpdate { id, image, labels, snapshot_key } => {
            ("/containers/update", pack(&event::ContainerUpdate { id, image, labels, snapshot_key }))
        }
        Change::ContainerDelete { id } => ("/containers/delete", pack(&event::ContainerDelete { id })),
        Change::NamespaceCreate { name, labels } => {
            ("/namespaces/create", pack(&event::NamespaceCreate { name, labels }))
        }
        Change::NamespaceUpdate { name, labels } => {
            ("/namespaces/update", pack(&event::NamespaceUpdate { name, labels }))
        }
        Change::NamespaceDelete { name } => ("/namespaces/delete", pack(&event::NamespaceDelete { name })),
        Change::DamageFound { kind, name, fault, detail, images, containers } => {
            ("/orlop/damage/found", pack(&pb::DamageFound { kind, name, fault, detail, images, containers }))
        }
        Change::DamageMended { kind, name } => ("/orlop/damage/mended", pack(&pb::DamageMended { kind, name })),
        // A change that this program does not know gives an event that says nothing.
        _ => ("/unknown", prost_types::Any::default()),
    }
}
