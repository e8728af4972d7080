//! What the keys of clients' snapshots say.

/// What the key of a snapshot begins with to which layers are applied, and which nobody runs on (containerd's `UnpackKeyPrefix`).
const UNPACKING: &str = "extract-";

/// Whether layers are being unpacked into the snapshot of this key: it becomes part of an image, and belongs to no container.
///
/// A containerd above puts its namespace and a number before its clients' keys: `k8s.io/12/extract-…`.
pub fn is_unpacking(key: &str) -> bool {
    own_key(key).starts_with(UNPACKING)
}

fn own_key(key: &str) -> &str {
    let mut parts = key.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (_, Some(number), Some(own)) if number.parse::<u64>().is_ok() => own,
        _ => key,
    }
}

#[cfg(test)]
mod tests {
    use super::is_unpacking;

    #[test]
    fn a_key_says_so_with_and_without_what_a_containerd_puts_before_it() {
        for key in ["extract-1 sha256:a", "k8s.io/12/extract-1 sha256:a", "k8s.io/12/extract-a/b"] {
            assert!(is_unpacking(key), "{key}");
        }
        for key in
            ["", "extract", "mine", "k8s.io/12/mine", "mine/extract-1", "a/b/extract-1", "k8s.io/12/mine/extract-1"]
        {
            assert!(!is_unpacking(key), "{key}");
        }
    }
}
