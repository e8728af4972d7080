//! Receivers of traces: one that takes them, by gRPC or HTTP, with TLS or without, and one that accepts connections and never
//! answers.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use orlop_testkit::tls::Certificates;
use prost::Message;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};

/// A span as it came.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) name: String,
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    /// 1: internal, 2: server, 3: client.
    pub(crate) kind: i32,
    /// Its status is an error; what it says.
    pub(crate) error: Option<String>,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) resource: BTreeMap<String, String>,
}

/// What came so far.
#[derive(Debug, Clone, Default)]
struct Taken(Arc<Mutex<(Vec<Span>, Vec<u8>)>>);

impl Taken {
    fn take(&self, request: ExportTraceServiceRequest) {
        let mut taken = self.0.lock().unwrap();
        taken.1.extend(request.encode_to_vec());
        for part in request.resource_spans {
            let resource = part.resource.map(|resource| attributes(resource.attributes)).unwrap_or_default();
            for span in part.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let error = span.status.filter(|status| status.code == 2).map(|status| status.message);
                taken.0.push(Span {
                    name: span.name,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    kind: span.kind,
                    error,
                    attributes: attributes(span.attributes),
                    resource: resource.clone(),
                });
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(pairs: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |pair: KeyValue| {
        let value = match pair.value.and_then(|any| any.value) {
            Some(Value::StringValue(text)) => text,
            Some(Value::IntValue(number)) => number.to_string(),
            other => format!("{other:?}"),
        };
        (pair.key, value)
    };
    pairs.into_iter().map(text).collect()
}

/// A receiver that takes everything.
pub(crate) struct Receiver {
    pub(crate) endpoint: String,
    taken: Taken,
    _runtime: Option<Runtime>,
}

impl Receiver {
    pub(crate) fn grpc() -> Self {
        Self::serve_grpc(Server::builder(), "http")
    }

    /// With TLS, under a server's certificate.
    pub(crate) fn grpc_tls(certificates: &Certificates) -> Self {
        let read = |path| std::fs::read(path).unwrap();
        let identity = Identity::from_pem(read(&certificates.server), read(&certificates.server_key));
        let server = Server::builder().tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
        Self::serve_grpc(server, "https")
    }

    fn serve_grpc(mut server: Server, scheme: &str) -> Self {
        let (taken, runtime) = (Taken::default(), Runtime::new().unwrap());
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = format!("{scheme}://{}", listener.local_addr().unwrap());
        let serving = server
            .add_service(TraceServiceServer::new(taken.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        runtime.spawn(serving);
        Self { endpoint, taken, _runtime: Some(runtime) }
    }

    pub(crate) fn http() -> Self {
        Self::serve_http("http", |stream, taken| {
            let mut stream = BufReader::new(stream);
            while answer(&mut stream, taken) {}
        })
    }

    /// With TLS, under a server's certificate.
    pub(crate) fn http_tls(certificates: &Certificates) -> Self {
        let chain = CertificateDer::pem_file_iter(&certificates.server).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(&certificates.server_key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
        Self::serve_http("https", move |stream, taken| {
            let session = ServerConnection::new(config.clone()).unwrap();
            let mut stream = BufReader::new(StreamOwned::new(session, stream));
            while answer(&mut stream, taken) {}
        })
    }

    fn serve_http(scheme: &str, serve: impl Fn(TcpStream, &Taken) + Clone + Send + 'static) -> Self {
        let (taken, listener) = (Taken::default(), TcpListener::bind("127.0.0.1:0").unwrap());
        let endpoint = format!("{scheme}://{}", listener.local_addr().unwrap());
        let taking = taken.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (taking, serve) = (taking.clone(), serve.clone());
                std::thread::spawn(move || serve(stream, &taking));
            }
        });
        Self { endpoint, taken, _runtime: None }
    }

    /// What has come.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.taken.0.lock().unwrap().0.clone()
    }

    /// All messages as they came.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.taken.0.lock().unwrap().1.clone()
    }
}

#[tonic::async_trait]
impl TraceService for Taken {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.take(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Answers one HTTP request; false at the end of the connection.
fn answer<S: Read + Write>(reader: &mut BufReader<S>, taken: &Taken) -> bool {
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return false;
    }
    assert_eq!(line.trim(), "POST /v1/traces HTTP/1.1");
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
        if let Some(value) = header.strip_prefix("content-type: ") {
            assert_eq!(value, "application/x-protobuf");
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    taken.take(ExportTraceServiceRequest::decode(body.as_slice()).unwrap());
    let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
    let stream = reader.get_mut();
    stream.write_all(answer).and_then(|()| stream.flush()).is_ok()
}

/// Accepts connections, for as long as it is there, and never answers.
pub(crate) struct Mute {
    pub(crate) endpoint: String,
    _listener: TcpListener,
}

impl Mute {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { endpoint: format!("http://{}", listener.local_addr().unwrap()), _listener: listener }
    }
}
