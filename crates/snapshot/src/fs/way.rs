//! The names along a path, with those of the symbolic links that it meets, for whoever walks it inside a root by himself.
//!
//! What a name shows, and where `..` leads, is the walker's to know: never above the root, like in the root of a file system.

/// Symbolic links followed for one path, as in the kernel.
const MAX_LINKS: usize = 40;

/// What comes next.
pub(crate) enum Turn {
    /// `..`
    Up,
    /// A name.
    Into(Vec<u8>),
}

/// What of a way is still ahead.
pub(crate) struct Way {
    /// The names, last first.
    ahead: Vec<Vec<u8>>,
    links: usize,
}

impl Way {
    pub(crate) fn along(path: &[u8]) -> Self {
        Self { ahead: reversed(path).collect(), links: 0 }
    }

    /// The next turn; `None` at the end.
    pub(crate) fn next(&mut self) -> Option<Turn> {
        loop {
            let name = self.ahead.pop()?;
            match name.as_slice() {
                b"" | b"." => {}
                b".." => return Some(Turn::Up),
                _ => return Some(Turn::Into(name)),
            }
        }
    }

    /// Whether nothing was written behind the last turn, not even a slash.
    pub(crate) fn is_over(&self) -> bool {
        self.ahead.is_empty()
    }

    /// Goes on along the target of a link, from the root if that is absolute; false if there were too many.
    #[must_use]
    pub(crate) fn follow(&mut self, target: &[u8]) -> bool {
        self.links += 1;
        self.ahead.extend(reversed(target));
        self.links <= MAX_LINKS
    }

    /// The path of what is ahead of `here`, as it is written.
    pub(crate) fn rest(self, here: Vec<u8>) -> Vec<u8> {
        self.ahead.into_iter().rev().fold(here, |path, name| super::join(&path, &name))
    }
}

fn reversed(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.rsplit(|&b| b == b'/').map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(way: &mut Way) -> Vec<String> {
        let text = |turn| match turn {
            Turn::Up => "up".to_owned(),
            Turn::Into(name) => String::from_utf8(name).unwrap(),
        };
        std::iter::from_fn(|| way.next().map(text)).collect()
    }

    #[test]
    fn a_way_has_the_names_of_the_links_that_it_meets_and_forty_of_them() {
        let mut way = Way::along(b"a//./link/../b");
        assert!(matches!(way.next(), Some(Turn::Into(name)) if name == b"a"));
        assert!(matches!(way.next(), Some(Turn::Into(name)) if name == b"link"));
        assert!(way.follow(b"/c/d") && !way.is_over());
        assert_eq!(turns(&mut way), ["c", "d", "up", "b"]);
        assert!(way.is_over());
        assert!((1..40).all(|_| way.follow(b"loop")), "with the one before they are forty");
        assert!(!way.follow(b"loop"));
        assert_eq!(Way::along(b"x/../y").rest(b"here".to_vec()), b"here/x/../y");
    }

    #[test]
    fn a_slash_at_the_end_is_still_ahead() {
        let mut way = Way::along(b"a/");
        assert!(way.next().is_some() && !way.is_over());
        assert!(way.next().is_none() && way.is_over());
    }
}
