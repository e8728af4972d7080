//! containerd's filter grammar.
//!
//! A filter is selectors joined by commas, all of which must match; several filters match if any does; the empty
//! filter matches everything. A selector is a field path with `==`, `!=` or `~=` (regular expression) and a value, or a
//! field path alone (present). Field parts are joined by dots and quoted where they have other than word characters:
//! `labels."io.cri-containerd.image"==managed`. Source: containerd `pkg/filters` behaviour.

/// A parsed list of filters.
#[derive(Debug, Clone, Default)]
pub struct Filter {}

/// Why a filter does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter {filter:?}: {reason} at byte {at}")]
pub struct FilterError {
    /// The whole filter.
    pub filter: String,
    /// Where it broke.
    pub at: usize,
    /// Why.
    pub reason: String,
}

impl Filter {
    /// Parses filters; an empty list matches everything.
    pub fn parse(filters: &[String]) -> Result<Self, FilterError> {
        let _ = filters;
        todo!()
    }

    /// Whether an object matches. `field` answers the value at a path: `["labels", "a.b"]`.
    pub fn matches<'a>(&self, field: impl Fn(&[String]) -> Option<std::borrow::Cow<'a, str>>) -> bool {
        let _ = field;
        todo!()
    }
}
