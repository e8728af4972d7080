//! Which images are let in, by repository. Pure: whoever reads a policy file builds a [`Policy`] from it.
//!
//! The first rule that matches a repository counts; if none does, the default. A name that belongs to no repository
//! (an image ID, or any other text that a client chose) falls under the default.

use std::fmt;
use std::str::FromStr;

use orlop_oci::RepositoryName;

use super::key::PublicKey;

/// Rules by repository.
#[derive(Debug, Clone)]
pub struct Policy {
    /// In order.
    pub rules: Vec<Rule>,
    /// What counts where no rule matches.
    pub default: Rule,
}

impl Policy {
    /// The rule for a name's repository.
    pub fn rule_for(&self, repository: Option<&RepositoryName>) -> &Rule {
        let matching = |rule: &&Rule| repository.is_some_and(|r| rule.images.iter().any(|p| p.matches(r)));
        self.rules.iter().find(matching).unwrap_or(&self.default)
    }
}

/// What is wanted of the images of some repositories.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The repositories; none for the default.
    pub images: Vec<Pattern>,
    /// Where it stands, for messages: `/etc/orlop/policy.toml:12`.
    pub place: String,
    /// What is wanted.
    pub requirement: Requirement,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.images.as_slice() {
            [] => write!(f, "the default rule ({})", self.place),
            [only] => write!(f, "the rule for {only} ({})", self.place),
            [first, ..] => write!(f, "the rule for {first}, … ({})", self.place),
        }
    }
}

/// What a rule wants.
#[derive(Debug, Clone)]
pub enum Requirement {
    /// Nothing.
    Accept,
    /// Such images stay outside.
    Reject,
    /// Signatures.
    Signed(Signed),
}

/// Which signatures a rule wants.
#[derive(Debug, Clone)]
pub struct Signed {
    /// Keys that are trusted.
    pub keys: Vec<PublicKey>,
    /// How many different ones of them must have signed; at least 1.
    pub threshold: usize,
    /// What a signature must say the image is.
    pub identity: Identity,
}

impl fmt::Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<String> = self.keys.iter().map(PublicKey::to_string).collect();
        match (self.threshold, self.keys.len()) {
            (_, 1) => write!(f, "a signature by {}", keys[0]),
            (1, _) => write!(f, "a signature by any of {}", keys.join(", ")),
            (n, _) => write!(f, "signatures by {n} of {}", keys.join(", ")),
        }
    }
}

/// What a signature must say the image is, besides its digest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Identity {
    /// Nothing: as `cosign verify` does. A signature then holds for the same bytes in every repository.
    #[default]
    Any,
    /// The repository under which it is asked for. Bundles do not say one, and so never satisfy this.
    Repository,
}

/// Repositories: a host and a path, each possibly with `*`.
///
/// `*` stands for any text: in the host for none that has a slash, in the path for slashes too, so that
/// `example.com/team/*` is everything beneath.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    host: String,
    path: String,
}

impl Pattern {
    /// Whether it means this repository.
    pub fn matches(&self, repository: &RepositoryName) -> bool {
        wildcard(&self.host, repository.domain()) && wildcard(&self.path, repository.path())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host == "*" && self.path == "*" { f.write_str("*") } else { write!(f, "{}/{}", self.host, self.path) }
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let fail = |reason| PatternError { pattern: text.to_owned(), reason };
        if text == "*" {
            return Ok(Self { host: "*".to_owned(), path: "*".to_owned() });
        }
        if !text.contains('*') {
            let repository = RepositoryName::parse(text).map_err(|_| fail(NO_REPOSITORY))?;
            return Ok(Self { host: repository.domain().to_owned(), path: repository.path().to_owned() });
        }
        let (host, path) = text.split_once('/').ok_or_else(|| fail(NO_HOST))?;
        if host != "localhost" && !host.contains(['.', ':', '*']) {
            return Err(fail(NO_HOST));
        }
        let in_host = |b: u8| b.is_ascii_alphanumeric() || b"-.:[]*".contains(&b);
        let in_path = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._/*".contains(&b);
        if !host.bytes().all(in_host) || path.is_empty() || !path.bytes().all(in_path) {
            return Err(fail(NO_REPOSITORY));
        }
        Ok(Self { host: host.to_owned(), path: path.to_owned() })
    }
}

const NO_HOST: &str = "a pattern with * starts with a registry's host, as in docker.io/library/*";
const NO_REPOSITORY: &str = "expected a repository without tag or digest, as in registry.example.com/team/*";

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{pattern:?} is no pattern of repositories: {reason}")]
pub struct PatternError {
    pattern: String,
    reason: &'static str,
}

/// Whether `text` is `pattern` with each `*` replaced by some text.
fn wildcard(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        // The earliest place leaves most for what follows.
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<Pattern>().unwrap().matches(&RepositoryName::parse(name).unwrap())
    }

    #[test]
    fn patterns_mean_what_they_look_like() {
        assert!(matches("*", "busybox"));
        assert!(matches("registry.example.com/team/*", "registry.example.com/team/app"));
        assert!(matches("registry.example.com/team/*", "registry.example.com/team/app/part"));
        assert!(!matches("registry.example.com/team/*", "registry.example.com/teams/app"));
        assert!(!matches("registry.example.com/team/*", "registry.example.com/team"));
        assert!(matches("busybox", "docker.io/library/busybox"));
        assert!(matches("docker.io/library/*", "busybox"));
        assert!(matches("*.example.com/a-*-z/*", "eu.example.com/a-b-z/c"));
        assert!(matches("localhost:5000/*", "localhost:5000/x"));
    }

    /// A star in the host must not reach into the path: the path is chosen by whoever owns any registry.
    #[test]
    fn a_star_in_the_host_ends_at_the_slash() {
        assert!(!matches("*.example.com/team/*", "evil.net/x.example.com/team/app"));
    }

    #[test]
    fn what_is_no_repository_is_refused() {
        for text in ["", "team/*", "example.com/app:1", "example.com/*:1", "example.com/App*", "example.com/", "a b/*"]
        {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }

    /// The obvious, slow way.
    fn slow(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|at| slow(rest, &text[at..])),
            Some((first, rest)) => text.first() == Some(first) && slow(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn wildcards_agree_with_the_slow_way(pattern in "[ab*]{0,8}", text in "[ab]{0,12}") {
            prop_assert_eq!(wildcard(&pattern, &text), slow(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
