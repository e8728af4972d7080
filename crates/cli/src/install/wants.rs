//! What a containerd's configuration must say so that Orlop lies beneath it (docs/operations/containerd.md), by the version of
//! the file and of the program. No I/O.
//!
//! # Invariants
//! - The two profiles exclude each other: one hands snapshots over and has no `rebase`, the other the reverse.
//! - Who pulls without CRI goes on as before: the snapshotter that was the default stays one that can be unpacked for.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use toml_edit::{Array, DocumentMut, Item};

use super::edit::{self, Want};
use crate::error::{Class, CliError, Result};

/// The name of Orlop's snapshotter in a containerd.
pub(super) const SNAPSHOTTER: &str = "orlop-overlay";
/// containerd's own content store, of which it wants exactly one.
const OWN_CONTENT: &str = "io.containerd.content.v1.content";
/// CRI in files of version 2.
const CRI: &str = "io.containerd.grpc.v1.cri";
/// CRI's images since version 3.
const CRI_IMAGES: &str = "io.containerd.cri.v1.images";
const TRANSFER: &str = "io.containerd.transfer.v1.local";
/// Layers that containerd has applied at once in the profile *differ*.
const UNPACKS: i64 = 4;
/// What CRI has if nobody says anything.
const DEFAULT_DOWNLOADS: i64 = 3;

/// Who brings images and who unpacks them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Profile {
    /// Orlop pulls and unpacks; containerd skips its download
    Remote,
    /// containerd downloads; layers are applied to Orlop's snapshots, several at once
    Differ,
}

/// What is to be beneath a containerd.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) profile: Profile,
    pub(super) content: bool,
    /// The raw socket, as containerd reaches it.
    pub(super) raw: PathBuf,
    /// Where Orlop has its trees.
    pub(super) trees: PathBuf,
}

/// The containerd that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Containerd {
    /// 1 or 2 of its version.
    pub(super) generation: u64,
    /// Whether it unpacks for its own overlayfs.
    pub(super) overlayfs: bool,
}

/// The version of a configuration file.
///
/// # Errors
/// If it is none that Orlop edits: what, expected, found, what to do.
pub(super) fn file_version(document: &DocumentMut, file: &Path) -> Result<i64> {
    let found = match document.get("version").map(Item::as_integer) {
        Some(Some(version @ 2..=4)) => return Ok(version),
        Some(Some(version)) => format!("version = {version}"),
        Some(None) => "a version that is no number".to_owned(),
        None => "no version, which is version 1".to_owned(),
    };
    let message = format!("{}: expected a configuration of version 2, 3 or 4, found {found}", file.display());
    Err(CliError::new(Class::Conflict, message)
        .hint("write it anew: `containerd config migrate` prints it in the newest version that your containerd reads"))
}

/// What must be in the file.
pub(super) fn wants(document: &DocumentMut, version: i64, wanted: &Wanted, above: Containerd) -> Vec<Want> {
    let mut wants = plugins(wanted, above);
    let remote = wanted.profile == Profile::Remote;
    if version == 2 {
        let cri = ["plugins", CRI, "containerd"];
        wants.push(Want::set(&[&cri[..], &["snapshotter"]].concat(), SNAPSHOTTER));
        if remote && (above.generation < 2 || pulls_locally(document, &cri, &["plugins", CRI, "registry"])) {
            wants.push(Want::set(&[&cri[..], &["disable_snapshot_annotations"]].concat(), false));
        }
    } else {
        let images = ["plugins", CRI_IMAGES];
        wants.push(Want::set(&[&images[..], &["snapshotter"]].concat(), SNAPSHOTTER));
        if remote && pulls_locally(document, &images, &["plugins", CRI_IMAGES, "registry"]) {
            wants.push(Want::set(&[&images[..], &["disable_snapshot_annotations"]].concat(), false));
        }
    }
    if above.generation >= 2 {
        wants.extend(transfer(document, wanted, above));
    }
    wants
}

/// The same for a file of its own that is merged over another, which nobody sees here: k3s' own has CRI pull by itself.
pub(super) fn wants_beside(wanted: &Wanted, above: Containerd) -> Vec<Want> {
    let mut wants = wants(&DocumentMut::new(), 3, wanted, above);
    if wanted.profile == Profile::Remote {
        wants.push(Want::set(&["plugins", CRI_IMAGES, "disable_snapshot_annotations"], false));
    }
    wants
}

fn plugins(wanted: &Wanted, above: Containerd) -> Vec<Want> {
    let raw = wanted.raw.display().to_string();
    let proxy = |name: &'static str, kind: &str| {
        [("type", kind.to_owned()), ("address", raw.clone())]
            .map(|(key, value)| Want::set(&["proxy_plugins", name, key], value))
    };
    let mut wants = proxy(SNAPSHOTTER, "snapshot").to_vec();
    if wanted.profile == Profile::Differ {
        let capabilities = Array::from_iter(["rebase"]);
        wants.push(Want::set(&["proxy_plugins", SNAPSHOTTER, "capabilities"], capabilities));
    }
    let trees = wanted.trees.display().to_string();
    wants.push(Want::set(&["proxy_plugins", SNAPSHOTTER, "exports", "root"], trees));
    if wanted.profile == Profile::Remote {
        let key = ["proxy_plugins", SNAPSHOTTER, "exports", "enable_remote_snapshot_annotations"];
        wants.push(Want::set(&key, "true"));
    }
    if wanted.content {
        wants.push(Want::member(&["disabled_plugins"], OWN_CONTENT));
        wants.extend(proxy("orlop-content", "content"));
        if applies(wanted) && above.generation >= 2 {
            wants.extend(proxy("orlop", "diff"));
        }
    }
    wants
}

