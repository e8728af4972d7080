//! Orlop's words for spans and their fields, put into OpenTelemetry's (semantic conventions for RPC and HTTP).
//!
//! | span | becomes |
//! |---|---|
//! | `call` | a server span with the call's name, `rpc.*`, and an error where the server is at fault |
//! | `request` | a client span with the method's name, `http.*` and `server.*`, and an error from status 400 on |
//! | others | themselves |
//!
//! Fields that OpenTelemetry has no name for get the prefix `orlop.`; `error` becomes the status of a span.

use opentelemetry::trace::{SpanKind, Status};
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::trace::SpanData;

/// No text is longer: what waits in the queue is bounded by number.
const MAX_TEXT_BYTES: usize = 1024;

/// Fields that are unsigned numbers, which the layer writes out.
const NUMBERS: [&str; 5] = ["offset", "pid", "size", "status", "uid"];

/// gRPC's codes in order.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Codes that make a server's span an error.
const FAULTS: [&str; 6] = ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];

/// Puts a span into OpenTelemetry's words.
pub(super) fn apply(span: &mut SpanData) {
    let fields = std::mem::take(&mut span.attributes);
    let kind = match span.name.as_ref() {
        "call" => Kind::Call,
        "request" => Kind::Request,
        _ => Kind::Other,
    };
    match kind {
        Kind::Call => {
            span.span_kind = SpanKind::Server;
            span.attributes.push(KeyValue::new("rpc.system", "grpc"));
        }
        Kind::Request => span.span_kind = SpanKind::Client,
        Kind::Other => {}
    }
    for KeyValue { key, value, .. } in fields {
        let value = plain(key.as_str(), value);
        match (&kind, key.as_str()) {
            (_, "error") => span.status = Status::error(value.as_str().into_owned()),
            (Kind::Call, "method") => called(span, &value.as_str()),
            (Kind::Call, "code") => ended(span, &value.as_str()),
            (Kind::Call, "id") => span.attributes.push(KeyValue::new("orlop.request_id", value)),
            (Kind::Call, name @ ("pid" | "uid")) => {
                span.attributes.push(KeyValue::new(format!("orlop.peer.{name}"), value));
            }
            (Kind::Request, "method") => {
                span.name = value.as_str().into_owned().into();
                span.attributes.push(KeyValue::new("http.request.method", value));
            }
            (Kind::Request, "host") => asked(span, &value.as_str()),
            (Kind::Request, "status") => answered(span, value),
            (_, name) => span.attributes.push(KeyValue::new(format!("orlop.{name}"), value)),
        }
    }
}

enum Kind {
    Call,
    Request,
    Other,
}

fn called(span: &mut SpanData, path: &str) {
    let name = path.trim_start_matches('/').to_owned();
    if let Some((service, method)) = name.split_once('/') {
        span.attributes.push(KeyValue::new("rpc.service", service.to_owned()));
        span.attributes.push(KeyValue::new("rpc.method", method.to_owned()));
    }
    span.name = name.into();
}

fn ended(span: &mut SpanData, code: &str) {
    let number = CODES.iter().position(|known| *known == code).and_then(|at| i64::try_from(at).ok());
    span.attributes.extend(number.map(|number| KeyValue::new("rpc.grpc.status_code", number)));
    if FAULTS.contains(&code) {
        span.status = Status::error(code.to_owned());
    }
}

fn asked(span: &mut SpanData, host: &str) {
    let (name, port) = match host.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse::<i64>().ok()?))) {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    span.attributes.push(KeyValue::new("server.address", name.to_owned()));
    span.attributes.extend(port.map(|port| KeyValue::new("server.port", port)));
}

fn answered(span: &mut SpanData, status: Value) {
    if let Value::I64(400..) = status {
        span.status = Status::error("");
        span.attributes.push(KeyValue::new("error.type", status.as_str().into_owned()));
    }
    span.attributes.push(KeyValue::new("http.response.status_code", status));
}

/// Numbers as numbers, and texts cut to what they may have.
fn plain(key: &str, value: Value) -> Value {
    let Value::String(text) = &value else { return value };
    let text = text.as_str();
    if let Some(number) = text.parse().ok().filter(|_| NUMBERS.contains(&key)) {
        return Value::I64(number);
    }
    match text.len() {
        ..=MAX_TEXT_BYTES => value,
        _ => Value::String(text[..text.floor_char_boundary(MAX_TEXT_BYTES)].to_owned().into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use opentelemetry::trace::{SpanContext, SpanId};
    use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};

    use super::*;

    fn applied(name: &'static str, fields: Vec<KeyValue>) -> SpanData {
        let mut span = SpanData {
            span_context: SpanContext::empty_context(),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: SystemTime::UNIX_EPOCH,
            end_time: SystemTime::UNIX_EPOCH,
            attributes: fields,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: opentelemetry::InstrumentationScope::default(),
        };
        apply(&mut span);
        span
    }

    fn has(span: &SpanData, key: &'static str, value: impl Into<Value>) {
        let wanted = KeyValue::new(key, value);
        assert!(span.attributes.contains(&wanted), "{wanted:?} is not in {:?}", span.attributes);
    }

    #[test]
    fn a_call_that_the_client_got_wrong_is_no_error_and_one_that_failed_is() {
        for (code, number, status) in [
            ("OK", 0, Status::Unset),
            ("CANCELLED", 1, Status::Unset),
            ("NOT_FOUND", 5, Status::Unset),
            ("INTERNAL", 13, Status::error("INTERNAL")),
            ("UNAUTHENTICATED", 16, Status::Unset),
        ] {
            let span = applied("call", vec![KeyValue::new("method", "/a.B/C"), KeyValue::new("code", code)]);
            has(&span, "rpc.grpc.status_code", number);
            assert_eq!((span.name.as_ref(), span.status), ("a.B/C", status), "{code}");
        }
    }

    #[test]
    fn a_request_names_its_host_and_port() {
        let fields =
            vec![KeyValue::new("method", "GET"), KeyValue::new("host", "[::1]:5000"), KeyValue::new("status", "404")];
        let span = applied("request", fields);
        has(&span, "server.address", "[::1]");
        has(&span, "server.port", 5000);
        has(&span, "http.response.status_code", 404);
        has(&span, "error.type", "404");
        assert_eq!((span.name.as_ref(), span.span_kind), ("GET", SpanKind::Client));
        has(&applied("request", vec![KeyValue::new("host", "ghcr.io")]), "server.address", "ghcr.io");
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let span =
            applied("pull", vec![KeyValue::new("image", "é".repeat(1000)), KeyValue::new("error", "x".repeat(5000))]);
        has(&span, "orlop.image", "é".repeat(512));
        assert_eq!(span.status, Status::error("x".repeat(1024)));
    }
}
