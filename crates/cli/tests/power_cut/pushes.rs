//! A daemon that is a registry and is cut while clients push to it: whatever was answered with 201 is there, byte for byte, under the
//! name and in the repository that it was pushed to, after a collection too; and the same pushes again go through.
//!
//! The clients share a layer, which each brings to a repository of its own, so that one finds what another is just bringing. Each uploads
//! at once, in pieces, or by the closing request alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use orlop_oci::Digest;
use orlop_registry::{Registry, ServeOptions};
use orlop_server::NodeRegistry;
use orlop_testkit::image::{Content, is_document};
use orlop_testkit::power::Followed;

use crate::clients::{self, Told};
use crate::common;
use crate::verdict::crowd::Crowd;
use crate::verdict::images::image;
use crate::verdict::{self, Seen};
use crate::wire::{Answer, ask};
use crate::workload::{Workload, explored};

const CLIENTS: usize = 3;

/// What the registry is called, wherever it listens.
const HOST: &str = "node.example:5000";

/// How many states are tried at each point in the short tier, and after how many of them everything is pushed again.
const SHORT: usize = 2;
const AGAIN: usize = 24;

/// What a client asked for, and what follows from it.
struct Push {
    client: usize,
    what: String,
    /// Targets of records.
    records: Told,
    /// What paths of the registry lead to.
    paths: Told,
    /// Blobs that nothing keeps any more.
    let_go: Vec<String>,
    answered: SystemTime,
}

/// A client at work. What it is told it believes.
struct Client<'a> {
    number: usize,
    address: &'a str,
    pushes: Vec<Push>,
}

fn told<const N: usize>(entries: [(String, Option<&Digest>); N]) -> Told {
    entries.map(|(key, digest)| (key, digest.map(Digest::to_string))).into()
}

fn created(answer: &Answer, what: &str) {
    assert_eq!(answer.status, 201, "{what}: {}", String::from_utf8_lossy(&answer.body));
}

