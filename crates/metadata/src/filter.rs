//! containerd's filter grammar.
//!
//! ```text
//! filter   = "" | selector { "," selector }         all selectors must match; "" matches everything
//! selector = path [ operator value ]                a path alone: the field is there
//! path     = field { "." field }                    no space before a dot
//! field    = word | quoted                          word: letters, digits, underscores
//! operator = "==" | "!=" | "~="                     ~= finds a regular expression anywhere in the value
//! value    = quoted | what comes until a comma or space
//! quoted   = Go's string syntax between double quotes; after ~= also between slashes or bars
//! ```
//!
//! Several filters match if any does; no filter matches everything. As in containerd (`pkg/filters`): a field that is not
//! there differs from every value and is the empty string to `~=`; an expression that does not compile matches
//! nothing; space may come before a field, an operator and a value, and nowhere else. Expressions are those of Rust's
//! `regex`, which differ from Go's in corners (`\u`, octal escapes, `\d` outside ASCII).

use std::borrow::Cow;

use regex::Regex;

/// A parsed list of filters.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Any of these; each is selectors that all must match.
    any: Vec<Vec<Selector>>,
}

#[derive(Debug, Clone)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// `None` for an expression that does not compile.
    Matches(Option<Regex>),
}

/// Why a filter does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter {filter:?}: {reason} at byte {at}")]
pub struct FilterError {
    /// The whole filter.
    pub filter: String,
    /// Where it broke.
    pub at: usize,
    /// Why.
    pub reason: String,
}

impl Filter {
    /// Parses filters; an empty list matches everything.
    pub fn parse(filters: &[String]) -> Result<Self, FilterError> {
        let any = filters.iter().map(|f| Parser { input: f, at: 0 }.filter()).collect::<Result<_, _>>()?;
        Ok(Self { any })
    }

    /// Whether an object matches. `field` answers the value at a path: `["labels", "a.b"]`.
    pub fn matches<'a>(&self, field: impl Fn(&[String]) -> Option<Cow<'a, str>>) -> bool {
        self.any.is_empty() || self.any.iter().any(|all| all.iter().all(|s| s.matches(&field)))
    }

    /// Whether every object matches, so that nobody needs to ask.
    pub(crate) fn is_trivial(&self) -> bool {
        self.any.is_empty() || self.any.iter().any(Vec::is_empty)
    }
}

impl Selector {
    fn matches<'a>(&self, field: impl Fn(&[String]) -> Option<Cow<'a, str>>) -> bool {
        let value = field(&self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some_and(|v| v == *wanted),
            Test::NotEqual(unwanted) => value.unwrap_or_default() != *unwanted,
            Test::Matches(expression) => expression.as_ref().is_some_and(|e| e.is_match(&value.unwrap_or_default())),
        }
    }
}

/// What a path finds in labels or annotations: its parts after the first, joined by dots, are the key.
pub(crate) fn in_map<'a>(map: &'a crate::Labels, path: &[String]) -> Option<Cow<'a, str>> {
    let value = match path {
        [key] => map.get(key),
        parts => map.get(&parts.join(".")),
    };
    value.map(|v| Cow::Borrowed(v.as_str()))
}

struct Parser<'a> {
    input: &'a str,
    /// Where the next character starts.
    at: usize,
}