/// Whether Orlop applies layers: it needs their blobs.
fn applies(wanted: &Wanted) -> bool {
    wanted.profile == Profile::Differ && wanted.content
}

fn transfer(document: &DocumentMut, wanted: &Wanted, above: Containerd) -> Vec<Want> {
    let path = ["plugins", TRANSFER, "unpack_config"];
    let row = |snapshotter: &str, differ: &str| {
        let row = vec![("platform", platform()), ("snapshotter", snapshotter.into()), ("differ", differ.into())];
        Want::row(&path, "snapshotter", row)
    };
    let mut wants = Vec::new();
    // Where nothing is said containerd unpacks for overlayfs; the first thing that is said ends that.
    if above.overlayfs && edit::get(document, &path).is_none() {
        wants.push(row("overlayfs", "walking"));
    }
    wants.push(row(SNAPSHOTTER, if applies(wanted) { "orlop" } else { "walking" }));
    if wanted.profile == Profile::Differ {
        wants.push(Want::set(&["plugins", TRANSFER, "max_concurrent_unpacks"], UNPACKS));
    }
    wants
}

/// Whether CRI of a containerd 2 pulls by itself and not by the transfer service, which takes the image's name from elsewhere:
/// its own settings that the service has not say so.
fn pulls_locally(document: &DocumentMut, images: &[&str], registry: &[&str]) -> bool {
    let at = |table: &[&str], key: &str| edit::get(document, &[table, &[key]].concat());
    let is_true = |key: &str| at(images, key).and_then(Item::as_bool).unwrap_or(false);
    let has_rows = |key: &str| at(registry, key).and_then(Item::as_table_like).is_some_and(|table| !table.is_empty());
    ["use_local_image_pull", "discard_unpacked_layers", "image_pull_with_sync_fs"].iter().any(|key| is_true(key))
        || ["mirrors", "configs", "auths"].iter().any(|key| has_rows(key))
        || at(images, "max_concurrent_downloads")
            .and_then(Item::as_integer)
            .is_some_and(|downloads| downloads != DEFAULT_DOWNLOADS)
}

/// The snapshotter that CRI has by now, if the file says one.
pub(super) fn snapshotter(document: &DocumentMut) -> Option<&str> {
    let at = |path: &[&str]| edit::get(document, path)?.as_str();
    at(&["plugins", CRI_IMAGES, "snapshotter"]).or_else(|| at(&["plugins", CRI, "containerd", "snapshotter"]))
}

fn platform() -> String {
    let host = orlop_oci::Platform::host();
    format!("{}/{}", host.os, host.architecture)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(profile: Profile, content: bool) -> Wanted {
        Wanted {
            profile,
            content,
            raw: "/run/orlop/raw.sock".into(),
            trees: "/var/lib/orlop/snapshots/overlayfs".into(),
        }
    }

    fn written(text: &str, wanted: &Wanted, generation: u64) -> String {
        let mut document = edit::parse(text).unwrap();
        let version = file_version(&document, Path::new("f")).unwrap();
        let wants = wants(&document, version, wanted, Containerd { generation, overlayfs: true });
        edit::apply(&mut document, &wants).unwrap();
        document.to_string().replace(std::env::consts::ARCH, "ARCH").replace(&platform(), "linux/HOST")
    }

    #[test]
    fn each_profile_of_each_generation() {
        let mut all = String::new();
        for (version, generation) in [(2, 1), (2, 2), (3, 2)] {
            for (profile, content) in [(Profile::Remote, false), (Profile::Differ, false), (Profile::Differ, true)] {
                let text = written(&format!("version = {version}\n"), &wanted(profile, content), generation);
                all += &format!(
                    "#### version {version}, containerd {generation}, {profile:?}, content {content}\n{text}\n"
                );
            }
        }
        insta::assert_snapshot!("profiles", all);
    }

    #[test]
    fn where_cri_pulls_by_itself_the_image_is_named_to_the_snapshotter() {
        let says =
            |text: &str| written(text, &wanted(Profile::Remote, false), 2).contains("disable_snapshot_annotations");
        assert!(!says("version = 3\n"));
        for local in [
            "use_local_image_pull = true",
            "max_concurrent_downloads = 8",
            "registry.mirrors.a.endpoint = ['http://b']",
            "registry.configs.a.auth.username = 'b'",
        ] {
            assert!(says(&format!("version = 3\n[plugins.'{CRI_IMAGES}']\n{local}\n")), "{local}");
        }
        assert!(!says(&format!("version = 3\n[plugins.'{CRI_IMAGES}']\nmax_concurrent_downloads = 3\n")));
    }

    #[test]
    fn other_versions_are_refused_with_what_to_do() {
        for (text, found) in [
            ("", "no version, which is version 1"),
            ("version = 1", "version = 1"),
            ("version = 9", "version = 9"),
            ("version = 'x'", "a version that is no number"),
        ] {
            let error = file_version(&edit::parse(text).unwrap(), Path::new("f")).unwrap_err();
            assert_eq!(error.message, format!("f: expected a configuration of version 2, 3 or 4, found {found}"));
            assert!(error.class == Class::Conflict && error.hint.unwrap().contains("config migrate"));
        }
    }
}
