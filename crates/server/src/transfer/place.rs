//! The image store of a transfer.

use orlop_api::containerd::types as wire;
use orlop_api::containerd::types::transfer as types;
use orlop_image::{NameRule, Place};
use orlop_oci::Platform;
use tonic::Status;

/// Where images go, from its message.
pub(super) fn place(store: types::ImageStore) -> Result<Place, Status> {
    let unpack = store.unpacks.into_iter().map(|unpack| {
        let host = Platform::host;
        (unpack.platform.map_or_else(host, platform), unpack.snapshotter)
    });
    Ok(Place {
        name: store.name,
        labels: store.labels,
        platforms: platforms(store.platforms),
        all_metadata: store.all_metadata,
        manifest_limit: usize::try_from(store.manifest_limit)
            .map_err(|_| Status::invalid_argument("manifest_limit is too large"))?,
        rules: store.extra_references.into_iter().map(rule).collect(),
        unpack: unpack.collect(),
    })
}

fn rule(reference: types::ImageReference) -> NameRule {
    NameRule {
        name: reference.name,
        is_prefix: reference.is_prefix,
        allow_overwrite: reference.allow_overwrite,
        add_digest: reference.add_digest,
        skip_named_digest: reference.skip_named_digest,
    }
}

pub(super) fn platforms(platforms: Vec<wire::Platform>) -> Vec<Platform> {
    platforms.into_iter().map(platform).collect()
}

fn platform(platform: wire::Platform) -> Platform {
    let variant = (!platform.variant.is_empty()).then_some(platform.variant.as_str());
    let mut parsed = Platform::new(&platform.os, &platform.architecture, variant);
    parsed.os_version = (!platform.os_version.is_empty()).then_some(platform.os_version);
    parsed.os_features = platform.os_features;
    parsed
}
