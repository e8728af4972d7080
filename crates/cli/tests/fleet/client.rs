//! A client of a registry that knows what it was told: pushes and pulls, by whichever gateway.

use orlop_oci::{Digest, media_type};
use reqwest::{Client as Http, Response, StatusCode};
use serde_json::{Value, json};

/// Why a call did not do what it should.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// 503, 429, or a connection that broke: to be tried again.
    Away(String),
    /// The registry does not have what it was to have.
    Missing(String),
    /// Nothing else may be answered.
    Wrong(String),
}

pub(crate) type Result<T> = std::result::Result<T, Trouble>;

/// An image of some layers, and its manifest.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) manifest: Vec<u8>,
}

impl Image {
    /// `config` makes it another one than others of the same layers.
    pub(crate) fn new(config: &str, mut layers: Vec<Vec<u8>>) -> Self {
        let descriptor =
            |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()});
        let config = format!(r#"{{"architecture":"amd64","os":"linux","name":"{config}"}}"#).into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": descriptor(media_type::OCI_CONFIG, &config),
            "layers": layers.iter().map(|layer| descriptor(media_type::OCI_LAYER, layer)).collect::<Vec<Value>>(),
        });
        layers.push(config);
        Self { layers, manifest: manifest.to_string().into_bytes() }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }
}

/// Speaks to one gateway.
#[derive(Clone)]
pub(crate) struct Client {
    http: Http,
    pub(crate) host: String,
}

impl Client {
    pub(crate) fn new(http: &Http, host: &str) -> Self {
        Self { http: http.clone(), host: host.to_owned() }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host)
    }

    async fn send(&self, request: reqwest::RequestBuilder, what: &str) -> Result<Response> {
        let response = request.send().await.map_err(|e| Trouble::Away(format!("{what}: {e:?}")))?;
        let status = response.status();
        match status {
            _ if status.is_success() => Ok(response),
            StatusCode::SERVICE_UNAVAILABLE => {
                if response.headers().get("retry-after").is_none() {
                    return Err(Trouble::Wrong(format!("{what}: 503 without Retry-After")));
                }
                Err(Trouble::Away(format!("{what}: 503")))
            }
            StatusCode::TOO_MANY_REQUESTS => Err(Trouble::Away(format!("{what}: 429"))),
            StatusCode::NOT_FOUND => Err(Trouble::Missing(format!("{what}: 404"))),
            _ => {
                let text = response.text().await.unwrap_or_default();
                let trouble = format!("{what}: {status} {text}");
                if text.contains("MANIFEST_BLOB_UNKNOWN") {
                    return Err(Trouble::Missing(trouble));
                }
                Err(Trouble::Wrong(trouble))
            }
        }
    }

    /// Pushes a blob unless it is there: in two chunks and the closing request, or at once.
    pub(crate) async fn push_blob(&self, repository: &str, bytes: &[u8], chunked: bool) -> Result<()> {
        let digest = Digest::of(bytes);
        let blob = self.url(&format!("/v2/{repository}/blobs/{digest}"));
        match self.send(self.http.head(&blob), "HEAD blob").await {
            Ok(_) => return Ok(()),
            Err(Trouble::Missing(_)) => {}
            Err(trouble) => return Err(trouble),
        }
        let post = self.http.post(self.url(&format!("/v2/{repository}/blobs/uploads/")));
        let mut location = location(&self.send(post, "POST upload").await?)?;
        let half = if chunked { bytes.len() / 2 } else { 0 };
        if chunked {
            let patch = self.http.patch(self.url(&location)).body(bytes[..half].to_vec());
            location = self::location(&self.send(patch, "PATCH upload").await?)?;
        }
        let put = self.http.put(format!("{}?digest={digest}", self.url(&location))).body(bytes[half..].to_vec());
        self.send(put, "PUT upload").await.map(drop)
    }

    pub(crate) async fn push_manifest(&self, repository: &str, image: &Image, tag: &str) -> Result<()> {
        let put = self.http.put(self.url(&format!("/v2/{repository}/manifests/{tag}")));
        let put = put.header("content-type", media_type::OCI_MANIFEST).body(image.manifest.clone());
        self.send(put, "PUT manifest").await.map(drop)
    }

    pub(crate) async fn push_blobs(&self, repository: &str, image: &Image, chunked: bool) -> Result<()> {
        for layer in &image.layers {
            self.push_blob(repository, layer, chunked).await?;
        }
        Ok(())
    }

    pub(crate) async fn push(&self, repository: &str, image: &Image, tag: &str, chunked: bool) -> Result<()> {
        self.push_blobs(repository, image, chunked).await?;
        self.push_manifest(repository, image, tag).await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Vec<u8>> {
        let response = self.send(self.http.get(self.url(path)), &format!("GET {path}")).await?;
        let bytes = response.bytes().await.map_err(|e| Trouble::Away(format!("GET {path}: {e:?}")))?;
        Ok(bytes.to_vec())
    }

    /// Pulls an image by its digest and compares every byte.
    pub(crate) async fn pull(&self, repository: &str, image: &Image) -> Result<()> {
        let path = format!("/v2/{repository}/manifests/{}", image.digest());
        if self.get(&path).await? != image.manifest {
            return Err(Trouble::Wrong(format!("{path}: other bytes")));
        }
        for layer in &image.layers {
            let path = format!("/v2/{repository}/blobs/{}", Digest::of(layer));
            if self.get(&path).await? != *layer {
                return Err(Trouble::Wrong(format!("{path}: other bytes")));
            }
        }
        Ok(())
    }

    pub(crate) async fn delete(&self, repository: &str, image: &Image) -> Result<()> {
        let path = format!("/v2/{repository}/manifests/{}", image.digest());
        self.send(self.http.delete(self.url(&path)), "DELETE manifest").await.map(drop)
    }
}

fn location(response: &Response) -> Result<String> {
    let location = response.headers().get("location").and_then(|value| value.to_str().ok());
    location.map(str::to_owned).ok_or_else(|| Trouble::Wrong("no Location".to_owned()))
}
