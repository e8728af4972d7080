//! Calls of the daemon. A line with the path of a method, then a flag, then its message; or, by the flag, the bytes of the stream
//! as they are, frames and all.
//!
//! The real services answer, over the connection that commands use: with a status that is one of gRPC's, without a panic,
//! and with a store that is sound afterwards. Nothing is written outside of the store's directory: the kernel would refuse it.

use std::convert::Infallible;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use orlop_api::NAMESPACE_HEADER;
use orlop_image::{CheckRequest, Images, ImportRequest, Settings};
use orlop_metadata::Scope;
use orlop_server::Server;
use orlop_testkit::archive::oci_archive;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tonic::body::Body;
use tonic::transport::Channel;
use tower::ServiceExt as _;

use super::Target;
use super::archives::open;
use crate::scratch::{self, Cell};

/// See the module.
pub const TARGET: Target = Target {
    name: "calls",
    run,
    seeds,
    words: &[
        b"\x0a\x00",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"docker.io/library/app:1",
        b"sha256:",
        b"labels.",
        b"containerd.io/gc.root",
        b"../../etc",
        b"overlayfs",
        b"lowerdir=/",
        b"\xc3\xa9",
        b"k8s.io",
    ],
    limit: 2 << 10,
    isolated: true,
};

/// What the threads of the server are called.
const THREADS: &str = "calls-server";
/// What a client may bring about: records and snapshots of whatever it likes.
const CLIENTS: [&str; 5] =
    ["image-incomplete", "document-invalid", "hash-reference-missing", "hash-reference-stranded", "snapshot-missing"];
/// How long an answer that never ends is listened to.
const PATIENCE: Duration = Duration::from_millis(30);
/// Executions between two looks at the store, which take longer than most calls.
const CHECK_EVERY: u64 = 200;

struct Rig {
    runtime: Runtime,
    channel: Channel,
    images: Images,
    executions: u64,
    _directory: TempDir,
}

impl Rig {
    fn new() -> Self {
        let directory = scratch::directory();
        scratch::write_only_below(directory.path());
        watch_panics();
        let runtime = Builder::new_current_thread().enable_all().thread_name(THREADS).build().expect("a runtime");
        let images = Images::new(open(&directory.path().join("root")), Settings::default());
        let content = Content::image(&Image::host().layer(Layer::new([Entry::file("f", "x")])));
        let archive = oci_archive(&[("docker.io/library/app:1", &content)]);
        let (scope, request) = (Scope::new("k8s.io", "fuzz"), ImportRequest::default());
        let imported = runtime.block_on(images.import(&scope, &mut &archive[..], &request, &|_| {}));
        imported.expect("the image is imported");
        let channel = {
            let _within = runtime.enter();
            Server::new(images.clone()).in_process()
        };
        Self { runtime, channel, images, executions: 0, _directory: directory }
    }
}

/// Whether a thread of the server panicked: the runtime catches that, and clients only see a call or a connection end.
static PANICKED: AtomicBool = AtomicBool::new(false);

fn watch_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() == Some(THREADS) {
            PANICKED.store(true, Ordering::SeqCst);
        }
        before(panic);
    }));
}

static CELL: LazyLock<Cell> = LazyLock::new(|| Cell::start(THREADS, true, Rig::new, one));

fn run(bytes: &[u8]) {
    CELL.run(bytes);
}

