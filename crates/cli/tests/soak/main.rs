//! Two hundred clients pull, list, tag and remove at once, on their own connections, while garbage is collected: no error
//! but the expected ones, no lost blob, no leaked lease, memory flat.
//!
//! What each client does follows from a seed (`ORLOP_TEST_SEED`); in which order the daemon comes to it does not. The
//! long tier goes on for `ORLOP_TEST_SOAK_SECONDS`.

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod client;
mod ledger;
mod shelf;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;

use calls::Calls;
use client::{CRI, Client};
use common::Orlop;
use ledger::Ledger;
use orlop_testkit::served::Served;
use orlop_testkit::tier::amount;
use shelf::Shelf;

const CLIENTS: usize = 200;
/// What the short tier does.
const OPERATIONS: u64 = 1200;
const NAMESPACES: [&str; 2] = [CRI, "soak"];

/// Memory may grow by so much in the second half: what happens to be under way at the same time is more or less.
const SLACK_BYTES: u64 = 16 << 20;
/// In the short tier another part of the first half's may come: then that is hardly the beginning.
const SHORT_SLACK_PARTS: u64 = 8;
/// What may be left of everything when the clients and their images have gone: caches, and pages in which little is in use.
const LEFT_BYTES: u64 = 96 << 20;

async fn crowd(socket: &Path, shelf: &Arc<Shelf>, ledger: &Arc<Ledger>, seed: u64, unpacks: bool) -> Vec<Client> {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let (socket, shelf, ledger) = (socket.to_owned(), shelf.clone(), ledger.clone());
        tasks.spawn(async move {
            // Two of each kind in four: half of each namespace's clients take their images away in the end.
            let calls = Calls::new(&socket, NAMESPACES[number / 2 % 2], unpacks).await;
            Client::new(number, calls, seed, shelf, ledger).run().await
        });
    }
    tasks.join_all().await
}

/// What the clients left is what they kept, and whole.
async fn survives(clients: &[Client], shelf: &Shelf) {
    for client in clients {
        client.look("all").await;
        if let Some((_, digest)) = &client.kept {
            client.calls.read(digest).await;
        }
    }
    for namespace in NAMESPACES {
        let of_it = || clients.iter().filter(|client| client.calls.namespace == namespace);
        let calls = &of_it().next().unwrap().calls;
        let leases: BTreeSet<String> = calls.lease_ids().await.into_iter().collect();
        let kept: BTreeSet<String> = of_it().filter_map(|client| Some(client.kept.as_ref()?.0.clone())).collect();
        assert_eq!(leases, kept, "leases in {namespace}");
        assert_eq!(calls.ingests().await, [], "writes in {namespace}");
        for record in calls.records(None).await {
            let target = record.target.unwrap().digest;
            calls.read_all(shelf.find(&target).unwrap_or_else(|| panic!("{} points at {target}", record.name))).await;
        }
    }
}

/// Whoever takes away what was kept leaves an empty store.
async fn empties(clients: &[Client]) {
    for client in clients {
        if let Some((lease, _)) = &client.kept {
            client.calls.end(lease, false).await;
        }
    }
    for namespace in NAMESPACES {
        let calls = &clients.iter().find(|client| client.calls.namespace == namespace).unwrap().calls;
        let all = calls.records(None).await;
        for name in all.into_iter().map(|record| record.name).filter(|name| name.contains(':')) {
            // Hash references go along with the last name.
            let _ = calls.delete(&name, false).await;
        }
        let lease = calls.lease().await;
        calls.end(&lease, true).await;
        assert_eq!(calls.records(None).await, [], "{namespace}");
        assert_eq!(calls.blobs().await, Vec::<String>::new(), "{namespace}");
    }
}

fn files(root: &Path, below: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root.join(below)) else { return Vec::new() };
    let shown = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        // What a write that was left has to say of itself.
        let meta = std::fs::read_to_string(entry.path().join("meta")).unwrap_or_default();
        format!("{} {meta}", entry.file_name().display())
    };
    entries.map(shown).collect()
}

/// The end of what the daemon has logged.
fn said(served: &Served) -> String {
    let log = served.log();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(200)..].join("\n")
}

fn memory_is_flat(ledger: &Ledger) {
    let resident = ledger.resident();
    let (first, last) = resident.split_at(resident.len() / 2);
    let plateau = *first.iter().max().unwrap();
    let end = *last[last.len() / 2..].iter().max().unwrap();
    let slack = SLACK_BYTES + if ledger.is_long() { 0 } else { plateau / SHORT_SLACK_PARTS };
    assert!(end < plateau + slack, "it grew from {plateau} to {end} bytes\n{}", ledger.report());
}

fn gauges(served: &mut Served) -> impl Fn(&str) -> Option<u64> + use<> {
    let metrics = common::metrics_address(served);
    move |name| {
        let page = common::get(&metrics, "/metrics");
        page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
    }
}

#[test]
fn two_hundred_clients_at_once_lose_nothing_and_leave_nothing() {
    let unpacks = common::is_root("two_hundred_clients_at_once_lose_nothing_and_leave_nothing: unpacking");
    let seed = amount("ORLOP_TEST_SEED", 1);
    let (store, shelf) = (Orlop::new(), Arc::new(Shelf::new(CLIENTS)));
    let mut served = store.serve(&["--metrics", "127.0.0.1:0"]);
    let gauge = gauges(&mut served);
    let ledger = Arc::new(Ledger::new(served.process().id(), OPERATIONS));
    let at_first = ledger.now_resident();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let worked =
        catch_unwind(AssertUnwindSafe(|| runtime.block_on(crowd(&served.socket(), &shelf, &ledger, seed, unpacks))));
    let clients = worked.unwrap_or_else(|panic| {
        eprintln!("seed {seed}: {}\n{}", ledger.report(), said(&served));
        resume_unwind(panic)
    });
    eprintln!("seed {seed}: {}", ledger.report());
    assert_eq!(gauge("orlop_connections"), Some(CLIENTS as u64));
    runtime.block_on(survives(&clients, &shelf));
    store.is_sound();
    memory_is_flat(&ledger);

    runtime.block_on(empties(&clients));
    drop(clients);
    runtime.shutdown_background();
    served.process().wait_for(|_| (gauge("orlop_calls_running")? == 0).then_some(()));
    served.process().wait_for(|_| (gauge("orlop_waiting_bytes")? == 0).then_some(()));
    served.process().wait_for(|_| (gauge("process_open_fds")? < 100).then_some(()));
    // Whatever it was used for, it is free, and given back.
    served.process().wait_for(|_| (ledger.now_resident() < at_first + LEFT_BYTES).then_some(()));
    eprintln!("resident MiB at first and in the end: {} {}", at_first >> 20, ledger.now_resident() >> 20);
    for kind in ["images", "blobs", "ingests", "snapshots", "leases"] {
        assert_eq!(gauge(&format!("orlop_stored{{kind=\"{kind}\"}}")), Some(0), "{kind}");
    }
    for below in ["content/blobs/sha256", "content/ingest", "snapshots/overlayfs"] {
        assert_eq!(files(&store.root(), below), Vec::<String>::new(), "{below}\n{}", said(&served));
    }
    // Marking everything finds nothing that was left.
    let full = store.json(["gc", "--full"]);
    for kind in ["blobs", "snapshots", "leases", "ingests"] {
        assert_eq!(full[kind], 0, "{full}");
    }
    store.is_sound();
}
