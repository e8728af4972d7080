//! An envelope in words. Pure.

use std::collections::BTreeMap;

use orlop_api::any::{Wrapped, unpack};
use orlop_api::containerd::events as event;
use orlop_api::containerd::services::images::v1 as images;
use orlop_api::containerd::types::Envelope;
use orlop_api::orlop::v1 as pb;
use orlop_graph::model::MANAGED;
use orlop_oci::{Kind, classify};
use prost_types::{Any, Timestamp};
use serde_json::{Value, json};

/// What happened.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Event {
    /// When, by the server's clock.
    pub(crate) at: Option<Timestamp>,
    pub(crate) namespace: String,
    pub(crate) topic: String,
    /// The full name of the message that it came as.
    pub(crate) message: String,
    /// `image created`; of a message that nobody knows here, `event`.
    pub(crate) what: &'static str,
    /// To what: a name, a digest, a key, an ID.
    pub(crate) subject: String,
    /// What kind of record, if it is one.
    pub(crate) kind: Option<Kind>,
    /// More, for people.
    pub(crate) details: Vec<String>,
    /// What the message says, field by field.
    pub(crate) fields: BTreeMap<&'static str, Value>,
    /// Whether the record has CRI's label.
    pub(crate) managed: bool,
}

impl Event {
    /// Puts an envelope into words.
    pub(crate) fn of(envelope: Envelope) -> Self {
        let Envelope { timestamp, namespace, topic, event } = envelope;
        let Any { type_url, value } = event.unwrap_or_default();
        // Some publishers write a URL and not only a name.
        let name = type_url.rsplit('/').next().unwrap_or_default().to_owned();
        let any = Any { type_url: name.clone(), value };
        let told = READERS.iter().find_map(|read| read(&any));
        let unknown = || Self { what: "event", subject: topic.clone(), details: vec![name.clone()], ..Self::default() };
        Self { at: timestamp, namespace, message: name.clone(), ..told.unwrap_or_else(unknown) }.with_topic(topic)
    }

    fn with_topic(self, topic: String) -> Self {
        Self { topic, ..self }
    }

    /// Whether it is about an image record.
    pub(crate) fn is_of_a_record(&self) -> bool {
        self.kind.is_some()
    }

    /// What a hash reference is, if the record is one.
    pub(crate) fn hash_reference(&self) -> Option<&'static str> {
        match self.kind? {
            Kind::Id => Some("hash reference: the image ID, a name that CRI writes"),
            Kind::Digest => Some("hash reference: the image's name by digest"),
            Kind::Tag | Kind::Other => None,
        }
    }

    fn new(what: &'static str, subject: impl Into<String>) -> Self {
        Self { what, subject: subject.into(), ..Self::default() }
    }

    fn record(what: &'static str, name: String) -> Self {
        Self { kind: Some(classify(&name)), ..Self::new(what, &name) }.field("name", json!(name))
    }

    fn field(mut self, name: &'static str, value: Value) -> Self {
        self.fields.insert(name, value);
        self
    }

    /// A field, with a few words about it unless it is empty.
    fn with(mut self, name: &'static str, value: String, before: &str) -> Self {
        if !value.is_empty() {
            self.details.push(format!("{before} {value}").trim_start().to_owned());
        }
        self.field(name, json!(value))
    }

    /// What kind of thing is damaged.
    fn about(mut self, kind: &str) -> Self {
        self.details
            .push(kind.strip_prefix("snapshots/").map_or("blob".to_owned(), |driver| format!("snapshot in {driver}")));
        self
    }

    fn labels(self, labels: BTreeMap<String, String>) -> Self {
        self.field("labels", json!(labels))
    }

    fn exit(mut self, status: u32) -> Self {
        self.details.push(format!("exit code {status}"));
        self.field("exitStatus", json!(status))
    }
}

/// A message that can be put into words.
trait Say: Wrapped {
    fn say(self) -> Event;
}

/// Nothing if it is another message; one that cannot be read says nothing but its name.
fn read<M: Say>(any: &Any) -> Option<Event> {
    unpack::<M>(any)?.ok().map(Say::say)
}

/// One line for each message: its type, and what it says.
macro_rules! said {
    ($($message:ty: |$m:ident| $words:expr;)*) => {
        const READERS: &[fn(&Any) -> Option<Event>] = &[$(read::<$message>),*];
        $(
            impl Say for $message {
                fn say(self) -> Event {
                    let $m = self;
                    $words
                }
            }
        )*
    };
}

