//! Calls as bytes over a connection of their own: no client between a test and the server.

use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;

/// A call as bytes; its status and message.
pub async fn raw(socket: &Path, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (String, String) {
    let found = answered(socket, path, headers, body).await.expect("an answer");
    let text = |name: &str| found.get(name).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
    (text("grpc-status"), text("grpc-message"))
}

/// Headers and trailers of a call.
pub async fn answered(
    socket: &Path,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<http::HeaderMap, hyper::Error> {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = http::Request::post(format!("http://orlop.local{path}")).header("te", "trailers");
    for (name, value) in [("content-type", "application/grpc"), ("containerd-namespace", "test")].iter().chain(headers)
    {
        request = request.header(*name, *value);
    }
    let response = client.send_request(request.body(Full::new(Bytes::copy_from_slice(body))).unwrap()).await?;
    let mut found = response.headers().clone();
    if let Some(trailers) = response.into_body().collect().await?.trailers() {
        found.extend(trailers.clone());
    }
    Ok(found)
}

/// A message as it travels.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(message);
    bytes
}
