//! What a client said, made comparable.
//!
//! # What is normalised, and why
//! - Times, ages and durations, lease and container ids that the client draws, UUIDs and PIDs: they are new each time.
//! - Scratch directories, sockets, registries' addresses: each side has its own.
//! - Directories of snapshots: where a store keeps a tree is its own business; that it is a tree of which driver is compared.
//! - The width of columns, which follows the width of the above.
//! - The order of labels in one column and of mount options: clients print maps in any order.
//! - Progress, of which nothing but the shape is compared: without bars, speeds, sums and states, for `ctr` stops to draw
//!   when the call is answered, wherever the picture is then; which lines it has drawn by then is chance, too. So what
//!   both sides have drawn of one kind of thing (a manifest, a config, a layer) must be drawn at the same depths, as far
//!   as the one that drew less of it got. Of a command that failed no progress is compared.
//! - A layer on standard output is its list of entries: containerd and Orlop compress differently, and both may.
//! - An archive or layer that `ctr` did not wait for is asked for again: see `Pair::ask`.
//! - What containerd reports as deprecated about the machine (its cgroups), and that `ctr` stopped to ask for progress
//!   when it was done: it depends on the machine, and on chance.
//! - Which of several blobs a registry that is not there is asked for first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use regex::Regex;

use crate::step::Look;

/// Exit code and lines.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) out: Vec<String>,
    pub(crate) err: Vec<String>,
    /// The lines of progress that were ever drawn.
    pub(crate) drawn: BTreeSet<String>,
    /// Standard output in one piece, where it is a document.
    pub(crate) whole: String,
}

impl Answer {
    /// Reads what a program said; `own` are names of this side, longest first, and what stands for each.
    pub(crate) fn read(output: &Output, own: &[(String, &str)], look: Look) -> Self {
        let out = match look {
            Look::Layer if output.status.success() => entries(&output.stdout),
            _ => String::from_utf8_lossy(&output.stdout).into_owned(),
        };
        let (drawn, rest) = progress(&out, !output.status.success());
        let drawn = lines(&drawn, own).into_iter().collect();
        let mut out = lines(&rest, own);
        let mut err = lines(&String::from_utf8_lossy(&output.stderr), own);
        if look == Look::Sorted {
            out.sort();
            err.sort();
        }
        let whole = String::from_utf8_lossy(&output.stdout);
        let whole = if whole.starts_with('{') { renamed(&whole, own) } else { String::new() };
        Self { code: output.status.code().unwrap_or(-1), out, err, drawn, whole }
    }
}

impl PartialEq for Answer {
    fn eq(&self, other: &Self) -> bool {
        (self.code, &self.out, &self.err) == (other.code, &other.out, &other.err) && drawn_alike(self, other)
    }
}

/// What both have drawn of one kind of thing, one of them has drawn wherever the other has.
fn drawn_alike(one: &Answer, other: &Answer) -> bool {
    let kind = |line: &str| line.trim_start_matches(['>', ' ']).split(' ').next().unwrap_or_default().to_owned();
    let kinds = |answer: &Answer| -> BTreeMap<String, BTreeSet<String>> {
        answer.drawn.iter().fold(BTreeMap::new(), |mut kinds, line| {
            kinds.entry(kind(line)).or_insert_with(BTreeSet::new).insert(line.clone());
            kinds
        })
    };
    let (one, other) = (kinds(one), kinds(other));
    let mut both = one.iter().filter_map(|(kind, lines)| Some((lines, other.get(kind)?)));
    both.all(|(one, other)| one.is_subset(other) || other.is_subset(one))
}

/// The difference, for people.
pub(crate) fn difference(theirs: &Answer, ours: &Answer) -> String {
    let mut said = String::new();
    if theirs.code != ours.code {
        said += &format!("    exit code {} of containerd, {} of Orlop\n", theirs.code, ours.code);
    }
    for (what, theirs, ours) in [("out", &theirs.out, &ours.out), ("err", &theirs.err, &ours.err)] {
        let only = |lines: &[String], others: &[String], sign: char| -> String {
            let missing = lines.iter().filter(|line| !others.contains(line));
            missing.map(|line| format!("    {what} {sign} {line}\n")).collect()
        };
        let lines = only(theirs, ours, '-') + &only(ours, theirs, '+');
        if theirs != ours && lines.is_empty() {
            said += &format!(
                "    {what}: the same lines in another order, or repeated:\n      {theirs:?}\n      {ours:?}\n"
            );
        }
        said += &lines;
    }
    if !drawn_alike(theirs, ours) {
        said += &format!("    drawn by containerd: {:?}\n    drawn by Orlop: {:?}\n", theirs.drawn, ours.drawn);
    }
    said
}

