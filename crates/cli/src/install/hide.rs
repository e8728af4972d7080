//! Credentials of a configuration, hidden where some of it is shown: that may go to a log which others read.
//!
//! It works on lines, because templates are no TOML, and hides rather too much than too little: the value of a key with a word of
//! [`CREDENTIALS`] in its path or its table's, and who a URL says it is.

/// Words in the names of keys and tables that hold credentials.
const CREDENTIALS: [&str; 11] = [
    "auth",
    "auths",
    "authorization",
    "headers",
    "identitytoken",
    "passwd",
    "password",
    "registrytoken",
    "secret",
    "token",
    "username",
];
/// What is shown instead.
const HIDDEN: &str = "(hidden)";

/// A text without its credentials.
pub(super) fn hide(text: &str) -> String {
    // Whether the lines are of a table of credentials, and what is open of a hidden value of several lines.
    let (mut in_table, mut open) = (false, None);
    let mut shown = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        if let Some(value) = open {
            open = Open::after(value, line);
            shown += HIDDEN;
        } else if line.trim_start().starts_with('[') {
            in_table = is_credential(line);
            shown += line;
        } else if let Some(at) = value(line, in_table) {
            open = Open::of(line[at..].trim());
            shown += &format!("{} {HIDDEN}", &line[..at]);
        } else if in_table && !is_empty(line) {
            shown += HIDDEN;
        } else {
            shown += &without_users(line);
        }
        shown += end;
    }
    shown
}

/// Whether a line has nothing, or a remark.
fn is_empty(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

fn is_credential(name: &str) -> bool {
    let mut words = name.split(|c: char| !c.is_ascii_alphanumeric());
    words.any(|word| CREDENTIALS.iter().any(|credential| word.eq_ignore_ascii_case(credential)))
}

/// Where the first value of a line begins that is to be hidden.
fn value(line: &str, in_table: bool) -> Option<usize> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "._-\"' ".contains(c);
    let mut equals = line.match_indices('=').map(|(at, _)| at);
    let name = |at: usize| line[..at].rsplit(|c| !is_name(c)).next().unwrap_or_default();
    equals.find(|at| in_table || is_credential(name(*at))).map(|at| at + 1)
}

/// What is open of a value at the end of a line.
#[derive(Clone, Copy)]
enum Open {
    /// A string of several lines, with the quotes that end it.
    String(&'static str),
    /// So many brackets.
    Brackets(usize),
}

impl Open {
    fn of(value: &str) -> Option<Self> {
        match ["\"\"\"", "'''"].into_iter().find_map(|quotes| Some((quotes, value.strip_prefix(quotes)?))) {
            Some((quotes, rest)) => Self::String(quotes).after(rest),
            None => Self::Brackets(0).after(value),
        }
    }

    /// The same at the end of the next line.
    fn after(self, line: &str) -> Option<Self> {
        let depth = match self {
            Self::String(quotes) => return (!line.contains(quotes)).then_some(self),
            Self::Brackets(depth) => brackets(depth, line),
        };
        (depth > 0).then_some(Self::Brackets(depth))
    }
}

/// How many brackets are open after a line, by those that are in none of its strings.
fn brackets(open: usize, line: &str) -> usize {
    let (mut depth, mut quote, mut chars) = (open, None, line.chars());
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some('"'), '\\') => drop(chars.next()),
            (Some(begun), _) => quote = quote.filter(|_| c != begun),
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.saturating_sub(1),
            (None, '#') => break,
            (None, _) => {}
        }
    }
    depth
}

/// A line without what its URLs have before an `@`.
fn without_users(line: &str) -> String {
    let mut parts = line.split("://");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let authority = part.find(|c: char| "/\"', ]".contains(c)).unwrap_or(part.len());
        shown += "://";
        match part[..authority].rfind('@') {
            Some(at) => shown += &format!("{HIDDEN}{}", &part[at..]),
            None => shown += part,
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_hidden_however_they_are_written() {
        for text in [
            "[registry.configs.'r'.auth]\n  username = 'HIDE'\n  # password = 'HIDE'\n",
            "[registry.configs.'r'.auth]\n\n[registry.configs.'s'.auth]\nanything = 'HIDE'\n",
            "registry.configs.'r'.auth.password = 'HIDE' # HIDE\n",
            "'r' = { tls = {}, auth = { identitytoken = 'HIDE', a = 'HIDE' } }\n",
            "[registry.headers]\nX = [\n  'HIDE',\n  'HIDE',\n]\n",
            "[registry.headers]\nX = [\n  ['a'],\n  ['HIDE', # ]\n  'HIDE'],\n]\n",
            "[registry.headers]\nX = \"\"\"a\"\"\"\n\nHIDE\n",
            "auth = { a = \"\\\"}\", b = ['a]',\n'HIDE'] }\n",
            "password = '''\nHIDE\nHIDE'''\n",
            "env = ['REGISTRY_TOKEN=HIDE', 'B=HIDE']\n",
            "endpoint = ['https://HIDE:HIDE@r.example/v2', 'http://HIDE@s']\n",
            "  {{- if .x }}\nauth = \"HIDE\"\n  {{ end }}\n",
            "3 | password = \"HIDE\n",
        ] {
            let shown = hide(text);
            assert!(!shown.contains("HIDE") && shown.contains(HIDDEN), "{shown}");
            assert_eq!(shown.lines().count(), text.lines().count(), "{shown}");
        }
    }

    #[test]
    fn everything_else_stays_letter_for_letter() {
        for text in [
            "",
            "version = 3",
            "[plugins.'a']\n  snapshotter = \"overlayfs\" # the default\nendpoint = ['https://r.example/a@b']\n",
        ] {
            assert_eq!(hide(text), text);
        }
        let after = "[proxy_plugins.orlop-overlay]\ntype = 'snapshot'\n";
        assert!(hide(&format!("[a.auth]\nauth = 'x'\n\n# Added\n{after}")).ends_with(&format!("\n\n# Added\n{after}")));
        assert_eq!(hide("a = [\n1]\nauth = [\n1]\nb = 2\n"), "a = [\n1]\nauth = (hidden)\n(hidden)\nb = 2\n");
    }
}