fn one(rig: &mut Rig, bytes: &[u8]) {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let (Ok(path), Some((flag, message))) = (std::str::from_utf8(&bytes[..end]), bytes[end + 1..].split_first()) else {
        return;
    };
    let body = if flag & 1 == 0 { framed(message) } else { message.to_vec() };
    let request = http::Request::post(format!("http://orlop.local{path}"))
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .header(NAMESPACE_HEADER, "k8s.io");
    let body = Body::new(Full::new(Bytes::from(body)).map_err(|never: Infallible| match never {}));
    let Ok(request) = request.body(body) else { return };
    let channel = rig.channel.clone();
    let answered = rig.runtime.block_on(async {
        tokio::time::timeout(PATIENCE, async {
            let response = channel.oneshot(request).await.expect("the server is there");
            let said = response.headers().get("grpc-status").cloned();
            let trailers = response.into_body().collect().await.ok().and_then(|body| body.trailers().cloned());
            said.or_else(|| trailers?.get("grpc-status").cloned())
        })
        .await
    });
    // Streams may go on for ever, and what waits is not judged by a clock.
    if let Ok(Some(status)) = answered {
        let code: i32 = status.to_str().ok().and_then(|text| text.parse().ok()).expect("a status is a number");
        assert!((0..=16).contains(&code), "status {code}");
    }
    assert!(!PANICKED.swap(false, Ordering::SeqCst), "{path} panicked");
    rig.executions += 1;
    if rig.executions.is_multiple_of(CHECK_EVERY) {
        let (scope, request) = (Scope::new("k8s.io", "fuzz"), CheckRequest { deep: true, name: None });
        let checked = rig.runtime.block_on(rig.images.check(&scope, &request));
        let mut problems = checked.expect("a store can be checked");
        problems.retain(|problem| !CLIENTS.contains(&problem.class));
        assert!(problems.is_empty(), "{problems:?}");
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("inputs are small");
    [&[0], &length.to_be_bytes()[..], message].concat()
}

/// A message of every method, each field with something that could be meant.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let set = FileDescriptorSet::decode(orlop_api::DESCRIPTORS).expect("the descriptors are right");
    let mut all = Vec::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let message = sample(&set, method.input_type(), 0);
                let name = format!("{}-{}", service.name(), method.name()).to_lowercase();
                all.push((format!("{name}-{}", all.len()), [path.as_bytes(), b"\n\0", &message].concat()));
            }
        }
    }
    let wrong =
        [&b"/containerd.services.content.v1.Content/Write\n\x01"[..], &framed(b"\x08\x01")[..], b"\0\0\0\0\xff"]
            .concat();
    all.push(("frames".to_owned(), wrong));
    all
}

/// Messages within messages that samples go into.
const DEEP: u32 = 3;

fn sample(set: &FileDescriptorSet, name: &str, depth: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let Some(message) = find(set, name).filter(|_| depth < DEEP) else { return out };
    for field in &message.field {
        let tag = field.number() as u64;
        match field.r#type() {
            Type::Message => delimited(&mut out, tag, &sample(set, field.type_name(), depth + 1)),
            Type::String | Type::Bytes => delimited(&mut out, tag, text(field).as_bytes()),
            Type::Double | Type::Fixed64 | Type::Sfixed64 => {
                varint(&mut out, tag << 3 | 1);
                out.extend([0; 8]);
            }
            Type::Float | Type::Fixed32 | Type::Sfixed32 => {
                varint(&mut out, tag << 3 | 5);
                out.extend([0; 4]);
            }
            _ if field.label() == Label::Repeated => delimited(&mut out, tag, &[1]),
            _ => {
                varint(&mut out, tag << 3);
                varint(&mut out, 1);
            }
        }
    }
    out
}

fn find<'s>(set: &'s FileDescriptorSet, name: &str) -> Option<&'s DescriptorProto> {
    fn within<'s>(messages: &'s [DescriptorProto], name: &str) -> Option<&'s DescriptorProto> {
        let (first, rest) = name.split_once('.').map_or((name, None), |(first, rest)| (first, Some(rest)));
        let found = messages.iter().find(|message| message.name() == first)?;
        rest.map_or(Some(found), |rest| within(&found.nested_type, rest))
    }
    let name = name.strip_prefix('.')?;
    set.file.iter().find_map(|file| within(&file.message_type, name.strip_prefix(file.package())?.strip_prefix('.')?))
}

fn text(field: &FieldDescriptorProto) -> String {
    match field.name() {
        "digest" | "expected" => format!("sha256:{}", "a".repeat(64)),
        "name" | "image" | "reference" | "ref" | "names" => "docker.io/library/app:1".to_owned(),
        "snapshotter" => "native".to_owned(),
        "filters" | "filter" => "name~=app".to_owned(),
        "namespace" => "k8s.io".to_owned(),
        "media_type" => orlop_oci::media_type::OCI_LAYER.to_owned(),
        "type_url" => "types.example/x".to_owned(),
        other => other.to_owned(),
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn delimited(out: &mut Vec<u8>, tag: u64, bytes: &[u8]) {
    varint(out, tag << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
