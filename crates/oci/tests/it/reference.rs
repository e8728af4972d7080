//! References: Docker's normal form, hash references, and what is refused.

use orlop_oci::{Kind, Reference, ReferenceError, RepositoryName, classify};
use proptest::prelude::*;

const HEX: &str = "7cc4b5aefd1d0cadf8d97d4350462ba51c694ebca145b08d7d41b41acc8db5aa";

fn normal(text: &str) -> String {
    text.replace("HEX", HEX).parse::<Reference>().unwrap_or_else(|e| panic!("{text}: {e}")).to_string()
}

#[test]
fn normal_forms() {
    for (text, expected) in [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("docker.io/library/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/library/busybox:1", "docker.io/library/busybox:1"),
        ("index.docker.io/calico/cni", "docker.io/calico/cni:latest"),
        ("registry-1.docker.io/busybox", "registry-1.docker.io/busybox:latest"),
        ("calico/cni", "docker.io/calico/cni:latest"),
        ("a/b/c/d", "docker.io/a/b/c/d:latest"),
        ("localhost/foo", "localhost/foo:latest"),
        ("localhost", "docker.io/library/localhost:latest"),
        ("localhost:5000", "docker.io/library/localhost:5000"),
        ("localhost:5000/foo", "localhost:5000/foo:latest"),
        ("localhost:5000/foo:bar", "localhost:5000/foo:bar"),
        ("example.com/foo", "example.com/foo:latest"),
        ("Example/foo", "Example/foo:latest"),
        ("LOCALHOST/foo", "LOCALHOST/foo:latest"),
        ("EXAMPLE.com:443/foo:V1.0-rc_1", "EXAMPLE.com:443/foo:V1.0-rc_1"),
        ("127.0.0.1:5000/foo", "127.0.0.1:5000/foo:latest"),
        ("[::1]/foo", "[::1]/foo:latest"),
        ("[::1]:5000/foo", "[::1]:5000/foo:latest"),
        ("[2001:DB8::1]:5000/a/b:t", "[2001:DB8::1]:5000/a/b:t"),
        ("[2001:db8::1]:5000/a/b@sha256:HEX", "[2001:db8::1]:5000/a/b@sha256:HEX"),
        ("xn--7o8h.com/foo", "xn--7o8h.com/foo:latest"),
        ("a__b/c--d/e.f_g", "docker.io/a__b/c--d/e.f_g:latest"),
        ("busybox@sha256:HEX", "docker.io/library/busybox@sha256:HEX"),
        ("busybox:1.36@sha256:HEX", "docker.io/library/busybox@sha256:HEX"),
        ("localhost:5000/foo:1@sha256:HEX", "localhost:5000/foo@sha256:HEX"),
        // IDs, with and without the algorithm.
        ("sha256:HEX", "sha256:HEX"),
        ("HEX", "sha256:HEX"),
        // Near an ID, yet a name.
        ("sha256:abc", "docker.io/library/sha256:abc"),
        ("sha256:HEX@sha256:HEX", "docker.io/library/sha256@sha256:HEX"),
        ("sha256", "docker.io/library/sha256:latest"),
        ("HEX0", "docker.io/library/HEX0:latest"),
        ("HEX:tag", "docker.io/library/HEX:tag"),
        ("docker.io/library/HEX", "docker.io/library/HEX:latest"),
        ("x/HEX", "docker.io/x/HEX:latest"),
    ] {
        assert_eq!(normal(text), expected.replace("HEX", HEX), "{text}");
    }
}

