//! Between messages and the types of the crates below.

use jiff::Timestamp;
use orlop_api::containerd::types as wire;
use orlop_oci::{Descriptor, Digest, Platform};
use orlop_snapshot::Mount;
use prost_types::FieldMask;
use tonic::Status;

use crate::status::ToStatus;

pub(crate) fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    // jiff's parts have the same sign; protobuf wants the nanoseconds to count upwards.
    let (seconds, nanos) = (time.as_second(), time.subsec_nanosecond());
    if nanos < 0 {
        prost_types::Timestamp { seconds: seconds - 1, nanos: nanos + 1_000_000_000 }
    } else {
        prost_types::Timestamp { seconds, nanos }
    }
}

/// Sizes and counts on the wire are signed.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A size from the wire.
pub(crate) fn unsigned(value: i64, field: &str) -> Result<u64, Status> {
    u64::try_from(value).map_err(|_| Status::invalid_argument(format!("{field} is {value}: expected 0 or more")))
}

pub(crate) fn digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(|e: orlop_oci::DigestError| e.to_status())
}

pub(crate) fn platforms(texts: &[String]) -> Result<Vec<Platform>, Status> {
    texts.iter().map(|t| t.parse().map_err(|e: orlop_oci::PlatformError| e.to_status())).collect()
}

/// A message that may not be left out.
pub(crate) fn required<T>(value: Option<T>, field: &str) -> Result<T, Status> {
    value.ok_or_else(|| Status::invalid_argument(format!("{field} is required")))
}

pub(crate) fn mask(mask: Option<FieldMask>) -> Vec<String> {
    mask.map(|m| m.paths).unwrap_or_default()
}

pub(crate) fn descriptor_to_wire(descriptor: &Descriptor) -> wire::Descriptor {
    wire::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: signed(descriptor.size),
        annotations: descriptor.annotations.clone(),
    }
}

pub(crate) fn descriptor_from_wire(descriptor: wire::Descriptor) -> Result<Descriptor, Status> {
    let size = unsigned(descriptor.size, "descriptor size")?;
    let mut result = Descriptor::new(descriptor.media_type, digest(&descriptor.digest)?, size);
    result.annotations = descriptor.annotations;
    Ok(result)
}

pub(crate) fn mounts_to_wire(mounts: Vec<Mount>) -> Vec<wire::Mount> {
    let mount = |m: Mount| wire::Mount { r#type: m.kind, source: m.source, target: String::new(), options: m.options };
    mounts.into_iter().map(mount).collect()
}

pub(crate) fn mounts_from_wire(mounts: Vec<wire::Mount>) -> Result<Vec<Mount>, Status> {
    mounts.into_iter().map(mount_from_wire).collect()
}

fn mount_from_wire(mount: wire::Mount) -> Result<Mount, Status> {
    if !mount.target.is_empty() {
        return Err(Status::unimplemented(format!("a mount below the mount point, at {:?}", mount.target)));
    }
    Ok(Mount { kind: mount.r#type, source: mount.source, options: mount.options })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_count_upwards() {
        let time = Timestamp::new(-1, -250_000_000).unwrap();
        assert_eq!(timestamp(time), prost_types::Timestamp { seconds: -2, nanos: 750_000_000 });
        let time = Timestamp::new(7, 5).unwrap();
        assert_eq!(timestamp(time), prost_types::Timestamp { seconds: 7, nanos: 5 });
    }
}
