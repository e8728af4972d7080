//! Platforms: the normal form, and what a host accepts in which order.

use orlop_oci::{Platform, PlatformMatcher};
use proptest::prelude::*;

fn platform(text: &str) -> Platform {
    text.parse().unwrap_or_else(|e| panic!("{e}"))
}

fn raw(os: &str, architecture: &str, variant: &str) -> Platform {
    Platform {
        os: os.to_owned(),
        architecture: architecture.to_owned(),
        variant: (!variant.is_empty()).then(|| variant.to_owned()),
        ..Platform::default()
    }
}

#[test]
fn normal_forms() {
    for (text, expected) in [
        ("linux/amd64", "linux/amd64"),
        ("Linux/AMD64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/x86-64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v2", "linux/amd64/v2"),
        ("linux/amd64/V3", "linux/amd64/v3"),
        ("linux/i386", "linux/386"),
        ("linux/arm64", "linux/arm64"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v8.0", "linux/arm64"),
        ("linux/arm64/v8.1", "linux/arm64/v8.1"),
        ("linux/arm64/9", "linux/arm64/v9"),
        ("linux/arm64/9.0", "linux/arm64/v9"),
        ("linux/arm64/v9.0", "linux/arm64/v9"),
        ("linux/arm64/v9", "linux/arm64/v9"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/7", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/arm/5", "linux/arm/v5"),
        ("linux/arm/8", "linux/arm/v8"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/riscv64", "linux/riscv64"),
        ("macos/arm64", "darwin/arm64"),
        ("windows(10.0.17763)/amd64", "windows/amd64"),
    ] {
        assert_eq!(platform(text).to_string(), expected, "{text}");
    }
}

#[test]
fn one_word_is_a_system_or_an_architecture() {
    let host = Platform::host();
    assert_eq!(platform("linux"), host);
    assert_eq!(platform("arm64").to_string(), "linux/arm64");
    assert_eq!(platform("armhf").to_string(), "linux/arm/v7");
    assert_eq!(platform("x86_64").to_string(), "linux/amd64");
    assert_eq!(platform("windows").os, "windows");
    assert_eq!(platform("windows").architecture, host.architecture);
}

#[test]
fn version_and_features_of_the_system() {
    let windows = platform("windows(10.0.17763.1+win32k+abc)/amd64");
    assert_eq!(windows.os_version.as_deref(), Some("10.0.17763.1"));
    assert_eq!(windows.os_features, ["abc", "win32k"]);
    assert_eq!(platform("linux(+erofs)/amd64").os_features, ["erofs"]);
}

#[test]
fn refused() {
    for text in [
        "",
        "/",
        "linux/",
        "/amd64",
        "linux//v7",
        "linux/arm/v7/x",
        "linux/arm/",
        "lin ux/arm",
        "*",
        "linux/*",
        "é",
        "nonsense",
        "linux(/amd64",
        "linux(1/amd64",
        "linux(1))/amd64",
        "linux(1+)/amd64",
        "linux(a b)/amd64",
    ] {
        let error = text.parse::<Platform>().expect_err(text).to_string();
        assert!(error.contains("is not a platform"), "{error}");
    }
}

#[test]
fn what_says_nothing() {
    assert!(Platform::default().is_unknown());
    assert!(raw("unknown", "unknown", "").is_unknown());
    assert!(!raw("linux", "", "").is_unknown());
    assert_eq!(Platform::default().to_string(), "unknown");
    assert_eq!(raw("", "amd64", "").to_string(), "unknown/amd64");
}

#[test]
fn what_a_host_accepts_best_first() {
    for (host, accepted) in [
        ("linux/amd64", vec!["linux/amd64", "linux/386"]),
        ("linux/amd64/v3", vec!["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]),
        ("linux/386", vec!["linux/386"]),
        ("linux/arm", vec!["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
        ("linux/arm/v6", vec!["linux/arm/v6", "linux/arm/v5"]),
        ("linux/arm/v5", vec!["linux/arm/v5"]),
        ("linux/arm/v8", vec!["linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
        ("linux/arm64", vec!["linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
        (
            "linux/arm64/v8.2",
            vec!["linux/arm64/v8.2", "linux/arm64/v8.1", "linux/arm64", "linux/arm/v8", "linux/arm/v5"],
        ),
        (
            "linux/arm64/v9",
            vec!["linux/arm64/v9", "linux/arm64/v8.5", "linux/arm64/v8.1", "linux/arm64", "linux/arm/v8"],
        ),
        (
            "linux/arm64/v9.6",
            vec!["linux/arm64/v9.6", "linux/arm64/v9.1", "linux/arm64/v9", "linux/arm64/v8.9", "linux/arm64/v8.1"],
        ),
        ("linux/riscv64", vec!["linux/riscv64"]),
    ] {
        let matcher = PlatformMatcher::only(&platform(host));
        let ranks: Vec<_> = accepted.iter().map(|p| matcher.rank(&platform(p))).collect();
        assert_eq!(ranks[0], Some(0), "{host}");
        assert!(ranks.iter().all(Option::is_some) && ranks.is_sorted(), "{host}: {accepted:?} {ranks:?}");
    }
}

#[test]
fn what_a_host_does_not_accept() {
    for (host, other) in [
        ("linux/amd64", "linux/amd64/v2"),
        ("linux/amd64/v2", "linux/amd64/v3"),
        ("linux/amd64", "linux/arm64"),
        ("linux/386", "linux/amd64"),
        ("linux/arm/v6", "linux/arm/v7"),
        ("linux/arm", "linux/arm64"),
        ("linux/arm64", "linux/arm64/v9"),
        ("linux/arm64", "linux/arm64/v8.1"),
        ("linux/arm64/v9", "linux/arm64/v8.6"),
        ("linux/arm64/v8.9", "linux/arm64/v9"),
        ("linux/amd64", "windows/amd64"),
        ("windows/amd64", "linux/amd64"),
        ("linux/amd64", "linux(+erofs)/amd64"),
        ("windows(10.0.17763)/amd64", "windows(10.0.20348)/amd64"),
    ] {
        assert!(!PlatformMatcher::only(&platform(host)).matches(&platform(other)), "{host} accepted {other}");
    }
    assert!(!PlatformMatcher::host().matches(&raw("unknown", "unknown", "")), "attestations never match");
    assert!(!PlatformMatcher::host().matches(&Platform::default()));
}

#[test]
fn candidates_are_compared_in_normal_form() {
    let matcher = PlatformMatcher::only(&raw("linux", "x86_64", ""));
    assert_eq!(matcher.rank(&raw("Linux", "AMD64", "v1")), Some(0));
    // containerd reads an absent operating system as the host's.
    assert_eq!(matcher.rank(&raw("", "amd64", "")), Some(0));
    let arm = PlatformMatcher::only(&raw("linux", "aarch64", "8"));
    assert_eq!(arm.rank(&raw("linux", "arm64", "v8")), Some(0));
}

#[test]
fn more_of_the_wanted_features_is_better() {
    let matcher = PlatformMatcher::exactly(&[platform("linux(+a+b)/amd64"), platform("linux/386")]);
    let rank = |p: &str| matcher.rank(&platform(p));
    assert_eq!(rank("linux(+a+b)/amd64"), Some(0));
    assert!(rank("linux(+a+b)/amd64") < rank("linux(+b)/amd64"));
    assert!(rank("linux(+b)/amd64") < rank("linux/amd64"));
    assert!(rank("linux/amd64") < rank("linux/386"));
    assert_eq!(rank("linux(+c)/amd64"), None);
}

#[test]
fn exactly_and_all() {
    let two = PlatformMatcher::exactly(&[platform("linux/arm64"), platform("linux/amd64")]);
    assert!(two.rank(&platform("linux/arm64")) < two.rank(&platform("linux/amd64")));
    assert!(!two.matches(&platform("linux/386")) && !two.matches(&platform("linux/arm/v7")));
    assert!(!PlatformMatcher::exactly(&[]).matches(&Platform::host()));
    assert!(PlatformMatcher::all().matches(&raw("unknown", "unknown", "")));
}

#[test]
fn json_as_documents_have_it() {
    let text =
        r#"{"architecture":"amd64","os":"windows","os.version":"10.0.1","os.features":["win32k"],"variant":"v2"}"#;
    let p: Platform = serde_json::from_str(text).unwrap();
    assert_eq!((p.os_version.as_deref(), p.os_features.len(), p.variant.as_deref()), (Some("10.0.1"), 1, Some("v2")));
    assert_eq!(serde_json::to_string(&p).unwrap(), text);
    let nulls = r#"{"architecture":"amd64","os":null,"os.version":null,"os.features":null,"variant":null}"#;
    assert_eq!(serde_json::from_str::<Platform>(nulls).unwrap(), raw("", "amd64", ""));
}

proptest! {
    #[test]
    fn any_text_parses_to_a_fixed_point_or_is_refused(text in "\\PC{0,40}") {
        if let Ok(p) = text.parse::<Platform>() {
            prop_assert_eq!(p.normalized(), p);
        }
    }

    #[test]
    fn the_normal_form_is_a_fixed_point(
        os in "(linux|Linux|macos|windows|[a-z]{1,4})",
        architecture in "(amd64|x86_64|i386|arm|arm64|aarch64|armhf|armel|[a-z0-9]{1,6})",
        variant in "(|v[0-9]{1,2}|[0-9]|v[89]\\.[0-9]{1,3}|[A-Za-z0-9]{1,4}|v99999999999)",
    ) {
        let p = raw(&os, &architecture, &variant).normalized();
        prop_assert_eq!(&p.normalized(), &p);
        prop_assert_eq!(&p.to_string().parse::<Platform>().unwrap(), &p);
        // A host runs images made for it, and does so best.
        prop_assert_eq!(PlatformMatcher::only(&p).rank(&p), Some(0));
    }
}