#[test]
fn refused() {
    for text in [
        "",
        ":",
        ":tag",
        "@sha256:HEX",
        "busybox:",
        "busybox:-x",
        "busybox:.x",
        "busybox:a b",
        "busybox:é",
        "busybox@",
        "busybox@sha256",
        "busybox@sha256:beef",
        "busybox@md5:HEX",
        "busybox@sha256:HEX@sha256:HEX",
        "busybox:@sha256:HEX",
        "busybox:-@sha256:HEX",
        "Busybox",
        "calico/CNI",
        "docker.io/Busybox",
        "/busybox",
        "docker.io/",
        "docker.io//busybox",
        "a//b",
        "a/b/",
        "a..b",
        "a._b",
        "a___b",
        "-a",
        "a-",
        "_a",
        "a_",
        ".a/b",
        "é/b",
        "host:/foo",
        "host:port/foo",
        "-host.com/foo",
        "host-.com/foo",
        "host..com/foo",
        "ho_st.com/foo",
        "::1/foo",
        "[]/foo",
        "[::1/foo",
        "[::1]x/foo",
        "[::1]:/foo",
        "[fe80::1%eth0]/foo",
        "[::ffff:127.0.0.1]/foo",
        "http://example.com/foo",
        "busybox\n",
        " busybox",
        "busy\0box",
    ] {
        let text = text.replace("HEX", HEX);
        let error = text.parse::<Reference>().expect_err(&text);
        assert!(error.to_string().contains("not an image reference"), "{text}: {error}");
    }
}

#[test]
fn bounds() {
    let path = |n: usize| format!("example.com/{}", "a".repeat(n));
    assert!(path(255).parse::<Reference>().is_ok());
    assert!(path(256).parse::<Reference>().is_err());
    // `library/` counts.
    assert!("a".repeat(247).parse::<Reference>().is_ok());
    assert!("a".repeat(248).parse::<Reference>().is_err());
    assert!(format!("busybox:{}", "t".repeat(128)).parse::<Reference>().is_ok());
    assert!(format!("busybox:{}", "t".repeat(129)).parse::<Reference>().is_err());
    let error = path(256).parse::<Reference>().unwrap_err();
    assert!(matches!(error, ReferenceError::Invalid { reason, .. } if reason.contains("255")));
}

#[test]
fn parts() {
    let tag: Reference = "localhost:5000/a/b:c".parse().unwrap();
    let repository = tag.repository().unwrap();
    assert_eq!((repository.domain(), repository.path()), ("localhost:5000", "a/b"));
    assert_eq!((tag.tag(), tag.digest(), tag.kind()), (Some("c"), None, Kind::Tag));
    let by_digest = repository.with_digest(&format!("sha256:{HEX}").parse().unwrap());
    assert_eq!(by_digest.to_string(), format!("localhost:5000/a/b@sha256:{HEX}"));
    assert_eq!(by_digest.digest().map(|d| d.hex()), Some(HEX));
    assert_eq!((by_digest.tag(), by_digest.kind()), (None, Kind::Digest));
    let id: Reference = HEX.parse().unwrap();
    assert_eq!((id.repository(), id.digest(), id.kind()), (None, None, Kind::Id));
}

#[test]
fn familiar_names() {
    for (text, expected) in [
        ("busybox", "busybox"),
        ("docker.io/library/busybox", "busybox"),
        ("calico/cni", "calico/cni"),
        ("library/a/b", "library/a/b"),
        ("quay.io/library/busybox", "quay.io/library/busybox"),
        ("localhost:5000/x", "localhost:5000/x"),
    ] {
        let name = RepositoryName::parse(text).unwrap();
        assert_eq!(name.familiar(), expected);
        assert_eq!(RepositoryName::parse(&name.familiar()).unwrap(), name);
    }
}

/// Docker Hub's `x.example/app` was shortened to a name at the registry `x.example`, and exported under it; 64 hex digits to
/// an image ID.
#[test]
fn familiar_names_are_no_other_names() {
    for text in
        ["docker.io/x.example/app".to_owned(), format!("docker.io/library/{HEX}"), "docker.io/localhost/a".to_owned()]
    {
        let name = RepositoryName::parse(&text).unwrap();
        assert_eq!(name.familiar(), text);
        assert_eq!(RepositoryName::parse(&name.familiar()).unwrap(), name);
    }
}

/// A digest in place of a tag used to come back as a hash reference.
#[test]
fn a_tag_is_only_a_tag() {
    let name = RepositoryName::parse("busybox").unwrap();
    assert_eq!(name.with_tag("1.36").unwrap().to_string(), "docker.io/library/busybox:1.36");
    for tag in ["", "a/b", "a:b", "-", &format!("v1@sha256:{HEX}")] {
        assert!(name.with_tag(tag).is_err(), "{tag:?}");
    }
}

