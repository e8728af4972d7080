//! Platforms, their normal form, and which one a host accepts.
//!
//! Source: containerd's platforms package, whose behaviour clients rely on: names are normalised, and an exact match
//! is preferred to an older variant of the same architecture.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::document::null_as_default;

/// What an absent operating system means, since the store runs on Linux only.
const HOST_OS: &str = "linux";

/// An operating system and a processor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// GOARCH name, e.g. `amd64`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub architecture: String,
    /// GOOS name, e.g. `linux`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub os: String,
    /// Windows' build number.
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features the operating system must have.
    #[serde(
        default,
        rename = "os.features",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub os_features: Vec<String>,
    /// The variant of the processor, e.g. `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform: expected os/architecture or os/architecture/variant, e.g. linux/arm/v7")]
pub struct PlatformError(String);

impl Platform {
    /// The platform this program was compiled for.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "arm" => ("arm", Some("v7")),
            "x86" => ("386", None),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "powerpc64" => ("ppc64", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self::new(HOST_OS, architecture, variant)
    }

    /// A platform in normal form.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
            ..Self::default()
        }
        .normalized()
    }

    /// The normal form: aliases resolved, the default variant of an architecture dropped (of arm: spelled out).
    #[must_use]
    pub fn normalized(&self) -> Self {
        let os = match self.os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = self.variant.as_deref().unwrap_or("").to_ascii_lowercase();
        let (architecture, variant) = normal_arch(&self.architecture.to_ascii_lowercase(), &variant);
        let mut os_features = self.os_features.clone();
        os_features.sort();
        os_features.dedup();
        Self {
            os,
            architecture,
            variant: (!variant.is_empty()).then_some(variant),
            os_version: self.os_version.clone(),
            os_features,
        }
    }

    /// Whether this says nothing, as in configs of artifacts, or `unknown/unknown` as in attestations.
    pub fn is_unknown(&self) -> bool {
        (self.os.is_empty() && self.architecture.is_empty()) || (self.os == "unknown" && self.architecture == "unknown")
    }
}

fn normal_arch(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = match (architecture, variant) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", v) => ("amd64", if v == "v1" { "" } else { v }),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
        ("aarch64" | "arm64", v) => ("arm64", v),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        other => other,
    };
    (architecture.to_owned(), variant.to_owned())
}

