//! `[mirror]`: what the daemon's registry gives of other registries.

use std::time::Duration;

use orlop_image::{MirrorSettings, Pattern};
use orlop_remote::ClientOptions;
use serde::{Deserialize, Serialize};

/// `[mirror]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Mirror {
    pub(crate) give: Vec<String>,
    pub(crate) fetch: Vec<String>,
    pub(crate) fresh_seconds: u32,
    pub(crate) keep_days: u32,
    pub(crate) keep_bytes: u64,
}

impl Default for Mirror {
    fn default() -> Self {
        Self { give: Vec::new(), fetch: Vec::new(), fresh_seconds: 60, keep_days: 14, keep_bytes: 0 }
    }
}

impl Mirror {
    /// What is wrong, with the key.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        patterns("mirror.give", &self.give)?;
        patterns("mirror.fetch", &self.fetch).map(drop)
    }

    /// What it is to give and fetch; none if there is no mirror. Registries are reached as for the daemon's pulls.
    pub(crate) fn settings(&self, namespace: &str, registry: ClientOptions) -> Option<MirrorSettings> {
        if self.give.is_empty() && self.fetch.is_empty() {
            return None;
        }
        // They were checked when they were read.
        Some(MirrorSettings {
            namespace: namespace.to_owned(),
            give: patterns("mirror.give", &self.give).ok()?,
            fetch: patterns("mirror.fetch", &self.fetch).ok()?,
            fresh: Duration::from_secs(self.fresh_seconds.into()),
            keep: Duration::from_secs(u64::from(self.keep_days) * 24 * 3600),
            keep_bytes: self.keep_bytes,
            registry,
        })
    }
}

fn patterns(key: &'static str, texts: &[String]) -> Result<Vec<Pattern>, (&'static str, String)> {
    texts.iter().map(|text| text.parse::<Pattern>().map_err(|error| (key, error.to_string()))).collect()
}
