//! Rules: who may do what in which repositories. What no rule allows is not allowed.

use std::fmt;
use std::str::FromStr;

use super::Action;

/// Rules; the default allows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permissions {
    rules: Vec<RepositoryRule>,
}

/// What some may do in some repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryRule {
    /// Where.
    pub repositories: Vec<RepositoryPattern>,
    /// Who.
    pub who: Vec<Who>,
    /// What.
    pub actions: Vec<Action>,
}

/// Somebody of whom a rule speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// `anonymous`: everybody, also who does not log in.
    Anonymous,
    /// `local`: everybody whose request comes from this machine.
    Local,
    /// `authenticated`: everybody who logs in.
    Authenticated,
    /// One user.
    User(String),
}

/// The names that are not those of users.
pub(super) const RESERVED: [&str; 3] = ["anonymous", "local", "authenticated"];

/// A name that nobody can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no user's name: expected one of the user file, or anonymous, local, authenticated")]
pub struct WhoError(String);

impl FromStr for Who {
    type Err = WhoError;

    fn from_str(text: &str) -> Result<Self, WhoError> {
        match text {
            "anonymous" => Ok(Self::Anonymous),
            "local" => Ok(Self::Local),
            "authenticated" => Ok(Self::Authenticated),
            "" => Err(WhoError(text.to_owned())),
            user if user.contains(':') || user.chars().any(char::is_control) => Err(WhoError(text.to_owned())),
            user => Ok(Self::User(user.to_owned())),
        }
    }
}

impl Who {
    fn is(&self, user: Option<&str>, local: bool) -> bool {
        match self {
            Self::Anonymous => true,
            Self::Local => local,
            Self::Authenticated => user.is_some(),
            Self::User(name) => user == Some(name),
        }
    }
}

/// Repositories: `*` stands for any text, slashes too, so that `team/*` is everything beneath.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryPattern(String);

impl RepositoryPattern {
    /// A pattern.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether a repository is one of them.
    pub fn matches(&self, repository: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = repository.strip_prefix(first) else { return false };
        let mut parts: Vec<&str> = parts.collect();
        let Some(last) = parts.pop() else { return rest.is_empty() };
        for part in parts {
            // The leftmost place leaves the most for what comes after.
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

impl fmt::Display for RepositoryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Permissions {
    /// These rules.
    pub const fn new(rules: Vec<RepositoryRule>) -> Self {
        Self { rules }
    }

    /// Everybody may do everything.
    pub fn all() -> Self {
        Self::everywhere(Who::Anonymous)
    }

    /// Some may do everything.
    pub fn everywhere(who: Who) -> Self {
        let rule = RepositoryRule {
            repositories: vec![RepositoryPattern::new("*")],
            who: vec![who],
            actions: Action::ALL.to_vec(),
        };
        Self::new(vec![rule])
    }

    /// The users that rules name.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().flat_map(|rule| &rule.who).filter_map(|who| match who {
            Who::User(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Whether a rule allows it.
    pub fn allow(&self, user: Option<&str>, local: bool, action: Action, repository: &str) -> bool {
        self.rules.iter().any(|rule| {
            rule.actions.contains(&action)
                && rule.who.iter().any(|who| who.is(user, local))
                && rule.repositories.iter().any(|pattern| pattern.matches(repository))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let matches = |pattern: &str, repository| RepositoryPattern::new(pattern).matches(repository);
        for (pattern, repository) in [
            ("*", "a/b"),
            ("a", "a"),
            ("a/*", "a/b/c"),
            ("*/b", "a/b"),
            ("a*c*e", "abcde"),
            ("a*b", "aab"),
            ("**", "x"),
        ] {
            assert!(matches(pattern, repository), "{pattern} {repository}");
        }
        for (pattern, repository) in
            [("a", "a/b"), ("a/*", "a"), ("a/*", "ab/c"), ("*/b", "b"), ("", "a"), ("a*a", "a"), ("a*b*c", "acb")]
        {
            assert!(!matches(pattern, repository), "{pattern} {repository}");
        }
    }

    #[test]
    fn what_no_rule_allows_is_not_allowed() {
        let rule = |repositories: &str, who: &str, actions: &[Action]| RepositoryRule {
            repositories: vec![RepositoryPattern::new(repositories)],
            who: vec![who.parse().unwrap()],
            actions: actions.to_vec(),
        };
        let permissions = Permissions::new(vec![
            rule("public/*", "anonymous", &[Action::Pull]),
            rule("team/*", "alice", &[Action::Pull, Action::Push]),
            rule("*", "local", &[Action::Pull]),
            rule("*", "authenticated", &[Action::Pull]),
        ]);
        let allow = |user, local, action, repository| permissions.allow(user, local, action, repository);
        assert!(allow(None, false, Action::Pull, "public/a"));
        assert!(!allow(None, false, Action::Push, "public/a"));
        assert!(!allow(None, false, Action::Pull, "team/a"));
        assert!(allow(None, true, Action::Pull, "team/a"));
        assert!(allow(Some("alice"), false, Action::Push, "team/a"));
        assert!(!allow(Some("alice"), false, Action::Delete, "team/a"));
        assert!(!allow(Some("bob"), false, Action::Push, "team/a"));
        assert!(allow(Some("bob"), false, Action::Pull, "other"));
        assert!(!Permissions::default().allow(Some("alice"), true, Action::Pull, "a"));
    }

    #[test]
    fn a_name_with_a_colon_is_nobodys() {
        for name in ["", "a:b", "a\nb"] {
            assert!(name.parse::<Who>().is_err(), "{name:?}");
        }
    }
}