impl fmt::Display for Platform {
    /// `os/architecture[/variant]`, or `unknown` where the document says nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.os.is_empty() && self.architecture.is_empty() {
            return f.write_str("unknown");
        }
        f.write_str(if self.os.is_empty() { "unknown" } else { &self.os })?;
        for part in [self.architecture.as_str(), self.variant.as_deref().unwrap_or("")] {
            if !part.is_empty() {
                write!(f, "/{part}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// Reads `os/architecture[/variant]`, or one word: an operating system (of the host's architecture) or an
    /// architecture (of the host's operating system). `os` may be `os(version+feature…)`.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let fail = || PlatformError(text.to_owned());
        let parts: Vec<&str> = text.split('/').collect();
        let (os, options) = split_os(parts[0]).ok_or_else(fail)?;
        if !is_word(os) || !parts[1..].iter().all(|p| is_word(p)) {
            return Err(fail());
        }
        let mut platform = match parts.as_slice() {
            [_] => one_word(os).ok_or_else(fail)?,
            [_, architecture] => Self::new(os, architecture, None),
            [_, architecture, variant] => Self::new(os, architecture, Some(variant)),
            _ => return Err(fail()),
        };
        let mut options = options.split('+');
        platform.os_version = options.next().filter(|v| !v.is_empty()).map(str::to_owned);
        platform.os_features = options.map(str::to_owned).collect();
        if !platform.os_version.iter().chain(&platform.os_features).all(|o| is_word(o)) {
            return Err(fail());
        }
        Ok(platform.normalized())
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// `windows(10.0.17763)` is `windows` and `10.0.17763`.
fn split_os(text: &str) -> Option<(&str, &str)> {
    match text.split_once('(') {
        Some((os, rest)) => Some((os, rest.strip_suffix(')')?)),
        None => Some((text, "")),
    }
}

fn one_word(word: &str) -> Option<Platform> {
    const SYSTEMS: [&str; 8] = ["linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "solaris", "illumos"];
    const ARCHITECTURES: [&str; 14] = [
        "386", "amd64", "arm", "arm64", "ppc64", "ppc64le", "loong64", "mips", "mipsle", "mips64", "mips64le",
        "riscv64", "s390x", "wasm",
    ];
    let host = Platform::host();
    let as_os = Platform::new(word, &host.architecture, host.variant.as_deref());
    if SYSTEMS.contains(&as_os.os.as_str()) {
        return Some(as_os);
    }
    let as_architecture = Platform::new(HOST_OS, word, None);
    ARCHITECTURES.contains(&as_architecture.architecture.as_str()).then_some(as_architecture)
}

/// Which platforms are wanted, best first.
#[derive(Debug, Clone)]
pub struct PlatformMatcher {
    accepted: Option<Vec<Platform>>,
}

impl PlatformMatcher {
    /// Accepts everything.
    pub const fn all() -> Self {
        Self { accepted: None }
    }

    /// Accepts what a host of this platform runs: itself first, then older variants, then (as containerd does) the
    /// 32-bit sibling.
    pub fn only(platform: &Platform) -> Self {
        Self { accepted: Some(vector(&platform.normalized())) }
    }

    /// Accepts each of these and nothing else; the order is the preference.
    pub fn exactly(platforms: &[Platform]) -> Self {
        Self { accepted: Some(platforms.iter().map(Platform::normalized).collect()) }
    }

    /// What this host runs.
    pub fn host() -> Self {
        Self::only(&Platform::host())
    }

    /// The rank of a platform, lower being better; `None` if it is not accepted. Of two that fit equally, the one
    /// with more of the wanted `os.features` is better; a feature that is not wanted excludes.
    pub fn rank(&self, platform: &Platform) -> Option<usize> {
        let Some(accepted) = &self.accepted else { return Some(0) };
        let mut candidate = platform.normalized();
        if candidate.os.is_empty() {
            HOST_OS.clone_into(&mut candidate.os);
        }
        let step = accepted.iter().map(|a| a.os_features.len()).max().unwrap_or(0) + 1;
        let position = accepted.iter().position(|a| accepts(a, &candidate))?;
        Some(position * step + (accepted[position].os_features.len() - candidate.os_features.len()))
    }

    /// Whether a platform is accepted.
    pub fn matches(&self, platform: &Platform) -> bool {
        self.rank(platform).is_some()
    }
}

/// Both in normal form.
fn accepts(wanted: &Platform, candidate: &Platform) -> bool {
    wanted.os == candidate.os
        && wanted.architecture == candidate.architecture
        && wanted.variant == candidate.variant
        && candidate.os_features.iter().all(|f| wanted.os_features.contains(f))
        && (wanted.os != "windows" || same_build(wanted.os_version.as_deref(), candidate.os_version.as_deref()))
}

/// Windows runs images of its own build: the first three numbers count. No version on either side: any.
fn same_build(wanted: Option<&str>, candidate: Option<&str>) -> bool {
    let build = |v: &str| v.split('.').take(3).map(str::to_owned).collect::<Vec<_>>();
    match (wanted, candidate) {
        (Some(wanted), Some(candidate)) => build(wanted) == build(candidate),
        _ => true,
    }
}

/// What a host of `platform` (in normal form) runs, best first. Source: containerd's platforms package, `Only`.
fn vector(platform: &Platform) -> Vec<Platform> {
    let with = |architecture: &str, variant: String| {
        Platform { architecture: architecture.to_owned(), variant: Some(variant), ..platform.clone() }.normalized()
    };
    let number = || platform.variant.as_deref().and_then(|v| v.strip_prefix('v').unwrap_or(v).parse::<u32>().ok());
    let mut accepted = vec![platform.clone()];
    match platform.architecture.as_str() {
        "amd64" => {
            let top = number().unwrap_or(1).min(16);
            accepted.extend((1..top).rev().map(|v| with("amd64", format!("v{v}"))));
            accepted.push(with("386", String::new()));
        }
        "arm" => {
            let top = number().unwrap_or(5).min(16);
            accepted.extend((5..top).rev().map(|v| with("arm", format!("v{v}"))));
        }
        "arm64" => {
            let older = arm64_older(platform.variant.as_deref().unwrap_or("v8"));
            accepted.extend(older.into_iter().map(|(major, minor)| with("arm64", format!("v{major}.{minor}"))));
            accepted.extend((5..=8).rev().map(|v| with("arm", format!("v{v}"))));
        }
        _ => {}
    }
    accepted
}

/// The versions of the 64-bit Arm architecture below `variant`, newest first; each v9.N contains v8.(N + 5).
fn arm64_older(variant: &str) -> Vec<(u32, u32)> {
    const LAST_V8_MINOR: u32 = 9;
    let version = variant.strip_prefix('v').unwrap_or(variant);
    let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
    let (Ok(major), Ok(minor)) = (major.parse::<u32>(), minor.parse::<u32>()) else { return Vec::new() };
    let minor = minor.min(LAST_V8_MINOR);
    let down = |major: u32, below: u32| (0..below).rev().map(move |minor| (major, minor));
    match major {
        8 => down(8, minor).collect(),
        9 => down(9, minor).chain(down(8, (minor + 5).min(LAST_V8_MINOR) + 1)).collect(),
        _ => Vec::new(),
    }
}
