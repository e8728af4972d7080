//! Colour: on a terminal, and nowhere else; not if somebody says so; and the text is the same with it and without it.

use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};

use crate::common::{Orlop, import};
use crate::terminal;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;

const ESCAPE: char = '\u{1b}';

/// What a program writes to a terminal of its own, byte by byte: standard output, or standard error.
fn on_terminal(mut command: Command, errors_too: bool) -> String {
    let (master, slave) = terminal::pair(200, 50);
    let stdio = || Stdio::from(slave.try_clone().unwrap());
    command.stdin(stdio()).stdout(stdio());
    command.stderr(if errors_too { stdio() } else { Stdio::null() });
    let mut child = command.spawn().unwrap();
    // When the program has ended nobody holds the terminal any more, and reading ends.
    drop((command, slave));
    let mut bytes = Vec::new();
    let mut master: File = master;
    // Linux says EIO at the end of a terminal.
    let _ = master.read_to_end(&mut bytes);
    child.wait().unwrap();
    String::from_utf8(bytes).unwrap().replace("\r\n", "\n")
}

/// A text without what paints it.
fn plain(text: &str) -> String {
    let mut parts = text.split(ESCAPE);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').unwrap().1)
}

/// A store with an image, of which a layer is not there.
fn store() -> Orlop {
    let store = Orlop::new();
    let layer = Layer::new([Entry::file("file", "content")]);
    let content = Content::image(&Image::host().layer(layer));
    import(&store, "r.example/app:1", &content);
    let layer = content.layers().pop().unwrap();
    std::fs::remove_file(store.root().join("content/blobs/sha256").join(layer.hex())).unwrap();
    store
}

/// A command that may have colour; the tests' own environment wants none.
fn colourful(store: &Orlop, args: &[&str]) -> Command {
    let mut command = store.command(args);
    command.env_remove("NO_COLOR").env("TERM", "xterm-256color");
    command
}

const LOOKS: [&[&str]; 6] = [
    &["doctor"],
    &["tree"],
    &["resolve", "r.example/app:1"],
    &["images", "--all"],
    &["stores"],
    &["explain", "r.example/app:1"],
];

#[test]
fn a_terminal_shows_colour_and_the_text_is_the_same_without_it() {
    let store = store();
    for look in LOOKS {
        let painted = on_terminal(colourful(&store, look), false);
        assert!(painted.contains(ESCAPE), "{look:?}: {painted}");
        let output = colourful(&store, look).stdout(Stdio::piped()).output().unwrap();
        let piped = String::from_utf8(output.stdout).unwrap();
        assert!(!piped.contains(ESCAPE), "{look:?} into a pipe: {piped}");
        assert_eq!(plain(&painted), piped, "{look:?}: columns stand where they stand");
    }
    let doctor = on_terminal(colourful(&store, &["doctor"]), false);
    assert!(doctor.contains("\u{1b}[31m"), "what is broken is red: {doctor:?}");
}

#[test]
fn who_wants_no_colour_gets_none() {
    let store = store();
    // An option, or a variable that is set or not.
    let refusals =
        [("--no-color", None), ("NO_COLOR", Some("1")), ("TERM", Some("dumb")), ("TERM", Some("")), ("TERM", None)];
    for (what, value) in refusals {
        for args in [&["doctor"][..], &["tree"], &["nonsense"], &["explain", "nothing:1"]] {
            let mut command = colourful(&store, args);
            match value {
                _ if what.starts_with("--") => command.arg(what),
                Some(value) => command.env(what, value),
                None => command.env_remove(what),
            };
            let text = on_terminal(command, true);
            assert!(!text.is_empty() && !text.contains(ESCAPE), "{what} {value:?} {args:?}: {text:?}");
        }
    }
    // Set to nothing it says nothing.
    let mut command = colourful(&store, &["doctor"]);
    command.env("NO_COLOR", "");
    assert!(on_terminal(command, false).contains(ESCAPE));
    // Documents and names are for programs, wherever they are written.
    for format in ["json", "yaml", "name"] {
        let text = on_terminal(colourful(&store, &["images", "--all", "-o", format]), false);
        assert!(!text.contains(ESCAPE), "{format}: {text:?}");
    }
    // What failed is marked on a terminal.
    let text = on_terminal(colourful(&store, &["explain", "nothing:1"]), true);
    assert!(text.contains("\u{1b}[31morlop:\u{1b}[0m"), "{text:?}");
}
