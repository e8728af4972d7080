//! What Orlop cannot bring, must not bring, and what happens when one of both is not there.

use std::process::Stdio;

use orlop_testkit::process::Daemon;
use orlop_testkit::proxy::Fault;
use rustix::process::Signal;

use crate::common::binary;
use crate::stack::{By, Of, Stack, generations, image, ways};

#[test]
fn what_orlop_cannot_fetch_containerd_fetches_and_an_event_says_why() {
    for (programs, by) in ways() {
        let Some(stack) = Stack::start(&programs, Of::Snapshotter, by) else { return };
        let log = stack.store.path("watch.log");
        let mut watch = binary();
        watch.arg("--address").arg(stack.served.socket()).args(["watch", "--all-namespaces"]);
        let mut watch = Daemon::start(&mut watch, &log).unwrap();
        // Until its subscription stands nothing is told.
        let mut number = 0;
        watch.wait_for(|watch| {
            number += 1;
            stack.served.ctr(&programs, "default", &["namespaces", "create", &format!("n{number}")]).ok();
            (!watch.log().is_empty()).then_some(())
        });
        // Orlop believes that the registry speaks TLS.
        let hosts = stack.store.path("hosts").join(stack.proxy.host()).join("hosts.toml");
        std::fs::write(&hosts, format!("server = \"https://{}\"\n", stack.proxy.host())).unwrap();
        stack.pull().ok();
        assert_eq!(stack.layers_in_containerd().len(), 3);
        assert_eq!(stack.fallbacks().len(), 3, "{:?}", stack.fallbacks());
        watch.wait_for(|watch| {
            let said = watch.log();
            ["layer left to containerd", "TLS failed", &stack.name()]
                .iter()
                .all(|word| said.contains(word))
                .then_some(())
        });
        if let Some(said) = stack.run("one", &["--rm"], "cat /etc/kept") {
            assert_eq!(said, "kept");
        }
        stack.remove();
        stack.is_emptied();
    }
}

#[test]
fn what_policy_refuses_is_refused_to_a_containerd_too() {
    for (programs, by) in ways() {
        let Some(content) = image() else { return };
        let directory = tempfile::tempdir().unwrap();
        let policy = directory.path().join("policy.toml");
        std::fs::write(&policy, "[default]\nrequire = \"reject\"\n").unwrap();
        let config = format!("[verify]\npolicy = {:?}\n", policy.display().to_string());
        let Some(stack) = Stack::start_with(&programs, Of::Snapshotter, by, &content, &config) else { return };
        let refused = stack.pull();
        assert!(!refused.status.success(), "{refused:?}");
        assert_eq!(stack.layers_in_containerd(), [""; 0], "containerd went round the policy");
    }
}

#[test]
fn either_may_end_and_come_again_and_containers_go_on() {
    for programs in generations() {
        let Some(mut stack) = Stack::start(&programs, Of::Both, By::Ctr) else { return };
        stack.pull().ok();
        let waits = "while true; do sleep 1; done";
        if stack.run("one", &["--detach"], waits).is_none() {
            return;
        }
        let pid = |stack: &Stack| {
            let said = stack.until(&mut stack.tasks(), "RUNNING").stdout;
            said.lines().nth(1).and_then(|line| line.split_whitespace().nth(1)).unwrap_or_default().to_owned()
        };
        let (first, one) = (pid(&stack), stack.id("one"));
        for round in 0..2 {
            stack.served = {
                stack.served.process().kill();
                stack.again()
            };
            assert_eq!(pid(&stack), first, "round {round}");
            stack.containerd.restart(Signal::KILL);
            assert_eq!(pid(&stack), first, "round {round}");
            let said = stack.ctr(&["tasks", "exec", "--exec-id", "look", &one, "/bin/sh", "-c", "cat /etc/kept"]);
            assert!(said.status.success(), "round {round}: {said:?}\n{}", stack.containerd.log());
            assert_eq!(said.stdout, "kept", "round {round}");
        }
        stack.ctr(&["tasks", "rm", "--force", &one]).ok();
        stack.ctr(&["containers", "rm", &one]).ok();
        stack.remove();
        stack.is_emptied();
        stack.store.is_sound();
    }
}

#[test]
fn a_pull_in_which_either_is_killed_is_made_again_and_leaves_nothing() {
    for (programs, by) in ways() {
        let Some(mut stack) = Stack::start(&programs, Of::Snapshotter, by) else { return };
        for victim in ["Orlop", "containerd"] {
            let what = format!("{} by {by:?}, {victim} killed", programs.version());
            let before = stack.proxy.counts().faults;
            // The large layer comes in part, on whatever connection.
            stack.proxy.set_default(Fault::StallAfter(1_200_000));
            stack.proxy.cut_all();
            let mut pull = stack.pulling();
            let mut pull = pull.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let proxy = &stack.proxy;
            stack.served.process().wait_for(|_| (proxy.counts().faults > before).then_some(()));
            if victim == "Orlop" {
                stack.served.process().kill();
            } else {
                stack.containerd.restart(Signal::KILL);
            }
            assert!(!pull.wait().unwrap().success(), "{what}: whoever pulls is told");
            stack.proxy.set_default(Fault::None);
            stack.proxy.cut_all();
            if victim == "Orlop" {
                stack.served = stack.again();
            }
            stack.until(&mut stack.pulling(), "");
            assert_eq!((stack.fallbacks(), stack.layers_in_containerd()), (Vec::new(), Vec::new()), "{what}");
            if let Some(said) = stack.run("one", &["--rm"], "cat /etc/kept") {
                assert_eq!(said, "kept", "{what}");
            }
            stack.end_leases();
            stack.remove();
            // Trees that a killed Orlop was making go within the hour.
            stack.has_nothing();
        }
        stack.store.is_sound();
    }
}
