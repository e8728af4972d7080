//! Layers as images: one read-only EROFS file for each, made while the layer is unpacked and mounted as it is.
//!
//! ```text
//! apply ──▶ layer.erofs   the content of files, as it comes
//!           unsealed      the tree, when the layer is complete
//!           deferred      what waits for the layers below
//! commit ─▶ layer.erofs   settled on the images below and sealed: tree and superblock behind and before the content
//!           digests       what its bytes hash to
//! mounts ─▶ fs            the image, mounted when somebody asks for what stands on it
//! ```
//! Nothing of a layer's content is read again on the way: the tree, which is known only when the layer is complete, comes behind it.
//! A snapshot that somebody writes to through a mount has an upper directory, as with overlayfs; its commit makes an image of that.
//!
//! # Invariants
//! - The same layer on the same layers below is the same image, byte for byte.
//! - What overlayfs shows of images is what it shows of directories that the same layers were unpacked to. So each rule of
//!   [`crate::apply`] and [`crate::settle`] is here a second time, on a tree in memory; a corpus and random layers compare them.
//! - An image has its superblock only when all else is written: what a killed process leaves is none.
//! - A sealed image is never written to.
//!
//! # Limits
//! What is held in memory is bounded: names, targets of links and maps of sparse files by 512 MiB, different extended attributes by
//! 64 MiB, beside the limits of every layer. A file can have 255 attributes of 65,535 bytes each. There are no access times: EROFS
//! has none.

mod acl;
mod attributes;
mod build;
mod driver;
mod format;
mod load;
mod mounts;
mod pack;
mod plan;
mod read;
mod seal;
mod settle;
mod stack;
mod stream;
mod table;
mod tree;
mod unpack;
mod verify;

pub(crate) use attributes::{describe, describe_link, explained};
pub(crate) use build::Builder;
pub use driver::ErofsDriver;
pub(crate) use tree::{Inode, Kind, Node, ROOT};
pub(crate) use verify::ImageComparison;
