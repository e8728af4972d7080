//! `orlop install`: what it changes, that containers start, that all of it comes back.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use orlop_testkit::archive;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::process::need_peer;

use crate::common::{Done, Orlop, binary};
use crate::node::{Layout, Node};
use crate::stack::{generations, image, is_old};

/// The containerds with which containers run on this machine; where none do, that is said.
fn able() -> Vec<Programs> {
    static RUNS: OnceLock<bool> = OnceLock::new();
    let all = generations();
    let Some(programs) = all.last() else { return all };
    if need_peer("crictl").is_none() {
        return Vec::new();
    }
    let runs = *RUNS.get_or_init(|| {
        let Some(content) = image() else { return false };
        let plain = Containerd::start(programs, &Options::default());
        let file = plain.root().join("app.tar");
        std::fs::write(&file, archive::oci_archive(&[("docker.io/library/app:1", &content)])).unwrap();
        plain.import("default", &file, "overlayfs").ok();
        let id = plain.socket().display().to_string().replace('/', "-");
        let ran = plain
            .ctr("default", &["run", "--rm", "docker.io/library/app:1", id.trim_matches('-'), "/bin/sh", "-c", "true"]);
        if !ran.status.success() {
            eprintln!("skipped: this machine runs no containers: {}", ran.stderr.trim());
        }
        ran.status.success()
    });
    if runs { all } else { Vec::new() }
}

fn current() -> Option<Programs> {
    able().into_iter().find(|programs| !is_old(programs))
}

const WAITS: &str = "while true; do sleep 1; done";

#[test]
fn containers_go_on_new_ones_start_and_all_of_it_comes_back_byte_for_byte() {
    for programs in able() {
        let Some(node) = Node::start(&programs, Layout::Plain) else { return };
        let version = programs.version();
        let before = (node.configured(), node.namespaces());
        node.crictl(&["pull", &node.name()]).ok();
        node.run("old", "overlayfs", &["--detach"], WAITS).ok();
        let pid = node.pid("old");

        let shown = node.ends(0, &["--dry-run"]);
        assert!(
            shown.out.contains("+[proxy_plugins.orlop-overlay]") && shown.out.contains("Nothing was changed"),
            "{shown:?}"
        );
        assert!(shown.out.contains(&node.restart()), "the command is shown: {}", shown.out);
        assert_eq!((node.configured(), node.beside()), (before.0.clone(), vec!["config.toml".to_owned()]), "{version}");

        let done = node.ends(0, &[]);
        assert!(done.out.contains("a container was started and removed again"), "{done:?}");
        assert!(node.configured().contains("orlop-overlay") && node.configured().starts_with("# The operator's own"));
        assert!(node.has_orlop(), "{version}");
        assert_eq!(node.pid("old"), pid, "{version}: a container that ran goes on");
        // Orlop's own collection follows containerd's.
        node.is_emptied();
        assert_eq!(node.namespaces().replace("k8s.io\n", ""), before.1.replace("k8s.io\n", ""), "{version}");

        // What was pulled before starts from Orlop's snapshots too, and what is pulled now comes by Orlop.
        node.run("unpacked", "orlop-overlay", &["--rm"], "cat /etc/kept").ok();
        node.crictl(&["rmi", &node.name()]).ok();
        node.crictl(&["pull", &node.name()]).ok();
        assert!(!node.served.log().contains("left to containerd"), "{version}: {}", node.served.log());
        assert_eq!(node.run("new", "orlop-overlay", &["--rm"], "cat /etc/kept").ok().stdout, "kept");

        let again = node.ends(0, &[]);
        assert!(again.out.contains("nothing to do"), "{again:?}");

        // A container that lives on Orlop's snapshots keeps a revert from happening.
        node.run("holds", "orlop-overlay", &["--detach"], WAITS).ok();
        let refused = node.ends(4, &["--revert"]);
        assert!(refused.err.contains(&format!("k8s.io/{}", node.id("holds"))), "{refused:?}");
        assert!(node.has_orlop(), "a refused revert changes nothing");
        node.ctr(&["tasks", "rm", "--force", &node.id("holds")]).ok();
        node.ctr(&["containers", "rm", &node.id("holds")]).ok();

        node.ends(0, &["--revert"]);
        assert_eq!((node.configured(), node.beside()), (before.0, vec!["config.toml".to_owned()]), "{version}");
        assert!(!node.has_orlop());
        assert_eq!(node.pid("old"), pid, "{version}: a container that ran goes on");
        let nothing = node.ends(0, &["--revert"]);
        assert!(nothing.out.contains("nothing to do"), "{nothing:?}");
        node.store.is_sound();
    }
}

