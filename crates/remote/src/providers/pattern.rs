//! Which images a pattern means, by kubelet's rules for `matchImages` and for the keys of an answer.
//!
//! A pattern is `host[:port][/path]`, perhaps after `http://` or `https://`. The host's parts (between dots) may have `*`, `?` and
//! `[…]`, which never stand for a dot; there must be as many parts as the image's host has. Ports must be equal. The path is what the
//! image's path begins with.

use std::fmt;
use std::str::FromStr;

/// A pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePattern {
    host: String,
    port: Option<String>,
    path: String,
}

/// A text that is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no pattern of images: expected host[:port][/path], in the host's parts with *, ? or […]")]
pub struct ImagePatternError(String);

impl FromStr for ImagePattern {
    type Err = ImagePatternError;

    fn from_str(text: &str) -> Result<Self, ImagePatternError> {
        let wrong = || ImagePatternError(text.to_owned());
        let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let (authority, path) = bare.split_at(bare.find('/').unwrap_or(bare.len()));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let digits = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let plain = |b: u8| b.is_ascii_graphic() && !b"@%#\\".contains(&b);
        let right = !host.is_empty() && bare.bytes().all(plain) && port.is_none_or(digits);
        if !right || !host.split('.').all(|part| glob(part, "").is_some()) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_ascii_lowercase(), port: port.map(str::to_owned), path: path.to_owned() })
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port.as_deref().map(|port| format!(":{port}")).unwrap_or_default();
        write!(f, "{}{port}{}", self.host, self.path)
    }
}

impl ImagePattern {
    /// Whether it means an image, `host[:port]/repository`.
    pub fn fits(&self, image: &str) -> bool {
        let (authority, path) = image.split_at(image.find('/').unwrap_or(image.len()));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (authority, None),
        };
        if port != self.port.as_deref() || !path.starts_with(&self.path) {
            return false;
        }
        let host = host.to_ascii_lowercase();
        let (own, other) = (self.host.split('.'), host.split('.'));
        own.clone().count() == other.clone().count()
            && own.zip(other).all(|(pattern, part)| glob(pattern, part) == Some(true))
    }

    /// How much it says: of several that fit, the one that says most counts.
    pub(super) fn weight(&self) -> usize {
        self.host.len() + self.path.len()
    }
}

/// Whether a part of a host is what a pattern means; `None` for what is no pattern.
fn glob(pattern: &str, text: &str) -> Option<bool> {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let tokens = tokens(&pattern)?;
    // Where in the text the tokens so far may have come to.
    let mut at: Vec<bool> = std::iter::once(true).chain(text.iter().map(|_| false)).collect();
    for token in &tokens {
        let mut next = vec![false; at.len()];
        match token {
            Token::Any => {
                let mut reached = false;
                for (place, was) in at.iter().enumerate() {
                    reached |= was;
                    next[place] = reached;
                }
            }
            one => {
                for (place, c) in text.iter().enumerate() {
                    next[place + 1] = at[place] && one.takes(*c);
                }
            }
        }
        at = next;
    }
    at.last().copied()
}

enum Token {
    Any,
    One,
    Is(char),
    Among { not: bool, ranges: Vec<(char, char)> },
}

impl Token {
    fn takes(&self, c: char) -> bool {
        match self {
            Self::Any | Self::One => true,
            Self::Is(own) => *own == c,
            Self::Among { not, ranges } => ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *not,
        }
    }
}

fn tokens(pattern: &[char]) -> Option<Vec<Token>> {
    let (mut tokens, mut at) = (Vec::new(), 0);
    while let Some(c) = pattern.get(at) {
        at += 1;
        tokens.push(match c {
            '*' => Token::Any,
            '?' => Token::One,
            '[' => {
                let end = at + pattern[at..].iter().position(|c| *c == ']')?;
                let (not, inner) = match &pattern[at..end] {
                    ['^', inner @ ..] => (true, inner),
                    inner => (false, inner),
                };
                at = end + 1;
                Token::Among { not, ranges: ranges(inner)? }
            }
            ']' => return None,
            c => Token::Is(*c),
        });
    }
    Some(tokens)
}

fn ranges(inner: &[char]) -> Option<Vec<(char, char)>> {
    let (mut ranges, mut rest) = (Vec::new(), inner);
    while !rest.is_empty() {
        let (range, after) = match rest {
            [low, '-', high, after @ ..] => ((*low, *high), after),
            [one, after @ ..] if *one != '-' => ((*one, *one), after),
            _ => return None,
        };
        ranges.push(range);
        rest = after;
    }
    (!ranges.is_empty()).then_some(ranges)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_mean_what_kubelets_documentation_says() {
        for (pattern, image, fits) in [
            ("123456789.dkr.ecr.us-east-1.amazonaws.com", "123456789.dkr.ecr.us-east-1.amazonaws.com/app", true),
            ("*.dkr.ecr.*.amazonaws.com", "1.dkr.ecr.us-east-1.amazonaws.com/app", true),
            ("*.dkr.ecr.*.amazonaws.com", "1.dkr.ecr.us.east.amazonaws.com/app", false),
            ("*.azurecr.io", "azurecr.io/app", false),
            ("*.azurecr.io", "a.b.azurecr.io/app", false),
            ("*.azurecr.io", "team.azurecr.io.evil.example/app", false),
            ("*.*.registry.io", "a.b.registry.io/app", true),
            ("app*.registry.io", "app-7.registry.io/x", true),
            ("app?.registry.io", "app7.registry.io/x", true),
            ("app[0-4].registry.io", "app7.registry.io/x", false),
            ("app[^0-4].registry.io", "app7.registry.io/x", true),
            ("registry.io:8080/path", "registry.io:8080/path/app", true),
            ("registry.io:8080/path", "registry.io/path/app", false),
            ("registry.io/path", "registry.io:8080/path/app", false),
            ("registry.io/path", "registry.io/other", false),
            ("https://Registry.io", "registry.IO/a", true),
            ("gcr.io", "gcr.io", true),
            ("*", "localhost/app", true),
            ("127.0.0.1:5000", "127.0.0.1:5000/app", true),
        ] {
            assert_eq!(pattern.parse::<ImagePattern>().unwrap().fits(image), fits, "{pattern} {image}");
        }
        for wrong in
            ["", "/path", "https://", "a b", "a:port", "a:", "a[.io", "a].io", "a[].io", "a[b-].io", "user@host"]
        {
            assert_eq!(wrong.parse::<ImagePattern>(), Err(ImagePatternError(wrong.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn whatever_fits_has_as_many_parts_and_no_pattern_stands_for_a_dot(pattern in "[a-c*?.\\[\\]:/1-]{1,12}", image in "[a-c.]{1,8}/[a-c]") {
            if let Ok(read) = pattern.parse::<ImagePattern>() {
                prop_assert_eq!(read.to_string().parse::<ImagePattern>(), Ok(read.clone()));
                if read.fits(&image) {
                    let host = image.split('/').next().unwrap();
                    prop_assert_eq!(read.host.split('.').count(), host.split('.').count());
                }
            }
        }
    }
}
