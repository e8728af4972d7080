//! A registry over loopback HTTP and small images to push to it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::sync::Arc;

use bytes::Bytes;
use orlop_content::MemoryStore;
use orlop_oci::{Digest, media_type};
use orlop_registry::{MemoryIndex, Registry, ServeOptions, Server};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A registry in memory and a client of it.
pub struct Peer {
    pub server: Server,
    pub client: Client,
    pub store: MemoryStore,
    pub registry: Registry,
}

impl Peer {
    pub async fn start() -> Self {
        let store = MemoryStore::new();
        let registry = Registry::new(Arc::new(store.clone()), Arc::new(MemoryIndex::new()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = registry.clone().serve(listener, ServeOptions::default()).unwrap();
        Self { server, client: Client::new(), store, registry }
    }

    pub fn host(&self) -> String {
        self.server.address().to_string()
    }

    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let url = format!("http://{}{path}", self.server.address());
        self.client.request(Method::from_bytes(method.as_bytes()).unwrap(), url)
    }

    pub async fn get(&self, path: &str) -> Response {
        self.request("GET", path).send().await.unwrap()
    }

    pub async fn start_upload(&self, name: &str) -> String {
        let response = self.request("POST", &format!("/v2/{name}/blobs/uploads/")).send().await.unwrap();
        assert_eq!(response.status(), 202);
        header(&response, "location").to_owned()
    }

    pub async fn push_blob(&self, name: &str, bytes: &Bytes) -> Digest {
        let digest = Digest::of(bytes);
        let location = self.start_upload(name).await;
        let put = self.request("PUT", &format!("{location}?digest={digest}")).body(bytes.clone());
        assert_eq!(put.send().await.unwrap().status(), 201);
        digest
    }

    pub async fn push_manifest(&self, name: &str, reference: &str, manifest: &Value) -> Response {
        let media_type = manifest["mediaType"].as_str().unwrap_or(media_type::OCI_MANIFEST);
        let put = self.request("PUT", &format!("/v2/{name}/manifests/{reference}"));
        put.header("content-type", media_type).body(manifest.to_string()).send().await.unwrap()
    }

    /// An image of one config and one layer, made of `seed`; its manifest.
    pub async fn push_image(&self, name: &str, tag: &str, seed: &str) -> Value {
        let config = Bytes::from(format!(r#"{{"architecture":"amd64","os":"linux","seed":"{seed}"}}"#));
        let layer = Bytes::from(seed.repeat(1000));
        self.push_blob(name, &config).await;
        self.push_blob(name, &layer).await;
        let manifest = image(&config, &layer);
        assert_eq!(self.push_manifest(name, tag, &manifest).await.status(), 201);
        manifest
    }
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
}

pub fn image(config: &Bytes, layer: &Bytes) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": descriptor(media_type::OCI_CONFIG, config),
        "layers": [descriptor(media_type::OCI_LAYER, layer)],
    })
}

pub fn digest_of(document: &Value) -> Digest {
    Digest::of(document.to_string().as_bytes())
}

pub fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).unwrap_or_else(|| panic!("no {name} in {response:?}")).to_str().unwrap()
}

/// The specification's error code of an answer.
pub async fn code(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    (status, body["errors"][0]["code"].as_str().unwrap().to_owned())
}