said! {
    images::ImageCreate: |m| changed("image created", m.name, m.labels);
    images::ImageUpdate: |m| changed("image updated", m.name, m.labels);
    images::ImageDelete: |m| Event::record("image deleted", m.name);
    event::ContentCreate: |m| content(m);
    event::ContentDelete: |m| Event::new("content deleted", &m.digest).field("digest", json!(m.digest));
    event::SnapshotPrepare: |m| prepared(m);
    event::SnapshotCommit: |m| Event::new("snapshot committed", &m.name).field("name", json!(m.name))
        .with("key", m.key, "from").with("snapshotter", m.snapshotter, "in");
    event::SnapshotRemove: |m| Event::new("snapshot removed", &m.key).field("key", json!(m.key))
        .with("snapshotter", m.snapshotter, "in");
    event::NamespaceCreate: |m| Event::new("namespace created", &m.name).field("name", json!(m.name)).labels(m.labels);
    event::NamespaceUpdate: |m| Event::new("namespace updated", &m.name).field("name", json!(m.name)).labels(m.labels);
    event::NamespaceDelete: |m| Event::new("namespace deleted", &m.name).field("name", json!(m.name));
    event::ContainerCreate: |m| container("container created", m.id).with("image", m.image, "of")
        .with("runtime", m.runtime.unwrap_or_default().name, "by");
    event::ContainerUpdate: |m| container("container updated", m.id).with("image", m.image, "of")
        .with("snapshotKey", m.snapshot_key, "on snapshot").labels(m.labels);
    event::ContainerDelete: |m| container("container deleted", m.id);
    event::TaskCreate: |m| task("task created", m.container_id).process(m.pid);
    event::TaskStart: |m| task("task started", m.container_id).process(m.pid);
    event::TaskDelete: |m| task("task deleted", m.container_id).exec(m.id).process(m.pid).exit(m.exit_status);
    event::TaskExit: |m| task("task exited", m.container_id).exec(m.id).process(m.pid).exit(m.exit_status);
    event::TaskOom: |m| task("task out of memory", m.container_id);
    event::TaskExecAdded: |m| task("exec added", m.container_id).exec(m.exec_id);
    event::TaskExecStarted: |m| task("exec started", m.container_id).exec(m.exec_id).process(m.pid);
    event::TaskPaused: |m| task("task paused", m.container_id);
    event::TaskResumed: |m| task("task resumed", m.container_id);
    event::TaskCheckpointed: |m| task("task checkpointed", m.container_id).with("checkpoint", m.checkpoint, "to");
    pb::DamageFound: |m| damaged(m);
    pb::DamageMended: |m| Event::new("damage mended", &m.name).field("kind", json!(m.kind)).field("name", json!(m.name))
        .about(&m.kind);
    pb::SnapshotFallback: |m| Event::new("layer left to containerd", &m.chain).field("chain", json!(m.chain))
        .with("image", m.image, "of").with("owner", m.owner, "by").with("reason", m.reason, "");
    event::SandboxCreate: |m| sandbox("sandbox created", m.sandbox_id);
    event::SandboxStart: |m| sandbox("sandbox started", m.sandbox_id);
    event::SandboxExit: |m| sandbox("sandbox exited", m.sandbox_id).exit(m.exit_status);
}

fn changed(what: &'static str, name: String, labels: BTreeMap<String, String>) -> Event {
    let managed = labels.get(MANAGED).is_some_and(|value| value == "managed");
    Event { managed, ..Event::record(what, name).labels(labels) }
}

fn damaged(m: pb::DamageFound) -> Event {
    let mut event = Event::new("damage found", &m.name).field("kind", json!(m.kind)).field("name", json!(m.name));
    event = event.about(&m.kind).field("fault", json!(m.fault)).with("detail", m.detail, "");
    for (field, word, names) in [("images", "image", m.images), ("containers", "container", m.containers)] {
        match names.as_slice() {
            [] => {}
            [only] => event.details.push(format!("{word} {only}")),
            [first, rest @ ..] => event.details.push(format!("{word} {first} and {} more", rest.len())),
        }
        event = event.field(field, json!(names));
    }
    event
}

fn content(m: event::ContentCreate) -> Event {
    let size = u64::try_from(m.size).unwrap_or_default();
    let mut event =
        Event::new("content written", &m.digest).field("digest", json!(m.digest)).field("size", json!(size));
    event.details.push(crate::output::size(size));
    event.with("mediaType", m.media_type, "")
}

fn prepared(m: event::SnapshotPrepare) -> Event {
    let event = Event::new("snapshot prepared", &m.key).field("key", json!(m.key));
    event.with("parent", m.parent, "on").with("snapshotter", m.snapshotter, "in")
}

fn container(what: &'static str, id: String) -> Event {
    Event::new(what, &id).field("id", json!(id))
}

fn task(what: &'static str, container: String) -> Event {
    Event::new(what, &container).field("containerId", json!(container))
}

fn sandbox(what: &'static str, id: String) -> Event {
    Event::new(what, &id).field("sandboxId", json!(id))
}

impl Event {
    fn process(mut self, pid: u32) -> Self {
        self.details.push(format!("process {pid}"));
        self.field("pid", json!(pid))
    }

