//! What there is to pull: one image for each client and a few that all share, whose layers come from one small pool.

use orlop_oci::{ChainId, DiffId, Digest, chain_ids};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::liar::Liar;
use orlop_testkit::tar::Entry;

/// Layers that images are put together from, beside the lowest, which all have.
const POOL: usize = 6;
/// Images that belong to nobody.
pub(crate) const SHARED: usize = 4;

/// An image and where it is.
pub(crate) struct Shelved {
    /// Repository with its host.
    pub(crate) repository: String,
    /// `HOST/REPOSITORY:1`.
    pub(crate) name: String,
    /// The image ID.
    pub(crate) id: String,
    /// The name of its uppermost snapshot.
    pub(crate) chain: ChainId,
    pub(crate) content: Content,
}

impl Shelved {
    pub(crate) fn target(&self) -> &Digest {
        &self.content.root.digest
    }
}

/// A registry on loopback with all of it.
pub(crate) struct Shelf {
    _registry: Liar,
    own: Vec<Shelved>,
    shared: Vec<Shelved>,
}

impl Shelf {
    pub(crate) fn new(clients: usize) -> Self {
        let registry = Liar::start();
        let base = Layer::new([Entry::dir("etc"), Entry::file("etc/os-release", "ID=soak\n"), Entry::dir("var")]);
        let pool: Vec<Layer> =
            (0..POOL).map(|n| Layer::noise(&format!("var/{n}"), n as u64, (n + 1) * 40_000)).collect();
        let shelve = |repository: String, layers: &[usize]| {
            let bottom = Image::host().layer(base.clone()).config("User", repository.clone().into());
            let image = layers.iter().fold(bottom, |image, &n| image.layer(pool[n % POOL].clone()));
            // The uppermost is its own: a container holds the hash references of every image with the same layers.
            let image = image.layer(Layer::new([Entry::file("etc/hostname", repository.clone())]));
            let content = Content::image(&image);
            let diff_ids: Vec<DiffId> = image.layers().iter().map(Layer::diff_id).collect();
            Shelved {
                name: registry.put(&repository, "1", &content),
                repository: format!("{}/{repository}", registry.host()),
                id: content.image_id().unwrap().to_string(),
                chain: chain_ids(&diff_ids).pop().unwrap(),
                content,
            }
        };
        let own = (0..clients).map(|n| shelve(format!("own/{n}"), &[n, n / POOL + n + 1])).collect();
        let shared = (0..SHARED).map(|n| shelve(format!("shared/{n}"), &[n, n + 1, n + 2])).collect();
        Self { _registry: registry, own, shared }
    }

    pub(crate) fn own(&self, client: usize) -> &Shelved {
        &self.own[client]
    }

    pub(crate) fn shared(&self, number: usize) -> &Shelved {
        &self.shared[number]
    }

    /// The image that a record points at.
    pub(crate) fn find(&self, target: &str) -> Option<&Shelved> {
        self.own.iter().chain(&self.shared).find(|image| image.target().as_str() == target)
    }
}
