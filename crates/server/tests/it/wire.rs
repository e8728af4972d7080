//! What clients of gRPC expect of any server, on a socket and beside a real containerd: how large a message may be, health,
//! reflection.

use std::collections::BTreeSet;
use std::path::Path;

use crate::common::{Node, request};
use orlop_api::containerd::services::content::v1 as content;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::process::need_root;
use prost::Message;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1 as reflection;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1alpha as reflection_old;
use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient as OldReflectionClient;

/// The bound of containerd, which counts the whole message.
const BOUND: usize = 16 << 20;

/// Orlop on a socket, until dropped.
struct Served {
    node: Node,
    _stop: oneshot::Sender<()>,
}

impl Served {
    fn new() -> Self {
        let node = Node::new();
        let listener = UnixListener::bind(node.directory.path().join("sock")).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = node.server.clone();
        tokio::spawn(async move { server.serve_unix(listener, async { drop(stopped.await) }).await.unwrap() });
        Self { node, _stop: stop }
    }

    async fn channel(&self) -> Channel {
        channel(&self.node.directory.path().join("sock")).await
    }
}

async fn channel(socket: &Path) -> Channel {
    orlop_api::channel::unix(socket).await.unwrap()
}

/// How a write ends whose one message has so many bytes.
async fn written(channel: &Channel, bytes: usize) -> Result<usize, Code> {
    let name = format!("message-{bytes}");
    let mut wanted =
        content::WriteContentRequest { action: content::WriteAction::Write.into(), r#ref: name, ..Default::default() };
    wanted.data = vec![7; bytes - wanted.encoded_len() - 64].into();
    let missing = bytes - wanted.encoded_len();
    wanted.data = vec![7; wanted.data.len() + missing].into();
    assert_eq!(wanted.encoded_len(), bytes);
    let mut client = ContentClient::new(channel.clone()).max_encoding_message_size(usize::MAX);
    let mut answers = client.write(request(futures::stream::iter([wanted]))).await.map_err(|e| e.code())?.into_inner();
    let mut offset = 0;
    while let Some(answer) = answers.message().await.map_err(|e| e.code())? {
        offset = usize::try_from(answer.offset).unwrap();
    }
    Ok(offset)
}

/// How health is told of a service.
async fn health(channel: &Channel, service: &str) -> Result<i32, Code> {
    let wanted = HealthCheckRequest { service: service.into() };
    let answer = HealthClient::new(channel.clone()).check(Request::new(wanted)).await;
    answer.map(|answer| answer.into_inner().status).map_err(|e| e.code())
}

async fn seen(channel: &Channel) -> (Vec<Result<usize, Code>>, Vec<Result<i32, Code>>) {
    let mut writes = Vec::new();
    for bytes in [BOUND - 1, BOUND, BOUND + 1, 2 * BOUND] {
        writes.push(written(channel, bytes).await);
    }
    let mut told = Vec::new();
    for service in ["", "containerd.services.images.v1.Images", "nobody.knows.This"] {
        told.push(health(channel, service).await);
    }
    (writes, told)
}

#[tokio::test]
async fn messages_have_containerds_bound_and_health_is_told_as_by_containerd() {
    let served = Served::new();
    let channel_of_ours = served.channel().await;
    let ours = seen(&channel_of_ours).await;
    let (writes, told) = &ours;
    assert!(writes[0].as_ref().is_ok_and(|offset| *offset > BOUND - 100) && writes[1].is_ok(), "{writes:?}");
    assert_eq!(writes[2..], [Err(Code::ResourceExhausted), Err(Code::ResourceExhausted)]);
    assert_eq!(told[0], Ok(1), "1 is SERVING");
    // A refused message ends its call only.
    assert_eq!(written(&channel_of_ours, 1000).await.map(|offset| offset > 900), Ok(true));
    if !need_root() {
        return;
    }
    for programs in [Programs::debian(), Programs::current()].into_iter().flatten() {
        let containerd = Containerd::start(&programs, &Options::default());
        let theirs = seen(&channel(&containerd.socket()).await).await;
        assert_eq!(ours, theirs, "{}", programs.version());
    }
}

/// What reflection answers to one question.
async fn asked(channel: &Channel, question: MessageRequest) -> Result<MessageResponse, Code> {
    let wanted = reflection::ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut client = ServerReflectionClient::new(channel.clone());
    let mut answers = client.server_reflection_info(futures::stream::iter([wanted])).await.unwrap().into_inner();
    answers.message().await.map(|answer| answer.unwrap().message_response.unwrap()).map_err(|e| e.code())
}

#[tokio::test]
async fn reflection_describes_every_service_in_both_of_its_versions() {
    let served = Served::new();
    let channel = served.channel().await;
    let answer = asked(&channel, MessageRequest::ListServices(String::new())).await;
    let Ok(MessageResponse::ListServicesResponse(list)) = answer else { panic!("no list: {answer:?}") };
    let names: BTreeSet<String> = list.service.into_iter().map(|service| service.name).collect();
    for service in
        ["containers", "content", "diff", "events", "images", "introspection", "leases", "mounts", "namespaces"]
            .iter()
            .chain(&["snapshots", "streaming", "transfer", "version"])
    {
        let prefix = format!("containerd.services.{service}.v1.");
        assert!(names.iter().any(|name| name.starts_with(&prefix)), "{service} is not in {names:?}");
    }
    for service in ["runtime.v1.ImageService", "runtime.v1.RuntimeService", "grpc.health.v1.Health", "orlop.v1.Orlop"] {
        assert!(names.contains(service), "{service} is not in {names:?}");
    }
    for name in &names {
        let answer = asked(&channel, MessageRequest::FileContainingSymbol(name.clone())).await;
        let Ok(MessageResponse::FileDescriptorResponse(files)) = answer else { panic!("{name}: {answer:?}") };
        let file = prost_types::FileDescriptorProto::decode(&files.file_descriptor_proto[0][..]).unwrap();
        let described = file.service.iter().any(|service| *name == format!("{}.{}", file.package(), service.name()));
        assert!(described, "{name} is not in {}", file.name());
    }
    let unknown = asked(&channel, MessageRequest::FileContainingSymbol("nobody.knows.This".into())).await;
    assert_eq!(unknown, Err(Code::NotFound));

    let question = reflection_old::server_reflection_request::MessageRequest::ListServices(String::new());
    let wanted = reflection_old::ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut client = OldReflectionClient::new(channel.clone());
    let mut answers = client.server_reflection_info(futures::stream::iter([wanted])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let reflection_old::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else {
        panic!("no list: {answer:?}")
    };
    // Of itself each version lists its own.
    let but_reflection = |names: BTreeSet<String>| {
        names.into_iter().filter(|name| !name.starts_with("grpc.reflection.")).collect::<Vec<_>>()
    };
    let old = list.service.into_iter().map(|service| service.name).collect();
    assert_eq!(but_reflection(old), but_reflection(names));
}
