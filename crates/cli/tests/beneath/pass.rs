//! Calls of CRI that a containerd beside answers, through Orlop's socket.

use orlop_testkit::process::{Daemon, output};

use crate::share::pause;
use crate::stack::{By, Of, Stack, crictl, generations, is_old};

const PASS: &str = "[containerd]\nsocket = \"STORE/containerd\"\nimages = \"pass\"\n";

#[test]
fn one_socket_serves_kubelet_as_both_endpoints() {
    for programs in generations() {
        let Some(content) = pause() else { return };
        let Some(mut stack) = Stack::start_with(&programs, Of::Snapshotter, By::Cri, &content, PASS) else { return };
        let (version, name) = (programs.version(), stack.name());
        let socket = stack.containerd.socket();
        for args in [&["version"][..], &["info"], &["ps", "-a"], &["pods"]] {
            let (ours, theirs) = (output(&mut stack.through(args)), output(&mut crictl(&socket, args)));
            let words = |text: &str| text.lines().filter(|line| !line.contains("lastCNILoad")).count();
            assert_eq!(ours.status.code(), theirs.status.code(), "{version} {args:?}: {ours:?}");
            assert_eq!(words(&ours.stdout), words(&theirs.stdout), "{version} {args:?}");
        }
        // A call that answers for as long as it is asked.
        let log = stack.store.path("events.log");
        let events = || Daemon::start(&mut stack.through(&["events"]), &log).unwrap();
        // containerd 1.6 has no such call.
        let mut events = (!is_old(&programs)).then(events);
        output(&mut stack.through(&["pull", &name])).ok();
        assert_eq!(stack.fallbacks(), [""; 0], "{version}");
        assert_eq!(stack.layers_in_containerd(), [""; 0], "{version}");
        let listed = |socket| output(&mut crictl(socket, &["images", "-o", "json"])).ok().stdout;
        assert_eq!(listed(&stack.served.socket()), listed(&socket), "{version}");
        if let Some((pod, _)) = stack.container("one", "true") {
            if let Some(events) = &mut events {
                events.wait_for(|events| events.log().contains("CONTAINER_STARTED_EVENT").then_some(()));
            }
            stack.end(&pod);
        }
        drop(events);
        output(&mut stack.through(&["rmi", &name])).ok();
        stack.collect();
        stack.is_emptied();

        // It is back when containerd is.
        stack.containerd.restart(rustix::process::Signal::KILL);
        stack.until(&mut stack.through(&["images"]), "IMAGE");
        stack.containerd.stop(rustix::process::Signal::TERM);
        let away = output(&mut stack.through(&["images"]));
        assert!(!away.status.success() && away.stderr.contains("does not answer"), "{version}: {away:?}");
    }
}
