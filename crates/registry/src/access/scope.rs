//! Scopes of tokens: `repository:team/app:pull,push` (Docker's registry token specification, "scope").

use std::fmt;
use std::str::FromStr;

use super::Action;
use crate::route;

/// What a token is for in one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scope {
    /// Where.
    pub(crate) repository: String,
    /// What.
    pub(crate) actions: Vec<Action>,
}

/// A text that is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no scope: expected repository:NAME:ACTION,…")]
pub(crate) struct ScopeError(String);

impl Scope {
    /// Whether it is for this.
    pub(crate) fn covers(&self, action: Action, repository: &str) -> bool {
        self.repository == repository && self.actions.contains(&action)
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    /// Actions that are not known count for nothing; `*` is all.
    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let wrong = || ScopeError(text.chars().take(100).collect());
        let (kind, rest) = text.split_once(':').ok_or_else(wrong)?;
        let (repository, actions) = rest.rsplit_once(':').ok_or_else(wrong)?;
        // `repository(plugin)` is Docker's too.
        if kind.split('(').next() != Some("repository") || route::repository(repository).is_none() {
            return Err(wrong());
        }
        let mut known: Vec<Action> = Vec::new();
        for word in actions.split(',') {
            let named = Action::ALL.into_iter().filter(|action| word == "*" || word == action.as_str());
            known.extend(named.filter(|action| !known.contains(action)).collect::<Vec<_>>());
        }
        Ok(Self { repository: repository.to_owned(), actions: known })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let actions: Vec<&str> = self.actions.iter().map(|action| action.as_str()).collect();
        write!(f, "repository:{}:{}", self.repository, actions.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_parsed_and_written() {
        let scope: Scope = "repository:team/app:pull,push".parse().unwrap();
        assert_eq!(scope, Scope { repository: "team/app".into(), actions: vec![Action::Pull, Action::Push] });
        assert_eq!(scope.to_string(), "repository:team/app:pull,push");
        let all: Scope = "repository:a:*,pull,unknown".parse().unwrap();
        assert_eq!(all.actions, Action::ALL);
        assert!("repository:a:".parse::<Scope>().unwrap().actions.is_empty());
        for bad in ["", "repository", "repository:a", "registry:catalog:*", "repository:A:pull", "repository:../x:pull"]
        {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
    }
}
