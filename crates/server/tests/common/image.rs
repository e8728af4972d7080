//! A small image of two layers.

use orlop_testkit::archive::oci_archive;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;

pub const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Two layers; the second deletes a file of the first.
pub fn image() -> Image {
    let base = Layer::new([
        Entry::dir("etc").mode(0o755),
        Entry::file("etc/gone", "deleted above"),
        Entry::file("etc/kept", "kept"),
        Entry::hardlink("etc/linked", "etc/kept"),
    ]);
    let top = Layer::new([Entry::whiteout("etc/gone"), Entry::file("new", "from the second layer")]);
    Image::host().layer(base).layer(top)
}

/// The image and its archive under a name.
pub fn archive(name: &str) -> (Content, Vec<u8>) {
    let content = Content::image(&image());
    let archive = oci_archive(&[(name, &content)]);
    (content, archive)
}
