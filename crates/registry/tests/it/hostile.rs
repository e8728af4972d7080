//! Whatever a client sends, the answer is one of the specification's, never the registry's own failure.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderValue, Method, Request, StatusCode};
use orlop_content::MemoryStore;
use orlop_registry::{MemoryIndex, Registry};
use orlop_testkit::tier::amount;
use proptest::prelude::*;

/// Paths that are nearly right, and paths that are nothing.
fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof!["[a-z]{1,3}(/[a-z]{1,3})?", "[a-zA-Z0-9./_%-]{0,12}", Just("blobs/uploads".to_owned())];
    let end = prop_oneof![
        Just("/blobs/uploads/".to_owned()),
        "/blobs/uploads/[0-9a-f]{32}",
        "/blobs/(sha256|sha512|md5)(:|%3A|%3a)[0-9a-f]{0,128}",
        "/blobs/sha256:[0-9a-f]{64}",
        "/manifests/[a-zA-Z0-9:._%-]{0,20}",
        "/manifests/sha256:[0-9a-f]{64}",
        "/referrers/sha256:[0-9a-f]{63,65}",
        Just("/tags/list".to_owned()),
        "/[ -~&&[^ #?\"<>\\\\^`{|}]]{0,30}",
    ];
    let query = prop_oneof![
        3 => Just(String::new()),
        1 => "\\?(n|last|digest|mount|from|artifactType|tag)=[a-z0-9:%/-]{0,20}(&(n|last|from|tag)=[a-z0-9%+-]{0,10})?",
        1 => "\\?digest=sha256:[0-9a-f]{64}",
    ];
    (name, end, query).prop_map(|(name, end, query)| format!("/v2/{name}{end}{query}"))
}

fn method() -> impl Strategy<Value = Method> {
    let methods =
        [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
    proptest::sample::select(methods.to_vec())
}

fn headers() -> impl Strategy<Value = Vec<(&'static str, Vec<u8>)>> {
    let names = ["range", "content-range", "content-length", "content-type", "accept"];
    let value = prop_oneof!["(bytes[ =])?[0-9]{0,20}-[0-9]{0,20}(/[0-9*]{0,3})?", "[ -~]{0,20}"];
    let bytes = prop_oneof![value.prop_map(String::into_bytes), proptest::collection::vec(0x80_u8..=0xff, 0..5)];
    proptest::collection::vec((proptest::sample::select(names.to_vec()), bytes), 0..3)
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let manifest =
        r#"\{"schemaVersion":[0-3],"(config|manifests|layers|subject)":(\{\}|\[\]|null|\[\{"digest":"sha256:0"\}\])\}"#;
    prop_oneof![Just(Vec::new()), manifest.prop_map(String::into_bytes), proptest::collection::vec(any::<u8>(), 0..100)]
}

fn cases(few: u32) -> ProptestConfig {
    let cases = amount("PROPTEST_CASES", few);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn any_requests_get_an_answer(
        requests in proptest::collection::vec((method(), path(), headers(), body()), 1..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let registry = Registry::new(Arc::new(MemoryStore::new()), Arc::new(MemoryIndex::new()));
            for (method, path, headers, body) in requests {
                let Ok(mut request) = Request::builder().method(method.clone()).uri(&path).body(Body::from(body)) else {
                    continue;
                };
                for (name, value) in headers {
                    if let Ok(value) = HeaderValue::from_bytes(&value) {
                        request.headers_mut().insert(name, value);
                    }
                }
                let response = registry.handle(request).await;
                let status = response.status();
                assert!(status.is_success() || status.is_client_error(), "{method} {path}: {status}");
                let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
                if status.is_client_error() && method != Method::HEAD {
                    let document: serde_json::Value = serde_json::from_slice(&body).unwrap();
                    assert!(document["errors"][0]["code"].is_string(), "{method} {path}: {document}");
                }
                assert!(status != StatusCode::METHOD_NOT_ALLOWED || method != Method::GET || path.contains("/uploads"));
            }
        });
    }
}
