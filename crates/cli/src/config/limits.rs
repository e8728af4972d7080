//! `[limits]`: how much of an image comes in.

use serde::{Deserialize, Serialize};

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    pub(crate) layer_entries: u64,
    pub(crate) layer_bytes: u64,
    pub(crate) layer_ratio: u64,
    pub(crate) path_bytes: u32,
    pub(crate) directory_depth: u32,
    pub(crate) header_bytes: u32,
    pub(crate) xattr_bytes: u64,
    pub(crate) sparse_regions: usize,
    pub(crate) zstd_window_bytes: u64,
    pub(crate) manifest_bytes: u64,
    pub(crate) index_depth: usize,
    pub(crate) index_documents: usize,
    pub(crate) archive_entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        let limits = orlop_image::Limits::default();
        Self {
            layer_entries: limits.layer.layer_entries,
            layer_bytes: limits.layer.layer_bytes,
            layer_ratio: limits.layer.layer_ratio,
            path_bytes: limits.layer.path_bytes,
            directory_depth: limits.layer.directory_depth,
            header_bytes: limits.layer.header_bytes,
            xattr_bytes: limits.layer.xattr_bytes,
            sparse_regions: limits.layer.sparse_regions,
            zstd_window_bytes: limits.layer.zstd_window_bytes,
            manifest_bytes: limits.manifest_bytes,
            index_depth: limits.index_depth,
            index_documents: limits.index_documents,
            archive_entries: limits.archive_entries,
        }
    }
}

impl Limits {
    /// As the operations take them.
    pub(super) fn to_image(&self) -> orlop_image::Limits {
        let layer = orlop_snapshot::apply::Limits {
            layer_entries: self.layer_entries,
            layer_bytes: self.layer_bytes,
            layer_ratio: self.layer_ratio,
            path_bytes: self.path_bytes,
            directory_depth: self.directory_depth,
            header_bytes: self.header_bytes,
            xattr_bytes: self.xattr_bytes,
            sparse_regions: self.sparse_regions,
            zstd_window_bytes: self.zstd_window_bytes,
        };
        orlop_image::Limits {
            layer,
            manifest_bytes: self.manifest_bytes,
            index_depth: self.index_depth,
            index_documents: self.index_documents,
            archive_entries: self.archive_entries,
        }
    }

    /// What is wrong with a value: its key and why.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let outer = orlop_image::Limits::OUTER;
        for (key, found, least, most) in [
            ("limits.layer_entries", self.layer_entries, 1, u64::MAX),
            ("limits.layer_bytes", self.layer_bytes, 1 << 10, i64::MAX as u64),
            ("limits.layer_ratio", self.layer_ratio, 1, u64::MAX),
            ("limits.path_bytes", self.path_bytes.into(), 64, 4095),
            ("limits.directory_depth", self.directory_depth.into(), 1, 4095),
            ("limits.header_bytes", self.header_bytes.into(), 1 << 10, 64 << 20),
            ("limits.xattr_bytes", self.xattr_bytes, 0, 64 << 20),
            ("limits.sparse_regions", self.sparse_regions as u64, 1, 1 << 20),
            ("limits.zstd_window_bytes", self.zstd_window_bytes, 1 << 10, 1 << 31),
            ("limits.manifest_bytes", self.manifest_bytes, 1 << 10, outer.manifest_bytes),
            ("limits.index_depth", self.index_depth as u64, 1, outer.index_depth as u64),
            ("limits.index_documents", self.index_documents as u64, 1, outer.index_documents as u64),
            ("limits.archive_entries", self.archive_entries, 1, outer.archive_entries),
        ] {
            if !(least..=most).contains(&found) {
                return Err((key, format!("expected {least} to {most}, found {found}")));
            }
        }
        Ok(())
    }
}
