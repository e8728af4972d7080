//! Names and labels that somebody chose in order to be more than letters on a terminal, or to be taken for something else.

use crate::common::Done;
use crate::node::generations;
use crate::ward::Ward;

/// Clears the screen, paints, rings, turns the direction of writing, and begins a line of its own.
const EVIL: &str = "evil\u{1b}[2J\u{1b}[31m\u{9b}1m\u{7}\r\u{202e}name\nsecond/line:1";
/// What it is shown as.
const SHOWN: &str = r"evil\u{1b}[2J\u{1b}[31m\u{9b}1m\u{7}\r\u{202e}name\nsecond/line:1";

#[track_caller]
fn harmless(look: &[&str], done: &Done) {
    let is_bad = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    for text in [&done.out, &done.err] {
        assert!(!text.contains(is_bad), "{look:?}: {text:?}");
        assert!(!text.lines().any(|line| line.trim_start().starts_with("second")), "{look:?}: {text:?}");
    }
}

#[test]
fn no_name_or_label_is_more_than_letters_on_a_terminal() {
    for programs in generations("no_name_or_label_is_more_than_letters_on_a_terminal") {
        let Some(ward) = Ward::open(&programs) else { return };
        ward.record(EVIL, &ward.live, &[("a", EVIL)]);
        // Hash references in form, with digits that are none.
        let letters = format!("x@sha256:{}é", "a".repeat(63));
        ward.record(&letters, &ward.live, &[]);
        ward.lease(EVIL, &[("b", EVIL)], &[]);
        ward.write(EVIL, b"begun", None);
        let looks: [&[&str]; 19] = [
            &["images"],
            &["images", "--all"],
            &["images", "--all", "-o", "wide"],
            &["images", "-o", "name"],
            &["explain", &ward.live],
            &["explain", EVIL],
            &["explain", &letters],
            &["why", EVIL],
            &["why", "sha256:0000"],
            &["resolve", EVIL],
            &["tree"],
            &["history", EVIL],
            &["df", "--by", "image"],
            &["df", "--by", "layer"],
            &["rm", "--plan", EVIL],
            &["prune", "--plan", "--unused-since", "0s"],
            &["doctor"],
            &["leases", "ls"],
            &["content", "active"],
        ];
        let known = ["images", "leases", "content", "tree", "explain"];
        for look in looks {
            let done = ward.node.run(look);
            harmless(look, &done);
            let shows = known.contains(&look[0]) && !look.contains(&letters.as_str());
            assert!(!shows || done.out.contains(SHOWN), "{look:?}: {}{}", done.out, done.err);
        }
        // Whoever mistypes is not shown more either, and documents have it as it is.
        harmless(&["explain"], &ward.node.run(&["explain", "evil"]));
        let all = ward.node.json(&["images", "--all"]);
        let names: Vec<&str> = all["records"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
        assert!(names.contains(&EVIL) && names.contains(&letters.as_str()), "{names:?}");
    }
}

#[test]
fn a_namespace_that_is_not_there_is_not_shown_as_an_empty_one() {
    for programs in generations("a_namespace_that_is_not_there_is_not_shown_as_an_empty_one") {
        let Some(ward) = Ward::open(&programs) else { return };
        for look in ["images", "tree", "df", "doctor"] {
            let done = ward.node.run(&["-n", "k8s", look]);
            assert!(done.err.contains("there is no namespace \"k8s\" here, but k8s.io"), "{look}: {}", done.err);
            let done = ward.node.run(&[look]);
            assert!(!done.err.contains("there is no namespace"), "{look}: {}", done.err);
        }
    }
}

#[test]
fn what_looks_like_an_option_is_a_name_in_the_commands_that_mend() {
    for programs in generations("what_looks_like_an_option_is_a_name_in_the_commands_that_mend") {
        let Some(mut ward) = Ward::open(&programs) else { return };
        let names = ["--help", "two words", "tab\tand 'quote'"];
        names.iter().for_each(|name| ward.lease(name, &[], &[]));
        ward.age();
        let problems = ward.problems(&["--class", "lease"]);
        let subjects: Vec<&str> = problems.iter().map(|p| p["subject"].as_str().unwrap()).collect();
        assert!(names.iter().all(|name| subjects.contains(name)), "{subjects:?}");
        problems.iter().for_each(|problem| ward.printed(problem));
        assert_eq!(ward.found(&["--class", "lease"]), []);
    }
}
