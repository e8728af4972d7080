//! Platforms, their normal form, and which one a host accepts.
//!
//! Source: containerd's platforms package, whose behaviour clients rely on: names are normalised, and an exact match
//! is preferred to an older variant of the same architecture.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system and a processor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// GOARCH name, e.g. `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// GOOS name, e.g. `linux`.
    #[serde(default)]
    pub os: String,
    /// Windows' build number.
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features the operating system must have.
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
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
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self::new("linux", architecture, variant)
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
        Self {
            os,
            architecture,
            variant: (!variant.is_empty()).then_some(variant),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
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
        ("aarch64" | "arm64", v) => ("arm64", if matches!(v, "8" | "v8") { "" } else { v }),
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
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let plain =
            |p: &&str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
        if !parts.iter().all(plain) {
            return Err(PlatformError(text.to_owned()));
        }
        match parts.as_slice() {
            [os, arch] => Ok(Self::new(os, arch, None)),
            [os, arch, variant] => Ok(Self::new(os, arch, Some(variant))),
            _ => Err(PlatformError(text.to_owned())),
        }
    }
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

    /// The rank of a platform, 0 being the best; `None` if it is not accepted.
    pub fn rank(&self, platform: &Platform) -> Option<usize> {
        let Some(accepted) = &self.accepted else { return Some(0) };
        let candidate = platform.normalized();
        accepted.iter().position(|a| {
            a.os == candidate.os && a.architecture == candidate.architecture && a.variant == candidate.variant
        })
    }

    /// Whether a platform is accepted.
    pub fn matches(&self, platform: &Platform) -> bool {
        self.rank(platform).is_some()
    }
}

fn vector(platform: &Platform) -> Vec<Platform> {
    let with = |architecture: &str, variant: &str| {
        let mut p = platform.clone();
        p.architecture = architecture.to_owned();
        p.variant = Some(variant.to_owned());
        p.normalized()
    };
    let number = |p: &Platform| p.variant.as_deref().and_then(|v| v.strip_prefix('v')?.parse::<u32>().ok());
    let mut accepted = vec![platform.clone()];
    match platform.architecture.as_str() {
        "amd64" => {
            let top = number(platform).unwrap_or(1).min(16);
            accepted.extend((1..top).rev().map(|v| with("amd64", &format!("v{v}"))));
            accepted.push(with("386", ""));
        }
        "arm" => {
            let top = number(platform).unwrap_or(7).min(8);
            accepted.extend((5..top).rev().map(|v| with("arm", &format!("v{v}"))));
        }
        "arm64" => {
            if platform.variant.is_some() {
                accepted.push(with("arm64", ""));
            }
            accepted.extend((5..=8).rev().map(|v| with("arm", &format!("v{v}"))));
        }
        _ => {}
    }
    accepted
}
