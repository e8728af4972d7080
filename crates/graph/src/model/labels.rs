//! Labels, in little memory: 100,000 blobs have half a million of them.

/// Labels of an object, sorted by key, each key once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.0[at].1)
    }

    /// All labels, by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// Labels whose key begins so, by key.
    pub fn starting<'l>(&'l self, prefix: &'l str) -> impl Iterator<Item = (&'l str, &'l str)> {
        let first = self.0.partition_point(|(key, _)| **key < *prefix);
        let rest = self.0[first..].iter().map(|(key, value)| (&**key, &**value));
        rest.take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// The label at a position in [`iter`](Self::iter).
    pub(super) fn at(&self, at: u32) -> (&str, &str) {
        let (key, value) = &self.0[at as usize];
        (key, value)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: Into<Box<str>>, V: Into<Box<str>>> FromIterator<(K, V)> for Labels {
    /// Of several labels with one key the last counts.
    fn from_iter<T: IntoIterator<Item = (K, V)>>(labels: T) -> Self {
        let mut all: Vec<(Box<str>, Box<str>)> = labels.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        all.reverse();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.dedup_by(|later, kept| later.0 == kept.0);
        Self(all.into())
    }
}

#[cfg(test)]
mod tests {
    use super::Labels;

    fn labels(all: &[(&str, &str)]) -> Labels {
        all.iter().copied().collect()
    }

    #[test]
    fn the_last_of_one_key_counts() {
        let labels = labels(&[("b", "1"), ("a", "2"), ("b", "3")]);
        assert_eq!(labels.iter().collect::<Vec<_>>(), [("a", "2"), ("b", "3")]);
        assert_eq!((labels.get("b"), labels.get("c")), (Some("3"), None));
    }

    #[test]
    fn labels_are_found_by_the_start_of_their_key() {
        let labels = labels(&[("x.1", "a"), ("w", "b"), ("x.2", "c"), ("y", "d")]);
        assert_eq!(labels.starting("x.").collect::<Vec<_>>(), [("x.1", "a"), ("x.2", "c")]);
        assert_eq!(labels.starting("z").count(), 0);
    }
}
