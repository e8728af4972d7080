//! Labels, in little memory: 100,000 blobs have half a million of them, so that those of one object are two allocations.

use std::cmp::Ordering;
use std::fmt;

/// Labels of an object, sorted by key, each key once.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// Each key, and after it its value.
    text: Box<str>,
    /// Where in the text each key ends, and each value.
    ends: Box<[(u32, u32)]>,
}

impl Labels {
    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pair(self.first_from(key)).filter(|(found, _)| *found == key).map(|(_, value)| value)
    }

    /// All labels, by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        (0..self.ends.len()).map(|at| self.at(at as u32))
    }

    /// Labels whose key begins so, by key.
    pub fn starting<'l>(&'l self, prefix: &'l str) -> impl Iterator<Item = (&'l str, &'l str)> {
        self.placed(prefix).map(|(_, key, value)| (key, value))
    }

    /// The same with their positions in [`iter`](Self::iter).
    pub(super) fn placed<'l>(&'l self, prefix: &'l str) -> impl Iterator<Item = (u32, &'l str, &'l str)> {
        let rest = (self.first_from(prefix)..self.ends.len()).map(|at| (at as u32, self.at(at as u32)));
        rest.take_while(move |(_, (key, _))| key.starts_with(prefix)).map(|(at, (key, value))| (at, key, value))
    }

    /// The label at a position in [`iter`](Self::iter).
    pub(super) fn at(&self, at: u32) -> (&str, &str) {
        self.pair(at as usize).expect("a position among the labels")
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn pair(&self, at: usize) -> Option<(&str, &str)> {
        let (key, value) = *self.ends.get(at)?;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before].1);
        Some((&self.text[start as usize..key as usize], &self.text[key as usize..value as usize]))
    }

    /// The position of the first label whose key is not before this one.
    fn first_from(&self, key: &str) -> usize {
        let (mut low, mut high) = (0, self.ends.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.at(middle as u32).0.cmp(key) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal | Ordering::Greater => high = middle,
            }
        }
        low
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: AsRef<str>, V: AsRef<str>> FromIterator<(K, V)> for Labels {
    /// Of several labels with one key the last counts.
    ///
    /// # Panics
    /// If they have more than four thousand million bytes together.
    fn from_iter<T: IntoIterator<Item = (K, V)>>(labels: T) -> Self {
        let mut all: Vec<(K, V)> = labels.into_iter().collect();
        if !all.is_sorted_by(|a, b| a.0.as_ref() < b.0.as_ref()) {
            all.reverse();
            all.sort_by(|a, b| a.0.as_ref().cmp(b.0.as_ref()));
            all.dedup_by(|later, kept| later.0.as_ref() == kept.0.as_ref());
        }
        let bytes = all.iter().map(|(key, value)| key.as_ref().len() + value.as_ref().len()).sum();
        let (mut text, mut ends) = (String::with_capacity(bytes), Vec::with_capacity(all.len()));
        for (key, value) in &all {
            let mut end = |part: &str| {
                text.push_str(part);
                u32::try_from(text.len()).expect("fewer bytes of labels than 2^32")
            };
            ends.push((end(key.as_ref()), end(value.as_ref())));
        }
        Self { text: text.into(), ends: ends.into() }
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
    fn any_text_is_kept_as_it_is() {
        let all = [("", ""), ("empty", ""), ("kéy", "😀"), ("kéy2", "kéy")];
        let labels = labels(&all);
        assert_eq!(labels.iter().collect::<Vec<_>>(), all);
        assert!(all.iter().all(|(key, value)| labels.get(key) == Some(value)));
        assert_eq!((labels.get("k"), labels.get("z")), (None, None));
        assert!(Labels::default().is_empty() && Labels::default().get("").is_none());
    }

    #[test]
    fn labels_are_found_by_the_start_of_their_key() {
        let labels = labels(&[("x.1", "a"), ("w", "b"), ("x.2", "c"), ("y", "d")]);
        assert_eq!(labels.starting("x.").collect::<Vec<_>>(), [("x.1", "a"), ("x.2", "c")]);
        assert_eq!(labels.starting("z").count(), 0);
        assert_eq!(labels.at(2), ("x.2", "c"));
        assert_eq!(format!("{labels:?}"), r#"{"w": "b", "x.1": "a", "x.2": "c", "y": "d"}"#);
    }
}
