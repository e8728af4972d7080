//! What a verbose ImageStatus tells: containerd's `info`, and `orlop` with what Orlop knows besides.

use std::collections::BTreeMap;

use orlop_image::{CriImage, Images};
use orlop_metadata::Scope;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tonic::Status;

use super::{ACTOR, NAMESPACE};
use crate::status::ToStatus;

/// Configs are read whole; larger ones cannot have been pulled.
const MAX_CONFIG_BYTES: u64 = orlop_oci::MAX_MANIFEST_BYTES;

/// The documents for one image.
pub(super) async fn of(images: &Images, image: &CriImage) -> Result<BTreeMap<String, String>, Status> {
    let content = images.store().content(&Scope::new(NAMESPACE, ACTOR));
    let config = orlop_content::read_verified(&content, image.gist.id.digest(), MAX_CONFIG_BYTES).await;
    let config = config.map_err(|e| e.to_status())?;
    let chain = image.gist.chain_id.as_ref().map(ToString::to_string).unwrap_or_default();
    let info = serde_json::json!({ "chainID": chain, "imageSpec": image_spec(&config) });
    let texts = [("info", info), ("orlop", explanation(image))];
    Ok(texts.into_iter().map(|(name, value)| (name.to_owned(), value.to_string())).collect())
}

/// What the image is here, in words that need no look at the records.
fn explanation(image: &CriImage) -> Value {
    let reasons: Vec<String> = image.pinned.iter().map(ToString::to_string).collect();
    let pinned = match reasons.as_slice() {
        [] => "kubelet may remove it when the disk fills".to_owned(),
        reasons => format!("kubelet is asked to keep it: {}", reasons.join("; ")),
    };
    serde_json::json!({
        "explanation": format!(
            "image {} has {} records in the namespace {NAMESPACE}; removing it by any name removes all of them. {pinned}.",
            image.gist.id, image.names.len()
        ),
        "records": image.names.iter().map(|name| name.to_string()).collect::<Vec<_>>(),
        "target": {
            "digest": image.target.digest.to_string(),
            "mediaType": image.target.media_type,
            "size": image.target.size,
        },
        "manifest": image.gist.manifest.to_string(),
        "pinned": reasons,
    })
}

/// A config as containerd shows it: the members that the OCI image specification names, and of those none that are empty
/// where its types leave them out. A config that is not of these types is shown as it is.
fn image_spec(raw: &[u8]) -> Value {
    let spec: Option<ImageSpec> = serde_json::from_slice(raw).ok();
    let value = spec.and_then(|spec| serde_json::to_value(spec).ok());
    value.or_else(|| serde_json::from_slice(raw).ok()).unwrap_or(Value::Null)
}

type Set = BTreeMap<String, Value>;

#[derive(Serialize, Deserialize)]
struct ImageSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(default, skip_serializing_if = "is_empty")]
    author: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    os: Option<String>,
    #[serde(default, rename = "os.version", skip_serializing_if = "is_empty")]
    os_version: Option<String>,
    #[serde(default, rename = "os.features", skip_serializing_if = "none")]
    os_features: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "is_empty")]
    variant: Option<String>,
    #[serde(default)]
    config: Option<Config>,
    #[serde(default)]
    rootfs: RootFs,
    #[serde(default, skip_serializing_if = "none")]
    history: Option<Vec<History>>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default, skip_serializing_if = "is_empty")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "no_members")]
    exposed_ports: Option<Set>,
    #[serde(default, skip_serializing_if = "none")]
    env: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "none")]
    entrypoint: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "none")]
    cmd: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "no_members")]
    volumes: Option<Set>,
    #[serde(default, skip_serializing_if = "is_empty")]
    working_dir: Option<String>,
    #[serde(default, skip_serializing_if = "no_members")]
    labels: Option<Set>,
    #[serde(default, skip_serializing_if = "is_empty")]
    stop_signal: Option<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    args_escaped: Option<bool>,
}

#[derive(Default, Serialize, Deserialize)]
struct RootFs {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    diff_ids: Option<Vec<String>>,
}

#[derive(Serialize, Deserialize)]
struct History {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(default, skip_serializing_if = "is_empty")]
    created_by: Option<String>,
    #[serde(default, skip_serializing_if = "is_empty")]
    author: Option<String>,
    #[serde(default, skip_serializing_if = "is_empty")]
    comment: Option<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    empty_layer: Option<bool>,
}

#[allow(clippy::ref_option, reason = "serde passes the field")]
fn is_empty(text: &Option<String>) -> bool {
    text.as_ref().is_none_or(String::is_empty)
}

#[allow(clippy::ref_option, reason = "serde passes the field")]
fn none<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

#[allow(clippy::ref_option, reason = "serde passes the field")]
fn no_members(set: &Option<Set>) -> bool {
    set.as_ref().is_none_or(Set::is_empty)
}

fn is_false(flag: &Option<bool>) -> bool {
    *flag != Some(true)
}
