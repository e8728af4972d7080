//! `WWW-Authenticate`: what a host wants to see (RFC 9110 §11.6.1, RFC 6750 §3).
//!
//! Parsing is total: whatever cannot be read is left out.

/// One challenge: a scheme and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// In lower case.
    pub(crate) scheme: String,
    /// Names in lower case; a token68 is left out.
    pub(crate) parameters: Vec<(String, String)>,
}

impl Challenge {
    /// A parameter by its lower-case name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// Reads all challenges of one header value; several may stand in one, separated by commas.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut cursor = Cursor { rest: header };
    let mut challenges: Vec<Challenge> = Vec::new();
    loop {
        cursor.skip(|c| c == ',' || c.is_ascii_whitespace());
        let word = cursor.take(is_token);
        if word.is_empty() {
            match cursor.rest.chars().next() {
                None => return challenges,
                Some(c) => cursor.rest = &cursor.rest[c.len_utf8()..],
            }
            continue;
        }
        match (cursor.value(), challenges.last_mut()) {
            (Some(value), Some(challenge)) => challenge.parameters.push((word.to_ascii_lowercase(), value)),
            (Some(_), None) => {}
            (None, _) => {
                challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
            }
        }
    }
}

struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn skip(&mut self, accept: impl Fn(char) -> bool) {
        self.rest = self.rest.trim_start_matches(accept);
    }

    fn take(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !accept(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    /// The `= value` after a parameter's name; `None` where the word was a scheme.
    fn value(&mut self) -> Option<String> {
        let after = self.rest.trim_start().strip_prefix('=')?;
        self.rest = after.trim_start();
        match self.rest.strip_prefix('"') {
            Some(quoted) => {
                self.rest = quoted;
                Some(self.quoted())
            }
            None => Some(self.take(|c| c != ',' && !c.is_ascii_whitespace()).to_owned()),
        }
    }

    /// Up to the closing quote; a backslash protects one character; a missing quote ends with the header.
    fn quoted(&mut self) -> String {
        let mut value = String::new();
        let mut escaped = false;
        for (at, c) in self.rest.char_indices() {
            match c {
                _ if escaped => {
                    value.push(c);
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return value;
                }
                _ => value.push(c),
            }
        }
        self.rest = "";
        value
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_a_bearer_challenge_with_commas_inside_quotes() {
        let got = parse(r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull,push""#);
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].scheme, "bearer");
        assert_eq!(got[0].get("realm"), Some("https://auth.example/token"));
        assert_eq!(got[0].get("scope"), Some("repository:a/b:pull,push"));
    }

    #[test]
    fn reads_several_challenges_in_one_header() {
        let got = parse(r#"Negotiate, Basic realm="a \"b\" c" , BEARER realm=https://x/t , error = "invalid_token""#);
        let schemes: Vec<_> = got.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "basic", "bearer"]);
        assert_eq!(got[1].get("realm"), Some(r#"a "b" c"#));
        assert_eq!(got[2].get("realm"), Some("https://x/t"));
        assert_eq!(got[2].get("error"), Some("invalid_token"));
    }

    #[test]
    fn survives_rubbish() {
        for text in ["", ",,,", "=", "\"", "Bearer realm=\"x", "Bearer =", "Bearer realm", "\u{e9}=1, Basic"] {
            parse(text);
        }
        assert_eq!(parse("Bearer realm=\"x")[0].get("realm"), Some("x"));
    }

    proptest! {
        #[test]
        fn never_panics_and_reads_what_was_written(text in ".*", value in "[ -~]*") {
            parse(&text);
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let got = parse(&format!("Basic realm=\"r\", Bearer realm=\"{quoted}\", x=y"));
            prop_assert_eq!(got[1].get("realm"), Some(value.as_str()));
            prop_assert_eq!(got[1].get("x"), Some("y"));
        }
    }
}