impl Client<'_> {
    fn repository(&self) -> String {
        format!("team/client{}", self.number)
    }

    fn path(&self, kind: &str, key: &str) -> String {
        format!("/v2/{}/{kind}/{key}", self.repository())
    }

    fn record(&self, key: &str) -> String {
        format!("k8s.io/{HOST}/{}{key}", self.repository())
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        ask(self.address, method, path, headers, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn answered(&mut self, what: String, records: Told, paths: Told, let_go: Vec<String>) {
        let answered = SystemTime::now();
        self.pushes.push(Push { client: self.number, what, records, paths, let_go, answered });
    }

    fn blob(&mut self, bytes: &[u8]) {
        let digest = Digest::of(bytes);
        let uploads = self.path("blobs", "uploads/");
        // In turn, so that every client comes to each way.
        let answer = match (self.number + self.pushes.len()) % 3 {
            0 => self.ask("POST", &format!("{uploads}?digest={digest}"), &[], bytes),
            way => {
                let half = if way == 1 { bytes.len() / 2 } else { 0 };
                let mut location = self.ask("POST", &uploads, &[], b"").header("location").to_owned();
                if half > 0 {
                    location = self.ask("PATCH", &location, &[], &bytes[..half]).header("location").to_owned();
                }
                self.ask("PUT", &format!("{location}?digest={digest}"), &[], &bytes[half..])
            }
        };
        created(&answer, "a blob");
        let paths = told([(self.path("blobs", digest.as_str()), Some(&digest))]);
        self.answered(format!("blob {digest}"), Told::new(), paths, Vec::new());
    }

    fn manifest(&mut self, key: &str, content: &Content, digest: &Digest, records: Told) {
        let media_type = &content.blobs[digest].media_type;
        let path = self.path("manifests", key);
        let answer = self.ask("PUT", &path, &[("content-type", media_type)], content.bytes(digest));
        created(&answer, "a manifest");
        let paths = told([(path, Some(digest)), (self.path("manifests", digest.as_str()), Some(digest))]);
        self.answered(format!("manifest {key} {digest}"), records, paths, Vec::new());
    }

    fn blobs(&mut self, content: &Content) {
        for (descriptor, bytes) in content.push_order() {
            if !is_document(&descriptor.media_type) {
                self.blob(bytes);
            }
        }
    }

    fn delete(&mut self, key: &str, records: Told, paths: Told, let_go: Vec<String>) {
        let answer = self.ask("DELETE", &self.path("manifests", key), &[], b"");
        assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.body));
        self.answered(format!("delete {key}"), records, paths, let_go);
    }

    /// Pushes an image, and an index of another; moves the tag from the one to the other; deletes a tag and a manifest.
    fn work(&mut self) {
        let [one, two] = self.images();
        let index = Content::index(std::slice::from_ref(&two));
        let [first, child, root] = [&one.root.digest, &two.root.digest, &index.root.digest];
        let id = |content: &Content| format!("k8s.io/{}", content.image_id().expect("an image"));
        let kept = |client: &Self, digest: &Digest| client.record(&format!("@{digest}"));

        self.blobs(&one);
        let records = [(self.record(":1"), Some(first)), (kept(self, first), Some(first)), (id(&one), Some(first))];
        self.manifest("1", &one, first, told(records));

        self.blobs(&two);
        let records = told([(kept(self, child), Some(child))]);
        self.manifest(child.as_str(), &two, child, records);
        let records = [
            (self.record(":2"), Some(root)),
            (kept(self, root), Some(root)),
            (id(&two), Some(root)),
            (kept(self, child), None),
        ];
        self.manifest("2", &index, root, told(records));

        let records = told([(self.record(":1"), Some(root))]);
        self.manifest("1", &index, root, records);
        let (records, paths) = (told([(self.record(":2"), None)]), told([(self.path("manifests", "2"), None)]));
        self.delete("2", records, paths, Vec::new());
        let records = told([(kept(self, first), None), (id(&one), None)]);
        let paths = told([(self.path("manifests", first.as_str()), None)]);
        let own = one.push_order().into_iter().filter(|(descriptor, _)| !two.blobs.contains_key(&descriptor.digest));
        let let_go = own.map(|(descriptor, _)| self.path("blobs", descriptor.digest.as_str())).collect();
        self.delete(first.as_str(), records, paths, let_go);
    }

    fn images(&self) -> [Content; 2] {
        [1, 2].map(|number| image(&format!("{number} of {}", self.number)))
    }
}

/// All clients at once, and what each was answered, in the order in which they were.
fn crowd(address: &str) -> Vec<Push> {
    let mut pushes: Vec<Push> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                scope.spawn(move || {
                    let mut client = Client { number, address, pushes: Vec::new() };
                    client.work();
                    client.pushes
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().expect("a client ends")).collect()
    });
    pushes.sort_by_key(|push| push.answered);
    pushes
}

/// What a state may show: what was answered, and what was asked for and not answered.
struct May<'a> {
    answered: &'a [Push],
    open: Vec<&'a Push>,
}

impl<'a> May<'a> {
    fn new(pushes: &'a [Push], known: usize) -> Self {
        let open = (0..CLIENTS).filter_map(|client| pushes[known..].iter().find(|push| push.client == client));
        Self { answered: &pushes[..known], open: open.collect() }
    }

    fn of(&self, part: fn(&Push) -> &Told) -> BTreeMap<&'a String, Vec<Option<&'a String>>>
    where
        Self: 'a,
    {
        clients::may(self.answered.iter().map(part), self.open.iter().map(|push| part(push)))
    }

    /// What paths may lead to; what nothing keeps any more is asked for no longer.
    fn paths(&self) -> BTreeMap<&'a String, Vec<Option<&'a String>>> {
        let mut may = self.of(|push| &push.paths);
        for gone in self.answered.iter().chain(self.open.iter().copied()).flat_map(|push| &push.let_go) {
            may.remove(gone);
        }
        may
    }
}