#[test]
fn where_containers_do_not_start_any_more_the_old_configuration_comes_back() {
    for programs in able() {
        let Some(mut node) = Node::start(&programs, Layout::Plain) else { return };
        let before = node.configured();
        // Orlop ends with the restart: its snapshotter makes nothing then.
        let orlop = node.served.process().id();
        let restart = format!("kill -9 {orlop}; {}", node.restart());
        let done = node.ends(1, &["--restart-command", &restart, "--timeout", "20"]);
        assert!(done.err.contains("a container does not start on Orlop's snapshotter"), "{done:?}");
        assert!(done.err.contains("the old configuration is back, and containerd runs with it"), "{done:?}");
        assert_eq!((node.configured(), node.beside()), (before, vec!["config.toml".to_owned()]));
        assert!(!node.has_orlop());
    }
}

#[test]
fn a_restart_that_fails_is_undone() {
    let Some(programs) = current() else { return };
    let Some(node) = Node::start(&programs, Layout::Plain) else { return };
    let before = node.configured();
    let restart =
        format!("if grep -q orlop {}; then echo it cannot be; exit 3; fi; {}", node.config().display(), node.restart());
    let done = node.ends(1, &["--restart-command", &restart]);
    assert!(done.err.contains("failed (exit status: 3): it cannot be"), "{done:?}");
    assert_eq!((node.configured(), node.beside()), (before, vec!["config.toml".to_owned()]));
    assert!(!node.has_orlop());
}

#[test]
fn a_restart_that_fails_while_all_of_it_is_taken_back_is_done_by_the_next_run() {
    let Some(programs) = current() else { return };
    let Some(node) = Node::start(&programs, Layout::Plain) else { return };
    let before = node.configured();
    node.ends(0, &[]);
    let failed = node.ends(1, &["--revert", "--restart-command", "exit 3"]);
    assert!(failed.err.contains("the next `orlop install --revert` goes on from here"), "{failed:?}");
    node.ends(0, &["--revert"]);
    assert_eq!((node.configured(), node.beside()), (before, vec!["config.toml".to_owned()]));
    assert!(!node.has_orlop());
}

#[test]
fn what_was_killed_in_the_middle_is_found_out_by_the_next() {
    let Some(programs) = current() else { return };
    let Some(node) = Node::start(&programs, Layout::Plain) else { return };
    let before = node.configured();
    // At each step: killed at the restart, with the new file; the file as before it was written; and as a revert leaves it.
    let killed = |args: &[&str]| {
        let done = node.install(&[args, &["--restart-command", "kill -9 $PPID"]].concat());
        assert_eq!(done.code, -1, "{done:?}");
    };
    let is_clean = |what: &str| {
        assert_eq!((node.configured(), node.beside()), (before.clone(), vec!["config.toml".to_owned()]), "{what}");
        assert!(!node.has_orlop(), "{what}");
    };
    for unwritten in [false, true] {
        killed(&[]);
        if unwritten {
            std::fs::write(node.config(), &before).unwrap();
        }
        let looked = node.ends(4, &["--dry-run"]);
        assert!(looked.err.contains("was cut short"), "{looked:?}");
        let done = node.ends(0, &["--revert"]);
        assert!(done.err.contains("the old configuration comes back"), "{done:?}");
        is_clean("an installation, then --revert");

        killed(&[]);
        if unwritten {
            std::fs::write(node.config(), &before).unwrap();
        }
        node.ends(0, &[]);
        assert!(node.has_orlop(), "an installation, then another");

        killed(&["--revert"]);
        if unwritten {
            std::fs::write(node.config(), &before).unwrap();
        }
        node.ends(0, &["--revert"]);
        is_clean("a revert, then another");
    }
    // Also while containerd is down: the file is named then.
    killed(&[]);
    let file = node.config().display().to_string();
    let mut command = binary();
    command.args(["install", "--revert", "--containerd-config", &file, "--restart-command", &node.restart()]);
    let done = Done::of(&command.output().unwrap());
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!((node.configured(), node.beside()), (before.clone(), vec!["config.toml".to_owned()]));
}

