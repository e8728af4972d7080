//! Content back into the files of a root: what its `meta.db` names, and what has no file there.
//!
//! So its containerd finds everything again that came while Orlop was its content store. One that runs is not disturbed: a file that its
//! records name is nothing that it would remove.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use orlop_image::{Error, Images};
use orlop_oci::Digest;
use orlop_snapshot::linked;

use super::{Args, Document};
use crate::commands::adopt::{Source, failed, refuse_elsewhere};
use crate::embed;
use crate::error::{CliError, Result};
use crate::settings::Settings;

/// Gives back.
pub(super) async fn run(settings: &Settings, args: &Args, directory: &Path) -> Result<Document> {
    let source = Source::read(directory).await?;
    refuse_elsewhere(&source, &settings.root, false)?;
    let root = source.root();
    let mut done = Document::new(args, root.path().to_owned());
    // What snapshots are is nothing that matters here.
    for gap in source.stored().inventory.gaps.iter().filter(|gap| gap.why.contains("meta.db")) {
        done.leave(gap.what.clone(), gap.why.clone());
    }
    let images = embed::images(&settings.root, &settings.config).await?;
    let named =
        source.stored().inventory.blobs.iter().map(|row| &row.digest).collect::<std::collections::BTreeSet<_>>();
    done.blobs_present = (named.len() - source.stored().absent.len()) as u64;
    for digest in &source.stored().absent {
        match size(&images, digest).await? {
            None => done.leave(digest.to_string(), "Orlop has it no more than that containerd"),
            Some(bytes) if args.plan => {
                done.blobs += 1;
                done.blob_bytes += bytes;
            }
            Some(_) => give(&images, digest, &root.blob(digest), &mut done).await?,
        }
    }
    Ok(done)
}

async fn size(images: &Images, digest: &Digest) -> Result<Option<u64>> {
    match images.store().raw_content().info(digest).await {
        Ok(info) => Ok(Some(info.size)),
        Err(orlop_content::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(failed(error.into())),
    }
}

/// Gives one blob its place among those of a containerd. What is damaged here is not given to anybody.
pub(super) async fn give(images: &Images, digest: &Digest, to: &Path, done: &mut Document) -> Result<()> {
    if let Some(directory) = to.parent() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory);
        made.map_err(CliError::at("make the directory", directory))?;
        // As it may only just have been made, where it is can only be told now.
        linked::reach(directory, &images.store().root().join("content"))
            .map_err(|why| CliError::new(crate::error::Class::Usage, why))?;
    }
    match images.give_blob(digest, to).await {
        Ok(Some(shared)) => {
            done.blobs += 1;
            done.blob_bytes += shared.size;
            done.shared(1, u64::from(shared.cloned));
        }
        Ok(None) => done.leave(digest.to_string(), "it was removed here meanwhile"),
        // Put there since the root was read.
        Err(Error::Content(orlop_content::Error::AlreadyExists(_))) => done.blobs_present += 1,
        Err(Error::Content(error @ orlop_content::Error::Damaged { .. })) => {
            done.leave(digest.to_string(), error.to_string());
        }
        Err(error) => return Err(failed(error)),
    }
    Ok(())
}