    /// An exec within a task; the task's own first process has the container's ID.
    fn exec(self, id: String) -> Self {
        if id == self.subject { self.field("id", json!(id)) } else { self.with("id", id, "exec") }
    }
}

#[cfg(test)]
mod tests {
    use orlop_api::any::pack;

    use super::*;

    fn told(topic: &str, event: Any) -> Event {
        let timestamp = Some(Timestamp { seconds: 1, nanos: 2 });
        Event::of(Envelope { timestamp, namespace: "k8s.io".into(), topic: topic.into(), event: Some(event) })
    }

    #[test]
    fn a_record_has_its_kind_and_a_hash_reference_its_explanation() {
        let labels = BTreeMap::from([(MANAGED.to_owned(), "managed".to_owned())]);
        let digest = orlop_oci::Digest::of(b"x").to_string();
        let of = |name: &str| {
            let event = images::ImageCreate { name: name.to_owned(), labels: labels.clone() };
            told("/images/create", pack(&event))
        };
        let tag = of("docker.io/library/alpine:3");
        assert_eq!((tag.what, tag.kind, tag.hash_reference()), ("image created", Some(Kind::Tag), None));
        assert!(tag.managed && tag.fields["labels"][MANAGED] == "managed");
        assert_eq!(
            (tag.topic.as_str(), tag.message.as_str()),
            ("/images/create", "containerd.services.images.v1.ImageCreate")
        );
        assert!(of(&digest).hash_reference().unwrap().contains("image ID"));
        assert!(of(&format!("docker.io/library/alpine@{digest}")).hash_reference().unwrap().contains("digest"));
    }

    #[test]
    fn every_message_is_said_with_what_it_is_about() {
        let exit =
            event::TaskExit { container_id: "c".into(), id: "c".into(), pid: 7, exit_status: 137, exited_at: None };
        let said = told("/tasks/exit", pack(&exit));
        assert_eq!((said.what, said.subject.as_str()), ("task exited", "c"));
        assert_eq!(said.details, ["process 7", "exit code 137"]);
        let added = event::TaskExecAdded { container_id: "c".into(), exec_id: "sh".into() };
        assert_eq!(told("/tasks/exec-added", pack(&added)).details, ["exec sh"]);
        let committed = event::SnapshotCommit { key: "k".into(), name: "n".into(), snapshotter: String::new() };
        let said = told("/snapshot/commit", pack(&committed));
        assert_eq!((said.subject.as_str(), said.details), ("n", vec!["from k".to_owned()]));
        let written = event::ContentCreate { digest: "sha256:0".into(), size: 2048, media_type: String::new() };
        assert_eq!(told("/content/create", pack(&written)).details, ["2.0 KiB"]);
        let damage = pb::DamageFound {
            kind: "content".into(),
            name: "sha256:0".into(),
            fault: "size".into(),
            detail: "expected 9 bytes, found 0".into(),
            images: vec!["a:1".into(), "b:1".into()],
            containers: vec!["c".into()],
        };
        let said = told("/orlop/damage/found", pack(&damage));
        assert_eq!((said.what, said.subject.as_str()), ("damage found", "sha256:0"));
        assert_eq!(said.details, ["blob", "expected 9 bytes, found 0", "image a:1 and 1 more", "container c"]);
        let mended = pb::DamageMended { kind: "snapshots/overlayfs".into(), name: "sha256:1".into() };
        assert_eq!(told("/orlop/damage/mended", pack(&mended)).details, ["snapshot in overlayfs"]);
        let left = pb::SnapshotFallback {
            owner: "k3s".into(),
            image: "a:1".into(),
            chain: "sha256:2".into(),
            reason: "no such host".into(),
        };
        let said = told("/orlop/snapshot/fallback", pack(&left));
        assert_eq!((said.what, said.subject.as_str()), ("layer left to containerd", "sha256:2"));
        assert_eq!(said.details, ["of a:1", "by k3s", "no such host"]);
        let exited = event::SandboxExit { sandbox_id: "s".into(), exit_status: 0, exited_at: None };
        assert_eq!(told("sandboxes/exit", pack(&exited)).fields["sandboxId"], "s");
    }

    #[test]
    fn what_nobody_knows_is_told_by_its_topic_and_name() {
        let said = told("/x/y", Any { type_url: "other.Message".into(), value: vec![1] });
        assert_eq!((said.what, said.subject.as_str(), said.message.as_str()), ("event", "/x/y", "other.Message"));
        // A known name with bytes that are none, and one with a URL before it.
        let broken = told("/t", Any { type_url: "containerd.events.TaskOOM".into(), value: vec![0xff] });
        assert_eq!((broken.what, broken.subject.as_str()), ("event", "/t"));
        let mut paused = pack(&event::TaskPaused { container_id: "c".into() });
        paused.type_url.insert_str(0, "types.googleapis.com/");
        assert_eq!(told("/tasks/paused", paused).what, "task paused");
    }
}