impl Parser<'_> {
    fn filter(mut self) -> Result<Vec<Selector>, FilterError> {
        let mut all = Vec::new();
        if self.input.is_empty() {
            return Ok(all);
        }
        loop {
            all.push(self.selector()?);
            match self.peek() {
                None => return Ok(all),
                Some(',') => self.at += 1,
                Some(found) => return Err(self.error(self.at, format!("expected a comma or the end, found {found:?}"))),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.at += 1;
            path.push(self.field()?);
        }
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector { path, test: Test::Present });
        }
        let test = match self.operator()? {
            "==" => Test::Equal(self.value(&['"'])?),
            "!=" => Test::NotEqual(self.value(&['"'])?),
            _ => Test::Matches(compile(&self.value(&['"', '/', '|'])?)),
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, FilterError> {
        self.skip_space();
        match self.peek() {
            Some(quote) if is_quote(quote) => self.quoted(&['"']),
            Some(first) if is_word(first) => Ok(self.take_while(is_word).to_owned()),
            found => Err(self.expected("a field or a quoted field", found)),
        }
    }

    fn operator(&mut self) -> Result<&str, FilterError> {
        self.skip_space();
        let start = self.at;
        let found = self.peek();
        let operator = self.take_while(is_operator);
        match operator {
            "==" | "!=" | "~=" => Ok(&self.input[start..start + 2]),
            "" => Err(self.expected("==, != or ~=", found)),
            other => {
                let reason = format!("unknown operator {other:?}; expected ==, != or ~=");
                Err(self.error(start, reason))
            }
        }
    }

    fn value(&mut self, quotes: &[char]) -> Result<String, FilterError> {
        self.skip_space();
        match self.peek() {
            Some(quote) if is_quote(quote) => self.quoted(quotes),
            Some(first) if !matches!(first, ',' | '.' | '\0' | char::REPLACEMENT_CHARACTER) && !is_operator(first) => {
                self.at += first.len_utf8();
                let start = self.at - first.len_utf8();
                self.take_while(is_value);
                Ok(self.input[start..self.at].to_owned())
            }
            found => Err(self.expected("a value or a quoted value", found)),
        }
    }

    /// A quoted string, the opening quote included.
    fn quoted(&mut self, allowed: &[char]) -> Result<String, FilterError> {
        let start = self.at;
        let quote = self.next().unwrap_or('"');
        if !allowed.contains(&quote) {
            return Err(self.error(start, format!("{quote} cannot quote this; use double quotes")));
        }
        let mut bytes = Vec::new();
        loop {
            match self.next() {
                None | Some('\n' | '\0' | char::REPLACEMENT_CHARACTER) => {
                    return Err(self.error(start, "a quoted string that does not end".to_owned()));
                }
                Some(c) if c == quote => break,
                Some('\\') => self.escape(quote, &mut bytes)?,
                Some(c) => push(&mut bytes, c),
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What follows a backslash. `\x` and octal escapes give a byte, `\u` and `\U` a character.
    fn escape(&mut self, quote: char, bytes: &mut Vec<u8>) -> Result<(), FilterError> {
        let start = self.at - 1;
        let illegal = || "an unknown escape sequence".to_owned();
        let code = match self.next() {
            Some('a') => 0x07,
            Some('b') => 0x08,
            Some('f') => 0x0c,
            Some('n') => 0x0a,
            Some('r') => 0x0d,
            Some('t') => 0x09,
            Some('v') => 0x0b,
            Some('\\') => 0x5c,
            Some(c) if c == quote => u32::from(c),
            Some('0'..='7') => {
                self.at -= 1;
                let code = self.digits(start, 8, 3)?;
                u8::try_from(code).map(|b| bytes.push(b)).map_err(|_| self.error(start, illegal()))?;
                return Ok(());
            }
            Some('x') => {
                let code = self.digits(start, 16, 2)?;
                bytes.push(code as u8);
                return Ok(());
            }
            Some('u') => self.digits(start, 16, 4)?,
            Some('U') => self.digits(start, 16, 8)?,
            _ => return Err(self.error(start, illegal())),
        };
        if code > u32::from(char::MAX) {
            return Err(self.error(start, illegal()));
        }
        push(bytes, char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
        Ok(())
    }

    fn digits(&mut self, start: usize, radix: u32, count: usize) -> Result<u32, FilterError> {
        let mut code = 0_u32;
        for _ in 0..count {
            let digit = self.next().and_then(|c| c.to_digit(radix));
            let digit = digit.ok_or_else(|| self.error(start, "a numeric escape that is too short".to_owned()))?;
            code = code.wrapping_mul(radix) | digit;
        }
        Ok(code)
    }

    fn peek(&self) -> Option<char> {
        self.input[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn skip_space(&mut self) {
        self.take_while(char::is_whitespace);
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &str {
        let rest = &self.input[self.at..];
        let length = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    fn expected(&self, what: &str, found: Option<char>) -> FilterError {
        let found = found.map_or_else(|| "the end".to_owned(), |c| format!("{c:?}"));
        self.error(self.at, format!("expected {what}, found {found}"))
    }

    fn error(&self, at: usize, reason: String) -> FilterError {
        FilterError { filter: self.input.to_owned(), at, reason }
    }
}

fn compile(expression: &str) -> Option<Regex> {
    Regex::new(expression).inspect_err(|error| tracing::warn!(%error, "filter matches nothing")).ok()
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric()
}

fn is_operator(c: char) -> bool {
    matches!(c, '=' | '!' | '~')
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '/' | '|')
}

fn is_value(c: char) -> bool {
    c != ',' && !c.is_whitespace() && !c.is_control() && !is_invisible(c) && c != char::REPLACEMENT_CHARACTER
}

/// Characters without a shape of their own (Unicode's format characters, those in use).
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;

    use super::Filter;
    use crate::Labels;

    fn matches(filters: &[&str]) -> bool {
        try_matches(filters).unwrap()
    }

    fn try_matches(filters: &[&str]) -> Result<bool, super::FilterError> {
        let labels: Labels = [("a.b/c", "1"), ("plain", "x y"), ("ref", "docker.io/library/a:1")]
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        let filters: Vec<String> = filters.iter().map(|&f| f.to_owned()).collect();
        Ok(Filter::parse(&filters)?.matches(|path| match path[0].as_str() {
            "name" => Some(Cow::Borrowed("docker.io/library/a:1")),
            "empty" => Some(Cow::Borrowed("")),
            "labels" => super::in_map(&labels, &path[1..]),
            _ => None,
        }))
    }

    #[test]
    fn any_of_the_filters_and_all_of_the_selectors() {
        assert!(matches(&[]));
        assert!(matches(&[""]));
        assert!(matches(&["nothing", ""]));
        assert!(!matches(&["name,nothing"]));
        assert!(matches(&["nothing", "name"]));
        assert!(matches(&["name==docker.io/library/a:1, labels.plain"]));
    }

    #[test]
    fn operators() {
        assert!(matches(&["name == docker.io/library/a:1"]));
        assert!(matches(&["empty"]));
        assert!(matches(&["empty==\"\""]));
        assert!(!matches(&["absent==\"\""]), "what is not there equals nothing");
        assert!(matches(&["absent!=x"]), "what is not there differs from everything");
        assert!(!matches(&["absent!=\"\""]), "but from the empty string");
        assert!(matches(&["absent~=^$"]), "what is not there is empty to an expression");
        assert!(matches(&["name~=library/.:[0-9]$"]));
        assert!(matches(&["name~=/^docker\\.io/".replace("\\.", "[.]").as_str()]));
        assert!(matches(&["name~=|library/a|"]));
        assert!(!matches(&["name~=("]), "an expression that does not compile matches nothing");
        assert!(matches(&["name~=docker\\.io"]), "unquoted, a backslash is itself");
    }

    #[test]
    fn paths_and_quotes() {
        assert!(matches(&[r#"labels."a.b/c"==1"#]));
        assert!(!matches(&[r#"labels."a.b/d"==1"#]));
        assert!(matches(&[r#"labels.a."b/c"==1"#]), "the key is the parts joined by dots");
        assert!(matches(&[r#"labels.plain=="x y""#]));
        assert!(matches(&[r#"labels.plain=="x\x20y""#]));
        assert!(matches(&[r#"labels.plain=="x\040\u0079""#]));
        assert!(matches(&[r#""labels".plain"#]));
    }

    #[test]
    fn refusals_name_the_place() {
        for (filter, at) in [
            ("name=docker", 4),
            ("name===x", 4),
            ("name==", 6),
            ("name==,x", 6),
            ("name==.x", 6),
            ("name,", 5),
            (" ", 1),
            ("name ", 5),
            ("name==x ", 7),
            ("name==/x/", 6),
            ("name==|x|", 6),
            ("/name/==x", 0),
            ("labels .plain", 7),
            ("name.==x", 5),
            ("name==\"x", 6),
            ("name~=/\\d/", 7),
            ("name==\"\\x1\"", 7),
            ("name==\"\\400\"", 7),
            ("name==\"\\UFFFFFFFF\"", 7),
            ("na-me", 2),
            ("名", 0),
            ("name\0", 4),
        ] {
            let error = try_matches(&[filter]).expect_err(filter);
            assert_eq!((error.at, error.filter.as_str()), (at, filter), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in "[a-z.,\"/|=!~\\\\ \u{0}\u{fffd}é0-9]{0,24}") {
            let _ = try_matches(&[&text]);
        }

        #[test]
        fn any_value_can_be_quoted(value in "[^\u{0}\u{fffd}\n]{0,24}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let filter = Filter::parse(&[format!("f==\"{quoted}\"")]).unwrap();
            prop_assert!(filter.matches(|_| Some(Cow::Owned(value.clone()))));
        }
    }
}
