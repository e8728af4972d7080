//! What a layer may be at most.

use crate::{Error, Result};

/// Bounds on a layer; each has a default with its reason. The fields are called as the keys of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Entries in the tar.
    pub layer_entries: u64,
    /// Bytes of one path or link target, counted after symbolic links are resolved.
    pub path_bytes: u32,
    /// Directories in a path, one within the other, counted in the same way.
    pub directory_depth: u32,
    /// Bytes of all extension headers (PAX, GNU long names) of one entry.
    pub header_bytes: u32,
    /// Bytes of all extended attributes of one entry.
    pub xattr_bytes: u64,
    /// Regions of one sparse file.
    pub sparse_regions: usize,
    /// Bytes of the uncompressed stream, and of all files' logical sizes.
    pub layer_bytes: u64,
    /// Uncompressed bytes for each compressed byte, once the stream has more than [`Limits::RATIO_FREE_BYTES`].
    pub layer_ratio: u64,
    /// The window that a zstd frame may ask for, in bytes, which is memory. Layers that ask for more than
    /// 8 MiB are unpacked one at a time.
    pub zstd_window_bytes: u64,
}

impl Limits {
    /// Below this size no ratio is suspicious: a gigabyte fits any node.
    pub const RATIO_FREE_BYTES: u64 = 1 << 30;

    /// What holds if nothing is said.
    pub const DEFAULT: Self = Self {
        // The largest known images have a few hundred thousand files a layer.
        layer_entries: 10_000_000,
        // PATH_MAX without the terminating zero: nothing longer could be opened by name.
        path_bytes: 4095,
        // All that a path of that length has room for.
        directory_depth: 2_048,
        // PAX headers of real layers have some hundred bytes; a capability or an ACL adds little.
        header_bytes: 1 << 20,
        // The kernel allows 64 KiB for one value; several of that size have no use in an image.
        xattr_bytes: 256 << 10,
        sparse_regions: 10_000,
        // No node unpacks a tebibyte from one layer by intention.
        layer_bytes: 1 << 40,
        // Deflate cannot exceed 1032; real layers stay under 20, images of empty disks reach some hundred.
        layer_ratio: 500,
        // Levels up to 19, and all builders of images, need 8 MiB, `--ultra -20` needs 32. A pull may take 64 MiB and
        // what its layers take: more would not fit into that.
        zstd_window_bytes: 32 << 20,
    };

    /// That a path whose links are resolved is neither too long nor too deep.
    pub(super) fn check_place(&self, path: &[u8]) -> Result<()> {
        if path.len() > self.path_bytes as usize {
            let limit = self.path_bytes.into();
            return Err(Error::Limit { what: "bytes in a path", key: "path_bytes", limit });
        }
        self.check_depth(path)
    }

    /// That a path is not too deep.
    pub(super) fn check_depth(&self, path: &[u8]) -> Result<()> {
        let depth = path.iter().filter(|byte| **byte == b'/').count();
        if depth > self.directory_depth as usize {
            let limit = self.directory_depth.into();
            return Err(Error::Limit { what: "directories in a path", key: "directory_depth", limit });
        }
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
