//! Token scopes: which actions on which repositories (Docker's token scope documentation).

use std::collections::{BTreeMap, BTreeSet};

/// A set of scopes, merged by resource and in a fixed order, so that equal sets share a token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Scopes(BTreeMap<String, BTreeSet<String>>);

impl Scopes {
    /// To read a repository.
    pub(crate) fn pull(path: &str) -> Self {
        let mut scopes = Self::default();
        scopes.insert(&format!("repository:{path}"), ["pull"]);
        scopes
    }

    /// To read and write a repository.
    pub(crate) fn push(path: &str) -> Self {
        let mut scopes = Self::default();
        scopes.insert(&format!("repository:{path}"), ["pull", "push"]);
        scopes
    }

    /// Adds what a challenge says: scopes separated by blanks, each `type:name:action,action`; the name may have
    /// colons itself.
    pub(crate) fn add(&mut self, text: &str) {
        for scope in text.split_ascii_whitespace() {
            if let Some((resource, actions)) = scope.rsplit_once(':') {
                self.insert(resource, actions.split(',').filter(|a| !a.is_empty()));
            }
        }
    }

    /// Adds all scopes of another set.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (resource, actions) in &other.0 {
            self.insert(resource, actions.iter().map(String::as_str));
        }
    }

    /// Each resource as `type:name:actions`.
    pub(crate) fn texts(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|(resource, actions)| {
                let actions: Vec<_> = actions.iter().map(String::as_str).collect();
                format!("{resource}:{}", actions.join(","))
            })
            .collect()
    }

    fn insert<'a>(&mut self, resource: &str, actions: impl IntoIterator<Item = &'a str>) {
        self.0.entry(resource.to_owned()).or_default().extend(actions.into_iter().map(str::to_owned));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_by_resource_in_a_fixed_order() {
        let mut a = Scopes::pull("z/x");
        a.add("repository:host:5000/a:push,pull registry:catalog:* nonsense");
        a.merge(&Scopes::push("z/x"));
        assert_eq!(a.texts(), ["registry:catalog:*", "repository:host:5000/a:pull,push", "repository:z/x:pull,push"]);
    }
}
