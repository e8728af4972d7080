//! containerd's filters. The bytes are the filter.
//!
//! A filter that parses means the same as any of a list, twice in a list, and joined to itself; one that is written from
//! its parts matches exactly what those parts say.

use std::borrow::Cow;

use orlop_metadata::Filter;

use super::Target;
use crate::seeds::texts;

/// See the module.
pub const TARGET: Target = Target {
    name: "filters",
    run,
    seeds,
    words: &[
        b"labels.",
        b"==",
        b"!=",
        b"~=",
        b"\"\\x00\"",
        b"\\u",
        b"\\U00110000",
        b"\\777",
        b",",
        b"name",
        b"|a|",
        b"/a/",
        b"(?i)",
        b"{1000}",
    ],
    limit: 1024,
    isolated: false,
};

const OBJECTS: [&[(&str, &str)]; 4] = [
    &[("name", "docker.io/library/a:1"), ("labels.a.b/c", "1"), ("labels.plain", "x y"), ("empty", "")],
    &[("name", "b@sha256:1"), ("labels.a", "1"), ("labels.plain", "\"q\""), ("kind", "committed")],
    &[("name", ""), ("labels.a.b", "é\\d|/"), ("kind", "active")],
    &[],
];

fn matched(filter: &Filter) -> Vec<bool> {
    let field = |object: &'static [(&str, &str)], path: &[String]| {
        let path = path.join(".");
        object.iter().find(|(name, _)| *name == path).map(|(_, value)| Cow::Borrowed(*value))
    };
    OBJECTS.iter().map(|object| filter.matches(|path| field(object, path))).collect()
}

fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    match Filter::parse(std::slice::from_ref(&text)) {
        Ok(filter) => {
            let matches = matched(&filter);
            let again = |filters: &[String]| matched(&Filter::parse(filters).expect("its parts parse"));
            assert_eq!(again(&[text.clone(), text.clone()]), matches, "{text:?} in a list");
            if !text.is_empty() {
                assert_eq!(again(&[format!("{text},{text}")]), matches, "{text:?} joined to itself");
            }
            assert_eq!(again(&[text.clone(), String::new()]), [true; 4], "the empty filter matches everything");
        }
        Err(error) => {
            assert!(text.is_char_boundary(error.at), "{error}: no place in {text:?}");
            assert_eq!(error.filter, text);
        }
    }
    quoted(&text);
}

/// A value in quotes is that value, and no other.
fn quoted(value: &str) {
    // These end a quoted string whatever comes before.
    if value.contains(['\n', '\0', char::REPLACEMENT_CHARACTER]) {
        return;
    }
    let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
    for (operator, equal) in [("==", true), ("!=", false)] {
        let text = format!("name{operator}\"{escaped}\"");
        let filter = Filter::parse(&[text]).expect("a quoted value parses");
        let is = |other: &str| filter.matches(|_| Some(Cow::Borrowed(other)));
        assert_eq!((is(value), is(&format!("{value}x"))), (equal, !equal), "{value:?}");
    }
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    texts(
        [
            "",
            "name",
            "name==docker.io/library/a:1",
            "name~=\"^docker\"",
            "name~=/a+/",
            "name~=|b@|",
            "labels.\"a.b/c\"==1",
            "labels.plain!=\"x y\",kind==active",
            "labels.a.\"b\\x2fc\"",
            "name==\"\\u00e9\\U0001F600\\101\\n\"",
            "name == a , kind",
            "name~=\"(\"",
            ".name",
            "name==",
            "name=a",
            "name~=\"((a{100}){100}){100}\"",
        ]
        .map(str::to_owned),
    )
}