#[test]
fn a_repository_is_not_an_id() {
    assert!(RepositoryName::parse(HEX).is_err());
    assert!(RepositoryName::parse(&format!("docker.io/{HEX}")).is_ok());
    assert!(RepositoryName::parse("busybox:tag").is_err());
    assert!(RepositoryName::parse(&format!("busybox@sha256:{HEX}")).is_err());
}

#[test]
fn kinds_of_record_names() {
    for (name, kind) in [
        ("docker.io/library/busybox:latest", Kind::Tag),
        ("localhost:5000/x:1", Kind::Tag),
        ("docker.io/library/busybox@sha256:HEX", Kind::Digest),
        ("sha256:HEX", Kind::Id),
        // Not what a normalising writer stores.
        ("HEX", Kind::Other),
        ("busybox", Kind::Other),
        ("busybox:latest", Kind::Other),
        ("docker.io/library/busybox", Kind::Other),
        ("docker.io/library/busybox:1@sha256:HEX", Kind::Other),
        ("sha256:beef", Kind::Other),
        ("import-2026-11-23", Kind::Other),
        ("Any Text At All!", Kind::Other),
    ] {
        assert_eq!(classify(&name.replace("HEX", HEX)), kind, "{name}");
    }
    assert!(Kind::Digest.is_hash_reference() && Kind::Id.is_hash_reference());
    assert!(!Kind::Tag.is_hash_reference() && !Kind::Other.is_hash_reference());
    assert_eq!([Kind::Tag, Kind::Digest, Kind::Id, Kind::Other].map(Kind::as_str), ["tag", "digest", "id", "other"]);
}

/// What [`classify`] means, said by parsing.
fn kind_by_parsing(name: &str) -> Kind {
    match name.parse::<Reference>() {
        Ok(reference) if reference.to_string() == name => reference.kind(),
        _ => Kind::Other,
    }
}

fn written() -> impl Strategy<Value = String> {
    let host = prop_oneof![
        Just(String::new()),
        "[a-zA-Z0-9]{1,6}(\\.[a-zA-Z0-9]{1,4}){0,2}(:[0-9]{1,5})?/",
        "\\[:[0-9a-f:]{1,8}\\](:[0-9]{1,5})?/",
        Just("index.docker.io/".to_owned()),
    ];
    let path = "[a-z0-9]{1,5}((_|__|-{1,3})[a-z0-9]{1,3}){0,2}(/[a-z0-9]{1,5}(\\.[a-z0-9]{1,3})?){0,3}";
    let rest = prop_oneof![
        Just(String::new()),
        ":[A-Za-z0-9_][A-Za-z0-9_.-]{0,10}",
        "(:[A-Za-z0-9_]{1,4})?@sha256:[0-9a-f]{64}",
        "(:[A-Za-z0-9_]{1,4})?@sha512:[0-9a-f]{128}",
    ];
    (host, path, rest).prop_map(|(h, p, r)| h + &p + &r)
}

proptest! {
    #[test]
    fn any_text_parses_to_a_fixed_point_or_is_refused(text in "\\PC{0,80}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
        }
    }

    #[test]
    fn near_references_do_not_panic(text in "[a-zA-Z0-9:/@._\\[\\]-]{0,40}") {
        prop_assert_eq!(classify(&text), kind_by_parsing(&text));
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
        }
    }

    #[test]
    fn well_formed_references_parse_to_a_fixed_point(text in written()) {
        let reference = text.parse::<Reference>();
        prop_assert!(reference.is_ok(), "{}: {:?}", text, reference);
        let reference = reference.unwrap();
        let shown = reference.to_string();
        prop_assert_eq!(&shown.parse::<Reference>().unwrap(), &reference);
        prop_assert_eq!(classify(&shown), reference.kind());
        prop_assert_eq!(classify(&text), kind_by_parsing(&text));
        if let Some(repository) = reference.repository() {
            prop_assert_eq!(&RepositoryName::parse(&repository.to_string()).unwrap(), repository);
        }
    }
}
