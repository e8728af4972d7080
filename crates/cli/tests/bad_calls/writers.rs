//! Two writers on one ref, and writers that go away: what each is told, on one connection and on two.

use std::collections::BTreeMap;
use std::path::Path;

use orlop_api::containerd::services::content::v1 as pb;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_oci::Digest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::deviations::WRITERS;
use crate::sides::{Answers, Ours, Peer, compare};
use crate::values::{begun, blob, kept, manifest, write};
use crate::wire::{PATIENCE, Said, connect, request};

/// A write that stays open.
struct Writer {
    send: mpsc::Sender<pb::WriteContentRequest>,
    answers: tonic::Streaming<pb::WriteContentResponse>,
}

impl Writer {
    async fn open(channel: &Channel, first: pb::WriteContentRequest) -> Result<(Self, i64), Status> {
        let (send, receive) = mpsc::channel(4);
        send.send(first).await.unwrap();
        let mut client = ContentClient::new(channel.clone());
        let answers = client.write(request(ReceiverStream::new(receive))).await?.into_inner();
        let mut writer = Self { send, answers };
        let offset = writer.answer().await?.offset;
        Ok((writer, offset))
    }

    async fn say(&mut self, message: pb::WriteContentRequest) -> Result<pb::WriteContentResponse, Status> {
        // Who has been refused is told why, and takes no more.
        let _ = self.send.send(message).await;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<pb::WriteContentResponse, Status> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("an answer comes");
        answer?.ok_or_else(|| Status::cancelled("the stream ended"))
    }

    /// Ends it in order; returns when the server has, too.
    async fn close(self) {
        let Self { send, mut answers } = self;
        drop(send);
        while let Ok(Some(_)) = answers.message().await {}
    }
}

fn message(reference: &str, action: pb::WriteAction, offset: i64, data: &[u8]) -> pb::WriteContentRequest {
    pb::WriteContentRequest { action: action.into(), offset, ..write(reference, data, BTreeMap::new()) }
}

fn stat(reference: &str) -> pb::WriteContentRequest {
    message(reference, pb::WriteAction::Stat, 0, b"")
}

fn absent() -> String {
    Digest::of(b"nobody has this").to_string()
}

/// What both sides' writers are told.
struct Transcript {
    first: Channel,
    second: Channel,
    answers: Answers,
}

impl Transcript {
    async fn new(socket: &Path) -> Self {
        Self { first: connect(socket).await, second: connect(socket).await, answers: Answers::new() }
    }

    fn note(&mut self, name: &str, answer: Result<String, Status>) {
        let said = match answer {
            Ok(message) => Said { code: Code::Ok, message },
            Err(status) => Said { code: status.code(), message: status.message().to_owned() },
        };
        assert!(self.answers.insert(name.to_owned(), said).is_none(), "{name} twice");
    }

    /// Somebody tries to write on a connection, and closes at once if that is possible.
    async fn attempt(&mut self, name: &str, channel: &Channel, first: pb::WriteContentRequest) {
        let answer = match Writer::open(channel, first).await {
            Ok((writer, offset)) => {
                writer.close().await;
                Ok(format!("at {offset}"))
            }
            Err(status) => Err(status),
        };
        self.note(name, answer);
    }

