//! The command line by itself: help, exit codes, formats, and errors that say what to do.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::common;
use crate::common::{Done, Orlop, binary};
use orlop_testkit::archive;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;

fn bare(args: &[&str]) -> Done {
    Done::of(&binary().args(args).output().expect("orlop starts"))
}

/// Commands with their help, as a newcomer sees them.
const COMMANDS: &[&str] = &[
    "demo",
    "serve",
    "registry",
    "pull",
    "push",
    "images",
    "inspect",
    "explain",
    "why",
    "resolve",
    "tree",
    "history",
    "log",
    "tag",
    "rm",
    "undo",
    "pin",
    "unpin",
    "import",
    "export",
    "mount",
    "umount",
    "check",
    "verify",
    "doctor",
    "df",
    "gc",
    "content",
    "snapshots",
    "leases",
    "namespaces",
    "watch",
    "top",
    "stores",
    "install",
    "config",
    "completions",
    "man",
];

#[test]
fn help_is_a_promise() {
    let mut text = bare(&["--help"]).out;
    for command in COMMANDS {
        text.push_str(&format!("\n---- orlop {command} --help\n{}", bare(&[command, "--help"]).out));
    }
    insta::assert_snapshot!("help", text);
}

#[test]
fn every_command_of_the_help_is_there() {
    let help = bare(&["--help"]).out;
    for command in COMMANDS {
        assert!(help.lines().any(|l| l.trim_start().starts_with(command)), "{command} is not in the help");
    }
}

#[test]
fn usage_errors_exit_with_2() {
    for args in [&["nonsense"][..], &["pull"], &["pull", "--user", "nocolon", "a"], &["images", "-o", "xml"]] {
        let store = Orlop::new();
        let done = store.run(args);
        assert_eq!(done.code, 2, "{args:?}: {}", done.err);
        assert!(!done.err.is_empty());
    }
}

#[test]
fn a_reference_that_is_none_is_a_usage_error_that_says_why() {
    let store = Orlop::new();
    for bad in ["UPPER", "a b", "a:", "a@sha256:1234", "-", "a//b", "a:tag:tag"] {
        let done = store.run(["pull", "--", bad]);
        assert_eq!(done.code, 2, "{bad}: {}", done.err);
        assert!(
            done.err.contains(bad.split('@').next().unwrap()) || done.err.contains("digest"),
            "{bad}: {}",
            done.err
        );
    }
}

#[test]
fn what_is_not_there_exits_with_3() {
    let store = Orlop::new();
    for args in [
        &["inspect", "alpine"][..],
        &["rm", "alpine"],
        &["rm", "--plan", "alpine"],
        &["tag", "alpine", "b"],
        &["export", "alpine", "-O", "/dev/null"],
        &["pin", "alpine"],
        &["undo"],
        &["push", "alpine"],
        &["content", "get", "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"],
        &["snapshots", "info", "x"],
        &["leases", "rm", "x"],
    ] {
        let done = store.run(args);
        assert_eq!(done.code, 3, "{args:?}: {}{}", done.out, done.err);
    }
}

#[test]
fn a_registry_that_is_not_there_exits_with_8() {
    let store = Orlop::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let done = store.run(["pull", &format!("127.0.0.1:{port}/a:1")]);
    assert_eq!(done.code, 8, "{}", done.err);
    assert!(done.err.contains(&format!("127.0.0.1:{port}")), "{}", done.err);
}

#[test]
fn a_daemon_that_is_not_there_exits_with_8() {
    let done = bare(&["--address", "/nonexistent/orlop.sock", "images"]);
    assert_eq!(done.code, 8, "{}", done.err);
    assert!(done.err.contains("/nonexistent/orlop.sock"), "{}", done.err);
    assert_eq!(done.err.matches("No such file").count(), 1, "said once: {}", done.err);
}

#[test]
fn commands_of_other_tools_are_told_what_they_are_here() {
    for (there, here) in [("rmi", "orlop rm"), ("load", "orlop import"), ("login", "docker login")] {
        let done = bare(&[there, "x"]);
        assert_eq!(done.code, 2, "{}", done.err);
        assert!(done.err.contains(here), "{there}: {}", done.err);
    }
    assert!(!bare(&["nonsense"]).err.contains("other tools"));
}

/// Root of a user namespace alone may not write to the system's /var/lib: its store is the user's.
#[test]
fn root_of_a_user_namespace_has_a_store_of_the_users() {
    let home = tempfile::tempdir().unwrap();
    let inside = |program: &OsStr, args: &[&str]| {
        let mut command = Command::new("setpriv");
        // Nobody's namespace: what belongs to root outside belongs to nobody inside.
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "--user", "--map-root-user"]);
        command.arg(program).args(args).env("XDG_DATA_HOME", home.path().join("orlop-data")).env_remove("ORLOP_ROOT");
        Done::of(&command.output().unwrap())
    };
    if !common::is_root("root_of_a_user_namespace_has_a_store_of_the_users") || inside("true".as_ref(), &[]).code != 0 {
        println!("root_of_a_user_namespace_has_a_store_of_the_users: skipped, it needs user namespaces");
        return;
    }
    // Where the user may reach both.
    let program = home.path().join("orlop");
    common::publish(&program);
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    // What keeps a store makes none: an empty one would hide what else is on the machine.
    let done = inside(program.as_os_str(), &["gc"]);
    assert_eq!(done.code, 3, "{}", done.err);
    assert!(done.err.contains("no Orlop store at") && done.err.contains("orlop-data/orlop"), "{}", done.err);
    assert!(!home.path().join("orlop-data/orlop").exists());
    let archive = home.path().join("image.tar");
    let content = Content::image(&Image::host().layer(Layer::new([Entry::file("small", "small")])));
    std::fs::write(&archive, archive::oci_archive(&[("docker.io/library/small:1", &content)])).unwrap();
    let done = inside(program.as_os_str(), &["import", "--no-unpack", archive.to_str().unwrap()]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(home.path().join("orlop-data/orlop/meta.db").exists(), "{}", done.err);
}

