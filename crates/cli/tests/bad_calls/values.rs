//! Messages that several kinds of nonsense are made of.

use std::collections::BTreeMap;

use orlop_api::containerd::services::content::v1 as content;
use orlop_api::containerd::types;
use orlop_oci::Digest;
use prost::{Message, Name};
use prost_types::Any;

/// The config of an image without layers.
pub(crate) const CONFIG: &[u8] =
    br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"config":{}}"#;

/// The manifest of an image without layers.
pub(crate) fn manifest() -> Vec<u8> {
    let (digest, size) = (Digest::of(CONFIG), CONFIG.len());
    let config =
        format!(r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":{size}}}"#);
    format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{config},"layers":[]}}"#).into_bytes()
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The digest of [`manifest`].
pub(crate) fn blob() -> String {
    Digest::of(&manifest()).to_string()
}

/// A descriptor of [`manifest`].
pub(crate) fn target() -> Option<types::Descriptor> {
    let size = manifest().len() as i64;
    Some(types::Descriptor { media_type: MANIFEST.into(), digest: blob(), size, ..Default::default() })
}

/// A write that commits at once.
pub(crate) fn write(reference: &str, data: &[u8], labels: BTreeMap<String, String>) -> content::WriteContentRequest {
    content::WriteContentRequest {
        action: content::WriteAction::Commit.into(),
        r#ref: reference.into(),
        data: data.to_vec().into(),
        labels,
        ..Default::default()
    }
}

/// A label that keeps what has it.
pub(crate) fn kept() -> BTreeMap<String, String> {
    [("containerd.io/gc.root".to_owned(), "yes".to_owned())].into()
}

/// A message within a message, under its own name.
pub(crate) fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// A write of five bytes that goes on.
pub(crate) fn begun(reference: &str) -> content::WriteContentRequest {
    content::WriteContentRequest {
        action: content::WriteAction::Write.into(),
        ..write(reference, b"begun", BTreeMap::new())
    }
}