    async fn status(&mut self, name: &str, reference: &str) {
        let asked = pb::StatusRequest { r#ref: reference.into() };
        let answer = ContentClient::new(self.second.clone()).status(request(asked)).await;
        let answer = answer.map(|found| format!("at {}", found.into_inner().status.unwrap_or_default().offset));
        self.note(name, answer);
    }

    /// Other writers while one is active.
    async fn beside_an_active_one(&mut self) {
        let (first, second) = (self.first.clone(), self.second.clone());
        let (mut writer, _) = Writer::open(&first, begun("active")).await.unwrap();
        for (name, channel) in [("same connection", &first), ("other connection", &second)] {
            self.attempt(&format!("{name}: stat"), channel, stat("active")).await;
            self.attempt(&format!("{name}: write"), channel, begun("active")).await;
            let commit = message("active", pb::WriteAction::Commit, 5, b"");
            self.attempt(&format!("{name}: commit"), channel, commit).await;
            let total = pb::WriteContentRequest { total: 99, ..stat("active") };
            self.attempt(&format!("{name}: other total"), channel, total).await;
            let expected = pb::WriteContentRequest { expected: absent(), ..stat("active") };
            self.attempt(&format!("{name}: other digest"), channel, expected).await;
            let there = pb::WriteContentRequest { expected: blob(), ..stat("active") };
            self.attempt(&format!("{name}: digest that is there"), channel, there).await;
            self.status(&format!("{name}: status"), "active").await;
        }
        let answer = writer.say(message("active", pb::WriteAction::Write, 5, b" and gone on")).await;
        self.note("the first goes on", answer.map(|answer| format!("at {}", answer.offset)));
        writer.close().await;
        self.attempt("after it closed: stat", &second, stat("active")).await;
        let other = pb::WriteContentRequest { total: 17, expected: absent(), ..stat("active") };
        self.attempt("after it closed: other total and digest", &second, other).await;
        let commit = message("active", pb::WriteAction::Commit, 17, b"");
        self.attempt("after it closed: commit", &second, commit).await;
        self.status("after the commit: status", "active").await;
    }

    /// Writers who do not agree about how much it is to be.
    async fn of_other_totals(&mut self) {
        let second = self.second.clone();
        let of = |total, first: pb::WriteContentRequest| pb::WriteContentRequest { total, ..first };
        self.attempt("totals: begun", &second, of(9, begun("totals"))).await;
        self.attempt("totals: the same", &second, of(9, stat("totals"))).await;
        self.attempt("totals: none", &second, stat("totals")).await;
        self.attempt("totals: another", &second, of(7, stat("totals"))).await;
        let whole = message("totals", pb::WriteAction::Write, 0, b"another");
        self.attempt("totals: begun again", &second, of(7, whole)).await;
        let commit = |total| of(total, message("totals", pb::WriteAction::Commit, 7, b""));
        self.attempt("totals: commit", &second, commit(7)).await;
        self.status("totals: status", "totals").await;
    }

    /// A writer whose ref is aborted or begun again under it.
    async fn of_one_that_is_aborted(&mut self) {
        let (first, second) = (self.first.clone(), self.second.clone());
        let (mut writer, _) = Writer::open(&first, begun("aborted")).await.unwrap();
        let abort = pb::AbortRequest { r#ref: "aborted".into() };
        let answer = ContentClient::new(second.clone()).abort(request(abort)).await;
        self.note("abort of an active one", answer.map(|_| String::new()));
        self.status("aborted: status", "aborted").await;
        let answer = writer.say(message("aborted", pb::WriteAction::Commit, 5, b"")).await;
        self.note("aborted: commit", answer.map(|_| String::new()));
        writer.close().await;
        self.attempt("aborted and closed: begun again", &second, begun("aborted")).await;
        let abort = pb::AbortRequest { r#ref: "aborted".into() };
        let answer = ContentClient::new(second).abort(request(abort)).await;
        self.note("abort of what was begun again", answer.map(|_| String::new()));
    }

    /// Two writers of the same bytes under two refs.
    async fn of_the_same_bytes(&mut self) {
        let (first, second) = (self.first.clone(), self.second.clone());
        let expected = || Digest::of(b"twice").to_string();
        let with = |first: pb::WriteContentRequest| pb::WriteContentRequest { expected: expected(), total: 5, ..first };
        let twice = |name: &str| with(message(name, pb::WriteAction::Write, 0, b"twice"));
        let (mut one, _) = Writer::open(&first, twice("one")).await.unwrap();
        let (mut two, _) = Writer::open(&second, twice("two")).await.unwrap();
        // Or a collection, of which neither server says when it comes, could take it before the second is done.
        let commit = |name: &str| pb::WriteContentRequest {
            labels: kept(),
            ..with(message(name, pb::WriteAction::Commit, 5, b""))
        };
        let answer = one.say(commit("one")).await;
        self.note("the first commit", answer.map(|answer| answer.digest));
        let answer = two.say(commit("two")).await;
        self.note("the second commit", answer.map(|answer| answer.digest));
        one.close().await;
        two.close().await;
        self.status("the second: status", "two").await;
        self.attempt("the second once more", &second, with(stat("two"))).await;
    }

    /// A writer whose connection breaks.
    async fn of_one_that_vanishes(&mut self, socket: &Path) {
        let second = self.second.clone();
        let vanishing = connect(socket).await;
        let (writer, _) = Writer::open(&vanishing, begun("vanished")).await.unwrap();
        drop((writer, vanishing));
        // Until the server has noticed, the ref is taken.
        let taken = async {
            loop {
                match Writer::open(&second, stat("vanished")).await {
                    Ok((writer, offset)) => {
                        writer.close().await;
                        return offset;
                    }
                    Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
                }
            }
        };
        let offset = tokio::time::timeout(PATIENCE, taken).await.expect("the ref becomes free");
        self.note("after it vanished: stat", Ok(format!("at {offset}")));
        let other = pb::WriteContentRequest { total: 7, ..message("vanished", pb::WriteAction::Write, 5, b"xx") };
        self.attempt("after it vanished: write", &second, other).await;
        let commit = message("vanished", pb::WriteAction::Commit, 7, b"");
        self.attempt("after it vanished: commit", &second, commit).await;
    }
}

async fn writers(peer: Peer) -> Answers {
    let socket = peer.socket;
    let mut transcript = Transcript::new(&socket).await;
    let channel = transcript.first.clone();
    transcript.attempt("blob", &channel, write("blob", &manifest(), kept())).await;
    transcript.beside_an_active_one().await;
    transcript.of_other_totals().await;
    transcript.of_one_that_is_aborted().await;
    transcript.of_the_same_bytes().await;
    transcript.of_one_that_vanishes(&socket).await;
    transcript.answers
}

#[test]
fn two_writers_of_one_ref_are_told_what_containerd_tells_them() {
    let mut ours = Ours::start();
    let answers = ours.ask(writers);
    assert_eq!(answers["other connection: write"].code, Code::Unavailable);
    assert_eq!(answers["the first goes on"].code, Code::Ok);
    compare(&answers, WRITERS, writers);
    ours.holds_only(0, 0);
}