struct Rule(Regex, &'static str);

impl Rule {
    fn of(pattern: &str) -> Regex {
        Regex::new(pattern).expect("a pattern")
    }
}

static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    [
        (r"\x1b\[[0-9;]*[A-Za-z]|\r", ""),
        (r"/[^\s,:=\x22]*/(?:io\.containerd\.snapshotter\.v1\.(\w+)/snapshots|snapshots/(\w+))/\d+", "TREE-$1$2"),
        (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?[+-]\d\d:?\d\d UTC| ?[+-]\d\d:\d\d|Z)?", "TIME"),
        (r"(About an? \w+|Less than a second|\d+ (second|minute|hour)s?)( ago)?", "AGE"),
        (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "UUID"),
        // Of a client, and of a server.
        (r"\b\d{4,9}-[\w-]{4}|\borlop-[0-9a-f]{32}\b", "RANDOM"),
        (r"(extract)-\d+-\S+", "$1-RANDOM"),
        // Of the log that crictl writes.
        (r"^E\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ", "E "),
        (r"/blobs/sha256:[0-9a-f]{64}", "/blobs/DIGEST"),
        (r"\b\d+(\.\d+)?(ns|µs|ms|s)\b", "DURATION"),
        (r#""(pid|pidns|seconds|nanos)": \d+"#, "\"$1\": NUMBER"),
        (r"\s+", " "),
        // The last of a list in JSON has none.
        (r",$", ""),
    ]
    .into_iter()
    .map(|(pattern, with)| Rule(Rule::of(pattern), with))
    .collect()
});

fn lines(text: &str, own: &[(String, &str)]) -> Vec<String> {
    let text = renamed(text, own);
    let chance = [
        "io.containerd.deprecation/",
        "LAST OCCURRENCE",
        "failed to get content info",
        "active check failed",
        "progress stream failed to recv",
    ];
    let mut deprecated = false;
    let mut all = Vec::new();
    for line in text.lines().filter(|line| !chance.iter().any(|word| line.contains(word))) {
        let plain = line.trim();
        deprecated |= plain.starts_with("\"deprecations\": [");
        if !deprecated {
            all.push(comparable(line));
        }
        deprecated &= plain != "]";
    }
    all
}

fn comparable(line: &str) -> String {
    let shift = " ".repeat(line.len() - line.trim_start().len());
    let plain =
        RULES.iter().fold(line.to_owned(), |line, Rule(pattern, with)| pattern.replace_all(&line, *with).into_owned());
    shift + &unordered(plain.trim())
}

/// With what stands for this side's own names.
fn renamed(text: &str, own: &[(String, &str)]) -> String {
    own.iter().fold(text.to_owned(), |text, (name, with)| text.replace(name, with))
}

/// Lists of `key=value` in one order.
fn unordered(line: &str) -> String {
    let sorted = |word: &str| {
        if !word.contains('=') || !word.contains(',') {
            return word.to_owned();
        }
        let mut parts: Vec<&str> = word.split(',').collect();
        parts.sort_unstable();
        parts.join(",")
    };
    line.split(' ').map(sorted).collect::<Vec<_>>().join(" ")
}

/// The shape of progress that is drawn again and again, nothing of a command that failed; and what comes after it.
fn progress(text: &str, failed: bool) -> (String, String) {
    let lines: Vec<&str> = text.lines().collect();
    let Some(end) = lines.iter().rposition(|line| line.contains("elapsed:")) else {
        return (String::new(), text.to_owned());
    };
    let (drawn, rest) = lines.split_at(end + 1);
    let shapes: Vec<String> = drawn.iter().filter(|_| !failed).map(|line| shape_of(line)).collect();
    (shapes.join("\n"), rest.join("\n"))
}

/// A line of progress: the depth, and what it is about.
fn shape_of(line: &str) -> String {
    static PLAIN: LazyLock<[Regex; 4]> = LazyLock::new(|| {
        let states =
            "waiting|downloading|uploading|extracting|extracted|complete|already exists|done|exists|resolved|resolving";
        let more = "saved|fetching image content|pushing content|pushed content|importing";
        [
            Rule::of(&format!(r"\s+({states}|{more})\s*(\|.*)?$")),
            Rule::of(r"\s*elapsed: .*"),
            Rule::of(r"^(?:Completed (?:push|pull|import|export)|Pushing|Pulling|Resolving|Importing|Exporting)"),
            Rule::of(r" \([0-9a-f]{12}\)"),
        ]
    });
    let [state, elapsed, verb, digest] = &*PLAIN;
    let line = RULES[0].0.replace_all(line, "");
    let line = elapsed.replace(&line, "");
    let line = state.replace(&line, "");
    let line = verb.replace(&line, "Transfer");
    let line = digest.replace(&line, "");
    // The branches of the tree: nothing but the depth.
    let name = line.trim_start_matches([' ', '│', '├', '└', '─']);
    let depth = (line.chars().count() - name.chars().count()) / 3;
    ["> ".repeat(depth), name.to_owned()].concat()
}

/// The entries of a layer, as tar lists them.
fn entries(layer: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), layer).expect("a writable file");
    list(file.path())
}

fn list(file: &Path) -> String {
    let mut command = Command::new("tar");
    command.args(["--list", "--verbose", "--verbose", "--full-time", "--numeric-owner", "--utc", "--file"]).arg(file);
    let said = command.stdin(Stdio::null()).output().expect("tar is there");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&said.stdout) + &text(&said.stderr)
}
