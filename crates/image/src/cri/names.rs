//! Which of an image's records CRI shows, and how.
//!
//! containerd's CRI shows what Docker's grammar of references reads: `name:tag` among the tags, whatever has a digest
//! among the digests, in normal form, sorted; it leaves out image IDs, names without tag and digest, and everything else.

use std::sync::Arc;

use orlop_oci::{Kind, Reference, classify};

/// The names that CRI shows of an image.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) tags: Vec<Arc<str>>,
    pub(super) digests: Vec<Arc<str>>,
}

/// Sorts records' names into what CRI shows.
pub(super) fn shown(names: &[Arc<str>]) -> Shown {
    let mut shown = Shown::default();
    for name in names {
        match classify(name) {
            Kind::Tag => shown.tags.push(name.clone()),
            Kind::Digest => shown.digests.push(name.clone()),
            Kind::Id => {}
            Kind::Other => match normal(name) {
                Some(Normal::Tag(name)) => shown.tags.push(name.into()),
                Some(Normal::Digest(name)) => shown.digests.push(name.into()),
                None => {}
            },
        }
    }
    shown.tags.sort();
    shown.tags.dedup();
    // What has a tag as well comes first.
    shown.digests.sort_by_cached_key(|name| (explicit_tag(name).is_none(), name.clone()));
    shown.digests.dedup();
    shown
}

enum Normal {
    Tag(String),
    Digest(String),
}

/// The normal form of a name that no normalising program wrote.
fn normal(name: &str) -> Option<Normal> {
    let tag = explicit_tag(name);
    match name.parse::<Reference>().ok()? {
        reference @ Reference::Tag { .. } => tag.map(|_| Normal::Tag(reference.to_string())),
        Reference::Digest { repository, digest } => Some(Normal::Digest(match tag {
            Some(tag) => format!("{repository}:{tag}@{digest}"),
            None => format!("{repository}@{digest}"),
        })),
        Reference::Id(_) => None,
    }
}

/// The tag that a name states.
fn explicit_tag(name: &str) -> Option<&str> {
    let before = name.split_once('@').map_or(name, |(before, _)| before);
    before.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_as_containerd_shows_them() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let names = [
            "docker.io/library/b:2",
            "docker.io/library/a:1",
            "busybox:1",
            "busybox",
            "UPPER/case:1",
            "not a name",
            &digest,
            &format!("docker.io/library/z@{digest}"),
            &format!("busybox:1@{digest}"),
            &format!("localhost:5000/x@{digest}"),
            &format!("busybox@{digest}"),
        ]
        .map(Arc::from);
        let shown = shown(&names);
        let text = |names: &[Arc<str>]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            text(&shown.tags),
            ["UPPER/case:1", "docker.io/library/a:1", "docker.io/library/b:2", "docker.io/library/busybox:1"]
        );
        assert_eq!(
            text(&shown.digests),
            [
                format!("docker.io/library/busybox:1@{digest}"),
                format!("docker.io/library/busybox@{digest}"),
                format!("docker.io/library/z@{digest}"),
                format!("localhost:5000/x@{digest}"),
            ]
        );
    }
}
