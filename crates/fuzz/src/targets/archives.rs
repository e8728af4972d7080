//! What is imported: docker-archives and OCI layouts in a tar. The first byte is flags; the rest is the archive.
//!
//! What is refused leaves no record and, after a collection, nothing at all. What is taken is complete: a deep check finds
//! nothing, every record has a target that is there. Removed again, it leaves nothing.

use std::path::Path;
use std::sync::Arc;

use orlop_content::LocalStore;
use orlop_image::{CheckRequest, Images, ImportRequest, Settings};
use orlop_metadata::gc::Disposal;
use orlop_metadata::{OpenOptions, Scope, Store};
use orlop_oci::Compression;
use orlop_snapshot::{Driver, NativeDriver};
use orlop_testkit::archive::{docker_archive, oci_archive};
use orlop_testkit::compress;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::{Target, tar_apply};
use crate::scratch;

/// See the module.
pub const TARGET: Target = Target {
    name: "archives",
    run,
    seeds,
    words: &[
        b"manifest.json",
        b"index.json",
        b"oci-layout",
        b"blobs/sha256/",
        b"RepoTags",
        b"\"Layers\":[",
        b"../",
        b"null",
        b"linux",
        b"io.containerd.image.name",
    ],
    limit: 48 << 10,
    isolated: false,
};

/// The checksums of headers are made right, so that damage gets beyond them.
const SUM: u8 = 1;
const GZIP: u8 = 2;
const ZSTD: u8 = 4;
const ALL_PLATFORMS: u8 = 8;
const CONTENT_ONLY: u8 = 16;

/// A store of its own, in memory where that is possible.
pub(super) struct Rig {
    pub(super) images: Images,
    pub(super) scope: Scope,
    pub(super) runtime: Runtime,
    _directory: TempDir,
}

impl Rig {
    pub(super) fn new() -> Self {
        let directory = scratch::directory();
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let images = Images::new(open(directory.path()), Settings::default());
        Self { images, scope: Scope::new("k8s.io", "fuzz"), runtime, _directory: directory }
    }

    pub(super) fn import(&self, archive: &[u8], request: &ImportRequest) -> orlop_image::Result<()> {
        let mut archive = archive;
        self.runtime.block_on(self.images.import(&self.scope, &mut archive, request, &|_| {})).map(drop)
    }

    pub(super) fn names(&self) -> Vec<String> {
        let found = self.images.store().images(&self.scope.namespace, &[]).expect("records can be listed");
        found.into_iter().map(|image| image.name).collect()
    }

    pub(super) fn is_sound(&self) {
        let request = CheckRequest { deep: true, name: None };
        let problems = self.runtime.block_on(self.images.check(&self.scope, &request)).expect("a store can be checked");
        assert!(problems.is_empty(), "{problems:?}");
    }

    /// Removes every record, and what only they kept.
    pub(super) fn clear(&self) {
        for name in self.names() {
            self.images.store().delete_image(&self.scope, &name, None).expect("a record can be deleted");
        }
        self.collect();
        let content = self.images.store().content(&self.scope).find(&[]).expect("content can be listed");
        assert!(content.is_empty(), "kept by nothing: {content:?}");
        let snapshots = self.images.store().snapshots(&self.scope, "").and_then(|s| s.list(&[])).expect("snapshots");
        assert!(snapshots.is_empty(), "kept by nothing: {snapshots:?}");
        assert!(self.images.store().leases(&self.scope.namespace, &[]).expect("leases").is_empty());
    }

    pub(super) fn collect(&self) {
        self.images.store().collect(Disposal::Reclaim).expect("garbage can be collected");
    }
}

/// A store whose trees are copies: mounting is not needed.
pub(super) fn open(root: &Path) -> Store {
    let content = Arc::new(LocalStore::open(root.join("content")).expect("content"));
    let native: Arc<dyn Driver> = Arc::new(NativeDriver::open(root.join("snapshots/native")).expect("a driver"));
    Store::open(root, OpenOptions { content, drivers: vec![native], read_only: false }).expect("a store")
}

thread_local! {
    static RIG: Rig = Rig::new();
}

fn run(bytes: &[u8]) {
    let Some((flags, archive)) = bytes.split_first() else { return };
    let mut archive = archive.to_vec();
    if flags & SUM != 0 {
        tar_apply::sum(&mut archive);
    }
    if flags & GZIP != 0 {
        archive = compress::gzip(&archive);
    } else if flags & ZSTD != 0 {
        archive = compress::zstd(&archive);
    }
    let request = ImportRequest {
        all_platforms: flags & ALL_PLATFORMS != 0,
        no_unpack: flags & CONTENT_ONLY != 0,
        base_name: "example.com/fuzz".to_owned(),
        ..ImportRequest::default()
    };
    RIG.with(|rig| {
        match rig.import(&archive, &request) {
            Ok(()) => {
                assert!(!rig.names().is_empty(), "nothing has a name");
                rig.is_sound();
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert_eq!(rig.names(), Vec::<String>::new(), "refused ({error}), and has names");
            }
        }
        rig.clear();
    });
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let layer = Layer::new([Entry::dir("etc"), Entry::file("etc/hostname", "orlop\n")]);
    let upper = Layer::new([Entry::whiteout("etc/hostname"), Entry::symlink("l", "etc")]).packed(Compression::Zstd);
    let image = Image::host().layer(layer.clone()).layer(upper);
    let content = Content::image(&image);
    let arm = Content::image(&Image::new("linux/arm64").layer(layer));
    let attested = Content::attestation(&content);
    let index = Content::index(&[content.clone(), arm, attested]);
    let nested = Content::index(std::slice::from_ref(&index));
    let artifact = Content::artifact("application/x", &[("text/plain", b"about")], Some(&content.root));
    let docker = docker_archive(&[(&["example.com/app:1", "app:2"], &image), (&[], &image)]);
    let oci = |content: &Content| oci_archive(&[("docker.io/library/app:1", content)]);
    let all = [
        ("docker", SUM, docker.clone()),
        ("docker-gzip", SUM | GZIP, docker.clone()),
        ("docker-zstd", SUM | ZSTD | CONTENT_ONLY, docker),
        ("oci", SUM, oci(&content)),
        ("oci-index", SUM | ALL_PLATFORMS, oci(&index)),
        ("oci-nested", SUM, oci(&nested)),
        ("oci-artifact", SUM | CONTENT_ONLY, oci(&artifact)),
    ];
    all.into_iter().map(|(name, flags, bytes)| (name.to_owned(), [&[flags], &bytes[..]].concat())).collect()
}
