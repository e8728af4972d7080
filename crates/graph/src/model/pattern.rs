//! Patterns for repositories, as shells and registries write them.

use orlop_oci::RepositoryName;

/// A repository's name with `*` for any part of a path component, `**` for any part of the path, `?` for a character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Just(char),
    One,
    Within,
    Across,
}

impl Pattern {
    /// Reads a pattern. Every text is one.
    pub fn new(text: &str) -> Self {
        let mut pieces = Vec::new();
        for c in text.chars() {
            match (c, pieces.last()) {
                ('*', Some(Piece::Within | Piece::Across)) => *pieces.last_mut().expect("just seen") = Piece::Across,
                ('*', _) => pieces.push(Piece::Within),
                ('?', _) => pieces.push(Piece::One),
                _ => pieces.push(Piece::Just(c)),
            }
        }
        Self { text: text.to_owned(), pieces }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a repository fits, by its full name or as people write it (`alpine` for `docker.io/library/alpine`).
    pub fn matches(&self, repository: &RepositoryName) -> bool {
        self.fits(&repository.to_string()) || self.fits(&repository.familiar())
    }

    /// Follows all ways through the pattern at once, so that no pattern takes long.
    fn fits(&self, text: &str) -> bool {
        let mut at = vec![false; self.pieces.len() + 1];
        at[0] = true;
        self.pass_empty(&mut at);
        for c in text.chars() {
            let mut next = vec![false; at.len()];
            for (place, piece) in self.pieces.iter().enumerate().filter(|(place, _)| at[*place]) {
                match piece {
                    Piece::Just(wanted) => next[place + 1] |= *wanted == c,
                    Piece::One => next[place + 1] |= c != '/',
                    Piece::Within => next[place] |= c != '/',
                    Piece::Across => next[place] = true,
                }
            }
            self.pass_empty(&mut next);
            at = next;
        }
        at[self.pieces.len()]
    }

    /// Stars may stand for nothing.
    fn pass_empty(&self, at: &mut [bool]) {
        for (place, piece) in self.pieces.iter().enumerate() {
            at[place + 1] |= at[place] && matches!(piece, Piece::Within | Piece::Across);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    fn fits(pattern: &str, name: &str) -> bool {
        let name = format!("{name}:1").parse::<orlop_oci::Reference>().unwrap();
        Pattern::new(pattern).matches(name.repository().unwrap())
    }

    #[test]
    fn stars_stand_for_parts() {
        assert!(fits("docker.io/library/alpine", "docker.io/library/alpine"));
        assert!(fits("alpine", "docker.io/library/alpine") && fits("calico/*", "docker.io/calico/cni"));
        assert!(fits("r.example:5000/*/app", "r.example:5000/team/app"));
        assert!(!fits("r.example/*", "r.example/team/app") && fits("r.example/**", "r.example/team/app"));
        assert!(fits("**/app", "r.example/team/app") && fits("r.example/a?p", "r.example/app"));
        assert!(!fits("r.example/ap", "r.example/app") && !fits("", "r.example/app"));
        assert!(!fits("r.example?app", "r.example/app"), "a character of a component");
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_long_time() {
        assert!(!fits(&"*a".repeat(200), &format!("r.example/{}b", "a".repeat(100))));
    }
}
