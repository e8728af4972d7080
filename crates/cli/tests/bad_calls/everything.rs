//! The same bytes to every call of every service, as reflection tells them.

use prost::bytes::Bytes;
use tonic::Code;

use crate::deviations::{EVERYTHING, NO_MESSAGE, NO_TEXT};
use crate::sides::{Answers, Ours, Peer, compare};
use crate::wire::{call, connect, methods, namespace};

/// What every call is sent, and in which namespace.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    namespace: Option<&'static [u8]>,
    body: &'static [u8],
}

impl Case {
    const fn body(name: &'static str, body: &'static [u8]) -> Self {
        Self { name, namespace: Some(b"test"), body }
    }

    const fn namespace(name: &'static str, namespace: Option<&'static [u8]>) -> Self {
        Self { name, namespace, body: b"" }
    }
}

async fn everything(peer: Peer, methods: &[String], cases: &[Case]) -> Answers {
    let (channel, mut answers) = (connect(&peer.socket).await, Answers::new());
    for case in cases {
        for method in methods {
            let name = format!("{}: {method}", case.name);
            if peer.is_asked(&name) {
                let body = vec![Bytes::from_static(case.body)];
                answers.insert(name, call(&channel, method, namespace(case.namespace), body).await);
            }
        }
    }
    answers
}

/// Orlop's answers, compared with those of containerds; so many leases were asked for each time.
#[track_caller]
fn tried(cases: &[Case], leases: u64) -> Answers {
    let mut ours = Ours::start();
    let every = ours.ask(|peer| async move { methods(&connect(&peer.socket).await).await });
    assert!(every.len() > 100, "{every:#?}");
    let answers = ours.ask(|peer| everything(peer, &every, cases));
    let files = ours.files();
    let again = ours.ask(|peer| everything(peer, &every, cases));
    assert_eq!(answers.len(), again.len());
    ours.holds_only(2 * leases, 0);
    assert!(ours.files() < files + 10, "{} files, before {files}", ours.files());
    // Orlop runs no containers; what containerd's runtime service makes of nonsense is another matter.
    let runs = |method: &String| method.starts_with("/runtime.v1.RuntimeService/") && !method.ends_with("/Version");
    let compared: Vec<String> = every.into_iter().filter(|method| !runs(method)).collect();
    compare(&answers, EVERYTHING, |peer| everything(peer, &compared, cases));
    answers
}

/// tonic's reflection ends in order when it cannot read what it is asked.
fn is_reflection(method: &str) -> bool {
    method.contains("/grpc.reflection.")
}

#[test]
fn what_is_no_message_is_refused_by_every_call() {
    let answers = tried(
        &[
            Case::body(NO_MESSAGE[0], b"\xff\xff\xff\xff"),
            Case::body(NO_MESSAGE[1], b"\x0a\xff\xff\xff\xff\x07"),
            Case::body(NO_MESSAGE[2], b"\x0a"),
            Case::body(NO_MESSAGE[3], b"\x0c"),
        ],
        0,
    );
    let taken: Vec<_> =
        answers.iter().filter(|(call, said)| said.code != Code::Internal && !is_reflection(call)).collect();
    assert!(taken.is_empty(), "{taken:#?}");
    // The first field is text almost everywhere.
    tried(&[Case::body(NO_TEXT, b"\x0a\x01\xff")], 0);
}

#[test]
fn every_call_says_that_it_lacks_a_namespace() {
    tried(&[Case::namespace("no namespace", None), Case::namespace("empty namespace", Some(b""))], 0);
}

#[test]
fn a_namespace_that_nobody_made_is_empty_to_every_call() {
    // Fields that nobody knows are none.
    let unknown = Case { body: b"\xc0\x3e\x01", ..Case::namespace("unknown field", Some(b"nobody")) };
    tried(&[Case::namespace("unknown namespace", Some(b"nobody")), unknown], 2);
}

#[test]
fn what_cannot_be_a_namespace_is_refused_by_every_call() {
    tried(
        &[
            Case::namespace("slash", Some(b"no/namespace")),
            Case::namespace("dash", Some(b"-")),
            Case::namespace("dots", Some(b"a..b")),
            Case::namespace("space", Some(b"with space")),
            Case::namespace("long", Some(&[b'n'; 77])),
            Case::namespace("not ASCII", Some(b"\xc3\xa9")),
        ],
        0,
    );
}