/// A registry over a root, in this process; what `call` does with its address.
fn serving<T>(root: &Path, call: impl FnOnce(&str) -> Result<T, String>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let images = verdict::open(root)?;
    let node = NodeRegistry { host: HOST.to_owned(), namespace: "k8s.io".to_owned() };
    let server = runtime.block_on(async {
        let opened = tokio::task::spawn_blocking(move || node.open(&images)).await.expect("it does not panic");
        let registry: Registry = opened.map_err(|error| format!("the registry does not open: {error}"))?;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
        registry.serve(listener, ServeOptions::default()).map_err(|error| error.to_string())
    })?;
    let done = call(&server.address().to_string());
    drop(server);
    runtime.shutdown_timeout(Duration::from_secs(60));
    done
}

/// Whether everything that may be asked for is what it may be.
fn pulled(address: &str, may: &BTreeMap<&String, Vec<Option<&String>>>) -> Result<(), String> {
    for (path, targets) in may {
        let answer = ask(address, "GET", path, &[], b"").map_err(|error| format!("GET {path}: {error}"))?;
        let found = match answer.status {
            200 => Some(Digest::of(&answer.body).to_string()),
            404 => None,
            other => return Err(format!("GET {path}: {other} {}", String::from_utf8_lossy(&answer.body))),
        };
        if !targets.contains(&found.as_ref()) {
            return Err(format!("{path} leads to {found:?}, and may lead to {targets:?}"));
        }
    }
    Ok(())
}

fn judge(root: &Path, pushes: &[Push], known: usize, last: &Seen, again: bool) -> Result<(), String> {
    let may = May::new(pushes, known);
    let found = verdict::collected(root)?;
    clients::compare(found.records(), &may.of(|push| &push.records))?;
    serving(root, |address| {
        pulled(address, &may.paths())?;
        if again {
            crowd(address);
        }
        Ok(())
    })?;
    if again && !verdict::look(root)?.is_named_like(last) {
        return Err("pushed again, it leads elsewhere".to_owned());
    }
    Ok(())
}

/// Where the daemon's registry listens.
fn address(daemon: &Followed) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let log = daemon.log();
        if let Some(address) = common::registry_of(&log) {
            return address;
        }
        assert!(Instant::now() < deadline, "the registry is not served: {log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn pushes_to_a_daemon() {
    let Some(work) = Workload::new() else { return };
    let (socket, config) = (work.path("s"), work.path("config.toml"));
    std::fs::write(&config, format!("[registry]\naddress = \"127.0.0.1:0\"\nname = {HOST:?}\n")).expect("a file");
    let [socket, config] = [&socket, &config].map(|path| path.to_str().expect("a plain path"));
    let daemon = work.start(&["serve", "--socket", socket, "--config", config]);
    let address = address(&daemon);
    let connected = Crowd::of(Path::new(socket));
    let pushes = crowd(&address);
    connected.is_served().expect("who is connected is served");
    let answered: Vec<SystemTime> = pushes.iter().map(|push| push.answered).collect();
    let (timeline, scratch) = work.stop(daemon, &answered);
    let last = scratch.lay(|top| timeline.at_mark(pushes.len()).lay(top));
    let last = verdict::look(&last).expect("the last state is sound");
    let mut again = 0;
    explored(&timeline, &scratch, SHORT, &mut |root, state| {
        let repeat = state.number % AGAIN == 0;
        again += usize::from(repeat);
        judge(root, &pushes, state.marks, &last, repeat).map_err(|found| {
            let known: Vec<String> =
                pushes[..state.marks].iter().map(|push| format!("{} {}", push.client, push.what)).collect();
            format!("{found}\nanswered: {known:#?}")
        })
    });
    eprintln!("after {again} of them everything was pushed again");
}
