//! Calls as bytes: what no generated client would send, to methods that only their path names.

use std::path::Path;
use std::time::Duration;

use orlop_api::NAMESPACE_HEADER;
use orlop_api::containerd::services::events::v1::PublishRequest;
use prost::Message;
use prost::bytes::{Buf, BufMut, Bytes};
use prost_types::FileDescriptorProto;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

/// How long to wait for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Calls that go on until somebody ends them: their first message is their answer.
const ENDLESS: [&str; 2] = [SUBSCRIBE, "/grpc.health.v1.Health/Watch"];

/// It has a first message when something happens.
const SUBSCRIBE: &str = "/containerd.services.events.v1.Events/Subscribe";

/// Messages as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// What a call led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Said {
    fn of(answered: Result<(), Status>) -> Self {
        match answered {
            Ok(()) => Self { code: Code::Ok, message: String::new() },
            Err(status) => Self { code: status.code(), message: status.message().to_owned() },
        }
    }

    /// The server has no such call.
    pub(crate) fn is_unknown(&self) -> bool {
        self.code == Code::Unimplemented
            && (self.message.starts_with("unknown service") || self.message.starts_with("unknown method"))
    }
}

/// The headers of a call: a namespace, or none.
pub(crate) fn namespace(name: Option<&[u8]>) -> MetadataMap {
    let mut headers = tonic::codegen::http::HeaderMap::new();
    if let Some(name) = name {
        headers.insert(NAMESPACE_HEADER, tonic::codegen::http::HeaderValue::from_bytes(name).expect("a header"));
    }
    MetadataMap::from_headers(headers)
}

/// A request in the namespace `test`.
pub(crate) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    *request.metadata_mut() = namespace(Some(b"test"));
    request
}

/// A connection of its own.
pub(crate) async fn connect(socket: &Path) -> Channel {
    orlop_api::channel::unix(socket).await.expect("the server takes connections")
}

/// Sends messages and waits for the end of the answer.
pub(crate) async fn call(channel: &Channel, path: &str, headers: MetadataMap, messages: Vec<Bytes>) -> Said {
    let called = async {
        tokio::select! {
            answered = answers(channel, path, headers, messages) => answered,
            () = happen(channel), if path == SUBSCRIBE => unreachable!("it goes on for ever"),
        }
    };
    Said::of(tokio::time::timeout(PATIENCE, called).await.unwrap_or_else(|_| panic!("{path}: no answer")).map(drop))
}

/// Publishes one event after the other.
async fn happen(channel: &Channel) {
    let event = Some(prost_types::Any { type_url: "test.Event".into(), value: Vec::new() });
    let event = PublishRequest { topic: "/bad/calls".into(), event };
    let event = Bytes::from(event.encode_to_vec());
    loop {
        let path = "/containerd.services.events.v1.Events/Publish";
        // Whether it is published is seen by the subscriber.
        let _ = answers(channel, path, namespace(Some(b"test")), vec![event.clone()]).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn answers(
    channel: &Channel,
    path: &str,
    headers: MetadataMap,
    messages: Vec<Bytes>,
) -> Result<Vec<Bytes>, Status> {
    let mut request = Request::new(tokio_stream::iter(messages));
    *request.metadata_mut() = headers;
    let mut client = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
    client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let asked = client.streaming(request, PathAndQuery::try_from(path).expect("a path"), Raw);
    let mut stream = asked.await?.into_inner();
    let mut found = Vec::new();
    while let Some(message) = stream.message().await? {
        found.push(message);
        if ENDLESS.contains(&path) {
            break;
        }
    }
    Ok(found)
}

/// Every method that the server says it has: `/package.Service/Method`.
pub(crate) async fn methods(channel: &Channel) -> Vec<String> {
    let listed = reflect(channel, MessageRequest::ListServices("*".into())).await;
    let MessageResponse::ListServicesResponse(services) = listed else { panic!("{listed:?}") };
    let mut methods = Vec::new();
    for name in services.service.into_iter().map(|service| service.name) {
        let found = reflect(channel, MessageRequest::FileContainingSymbol(name.clone())).await;
        let MessageResponse::FileDescriptorResponse(files) = found else { panic!("{name}: {found:?}") };
        for file in files.file_descriptor_proto {
            let file = FileDescriptorProto::decode(file.as_slice()).expect("a descriptor");
            let services = file.service.iter();
            let service = services.filter(|service| format!("{}.{}", file.package(), service.name()) == name);
            let of = |method: &prost_types::MethodDescriptorProto| format!("/{name}/{}", method.name());
            methods.extend(service.flat_map(|service| &service.method).map(of));
        }
    }
    methods.sort();
    methods
}

async fn reflect(channel: &Channel, wanted: MessageRequest) -> MessageResponse {
    let wanted = ServerReflectionRequest { host: String::new(), message_request: Some(wanted) };
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let found = answers(channel, path, MetadataMap::new(), vec![wanted.encode_to_vec().into()]).await;
    let found = found.expect("reflection is served").remove(0);
    ServerReflectionResponse::decode(found).expect("an answer").message_response.expect("it says something")
}