#[test]
fn installations_exclude_each_other() {
    let Some(programs) = current() else { return };
    let Some(node) = Node::start(&programs, Layout::Plain) else { return };
    let (began, go) = (node.path("began"), node.path("go"));
    assert!(Command::new("mkfifo").args([&began, &go]).status().unwrap().success());
    let restart = format!("echo > {}; cat {}; {}", began.display(), go.display(), node.restart());
    let first =
        node.command(&["--restart-command", &restart]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // Until it restarts containerd.
    std::fs::read(&began).unwrap();
    for args in [&[][..], &["--revert"], &["--dry-run"]] {
        let refused = node.ends(4, args);
        assert!(refused.err.contains("another `orlop install` works"), "{refused:?}");
    }
    std::fs::write(&go, "").unwrap();
    let first = Done::of(&first.wait_with_output().unwrap());
    assert_eq!(first.code, 0, "{first:?}");
    node.ends(0, &["--revert"]);
}

#[test]
fn whoever_edited_the_file_since_keeps_what_he_wrote_or_is_told() {
    for programs in able() {
        let Some(node) = Node::start(&programs, Layout::Plain) else { return };
        let before = node.configured();
        // It may hold credentials: what is kept of it is nobody else's either.
        std::fs::set_permissions(node.config(), std::fs::Permissions::from_mode(0o640)).unwrap();
        node.ends(0, &[]);
        let mode = |name: &str| node.config().with_file_name(name).metadata().unwrap().permissions().mode() & 0o777;
        let modes = ["config.toml", "config.toml.orlop-old", "config.toml.orlop-state"].map(mode);
        assert_eq!(modes, [0o640, 0o640, 0o600]);
        let installed = node.configured();
        let mut file = std::fs::OpenOptions::new().append(true).open(node.config()).unwrap();
        file.write_all(b"\n[metrics] # theirs\n  grpc_histogram = true\n").unwrap();
        // The same again is nothing to do.
        assert!(node.ends(0, &[]).out.contains("nothing to do"));
        node.ends(0, &["--revert"]);
        let kept = node.configured();
        assert!(kept.contains("[metrics] # theirs") && !kept.contains("orlop"), "{kept}");
        assert_eq!(kept.replace("\n[metrics] # theirs\n  grpc_histogram = true\n", ""), before);

        // His own word about the very key: he is asked.
        std::fs::write(node.config(), &before).unwrap();
        node.ends(0, &[]);
        assert_eq!(node.configured(), installed);
        let theirs = installed.replace("snapshotter = \"orlop-overlay\"", "snapshotter = \"native\"");
        std::fs::write(node.config(), &theirs).unwrap();
        let refused = node.ends(4, &["--revert"]);
        assert!(refused.err.contains("snapshotter: expected \"orlop-overlay\", found \"native\""), "{refused:?}");
        assert!(
            refused.err.contains("+  snapshotter = \"native\"")
                || refused.err.contains("+    snapshotter = \"native\""),
            "{refused:?}"
        );
        assert_eq!(node.configured(), theirs, "nothing was changed");
        std::fs::write(node.config(), &installed).unwrap();
        node.ends(0, &["--revert"]);
        assert_eq!(node.configured(), before);
    }
}

#[test]
fn another_choice_takes_the_place_of_the_first() {
    let Some(programs) = current() else { return };
    let Some(node) = Node::start(&programs, Layout::Plain) else { return };
    let before = node.configured();
    node.ends(0, &["--profile", "differ", "--content-store"]);
    let differ = node.configured();
    assert!(differ.contains("rebase") && differ.contains("orlop-content"), "{differ}");
    node.crictl(&["pull", &node.name()]).ok();
    assert!(!node.served.log().contains("left to containerd"), "{}", node.served.log());
    assert_eq!(node.run("one", "orlop-overlay", &["--rm"], "cat /etc/kept").ok().stdout, "kept");
    node.crictl(&["rmi", &node.name()]).ok();

    // One that fails leaves the one before.
    let restart = format!("if ! grep -q rebase {}; then exit 3; fi; {}", node.config().display(), node.restart());
    node.ends(1, &["--restart-command", &restart]);
    assert_eq!(node.configured(), differ);
    assert!(node.ends(0, &["--profile", "differ", "--content-store"]).out.contains("nothing to do"));

    node.ends(0, &[]);
    assert!(!node.configured().contains("rebase") && !node.configured().contains("orlop-content"));
    node.crictl(&["pull", &node.name()]).ok();
    assert_eq!(node.run("two", "orlop-overlay", &["--rm"], "cat /etc/kept").ok().stdout, "kept");
    node.ends(0, &["--revert"]);
    assert_eq!(node.configured(), before);
}

#[test]
fn what_does_not_go_together_is_refused_with_what_to_do() {
    let Some(programs) = current() else { return };
    let Some(node) = Node::start(&programs, Layout::Plain) else { return };
    let before = node.configured();
    let refused = |text: &str, code: i32, args: &[&str], words: &[&str]| {
        std::fs::write(node.config(), text).unwrap();
        let done = node.ends(code, args);
        for word in words.iter().chain(&["  hint: "]) {
            assert!(done.err.contains(word), "{args:?}: {word:?} is not in\n{}", done.err);
        }
        assert_eq!((node.configured().as_str(), node.beside()), (text, vec!["config.toml".to_owned()]));
    };
    refused(
        &before.replace("version = 3", ""),
        4,
        &[],
        &["expected a configuration of version 2, 3 or 4", "version 1"],
    );
    refused("version = [", 4, &[], &["it is no TOML"]);
    let other = before.replace("snapshotter = \"overlayfs\"", "snapshotter = \"stargz\"");
    let other = format!("{other}[proxy_plugins.stargz]\ntype = 'snapshot'\naddress = '/s'\n");
    refused(&other, 4, &[], &["found stargz, a plugin"]);
    let twice = format!("{before}[proxy_plugins.orlop-overlay]\ntype = 'snapshot'\naddress = '/s'\n");
    refused(&twice, 4, &[], &["a plugin orlop-overlay already", "-address = '/s'"]);
    // A file that is imported has the last word.
    let drop_in = node.path("drop-in.toml");
    std::fs::write(&drop_in, "version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'native'\n").unwrap();
    let imports = before.replace("version = 3", &format!("version = 3\nimports = ['{}']", drop_in.display()));
    refused(&imports, 4, &[], &["found native: a file that", "imports says it"]);
    // containerd itself does not take it.
    let wrong = before.replace("[grpc]", "[grpc]\n  uid = 'nobody'");
    refused(&wrong, 1, &[], &["containerd does not take the new configuration; nothing was changed"]);
    refused(&before, 8, &["--raw-socket", "/nonexistent/raw.sock"], &["Orlop does not serve", "orlop serve"]);
    let (own, theirs) = (node.served.socket(), node.socket());
    let [own, theirs] = [&own, &theirs].map(|path| path.to_str().unwrap());
    refused(&before, 4, &["--raw-socket", own], &["expected a raw socket of Orlop's", "the socket for commands"]);
    refused(&before, 4, &["--raw-socket", theirs], &["expected a raw socket of Orlop's", "a server of version 2."]);
    node.crictl(&["pull", &node.name()]).ok();
    refused(&before, 4, &["--content-store"], &["has blobs of its own", "lose sight"]);
}

#[test]
fn blobs_that_orlop_has_adopted_are_no_reason_against_its_content_store() {
    for programs in able() {
        let Some(node) = Node::start(&programs, Layout::Plain) else { return };
        let version = programs.version();
        node.crictl(&["pull", &node.name()]).ok();
        let refused = node.ends(4, &["--content-store"]);
        let root = node.path("root");
        let adopt = format!("orlop adopt --owner containerd {}", root.display());
        assert!(refused.err.contains("lose sight") && refused.err.contains(&adopt), "{version}: {refused:?}");
        node.store.ok(["adopt", "--owner", "containerd", root.to_str().unwrap()]);
        // One blob that came since is reason enough.
        let blobs = root.join("io.containerd.content.v1.content/blobs");
        std::fs::create_dir_all(blobs.join("sha512")).unwrap();
        let late = blobs.join("sha512").join("0".repeat(128));
        std::fs::write(&late, "late").unwrap();
        let refused = node.ends(4, &["--content-store"]);
        assert!(refused.err.contains("lose sight: 1 blob"), "{version}: {refused:?}");
        std::fs::remove_file(late).unwrap();

        node.ends(0, &["--content-store"]);
        let checked = node.ctr(&["images", "check"]).ok().stdout;
        assert!(checked.contains("complete (4/4)"), "{version}: {checked}");
        assert_eq!(node.run("one", "orlop-overlay", &["--rm"], "cat /etc/kept").ok().stdout, "kept", "{version}");
        node.ends(0, &["--revert"]);
        let checked = node.ctr(&["images", "check"]).ok().stdout;
        assert!(checked.contains("complete (4/4)"), "{version}: {checked}");
    }
}

#[test]
fn a_difference_that_is_shown_has_no_credentials() {
    let Some(programs) = current() else { return };
    let Some(node) = Node::start(&programs, Layout::Plain) else { return };
    let before = node.configured();
    let auth = "[plugins.'io.containerd.cri.v1.images'.registry.configs.'r.example'.auth]\n  password = 'HIDE'\n";
    std::fs::write(node.config(), format!("{before}{auth}")).unwrap();
    for format in ["table", "json"] {
        let shown = node.ends(0, &["--dry-run", "-o", format]);
        assert!(shown.out.contains("password = (hidden)") && !shown.out.contains("HIDE"), "{shown:?}");
    }
    std::fs::write(node.config(), format!("{before}{auth}password = 'HIDE\n")).unwrap();
    let refused = node.ends(4, &["--dry-run"]);
    assert!(refused.err.contains("it is no TOML") && !refused.err.contains("HIDE"), "{refused:?}");
}

#[test]
fn a_container_that_does_not_start_without_orlop_is_not_blamed_on_it() {
    let Some(programs) = current() else { return };
    let Some(node) = Node::start_with(&programs, Layout::Plain, &[("runc", "#!/bin/sh\necho broken; exit 1\n")]) else {
        return;
    };
    let before = node.configured();
    let done = node.ends(1, &[]);
    assert!(done.err.contains("a container does not start even now, without Orlop; nothing was changed"), "{done:?}");
    assert_eq!((node.configured(), node.beside()), (before, vec!["config.toml".to_owned()]));
    assert!(!node.namespaces().contains("orlop"), "what failed is cleaned up too");
}

#[test]
fn microk8s_template_and_its_variables() {
    for programs in able() {
        let Some(node) = Node::start(&programs, Layout::MicroK8s) else { return };
        let before = node.configured();
        assert!(before.contains("${SNAPSHOTTER}"));
        let shown = Done::of(
            &binary()
                .arg("--host")
                .arg(node.path(""))
                .args(["install", "--dry-run", "--raw-socket"])
                .arg(node.raw())
                .output()
                .unwrap(),
        );
        assert!(
            shown.out.contains("nsenter --target 1 --mount -- snap restart microk8s.daemon-containerd"),
            "{shown:?}"
        );
        node.ends(0, &[]);
        assert!(node.has_orlop() && !node.configured().contains("${SNAPSHOTTER}"));
        node.crictl(&["pull", &node.name()]).ok();
        assert!(!node.served.log().contains("left to containerd"), "{}", node.served.log());
        assert_eq!(node.run("one", "orlop-overlay", &["--rm"], "cat /etc/kept").ok().stdout, "kept");
        // A refresh of the snap: the same in the directory of another revision.
        let current = node.path("var/snap/microk8s/current");
        std::fs::rename(&current, current.with_file_name("2")).unwrap();
        std::os::unix::fs::symlink("2", &current).unwrap();
        node.ends(0, &["--revert"]);
        assert_eq!((node.configured(), node.has_orlop()), (before, false));
    }
}

#[test]
fn k3s_gets_a_file_that_its_own_imports() {
    let Some(programs) = current() else { return };
    for imports in [true, false] {
        let Some(node) = Node::start(&programs, Layout::K3s { imports }) else { return };
        let template = node.config().parent().unwrap().with_file_name("config-v3.toml.tmpl");
        node.ends(0, &[]);
        assert!(node.has_orlop(), "{imports}");
        assert_eq!(template.exists(), !imports, "a template is needed only where nothing is imported");
        node.crictl(&["pull", &node.name()]).ok();
        assert!(!node.served.log().contains("left to containerd"), "{}", node.served.log());
        assert_eq!(node.run("one", "orlop-overlay", &["--rm"], "cat /etc/kept").ok().stdout, "kept");
        assert!(node.ends(0, &[]).out.contains("nothing to do"), "{imports}");
        node.ends(0, &["--revert"]);
        assert!(!node.has_orlop() && !template.exists(), "{imports}");
        assert!(!node.config().parent().unwrap().exists(), "{imports}: {:?}", node.beside());

        // The operator's own template keeps what it has.
        if !imports {
            let own = "# mine\n{{ template \"base\" . }}\n# also mine\n";
            std::fs::write(&template, own).unwrap();
            node.ends(0, &[]);
            assert!(node.has_orlop());
            let with = std::fs::read_to_string(&template).unwrap();
            assert!(with.ends_with(own) && with.contains("imports = ["), "{with}");
            std::fs::write(&template, format!("{with}# later\n")).unwrap();
            node.ends(0, &["--revert"]);
            assert_eq!(std::fs::read_to_string(&template).unwrap(), format!("{own}# later\n"));
        }
    }
    // One that is too old is told what it needs.
    let Some(old) = able().into_iter().find(is_old) else { return };
    let Some(node) = Node::start(&old, Layout::K3s { imports: false }) else { return };
    let refused = node.ends(4, &[]);
    assert!(refused.err.contains("expected containerd 2 or later"), "{refused:?}");
    assert!(!node.config().parent().unwrap().exists(), "what is refused makes nothing");
}

#[test]
fn where_there_is_no_containerd_or_no_right_that_is_told() {
    let empty = tempfile::tempdir().unwrap();
    let store = Orlop::new();
    if rustix::process::geteuid().is_root() {
        let host = empty.path().to_str().unwrap();
        let done = store.run(["--host", host, "install"]);
        assert!(done.code == 3 && done.err.contains("no containerd was found"), "{done:?}");
        let done = store.run(["--address", &format!("{host}/none.sock"), "install"]);
        assert!(done.code == 3 && done.err.contains("does not answer"), "{done:?}");
        let done = store.run_as_nobody(&["install"]);
        assert!(done.code == 7 && done.err.contains("run it as root"), "{done:?}");
        let served = store.serve(&[]);
        let done = store.run(["--address", served.socket().to_str().unwrap(), "install"]);
        assert!(done.code == 4 && done.err.contains("expected a containerd, found Orlop"), "{done:?}");
    }
    let done = store.run(["install", "--owner", "No", "--revert", "--content-store"]);
    assert_eq!(done.code, 2, "{done:?}");
}
