//! deny.toml as a test, as far as it needs no list of others: licences, origins and banned crates of everything that is built on the
//! targets it names. Advisories and duplicates are cargo-deny's matter (`cargo deny check`).

use std::path::Path;
use std::process::Command;

use serde_json::Value;

struct Rules {
    targets: Vec<String>,
    licences: Vec<String>,
    banned: Vec<String>,
}

fn rules() -> Rules {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deny.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let deny: toml::Value = toml::from_str(&text).unwrap();
    let strings = |list: &toml::Value, key: Option<&str>| -> Vec<String> {
        let items = list.as_array().expect("a list").iter();
        items.map(|item| key.map_or(item, |key| &item[key]).as_str().expect("a text").to_owned()).collect()
    };
    assert_eq!(deny["sources"]["unknown-registry"].as_str(), Some("deny"));
    assert_eq!(deny["sources"]["unknown-git"].as_str(), Some("deny"));
    Rules {
        targets: strings(&deny["graph"]["targets"], None),
        licences: strings(&deny["licenses"]["allow"], None),
        banned: strings(&deny["bans"]["deny"], Some("crate")),
    }
}

fn packages(target: &str) -> Vec<Value> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", target]);
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Whether an SPDX expression can be kept to with these licences; `/` is an old way to write `OR`.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let is_kept_to = either(&mut rest, allowed);
    assert!(rest.is_empty(), "{expression:?} is no SPDX expression");
    is_kept_to
}

fn either(rest: &mut &[&str], allowed: &[String]) -> bool {
    let mut found = both(rest, allowed);
    while let ["OR", after @ ..] = *rest {
        *rest = after;
        found |= both(rest, allowed);
    }
    found
}

fn both(rest: &mut &[&str], allowed: &[String]) -> bool {
    let mut found = one(rest, allowed);
    while let ["AND", after @ ..] = *rest {
        *rest = after;
        found &= one(rest, allowed);
    }
    found
}

fn one(rest: &mut &[&str], allowed: &[String]) -> bool {
    match *rest {
        ["(", after @ ..] => {
            *rest = after;
            let found = either(rest, allowed);
            assert_eq!(rest.first(), Some(&")"), "a bracket is open");
            *rest = &rest[1..];
            found
        }
        [licence, "WITH", exception, after @ ..] => {
            *rest = after;
            allowed.contains(&format!("{licence} WITH {exception}"))
        }
        [licence, after @ ..] => {
            *rest = after;
            allowed.iter().any(|allowed| allowed == licence)
        }
        [] => panic!("a licence is missing"),
    }
}

#[test]
fn expressions_are_understood() {
    let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
    for yes in ["MIT", "GPL-3.0 OR MIT", "MIT/GPL-3.0", "ISC AND (GPL-3.0 OR MIT)", "Apache-2.0 WITH LLVM-exception"] {
        assert!(is_allowed(yes, &allowed), "{yes}");
    }
    for no in
        ["GPL-3.0", "MIT AND GPL-3.0", "ISC AND (GPL-3.0 OR Apache-2.0)", "Apache-2.0", "GPL-3.0 AND (MIT) AND ISC"]
    {
        assert!(!is_allowed(no, &allowed), "{no}");
    }
}

#[test]
fn every_dependency_has_a_licence_and_an_origin_that_are_allowed() {
    let rules = rules();
    assert!(!rules.targets.is_empty() && !rules.licences.is_empty() && !rules.banned.is_empty());
    for target in &rules.targets {
        let packages = packages(target);
        assert!(packages.len() > 100, "{target}: {}", packages.len());
        for package in &packages {
            let name = package["name"].as_str().unwrap();
            // None of its own: a crate of this workspace.
            if let Some(source) = package["source"].as_str() {
                assert_eq!(source, "registry+https://github.com/rust-lang/crates.io-index", "{name}");
            }
            let licence = package["license"].as_str().unwrap_or_default();
            assert!(is_allowed(licence, &rules.licences), "{name}: {licence:?} is not in deny.toml");
            assert!(!rules.banned.iter().any(|banned| banned == name), "{name} is banned by deny.toml");
        }
    }
}

/// What `scripts/sbom` says the program is made of: all that is linked, held to what Cargo.lock holds it to, and nothing that only tests need.
#[test]
fn the_bill_of_materials_has_every_linked_crate_with_its_checksum() {
    if orlop_testkit::process::need("python3", "python3").is_none() {
        return;
    }
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let output = Command::new("python3").arg(top.join("scripts/sbom")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bill: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    let lock: toml::Value = toml::from_str(&std::fs::read_to_string(top.join("Cargo.lock")).unwrap()).unwrap();
    let locked = |name: &str, version: &str| {
        let mut packages = lock["package"].as_array().unwrap().iter();
        let found = packages.find(|p| p["name"].as_str() == Some(name) && p["version"].as_str() == Some(version));
        found.unwrap_or_else(|| panic!("{name} {version} is not in Cargo.lock")).get("checksum").cloned()
    };
    let parts = bill["components"].as_array().unwrap();
    for part in parts {
        let (name, version) = (part["name"].as_str().unwrap(), part["version"].as_str().unwrap());
        assert!(part["licenses"][0]["expression"].is_string(), "{name} has no licence");
        let checksum = locked(name, version);
        assert_eq!(part["hashes"][0]["content"].as_str(), checksum.as_ref().and_then(|sum| sum.as_str()), "{name}");
        assert_eq!(checksum.is_none(), name.starts_with("orlop-"), "{name}");
    }
    let has = |name: &str| parts.iter().any(|part| part["name"] == name);
    for linked in ["orlop-metadata", "libsqlite3-sys", "zstd-sys", "aws-lc-sys", "rustls", "tonic", "libp2p-kad"] {
        assert!(has(linked), "{linked} is linked");
    }
    for other in ["orlop-testkit", "insta", "proptest", "shuttle", "serde_derive"] {
        assert!(!has(other), "{other} is not");
    }
    let named = bill["dependencies"].as_array().unwrap();
    assert_eq!(named.len(), parts.len() + 1, "who needs whom is said of each, and of the program");
}

/// It would cost every pull 30 ms, a warm one twice of what else it takes.
#[test]
fn the_program_measures_no_jitter() {
    let program = env!("CARGO_BIN_EXE_orlop");
    let has = |word: &str| Command::new("grep").args(["-qaF", word, program]).status().unwrap().success();
    assert!(has("sqlite3_open"), "names of functions can be found in it");
    assert!(!has("jent_measure_jitter"), "built without .cargo/config.toml's AWS_LC_SYS_NO_JITTER_ENTROPY");
}
