//! Layers that are awkward but right, broken, or hostile.
//!
//! - [`awkward`]: must apply; what containerd's serial apply makes of them is right.
//! - [`broken`]: damaged bytes; must be refused.
//! - [`hostile`]: try to reach outside, those among them that are known by a CVE number. May be refused or applied; nothing
//!   outside the root may change, be read or be opened.
//! - [`stream`]: too big for memory: bombs and a million entries, as readers.

mod awkward;
mod broken;
mod hostile;
mod known;
pub mod stream;

use std::io::Read;

use orlop_oci::{Compression, DiffId, Digest};

pub use awkward::{CAPABILITY, awkward};
pub use broken::broken;
pub use hostile::{Hideout, hostile};

use crate::compress;
use crate::image::{self, Content, Image};
use crate::tar::{Entry, tar};

/// What applying a case must come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// It applies.
    Applies,
    /// It is refused with an error.
    Refused,
    /// It is refused or applies; in both cases nothing outside the root is touched.
    Contained,
}

/// A layer as it is stored.
#[derive(Debug, Clone)]
pub struct Layer {
    /// How it is packed.
    pub compression: Compression,
    /// The packed bytes.
    pub bytes: Vec<u8>,
    /// The digest of the tar, where the bytes can be unpacked.
    pub diff_id: Option<DiffId>,
}

impl Layer {
    /// A layer of these tar bytes.
    pub fn new(tar: &[u8], compression: Compression) -> Self {
        let diff_id = Some(DiffId::new(Digest::of(tar)));
        Self { compression, bytes: compress::pack(tar, compression), diff_id }
    }

    /// The tar; empty where the bytes cannot be unpacked.
    pub fn tar(&self) -> Vec<u8> {
        let mut tar = Vec::new();
        let unpacked = match self.compression {
            Compression::None => self.bytes.as_slice().read_to_end(&mut tar),
            Compression::Gzip => flate2::read::MultiGzDecoder::new(&self.bytes[..]).read_to_end(&mut tar),
            Compression::Zstd => zstd::Decoder::new(&self.bytes[..]).and_then(|mut d| d.read_to_end(&mut tar)),
        };
        if unpacked.is_ok() { tar } else { Vec::new() }
    }

    /// A layer of bytes that cannot be unpacked.
    pub fn broken(bytes: Vec<u8>, compression: Compression) -> Self {
        Self { compression, bytes, diff_id: None }
    }

    /// The digest of the packed bytes.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }
}

/// A stack of layers with a name.
#[derive(Debug, Clone)]
pub struct Case {
    /// Names the case in test output; unique.
    pub name: &'static str,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
    /// What must come of it.
    pub expect: Expect,
    /// Paths that the final tree must have (links are not followed).
    pub present: Vec<&'static str>,
    /// Paths that the final tree must not have.
    pub absent: Vec<&'static str>,
    /// containerd's own snapshotters disagree about the tree: `native` makes what `present` and `absent` say, since it
    /// applies onto the whole tree below; overlayfs, given the upper directory alone, does not.
    pub disputed: bool,
}

impl Case {
    /// An image of this machine's platform with these layers.
    pub fn image(&self) -> Content {
        // Bytes that cannot be unpacked have no diff ID: any will do that no other case has.
        let tar = |l: &Layer| if l.diff_id.is_some() { l.tar() } else { self.name.as_bytes().to_vec() };
        let layer = |l: &Layer| image::Layer::of_packed(l.bytes.clone(), l.compression, tar(l));
        // The name keeps the images of equal stacks apart.
        let start = Image::host().config("Cmd", serde_json::json!([self.name]));
        Content::image(&self.layers.iter().map(layer).fold(start, Image::layer))
    }

    fn new(name: &'static str, expect: Expect) -> Self {
        Self { name, layers: Vec::new(), expect, present: Vec::new(), absent: Vec::new(), disputed: false }
    }

    fn applies(name: &'static str) -> Self {
        Self::new(name, Expect::Applies)
    }

    fn refused(name: &'static str) -> Self {
        Self::new(name, Expect::Refused)
    }

    fn contained(name: &'static str) -> Self {
        Self::new(name, Expect::Contained)
    }

    /// Adds a layer on top.
    fn layer(self, entries: &[Entry]) -> Self {
        self.tar(&tar(entries))
    }

    fn tar(mut self, bytes: &[u8]) -> Self {
        self.layers.push(Layer::new(bytes, Compression::None));
        self
    }

    fn packed(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    fn present(mut self, paths: &[&'static str]) -> Self {
        self.present.extend(paths);
        self
    }

    fn disputed(mut self) -> Self {
        self.disputed = true;
        self
    }

    fn absent(mut self, paths: &[&'static str]) -> Self {
        self.absent.extend(paths);
        self
    }
}

/// All cases that fit into memory; `hideout` is what the hostile ones aim at.
pub fn all(hideout: &Hideout) -> Vec<Case> {
    let mut cases = awkward();
    cases.extend(broken());
    cases.extend(hostile(hideout));
    cases
}
