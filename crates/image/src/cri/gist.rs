//! What a target stands for on a platform.

use std::collections::BTreeSet;
use std::sync::Arc;

use orlop_metadata::{self as metadata, Look, ManifestSummary};
use orlop_oci::{ChainId, Descriptor, Digest, DigestTable, ImageId, Platform, PlatformMatcher};

use crate::catalog::is_index;

/// What CRI tells of a target; follows from its digest alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gist {
    /// The image ID.
    pub id: ImageId,
    /// The platform's manifest.
    pub manifest: Digest,
    /// The topmost snapshot's key; none for an image without layers.
    pub chain_id: Option<ChainId>,
    /// Who runs it (`config.User`).
    pub user: String,
    /// Compressed bytes as containerd's CRI counts them: the target, the indexes below it on the way to the manifest,
    /// manifest, config, layers; each as its descriptor says, a layer that is named twice counts twice.
    pub size: u64,
}

/// What there is of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// A complete image.
    Complete(Arc<Gist>),
    /// Something is missing, and may come.
    Partial,
    /// Documents are there that nobody has read yet.
    Unread,
    /// No image of this platform, and never will be.
    Foreign,
}

/// Which blobs a namespace has.
pub(super) enum Presence<'l> {
    /// Each is asked for.
    Asked(&'l Look<'l>),
    /// All were read.
    Known(DigestTable),
}

impl Presence<'_> {
    fn has(&self, digest: &Digest) -> metadata::Result<bool> {
        match self {
            Self::Asked(look) => look.has(digest),
            Self::Known(all) => Ok(all.get(digest).is_some()),
        }
    }

    /// Whether an image is complete: manifest, config and layers are there.
    fn completes(&self, manifest: &Digest, id: &ImageId, layers: &[(Digest, u64)]) -> metadata::Result<bool> {
        for digest in [manifest, id.digest()].into_iter().chain(layers.iter().map(|(digest, _)| digest)) {
            if !self.has(digest)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A manifest that a target leads to.
struct Leaf {
    digest: Digest,
    /// From the config or else from the index.
    platform: Option<Platform>,
    /// Sizes of the documents from the target down to this.
    size: u64,
    summary: Option<ManifestSummary>,
}

/// Finds out what a target is.
pub(super) fn standing(
    look: &Look<'_>,
    presence: &Presence<'_>,
    target: &Descriptor,
    platform: &Platform,
) -> metadata::Result<Standing> {
    let leaves = leaves(look, target)?;
    let mut unread = false;
    for leaf in leaves.iter().filter(|leaf| leaf.summary.is_none()) {
        unread |= presence.has(&leaf.digest)?;
    }
    let Some(best) = best(&leaves, target, platform) else {
        let open = leaves.iter().any(|leaf| leaf.summary.is_none() && leaf.platform.is_none());
        return Ok(if unread && open { Standing::Unread } else { waiting(open) });
    };
    let Some(summary) = &best.summary else {
        return Ok(if unread { Standing::Unread } else { Standing::Partial });
    };
    let Some(gist) = gist(best, summary) else { return Ok(Standing::Foreign) };
    let complete = presence.completes(&gist.manifest, &gist.id, &summary.layers)?;
    Ok(if complete { Standing::Complete(Arc::new(gist)) } else { Standing::Partial })
}

const fn waiting(open: bool) -> Standing {
    if open { Standing::Partial } else { Standing::Foreign }
}

/// The manifests of a target in document order, as far as its documents were read.
fn leaves(look: &Look<'_>, target: &Descriptor) -> metadata::Result<Vec<Leaf>> {
    let mut leaves = Vec::new();
    let mut visited = BTreeSet::new();
    let mut open = vec![(target.digest.clone(), target.size, None)];
    while let Some((digest, size, platform)) = open.pop() {
        if !visited.insert(digest.clone()) {
            continue;
        }
        match look.summary(&digest)? {
            Some(summary) if is_index(&summary) => {
                let children = summary.manifests.into_iter().rev();
                open.extend(children.map(|(child, of, platform)| (child, size.saturating_add(of), platform)));
            }
            summary => {
                let own = summary.as_ref().and_then(|summary| summary.platform.clone());
                leaves.push(Leaf { digest, platform: own.or(platform), size, summary });
            }
        }
    }
    Ok(leaves)
}

fn best<'a>(leaves: &'a [Leaf], target: &Descriptor, platform: &Platform) -> Option<&'a Leaf> {
    let matcher = PlatformMatcher::only(platform);
    let rank = |leaf: &&Leaf| leaf.platform.as_ref().and_then(|platform| matcher.rank(platform));
    let found = leaves.iter().filter(|leaf| rank(leaf).is_some()).min_by_key(rank);
    // A lone image that names no platform is taken for this one's, as a pull takes it.
    let lone = || leaves.iter().find(|leaf| leaf.digest == target.digest);
    found.or_else(|| lone().filter(|leaf| leaf.platform.as_ref().is_some_and(Platform::is_unknown)))
}

/// `None`: an artifact.
fn gist(leaf: &Leaf, summary: &ManifestSummary) -> Option<Gist> {
    let id = summary.image_id.clone()?;
    let layers = summary.layers.iter().map(|(_, size)| *size);
    Some(Gist {
        manifest: leaf.digest.clone(),
        chain_id: summary.chain.last().cloned(),
        user: summary.user.clone(),
        size: layers.fold(leaf.size.saturating_add(summary.config_size), u64::saturating_add),
        id,
    })
}
