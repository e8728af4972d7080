//! Image references. The bytes are the text.
//!
//! A reference that parses is written in its normal form, which parses to itself; that form is what the grammar of
//! distribution/reference gives, read by a regular expression instead; and what that grammar takes, parses.

use std::sync::LazyLock;

use orlop_oci::{Kind, Reference, RepositoryName, classify};
use regex::Regex;

use super::Target;
use crate::seeds::texts;

/// See the module.
pub const TARGET: Target = Target {
    name: "references",
    run,
    seeds,
    words: &[
        b"docker.io/",
        b"library/",
        b":latest",
        b"@sha256:",
        b"localhost",
        b"[::1]:5000/",
        b"__",
        b"..",
        b"index.",
    ],
    limit: 512,
    isolated: false,
};

/// The normal form: a host that can be told from a path, a path, and a tag or a digest.
static NORMAL: LazyLock<Regex> = LazyLock::new(|| {
    let label = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])";
    let host = format!(r"(?:{label}(?:\.{label})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?");
    let part = "[a-z0-9]+(?:(?:[.]|_|__|-+)[a-z0-9]+)*";
    let end = "(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})|@sha256:[0-9a-f]{64})";
    let whole = format!("^(?P<host>{host})/(?P<path>{part}(?:/{part})*){end}$");
    Regex::new(&whole).expect("the expression is right")
});

fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // Any name may be that of a record.
    let kind = classify(text);
    match text.parse::<Reference>() {
        Ok(reference) => taken(&reference),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(!is_plainly_right(text), "{text:?} is refused: {error}");
        }
    }
    if let Ok(name) = RepositoryName::parse(text) {
        assert_eq!(RepositoryName::parse(&name.to_string()).as_ref(), Ok(&name));
        assert_eq!(RepositoryName::parse(&name.familiar()).as_ref(), Ok(&name), "{text:?}");
    }
    assert!(text.len() < 8 || kind == classify(text));
}

fn taken(reference: &Reference) {
    let shown = reference.to_string();
    assert_eq!(shown.parse::<Reference>().as_ref(), Ok(reference), "{shown:?} is another reference");
    assert_eq!(reference.digest().is_some(), matches!(reference, Reference::Digest { .. }));
    let is_hash = !matches!(reference, Reference::Tag { .. });
    assert_eq!(classify(&shown).is_hash_reference(), is_hash, "{shown:?}");
    let Some(repository) = reference.repository() else { return };
    assert!(repository.path().len() <= 255);
    if reference.digest().is_none_or(|d| d.as_str().starts_with("sha256:")) {
        assert!(NORMAL.is_match(&shown), "{shown:?} is not in normal form");
    }
}

/// In normal form, with a host that nobody could take for a path.
fn is_plainly_right(text: &str) -> bool {
    NORMAL.captures(text).is_some_and(|found| {
        let (host, path) = (&found["host"], &found["path"]);
        let is_host = host.contains(['.', ':']) || host == "localhost";
        is_host && path.len() <= 255 && !matches!(host, "docker.io" | "index.docker.io")
    })
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let digest = "a".repeat(64);
    let known = [
        "busybox".to_owned(),
        "busybox:1.36".to_owned(),
        "docker.io/library/busybox:latest".to_owned(),
        "index.docker.io/busybox".to_owned(),
        "localhost/app".to_owned(),
        "localhost:5000/team/app:v1".to_owned(),
        "[::1]:5000/a/b:t".to_owned(),
        "Registry.example/app".to_owned(),
        format!("registry.example/app@sha256:{digest}"),
        format!("registry.example/app:1@sha256:{digest}"),
        format!("registry.example/app@sha512:{}", "b".repeat(128)),
        format!("sha256:{digest}"),
        digest.clone(),
        "a/b__c/d-e/f.g:T_1.x-y".to_owned(),
        format!("r.example/{}:t", "p".repeat(255)),
        format!("r.example/p:{}", "t".repeat(128)),
        "http://registry.example/app".to_owned(),
        "a//b".to_owned(),
        "../a".to_owned(),
        "r.example:0/app:".to_owned(),
        "é.example/a".to_owned(),
    ];
    assert!(known.iter().any(|text| classify(text) == Kind::Tag));
    texts(known)
}
