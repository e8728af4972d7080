//! What a gRPC status of Orlop says beside code and message: the class that the command line's exit code follows, and
//! what to do. It travels in the status' metadata; other clients ignore it.

use serde::{Deserialize, Serialize};
use tonic::Status;
use tonic::metadata::MetadataValue;

/// The metadata key: JSON of [`Details`].
pub const DETAILS_KEY: &str = "orlop-error-bin";

/// Longer hints are cut: headers have little room.
const MAX_HINT_BYTES: usize = 2048;

/// The classes of failure that scripts tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The request makes no sense.
    Usage,
    /// What was named is not there.
    NotFound,
    /// It exists, or the state moved.
    Conflict,
    /// Bytes are not what they should be.
    Verification,
    /// The disk is full.
    NoSpace,
    /// Not allowed.
    NotPermitted,
    /// Network, registry or daemon out of reach.
    Unavailable,
    /// Stopped before it was done.
    Interrupted,
    /// Anything else.
    #[serde(other)]
    Failed,
}

impl Class {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::Verification => "verification",
            Self::NoSpace => "no-space",
            Self::NotPermitted => "not-permitted",
            Self::Unavailable => "unavailable",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
        }
    }
}

/// What is known of a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// Its class.
    pub class: Class,
    /// What to do; empty if there is nothing to say.
    #[serde(default)]
    pub hint: String,
}

/// An error and what caused it, each after a colon; what an error has already said of its cause is not said again.
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut said = error.to_string();
    for cause in std::iter::successors(error.source(), |e| (**e).source()).map(ToString::to_string) {
        if !said.ends_with(&cause) {
            said = format!("{said}: {cause}");
        }
    }
    said
}

/// Adds details to a status.
#[must_use]
pub fn with_details(mut status: Status, details: &Details) -> Status {
    let mut details = details.clone();
    if details.hint.len() > MAX_HINT_BYTES {
        details.hint.truncate(details.hint.floor_char_boundary(MAX_HINT_BYTES));
    }
    if let Ok(json) = serde_json::to_vec(&details) {
        status.metadata_mut().insert_bin(DETAILS_KEY, MetadataValue::from_bytes(&json));
    }
    status
}

/// The details of a status; none if it does not come from Orlop.
pub fn details(status: &Status) -> Option<Details> {
    let value = status.metadata().get_bin(DETAILS_KEY)?;
    serde_json::from_slice(&value.to_bytes().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_survive_the_status() {
        let sent = Details { class: Class::NoSpace, hint: "run `orlop gc`: é".into() };
        let status = with_details(Status::resource_exhausted("full"), &sent);
        assert_eq!(details(&status), Some(sent));
        assert_eq!(details(&Status::internal("x")), None);
    }

    #[test]
    fn a_class_of_the_future_reads_as_failed() {
        let parsed: Details = serde_json::from_str(r#"{"class":"sunspots"}"#).unwrap();
        assert_eq!(parsed, Details { class: Class::Failed, hint: String::new() });
    }

    #[test]
    fn a_long_hint_is_cut_between_characters() {
        let sent = Details { class: Class::Failed, hint: "é".repeat(5000) };
        let got = details(&with_details(Status::internal("x"), &sent)).unwrap();
        assert!(got.hint.len() <= MAX_HINT_BYTES && !got.hint.is_empty());
    }
}
