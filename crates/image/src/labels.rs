//! The labels that are written and read here: containerd's, CRI's and Orlop's own.

use orlop_oci::RepositoryName;

/// CRI's mark of a record it looks after; its value is [`MANAGED_VALUE`].
pub(crate) const MANAGED: &str = "io.cri-containerd.image";
/// The value of [`MANAGED`].
pub(crate) const MANAGED_VALUE: &str = "managed";
/// CRI's mark of a pinned image; its value is [`PINNED_VALUE`].
pub(crate) const PINNED: &str = "io.cri-containerd.pinned";
/// The value of [`PINNED`].
pub(crate) const PINNED_VALUE: &str = "pinned";
/// On a `name@digest` record that somebody asked for by digest: it is a name, not derived from one.
pub(crate) const REQUESTED: &str = "io.orlop.requested";
/// The value of [`REQUESTED`].
pub(crate) const REQUESTED_VALUE: &str = "digest";
/// On a `name@digest` record: the manifest was pushed to this store's own registry, and stays until it is deleted there.
pub(crate) const PUSHED: &str = "io.orlop.pushed";
/// The value of [`PUSHED`] of a manifest that an index of its repository may keep instead.
pub(crate) const PUSHED_MANIFEST: &str = "manifest";
/// The value of [`PUSHED`] of one that is about another manifest.
pub(crate) const PUSHED_REFERRER: &str = "referrer";
/// On a `name@digest` record that a mirror made for whoever asked it: since when (RFC 3339). It goes when nobody asks any more.
pub(crate) const CACHED: &str = "io.orlop.cached";
/// On a hash reference that no name needs any more: since when (RFC 3339).
pub(crate) const STRANDED: &str = "io.orlop.stranded-since";
/// On a layer: the diff ID.
pub(crate) const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Before a host: the repositories there that a blob came from, sorted, joined by commas.
pub(crate) const SOURCE: &str = "containerd.io/distribution.source.";
/// Before a host: the repositories there that had a blob once and have it no more, as [`SOURCE`].
pub(crate) const GONE: &str = "io.orlop.gone.";
/// On a snapshot: what it unpacks.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// On a snapshot: the diff ID of its layer.
pub(crate) const SNAPSHOT_DIFF: &str = "containerd.io/snapshot/diff-id";
/// On a snapshot: the chain ID of what is below.
pub(crate) const SNAPSHOT_PARENT: &str = "containerd.io/snapshot/parent-chain-id";
/// Before a child's place: what a document holds.
pub const GC_CONTENT: &str = "containerd.io/gc.ref.content.";
/// Before a signature's place, on a target: what was verified and is kept with it. containerd's word for referrers.
pub(crate) const GC_REFERRER: &str = "containerd.io/gc.ref.content.referrer.";
/// On a record: the target's digest and, after a space, by what its coming in under this name was verified.
pub(crate) const VERIFIED: &str = "io.orlop.verified";
/// Before a driver's name, on a config: the snapshot that it holds.
pub const GC_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";
/// On a blob or a snapshot: it keeps itself.
pub const GC_ROOT: &str = "containerd.io/gc.root";
/// On a lease, or a record that goes with another: when it ends by itself.
pub const GC_EXPIRE: &str = "containerd.io/gc.expire";
/// On a lease: the process that works under it.
pub(crate) const OWNER: &str = "io.orlop.owner";

/// The key of a label about a repository's host, without its port, as containerd names hosts: its clients write and read
/// the same label.
pub(crate) fn at_host(prefix: &str, repository: &RepositoryName) -> String {
    let domain = repository.domain();
    let host = match domain.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => domain.rsplit_once(':').map_or(domain, |(host, _)| host),
    };
    format!("{prefix}{host}")
}