#[test]
fn an_empty_store_lists_nothing_in_every_format() {
    let store = Orlop::new();
    assert_eq!(store.ok(["images", "-o", "name"]), "");
    assert_eq!(store.json(["images"]), serde_json::json!({ "schema": "orlop.images/v1", "images": [] }));
    assert_eq!(store.json(["images", "--all"]), serde_json::json!({ "schema": "orlop.images/v1", "records": [] }));
    assert_eq!(store.ok(["images", "-o", "yaml"]), "schema: orlop.images/v1\nimages: []\n");
    assert!(store.ok(["images"]).starts_with("NAME"));
    store.is_sound();
}

#[test]
fn an_unknown_key_in_the_configuration_is_refused() {
    let store = Orlop::new();
    let file = store.path("orlop.toml");
    std::fs::write(&file, "rooot = '/x'\n").unwrap();
    let done = store.run(["--config", file.to_str().unwrap(), "images"]);
    assert_eq!(done.code, 2);
    assert!(done.err.contains("rooot"), "{}", done.err);
}

#[test]
fn a_filter_that_does_not_parse_says_where() {
    let store = Orlop::new();
    let done = store.run(["images", "--filter", "name=="]);
    assert_eq!(done.code, 2, "{}", done.err);
    assert!(done.err.contains("name=="), "{}", done.err);
}

#[test]
fn completions_and_man_pages_come_out() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(bare(&["completions", shell]).out.contains("orlop"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(bare(&["man", dir.path().to_str().unwrap()]).code, 0);
    for page in ["orlop.1", "orlop-pull.1", "orlop-content-ls.1"] {
        assert!(dir.path().join(page).exists(), "{page}");
    }
}

#[test]
fn a_root_of_a_newer_format_is_refused_and_left_alone() {
    let store = Orlop::new();
    store.ok(["images"]);
    let sqlite = std::fs::read(store.root().join("meta.db")).unwrap();
    let mut newer = sqlite;
    // SQLite keeps user_version as four big-endian bytes at offset 60 of the file header.
    newer[60..64].copy_from_slice(&999u32.to_be_bytes());
    std::fs::write(store.root().join("meta.db"), &newer).unwrap();
    let done = store.run(["images"]);
    assert_eq!(done.code, 1, "{}", done.err);
    assert!(done.err.contains("999") && done.err.contains("newer"), "{}", done.err);
    assert_eq!(std::fs::read(store.root().join("meta.db")).unwrap(), newer);
}

#[test]
fn plumbing_works_on_what_it_makes() {
    let store = Orlop::new();
    store.ok(["namespaces", "create", "team", "color=blue"]);
    assert!(store.ok(["namespaces", "ls"]).contains("color=blue"));
    store.ok(["namespaces", "label", "team", "color="]);
    assert!(!store.ok(["namespaces", "ls"]).contains("blue"));
    store.ok(["namespaces", "rm", "team"]);

    let input = store.path("blob");
    std::fs::write(&input, b"some bytes").unwrap();
    let done = store.fed(&["content", "ingest", "mine", "--label", "containerd.io/gc.root=x"], &input);
    assert_eq!(done.code, 0, "{}", done.err);
    let digest = done.out.trim();
    assert_eq!(store.ok(["content", "get", digest]), "some bytes");
    assert_eq!(store.ok(["content", "ls", "-o", "name"]).trim(), digest);
    store.ok(["gc"]);
    assert_eq!(store.ok(["content", "ls", "-o", "name"]).trim(), digest);
    store.ok(["content", "rm", digest]);
    store.ok(["gc"]);
    assert_eq!(store.ok(["content", "ls", "-o", "name"]), "");

    // What was committed by hand was collected.
    store.ok(["snapshots", "prepare", "writable"]);
    store.ok(["snapshots", "commit", "committed", "writable"]);
    store.ok(["gc"]);
    assert!(store.ok(["snapshots", "ls"]).contains("committed"));
    store.ok(["snapshots", "rm", "committed"]);
    assert!(!store.ok(["snapshots", "ls"]).contains("committed"));

    let wrong = [
        "content",
        "ingest",
        "other",
        "--expected-digest",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ];
    let done = store.fed(&wrong, &input);
    assert!(done.code != 0 && done.err.contains("e3b0c44"), "{} {}", done.code, done.err);

    let lease = store.ok(["leases", "create", "--expires", "1h"]);
    assert!(store.ok(["leases", "ls", "-o", "name"]).contains(lease.trim()));
    store.ok(["leases", "rm", lease.trim()]);
    assert_eq!(store.ok(["leases", "ls", "-o", "name"]), "");
}
