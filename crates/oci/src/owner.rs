//! What marks the things of an *owner*: a containerd that keeps Orlop below it. The raw surface writes it, and whoever looks at a store
//! reads it.

/// What the namespaces of owners begin with.
const NAMESPACES: &str = "raw.";

/// What the value of the label `containerd.io/gc.root` begins with on what an owner has.
const CLAIM: &str = "owner ";

/// The namespace of an owner's blobs.
pub fn content_namespace(owner: &str) -> String {
    format!("{NAMESPACES}{owner}.content")
}

/// The namespace of an owner's snapshots, and of the blobs that were fetched for them.
pub fn snapshots_namespace(owner: &str) -> String {
    format!("{NAMESPACES}{owner}.snapshots")
}

/// The value of the label `containerd.io/gc.root` on what an owner has.
pub fn claim(owner: &str) -> String {
    format!("{CLAIM}{owner}")
}

/// Whether a namespace is an owner's.
pub fn is_namespace(name: &str) -> bool {
    name.starts_with(NAMESPACES)
}

/// Whether this value of the label, in this namespace, is an owner's claim.
pub fn is_claim(namespace: &str, value: &str) -> bool {
    is_namespace(namespace) && value.starts_with(CLAIM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_one_in_the_namespaces_of_owners_alone() {
        for namespace in [content_namespace("k3s"), snapshots_namespace("k3s")] {
            assert!(is_claim(&namespace, &claim("k3s")));
            assert!(!is_claim(&namespace, "2026-11-30T00:00:00Z"), "made by hand");
        }
        assert!(!is_claim("k8s.io", &claim("k3s")));
    }
}
