//! Whether an image could be fetched again.
//!
//! A pull labels what it brings with where it came from (`containerd.io/distribution.source.<host>`, as containerd does).
//! A registry that later has neither a name nor the digest that the name stands for here is noted beside that, in
//! `io.orlop.gone.<host>`; the next pull that succeeds takes the note away. So what has no source, or none that still
//! has it, may be the only copy.

use orlop_metadata::{self as metadata, Labels, Look, Scope};
use orlop_oci::{Digest, Reference, RepositoryName};
use orlop_remote::Client;

use crate::{Images, Result, labels};

/// Who supplies a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Supply {
    /// A repository from which it came and that did not say otherwise since.
    Known,
    /// These repositories had it once.
    Gone(Vec<String>),
    /// Nobody that is known.
    Unknown,
}

/// Reads who supplies a target.
pub(crate) fn of(look: &Look<'_>, target: &Digest) -> metadata::Result<Supply> {
    let found = look.labels(target, &[labels::SOURCE, labels::GONE])?.unwrap_or_default();
    Ok(supply(&found))
}

/// The same of its labels.
pub(crate) fn supply(found: &Labels) -> Supply {
    let mut gone = Vec::new();
    for (key, paths) in found {
        let Some(host) = key.strip_prefix(labels::SOURCE) else { continue };
        let lost = found.get(&format!("{}{host}", labels::GONE)).map(String::as_str).unwrap_or_default();
        for path in words(paths) {
            if !words(lost).any(|lost| lost == path) {
                return Supply::Known;
            }
            gone.push(format!("{host}/{path}"));
        }
    }
    if gone.is_empty() { Supply::Unknown } else { Supply::Gone(gone) }
}

fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').filter(|word| !word.is_empty())
}

/// The value of a `gone` label with a repository added, or taken away.
fn changed(old: &str, path: &str, add: bool) -> String {
    let mut paths: Vec<&str> = words(old).filter(|word| *word != path).collect();
    paths.extend(add.then_some(path));
    paths.sort_unstable();
    paths.join(",")
}

/// What takes a note about a repository away from a blob's labels; `None` if there is no such note.
pub(crate) fn found_again(existing: &Labels, repository: &RepositoryName) -> Option<(String, String)> {
    let key = labels::at_host(labels::GONE, repository);
    let old = existing.get(&key).filter(|old| words(old).any(|word| word == repository.path()))?;
    let value = changed(old, repository.path(), false);
    Some((key, value))
}

impl Images {
    /// A registry has a reference no more: if it does not have what the reference stands for here either, that is
    /// noted. A failure to find that out changes nothing.
    pub(crate) async fn note_absence(&self, scope: &Scope, client: &Client, reference: &Reference) {
        if let Err(error) = self.try_note_absence(scope, client, reference).await {
            tracing::debug!(%error, %reference, "whether the registry still has it is not known");
        }
    }

    async fn try_note_absence(&self, scope: &Scope, client: &Client, reference: &Reference) -> Result<()> {
        let (Some(repository), Some(record)) =
            (reference.repository(), self.named_record(scope, &reference.to_string()).await?)
        else {
            return Ok(());
        };
        let target = record.target.digest;
        if reference.digest().is_none() {
            match client.resolve(&repository.with_digest(&target)).await {
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(()),
            }
        }
        let (scope, repository) = (scope.clone(), repository.clone());
        self.blocking(move |store| {
            let content = store.content(&scope);
            let info = content.stat(&target)?;
            let key = labels::at_host(labels::GONE, &repository);
            let old = info.labels.get(&key).map(String::as_str).unwrap_or_default();
            let value = changed(old, repository.path(), true);
            let mask = [format!("labels.{key}")];
            content.update(&target, Labels::from([(key, value)]), &mask)?;
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn one_source_that_still_has_it_is_enough() {
        let source = ("containerd.io/distribution.source.r.example", "a/b,c");
        assert_eq!(supply(&map(&[])), Supply::Unknown);
        assert_eq!(supply(&map(&[source])), Supply::Known);
        assert_eq!(supply(&map(&[source, ("io.orlop.gone.r.example", "c")])), Supply::Known);
        assert_eq!(supply(&map(&[source, ("io.orlop.gone.other", "a/b,c")])), Supply::Known);
        let gone = supply(&map(&[source, ("io.orlop.gone.r.example", "a/b,c")]));
        assert_eq!(gone, Supply::Gone(vec!["r.example/a/b".to_owned(), "r.example/c".to_owned()]));
    }

    #[test]
    fn notes_are_added_once_and_taken_away() {
        assert_eq!(changed("", "b", true), "b");
        assert_eq!(changed("b", "a", true), "a,b");
        assert_eq!(changed("a,b", "b", true), "a,b");
        let repository = RepositoryName::parse("r.example/b").unwrap();
        let key = "io.orlop.gone.r.example";
        assert_eq!(found_again(&map(&[(key, "a,b")]), &repository), Some((key.to_owned(), "a".to_owned())));
        assert_eq!(found_again(&map(&[(key, "b")]), &repository), Some((key.to_owned(), String::new())));
        assert_eq!(found_again(&map(&[(key, "a")]), &repository), None);
    }
}
