//! Media types of manifests, configs and layers.

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, plain tar.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer, gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI layer, zstd.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// The two-byte document `{}` of artifacts without a config (image-spec manifest.md, "Guidance for an Empty Descriptor").
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Docker schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker schema 2 manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker schema 1 manifest: recognised in order to be refused.
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
/// Docker schema 1 signed manifest: recognised in order to be refused.
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
/// Docker image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer, gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer, zstd (as BuildKit writes it).
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
/// Docker layer, plain tar.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker layer that registries may not distribute.
pub const DOCKER_LAYER_FOREIGN_GZIP: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

/// How a layer's tar is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Plain tar.
    None,
    /// gzip (RFC 1952), possibly of several members.
    Gzip,
    /// zstd (RFC 8878), possibly of several frames.
    Zstd,
}

/// What a media type says about a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MediaKind {
    /// A manifest of one image or artifact.
    Manifest,
    /// An index (Docker: manifest list).
    Index,
    /// An image config.
    Config,
    /// A file system layer.
    Layer {
        /// How it is packed.
        compression: Compression,
        /// Whether it is non-distributable ("foreign"): named by URLs, perhaps not in the registry.
        foreign: bool,
    },
    /// Docker schema 1, which Orlop refuses.
    Schema1,
    /// Anything else: an artifact's blob, or unknown.
    Other,
}

impl MediaKind {
    /// Classifies a media type; parameters after `;` are ignored.
    pub fn of(media_type: &str) -> Self {
        let name = media_type.split(';').next().unwrap_or("").trim();
        match name {
            OCI_MANIFEST | DOCKER_MANIFEST => Self::Manifest,
            OCI_INDEX | DOCKER_LIST => Self::Index,
            OCI_CONFIG | DOCKER_CONFIG => Self::Config,
            DOCKER_SCHEMA1 | DOCKER_SCHEMA1_SIGNED => Self::Schema1,
            _ => Self::layer(name).unwrap_or(Self::Other),
        }
    }

    fn layer(name: &str) -> Option<Self> {
        const OCI: &str = "application/vnd.oci.image.layer.v1.";
        const OCI_FOREIGN: &str = "application/vnd.oci.image.layer.nondistributable.v1.";
        const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.";
        const DOCKER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.";
        let (rest, foreign) = [(OCI, false), (OCI_FOREIGN, true), (DOCKER, false), (DOCKER_FOREIGN, true)]
            .into_iter()
            .find_map(|(prefix, foreign)| name.strip_prefix(prefix).map(|rest| (rest, foreign)))?;
        let compression = match rest {
            "tar" => Compression::None,
            "tar+gzip" | "tar.gzip" => Compression::Gzip,
            "tar+zstd" | "tar.zstd" => Compression::Zstd,
            _ => return None,
        };
        Some(Self::Layer { compression, foreign })
    }

    /// Whether this is a file system layer of any packing.
    pub const fn is_layer(self) -> bool {
        matches!(self, Self::Layer { .. })
    }
}
