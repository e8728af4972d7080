//! The map of ARCHITECTURE.md as a test: who may depend on whom, and who knows what.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A crate may depend on those in its row and on nothing else of the workspace.
const ALLOWED: &[(&str, &[&str])] = &[
    ("orlop-oci", &[]),
    ("orlop-bolt", &[]),
    ("orlop-inflate", &[]),
    ("orlop-graph", &["orlop-oci"]),
    ("orlop-content", &["orlop-oci"]),
    ("orlop-snapshot", &["orlop-oci", "orlop-inflate"]),
    ("orlop-metadata", &["orlop-oci", "orlop-content", "orlop-snapshot"]),
    ("orlop-remote", &["orlop-oci"]),
    ("orlop-image", &["orlop-oci", "orlop-content", "orlop-snapshot", "orlop-metadata", "orlop-remote", "orlop-graph"]),
    ("orlop-api", &[]),
    (
        "orlop-server",
        &[
            "orlop-oci",
            "orlop-content",
            "orlop-snapshot",
            "orlop-metadata",
            "orlop-remote",
            "orlop-image",
            "orlop-graph",
            "orlop-api",
            "orlop-registry",
        ],
    ),
    ("orlop-lens", &["orlop-oci", "orlop-bolt", "orlop-graph", "orlop-api"]),
    ("orlop-registry", &["orlop-oci", "orlop-content"]),
    ("orlop-shared", &["orlop-oci", "orlop-content", "orlop-registry"]),
    ("orlop-peer", &["orlop-oci", "orlop-content", "orlop-metadata", "orlop-image"]),
    ("orlop-testkit", &["orlop-oci"]),
    ("orlop-xtask", &[]),
    (
        "orlop-fuzz",
        &[
            "orlop-oci",
            "orlop-bolt",
            "orlop-inflate",
            "orlop-content",
            "orlop-snapshot",
            "orlop-metadata",
            "orlop-remote",
            "orlop-image",
            "orlop-graph",
            "orlop-api",
            "orlop-server",
            "orlop-registry",
            "orlop-testkit",
        ],
    ),
    (
        "orlop",
        &[
            "orlop-oci",
            "orlop-content",
            "orlop-snapshot",
            "orlop-metadata",
            "orlop-remote",
            "orlop-image",
            "orlop-graph",
            "orlop-api",
            "orlop-server",
            "orlop-lens",
            "orlop-registry",
            "orlop-shared",
            "orlop-peer",
        ],
    ),
];

/// An outside crate that only some crates may know (development dependencies are free).
const RESERVED: &[(&str, &[&str])] = &[
    ("prost", &["orlop-api", "orlop-server", "orlop-fuzz"]),
    ("prost-types", &["orlop-api", "orlop-server", "orlop-lens", "orlop", "orlop-fuzz"]),
    ("tonic", &["orlop-api", "orlop-server", "orlop-lens", "orlop", "orlop-fuzz"]),
    ("axum", &["orlop-registry", "orlop-testkit"]),
    ("rusqlite", &["orlop-metadata"]),
    ("tokio-postgres", &["orlop-shared"]),
    ("deadpool-postgres", &["orlop-shared"]),
    ("object_store", &["orlop-shared", "orlop-testkit"]),
    ("reqwest", &["orlop-remote", "orlop-peer"]),
    ("libp2p-core", &["orlop-peer"]),
    ("libp2p-identity", &["orlop-peer"]),
    ("libp2p-kad", &["orlop-peer"]),
    ("libp2p-swarm", &["orlop-peer"]),
    ("clap", &["orlop"]),
    ("indicatif", &["orlop"]),
    ("ratatui", &["orlop"]),
    ("opentelemetry", &["orlop"]),
    ("opentelemetry_sdk", &["orlop"]),
    ("opentelemetry-otlp", &["orlop"]),
    ("tracing-opentelemetry", &["orlop"]),
];

/// A text that may occur in the sources of these crates only.
const RESERVED_WORDS: &[(&str, &[&str])] = &[
    ("std::env::var", &["orlop", "orlop-testkit"]),
    ("env::var_os", &["orlop", "orlop-testkit"]),
    ("std::io::stdout", &["orlop"]),
    ("println!", &["orlop", "orlop-testkit", "orlop-xtask"]),
];

/// Crates that do no I/O.
const PURE: &[&str] = &["orlop-oci", "orlop-bolt", "orlop-inflate", "orlop-graph"];

#[derive(serde::Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(serde::Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(serde::Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Metadata>(&output.stdout).expect("cargo metadata prints JSON").packages
}

fn normal(package: &Package) -> impl Iterator<Item = &str> {
    package.dependencies.iter().filter(|d| d.kind.is_none()).map(|d| d.name.as_str())
}

#[test]
fn arrows_point_down_only() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ALLOWED.iter().map(|(n, d)| (*n, d.iter().copied().collect())).collect();
    let packages = packages();
    let names: BTreeSet<&str> = packages.iter().map(|p| p.name.as_str()).collect();
    for package in &packages {
        let row = allowed.get(package.name.as_str());
        let row =
            row.unwrap_or_else(|| panic!("{} is not on the map: add it to ARCHITECTURE.md and here", package.name));
        for dependency in normal(package).filter(|d| names.contains(d)) {
            assert!(row.contains(dependency), "{} may not depend on {dependency}", package.name);
        }
    }
}

#[test]
fn reserved_crates_stay_where_they_belong() {
    for package in packages() {
        for (outside, owners) in RESERVED {
            let uses = normal(&package).any(|d| d == *outside);
            assert!(!uses || owners.contains(&package.name.as_str()), "{} may not know {outside}", package.name);
        }
    }
}

#[test]
fn only_the_command_line_reads_its_surroundings() {
    for package in packages() {
        for (path, text) in sources(&package) {
            for (word, owners) in RESERVED_WORDS {
                let free = owners.contains(&package.name.as_str());
                assert!(free || !text.contains(word), "{} uses {word}", path.display());
            }
        }
    }
}

#[test]
fn pure_crates_do_no_input_or_output() {
    for package in packages().iter().filter(|p| PURE.contains(&p.name.as_str())) {
        for (path, text) in sources(package) {
            for word in ["std::fs", "std::net", "std::process", "tokio", "rustix"] {
                assert!(!text.contains(word), "{} uses {word}", path.display());
            }
        }
    }
}

/// The sources under `src`, without their unit tests.
fn sources(package: &Package) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open = vec![package.manifest_path.parent().expect("a manifest is in a directory").join("src")];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).expect("a source directory can be read") {
            let path = entry.expect("a directory entry can be read").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !is_test(&path) {
                let text = std::fs::read_to_string(&path).expect("a source can be read");
                let code = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
                found.push((path, code));
            }
        }
    }
    found
}

fn is_test(path: &Path) -> bool {
    path.file_stem().is_some_and(|s| s.to_string_lossy().contains("test"))
}
