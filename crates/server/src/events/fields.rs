//! What filters find in an envelope: `namespace`, `topic`, and the fields of events whose types are known here.

use std::borrow::Cow;
use std::collections::BTreeMap;

use orlop_api::containerd::events as event;
use orlop_api::containerd::services::images::v1 as images;
use orlop_api::containerd::types::Envelope;
use orlop_api::orlop::v1 as pb;
use orlop_metadata::Filter;
use prost::{Message, Name};
use prost_types::Any;

/// Whether an event passes. It is decoded only if a filter looks into it.
pub(super) fn matches(filter: &Filter, envelope: &Envelope) -> bool {
    filter.matches(|path| match path {
        [field] if field == "namespace" => present(&envelope.namespace),
        [field] if field == "topic" => present(&envelope.topic),
        [field, path @ ..] if field == "event" => {
            envelope.event.as_ref().and_then(|event| in_event(event, path)).map(Cow::Owned)
        }
        _ => None,
    })
}

/// As in containerd, an empty field is not there.
fn present(value: &str) -> Option<Cow<'_, str>> {
    (!value.is_empty()).then_some(Cow::Borrowed(value))
}

fn in_event(event: &Any, path: &[String]) -> Option<String> {
    LOOK_UPS.iter().find_map(|look_up| look_up(event, path)).flatten()
}

/// `None` if the event is of another type; within it, the field.
type LookUp = fn(&Any, &[String]) -> Option<Option<String>>;

/// Fields that filters can name. Numbers and times are none, as in containerd.
trait Fields: Message + Name + Default {
    fn field(&self, name: &str) -> Option<&str>;

    fn labels(&self) -> Option<&BTreeMap<String, String>> {
        None
    }

    /// A message within the message.
    fn nested(&self, _path: &[String]) -> Option<String> {
        None
    }
}

fn look_up<E: Fields>(event: &Any, path: &[String]) -> Option<Option<String>> {
    let decoded: E = crate::any::unpack(event)?.ok()?;
    let (first, rest) = path.split_first()?;
    let labels = decoded.labels().filter(|_| first == "labels");
    Some(match (labels, rest) {
        (Some(labels), rest) => labels.get(&rest.join(".")).cloned(),
        (None, []) => decoded.field(first).filter(|value| !value.is_empty()).map(str::to_owned),
        (None, _) => decoded.nested(path),
    })
}

/// The text fields of events, by name; `+ labels` if it has some.
macro_rules! fields {
    ($($event:ty { $($name:literal => $field:ident),* } $(+ $labels:ident)?;)*) => {
        const LOOK_UPS: &[LookUp] = &[$(look_up::<$event>,)* look_up::<event::ContainerCreate>, look_up::<event::TaskCreate>];

        $(
            impl Fields for $event {
                fn field(&self, name: &str) -> Option<&str> {
                    match name {
                        $($name => Some(&self.$field),)*
                        _ => None,
                    }
                }

                $(
                    fn labels(&self) -> Option<&BTreeMap<String, String>> {
                        Some(&self.$labels)
                    }
                )?
            }
        )*
    };
}

fields! {
    images::ImageCreate { "name" => name } + labels;
    images::ImageUpdate { "name" => name } + labels;
    images::ImageDelete { "name" => name };
    event::ContentCreate { "digest" => digest, "mediaType" => media_type };
    event::ContentDelete { "digest" => digest };
    event::NamespaceCreate { "name" => name } + labels;
    event::NamespaceUpdate { "name" => name } + labels;
    event::NamespaceDelete { "name" => name };
    event::SnapshotPrepare { "key" => key, "parent" => parent, "snapshotter" => snapshotter };
    event::SnapshotCommit { "key" => key, "name" => name, "snapshotter" => snapshotter };
    event::SnapshotRemove { "key" => key, "snapshotter" => snapshotter };
    event::ContainerUpdate { "id" => id, "image" => image, "snapshot_key" => snapshot_key } + labels;
    event::ContainerDelete { "id" => id };
    pb::DamageFound { "kind" => kind, "name" => name, "fault" => fault, "detail" => detail };
    pb::DamageMended { "kind" => kind, "name" => name };
    pb::SnapshotFallback { "owner" => owner, "image" => image, "chain" => chain, "reason" => reason };
    event::SandboxCreate { "sandbox_id" => sandbox_id };
    event::SandboxStart { "sandbox_id" => sandbox_id };
    event::SandboxExit { "sandbox_id" => sandbox_id };
    event::TaskStart { "container_id" => container_id };
    event::TaskDelete { "container_id" => container_id, "id" => id };
    event::TaskExit { "container_id" => container_id, "id" => id };
    event::TaskOom { "container_id" => container_id };
    event::TaskExecAdded { "container_id" => container_id, "exec_id" => exec_id };
    event::TaskExecStarted { "container_id" => container_id, "exec_id" => exec_id };
    event::TaskPaused { "container_id" => container_id };
    event::TaskResumed { "container_id" => container_id };
    event::TaskCheckpointed { "container_id" => container_id, "checkpoint" => checkpoint };
}

impl Fields for event::ContainerCreate {
    fn field(&self, name: &str) -> Option<&str> {
        match name {
            "id" => Some(&self.id),
            "image" => Some(&self.image),
            _ => None,
        }
    }

    fn nested(&self, path: &[String]) -> Option<String> {
        let runtime = self.runtime.as_ref()?;
        (path == ["runtime", "name"] && !runtime.name.is_empty()).then(|| runtime.name.clone())
    }
}

impl Fields for event::TaskCreate {
    fn field(&self, name: &str) -> Option<&str> {
        match name {
            "container_id" => Some(&self.container_id),
            "bundle" => Some(&self.bundle),
            "checkpoint" => Some(&self.checkpoint),
            _ => None,
        }
    }

    fn nested(&self, path: &[String]) -> Option<String> {
        let io = self.io.as_ref()?;
        let [first, field] = path else { return None };
        let value = match field.as_str() {
            "stdin" => &io.stdin,
            "stdout" => &io.stdout,
            "stderr" => &io.stderr,
            "terminal" => return Some(io.terminal.to_string()),
            _ => return None,
        };
        (first == "io" && !value.is_empty()).then(|| value.clone())
    }
}
