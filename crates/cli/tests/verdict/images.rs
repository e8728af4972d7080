//! Images that share a layer, and what makes a root an older one.

use orlop_oci::chain_ids;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;

/// A base that images share.
pub(crate) fn base() -> Layer {
    Layer::new([
        Entry::dir("etc"),
        Entry::file("etc/hostname", "orlop\n"),
        Entry::dir("bin"),
        Entry::file("bin/program", vec![0x7F; 9000]),
        Entry::symlink("bin/sh", "program"),
        Entry::hardlink("bin/other", "bin/program"),
    ])
}

/// A layer above, with a file that is replaced and one that is hidden.
pub(crate) fn above(word: &str) -> Layer {
    Layer::new([
        Entry::dir("etc"),
        Entry::file("etc/hostname", format!("{word}\n")),
        Entry::file("etc/empty", ""),
        Entry::dir("bin"),
        Entry::whiteout("bin/other"),
    ])
}

pub(crate) fn image(word: &str) -> Content {
    image_of(above(word))
}

/// The key of an image's snapshot.
pub(crate) fn chain(word: &str) -> String {
    chain_ids(&[base().diff_id(), above(word).diff_id()]).pop().expect("two layers").to_string()
}

pub(crate) fn image_of(above: Layer) -> Content {
    Content::image(&Image::new("linux/amd64").layer(base()).layer(above))
}

/// Takes away what formats 2 to 6 brought; summaries are learnt from the documents again.
pub(crate) const TO_FORMAT_1: &str = "
    DROP TABLE damage; DROP TABLE mount; DROP TABLE used; DROP TABLE condition; DROP TABLE container_message; DROP TABLE container;
    DROP INDEX snapshot_usage; DROP INDEX blob_digest; CREATE INDEX blob_digest ON blob (digest);
    DROP TABLE manifest_summary;
    CREATE TABLE manifest_summary (digest TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
    PRAGMA user_version = 1";
