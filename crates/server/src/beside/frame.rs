//! One gRPC message each way: a call that is answered here among those that are passed on.
//!
//! Source: gRPC over HTTP/2, *Length-Prefixed-Message*: a byte that says whether it is compressed, four bytes of length, the message.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, header};
use http_body_util::{BodyExt as _, Full, Limited};
use orlop_api::MAX_MESSAGE_BYTES;
use prost::Message;
use tonic::Status;
use tonic::body::Body;

const PREFIX: usize = 5;

/// All of a request's body.
pub(super) async fn collect(body: Body) -> Result<Bytes, Status> {
    let limited = Limited::new(body, MAX_MESSAGE_BYTES + PREFIX);
    let collected = limited.collect().await;
    let collected = collected.map_err(|error| match error.downcast::<Status>() {
        Ok(status) => *status,
        Err(error) => Status::resource_exhausted(format!("the request could not be read: {error}")),
    })?;
    Ok(collected.to_bytes())
}

/// The one message of a body.
pub(super) fn message<M: Message + Default>(body: &Bytes) -> Result<M, Status> {
    let wrong = |what: &str| Status::internal(format!("expected one message that is not compressed, found {what}"));
    let Some((prefix, rest)) = body.split_at_checked(PREFIX) else { return Err(wrong("less")) };
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if prefix[0] != 0 || length != rest.len() {
        return Err(wrong("something else"));
    }
    M::decode(rest).map_err(|error| Status::internal(format!("the request cannot be decoded: {error}")))
}

/// A body as it came.
pub(super) fn body(bytes: Bytes) -> Body {
    Body::new(Full::new(bytes))
}

/// An answer, or the status of a call that failed.
pub(super) fn answer<M: Message>(answered: Result<M, Status>) -> Response<Body> {
    let message = match answered {
        Ok(message) => message,
        Err(status) => return status.into_http(),
    };
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // A buffer grows: encoding cannot fail.
    let _ = message.encode(&mut framed);
    let mut trailers = HeaderMap::new();
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    let whole = Full::new(framed.freeze()).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(Body::new(whole));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

#[cfg(test)]
mod tests {
    use orlop_api::runtime::v1::PullImageResponse;

    use super::*;

    #[tokio::test]
    async fn what_is_answered_is_read_again_and_what_is_no_message_is_refused() {
        let told = PullImageResponse { image_ref: "sha256:00".to_owned() };
        let answered = answer(Ok(told.clone())).into_body();
        let bytes = collect(answered).await.unwrap();
        assert_eq!(message::<PullImageResponse>(&bytes).unwrap(), told);
        let mut compressed = bytes.to_vec();
        compressed[0] = 1;
        for wrong in [vec![], vec![0; 4], bytes[..bytes.len() - 1].to_vec(), compressed, vec![0, 0, 0, 0, 1, 0xff]] {
            assert!(message::<PullImageResponse>(&wrong.into()).is_err());
        }
        let large = body(vec![0; MAX_MESSAGE_BYTES + PREFIX + 1].into());
        assert_eq!(collect(large).await.unwrap_err().code(), tonic::Code::ResourceExhausted);
    }
}
