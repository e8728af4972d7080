//! `[mirror]`: the node's registry between clients and a real registry.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use orlop_oci::Digest;
use orlop_testkit::containerd::{Containerd, Options as ContainerdOptions, Programs};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::liar::{Answer, Liar};
use orlop_testkit::process::{need, need_peer, output};
use orlop_testkit::proxy::{Fault, Proxy};
use orlop_testkit::registry::{Options, Registry};
use orlop_testkit::served::Served;
use orlop_testkit::tar::Entry;
use rustix::process::Signal;

use crate::common::{self, Orlop, import, registry_with};

/// What clients call the registry that is mirrored; nothing has this name.
const UPSTREAM: &str = "upstream.example";
const LAYER: usize = 6 << 20;

/// A store whose daemon is a mirror of [`UPSTREAM`], which is at an address.
struct Node {
    store: Orlop,
    served: Served,
    /// Where the mirror listens.
    host: String,
    /// The `certs.d` of the node.
    hosts: PathBuf,
}

impl Node {
    fn new(upstream: &str, mirror: &str) -> Self {
        Self::with_rules(upstream, "", mirror)
    }

    fn with_rules(upstream: &str, rules: &str, mirror: &str) -> Self {
        let store = Orlop::new();
        let hosts = store.path("certs.d");
        at(&hosts, &format!("server = \"http://{upstream}\"\n"));
        let config = format!(
            "hosts_dir = {hosts:?}\n[serve]\nmetrics = \"127.0.0.1:0\"\n[registry]\naddress = \"127.0.0.1:0\"\n{rules}\n[mirror]\n{mirror}\n"
        );
        std::fs::write(store.path("config.toml"), config).unwrap();
        let (served, host) = serve(&store);
        Self { store, served, host, hosts }
    }

    fn fetching(upstream: &str) -> Self {
        Self::new(upstream, &format!("fetch = [\"{UPSTREAM}/*\"]"))
    }

    /// Kills the daemon, and starts another one on what it left.
    fn killed(self) -> Self {
        let Self { store, mut served, hosts, .. } = self;
        served.process().signal(Signal::KILL);
        drop(served);
        let (served, host) = serve(&store);
        Self { store, served, host, hosts }
    }

    fn ask(&self, path: &str) -> Got {
        ask(&self.host, "GET", path)
    }

    fn manifest(&self, reference: &str) -> Got {
        self.ask(&format!("/v2/app/manifests/{reference}?ns={UPSTREAM}"))
    }

    fn blob(&self, digest: &Digest) -> Got {
        self.ask(&blob_path(digest))
    }

    fn metrics(&mut self) -> String {
        let address = self.served.process().wait_for(|daemon| address(&daemon.log(), "metrics"));
        common::get(&address, "/metrics")
    }
}

fn serve(store: &Orlop) -> (Served, String) {
    let mut served = store.serve(&["--config", store.path("config.toml").to_str().unwrap()]);
    let host = served.process().wait_for(|daemon| address(&daemon.log(), "serving the registry"));
    (served, host)
}

/// The address in the line of a log that says this.
fn address(log: &str, what: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains(what) && line.contains("address="))?;
    let at = line.find("address=")? + "address=".len();
    Some(line[at..].split_whitespace().next()?.to_owned())
}

/// Says where [`UPSTREAM`] is.
fn at(hosts: &std::path::Path, text: &str) {
    let dir = hosts.join(UPSTREAM);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("hosts.toml"), text).unwrap();
}

fn blob_path(digest: &Digest) -> String {
    format!("/v2/app/blobs/{digest}?ns={UPSTREAM}")
}

/// What came.
struct Got {
    status: u16,
    head: String,
    body: Vec<u8>,
    /// As long as it was said to be.
    whole: bool,
}

impl Got {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A request whose answer is read as it comes.
struct Asking {
    reader: BufReader<TcpStream>,
    head: String,
    length: usize,
}

impl Asking {
    fn new(host: &str, method: &str, path: &str) -> Self {
        let mut stream = TcpStream::connect(host).expect("somebody listens");
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("it is sent");
        let (mut reader, mut head) = (BufReader::new(stream), String::new());
        while reader.read_line(&mut head).expect("a head") > 2 {}
        let said = head.lines().filter_map(|line| line.split_once(": "));
        let mut said = said.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length = said.next().map_or(0, |(_, value)| value.parse().expect("a number"));
        Self { reader, head, length }
    }

    /// The rest, after what was read of it.
    fn rest(mut self, mut body: Vec<u8>) -> Got {
        // A connection that is cut may end in any way.
        let _ = self.reader.read_to_end(&mut body);
        let status = self.head.split(' ').nth(1).expect("a status").parse().expect("a number");
        Got { status, whole: body.len() == self.length, head: self.head, body }
    }
}

fn ask(host: &str, method: &str, path: &str) -> Got {
    Asking::new(host, method, path).rest(Vec::new())
}

fn image() -> Content {
    let below = Layer::new([Entry::dir("etc"), Entry::file("etc/hostname", "orlop\n")]);
    Content::image(&Image::host().layer(below).layer(Layer::noise("data", 41, LAYER)))
}

/// The last layer of an image.
fn layer(content: &Content) -> Digest {
    content.layers().pop().unwrap()
}

/// How often a registry was asked to give this.
fn given(registry: &Registry, what: &str) -> usize {
    // The line of the access log.
    registry.log().lines().filter(|line| line.contains("\"GET ") && line.contains(what)).count()
}

#[test]
fn a_blob_is_asked_for_once_however_many_want_it_and_comes_to_all_while_it_arrives() {
    let content = image();
    let Some(registry) = registry_with(&content) else { return };
    let proxy = Proxy::start(registry.address());
    let mut node = Node::fetching(&proxy.host());
    assert_eq!(node.manifest("1").status, 200);
    let digest = layer(&content);
    proxy.set_default(Fault::StallAfter(LAYER as u64 / 2));
    proxy.cut_all();
    let (tell, told) = mpsc::channel();
    let clients: Vec<_> = (0..8)
        .map(|at| {
            let (tell, host, path) = (tell.clone(), node.host.clone(), blob_path(&digest));
            std::thread::spawn(move || {
                let mut asking = Asking::new(&host, "GET", &path);
                let mut begin = vec![0; LAYER / 4];
                asking.reader.read_exact(&mut begin).unwrap();
                tell.send(()).unwrap();
                // One goes away in the middle.
                (at > 0).then(|| asking.rest(begin))
            })
        })
        .collect();
    // All of them have a part, and nobody can have more than the registry gave.
    (0..8).for_each(|_| told.recv().unwrap());
    assert!(!node.store.blob(&digest).exists());
    assert!(node.metrics().contains("\norlop_mirror_fetching 1\n"), "{}", node.metrics());
    proxy.release();
    for got in clients.into_iter().filter_map(|client| client.join().unwrap()) {
        assert!(got.status == 200 && got.whole, "{}", got.head);
        assert_eq!(Digest::of(&got.body), digest);
    }
    assert_eq!(node.blob(&digest).body.len(), content.bytes(&digest).len(), "and from here");
    assert_eq!(given(&registry, &format!("/blobs/{digest}")), 1, "{}", registry.log());
    let part = &ask(&node.host, "HEAD", &blob_path(&digest));
    assert_eq!(part.header("content-length").unwrap(), content.bytes(&digest).len().to_string());
    node.store.is_sound();
    node.store.ok(["rm", &format!("{UPSTREAM}/app@{}", content.root.digest)]);
    assert_eq!(node.store.records(), Vec::<String>::new());
}

/// Everything by both containerds and skopeo, from a registry whose name leads nowhere but through the mirror.
#[test]
fn clients_pull_through_the_mirror_and_it_asks_once_for_what_they_want() {
    if !common::is_root("clients_pull_through_the_mirror") {
        return;
    }
    let own = image();
    let arm = Content::image(&Image::new("linux/s390x").layer(Layer::noise("other", 42, 100_000)));
    let content = Content::index(&[own.clone(), arm.clone()]);
    let Some(registry) = registry_with(&content) else { return };
    let node = Node::fetching(&registry.host());
    let name = format!("{UPSTREAM}/app:1");
    let certs = node.store.path("client");
    let dead = "server = \"http://127.0.0.1:1\"\n";
    at(&certs, &format!("{dead}[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", node.host));
    for programs in [Programs::debian(), Programs::current()].into_iter().flatten() {
        let containerd = Containerd::start(&programs, &ContainerdOptions::default());
        let ctr = |arguments: &[&str]| containerd.ctr("default", arguments).ok().stdout;
        ctr(&["images", "pull", "--hosts-dir", certs.to_str().unwrap(), &name]);
        assert!(ctr(&["images", "ls"]).contains(content.root.digest.as_str()), "{}", programs.version());
        let missing = format!("{UPSTREAM}/none:1");
        let done = containerd.ctr("default", &["images", "pull", "--hosts-dir", certs.to_str().unwrap(), &missing]);
        assert!(!done.stderr.is_empty(), "neither has it");
    }
    if need("skopeo", "skopeo").is_some() {
        let (config, layout) = (node.store.path("registries.conf"), node.store.path("layout"));
        let mirror = format!("{}/{UPSTREAM}", node.host);
        let text = format!(
            "[[registry]]\nprefix = \"{UPSTREAM}\"\nlocation = \"127.0.0.1:1\"\ninsecure = true\n\
             [[registry.mirror]]\nlocation = \"{mirror}\"\ninsecure = true\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut skopeo = Command::new("skopeo");
        skopeo.arg("--registries-conf").arg(&config).args(["--insecure-policy", "copy"]);
        skopeo.arg(format!("docker://{name}")).arg(format!("oci:{}:1", layout.display()));
        output(&mut skopeo).ok();
    }
    for (digest, blob) in &own.blobs {
        let once = given(&registry, digest.as_str());
        assert_eq!(once, 1, "{digest} {}", blob.media_type);
    }
    for layer in arm.layers() {
        assert_eq!(given(&registry, layer.as_str()), 0, "nobody wanted it");
    }
    let id = own.image_id().unwrap().to_string();
    let mut names = vec![format!("{UPSTREAM}/app@{}", content.root.digest), id];
    names.sort();
    assert_eq!(node.store.records(), names, "the node's own tags are its own");
    node.store.is_sound();
}

#[test]
fn what_was_asked_for_in_part_is_no_image_for_kubelet_until_it_is_whole() {
    let content = image();
    let Some(registry) = registry_with(&content) else { return };
    let node = Node::fetching(&registry.host());
    assert_eq!(ask(&node.host, "HEAD", &format!("/v2/app/manifests/1?ns={UPSTREAM}")).status, 200);
    let record = format!("{UPSTREAM}/app@{}", content.root.digest);
    assert_eq!(node.store.records(), std::slice::from_ref(&record));
    node.store.is_sound();
    let crictl = need_peer("crictl");
    let listed = || {
        let Some(crictl) = &crictl else { return serde_json::Value::Null };
        let socket = format!("unix://{}", node.served.socket().display());
        let listed = output(Command::new(crictl).args(["--image-endpoint", &socket, "images", "-o", "json"]));
        serde_json::from_str::<serde_json::Value>(&listed.ok().stdout).unwrap()["images"].take()
    };
    if crictl.is_some() {
        assert_eq!(listed(), serde_json::json!([]), "it lacks layers");
    }
    let fill = || {
        for (digest, _) in content.blobs.iter().filter(|(digest, _)| **digest != content.root.digest) {
            assert!(node.blob(digest).whole, "{digest}");
        }
    };
    fill();
    let id = content.image_id().unwrap().to_string();
    let mut both = vec![record.clone(), id.clone()];
    both.sort();
    let complete = || {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while node.store.records() != both {
            assert!(std::time::Instant::now() < deadline, "{:?}", node.store.records());
        }
    };
    complete();
    if crictl.is_some() {
        let images = listed();
        assert_eq!(images[0]["id"], id, "{images}");
        assert_eq!(images[0]["repoTags"], serde_json::json!([]));
        assert_ne!(images[0]["pinned"], true, "kubelet may collect it");
    }
    if let Some(crictl) = &crictl {
        let socket = format!("unix://{}", node.served.socket().display());
        output(Command::new(crictl).args(["--image-endpoint", &socket, "rmi", &id])).ok();
        assert_eq!(node.store.records(), Vec::<String>::new(), "as kubelet does");
        assert!(!node.store.blob(&layer(&content)).exists());
        assert_eq!(node.manifest("1").status, 200, "and it is fetched again");
        fill();
        complete();
    }
    node.store.is_sound();
    // Pulled it is the node's: nothing has to come, and no mirror takes it away.
    let label = |store: &Orlop| {
        let all = store.json(["images", "--all"]);
        let all = all["records"].as_array().unwrap();
        all.iter().find(|row| row["name"] == record.as_str()).unwrap()["labels"]["io.orlop.cached"].clone()
    };
    assert!(label(&node.store).is_string());
    let hosts = node.hosts.to_str().unwrap();
    let pulled = node.store.json(["pull", "--no-unpack", "--hosts-dir", hosts, &format!("{UPSTREAM}/app:1")]);
    assert_eq!(pulled["bytesTransferred"], 0);
    assert_eq!(label(&node.store), serde_json::Value::Null);
    node.store.is_sound();
}

#[test]
fn while_the_registry_is_away_a_tag_means_what_it_meant_and_that_is_said() {
    let content = image();
    let Some(registry) = registry_with(&content) else { return };
    let proxy = Proxy::start(registry.address());
    let node = Node::new(&proxy.host(), &format!("fetch = [\"{UPSTREAM}/*\"]\nfresh_seconds = 0"));
    let fresh = node.manifest("1");
    assert_eq!((fresh.status, fresh.header("warning")), (200, None), "{}", fresh.head);
    proxy.set_default(Fault::Refuse);
    proxy.cut_all();
    let check = |node: &Node| {
        let old = node.manifest("1");
        assert_eq!((old.status, &old.body), (200, &fresh.body), "{}", old.head);
        assert_eq!(old.header("warning"), Some("111 orlop \"Revalidation Failed\""), "{}", old.head);
        let digest = node.manifest(content.root.digest.as_str());
        assert_eq!((digest.status, digest.header("warning")), (200, None), "what a digest means is known");
        let other = node.manifest("2");
        assert_eq!(other.status, 502, "{}", other.text());
    };
    check(&node);
    let mut node = node.killed();
    check(&node);
    assert!(node.metrics().contains("orlop_mirror_requests_total{result=\"stale\"} 1"), "{}", node.metrics());
    proxy.set_default(Fault::None);
    assert_eq!(node.manifest("2").status, 404, "{}", node.manifest("2").text());
}

#[test]
fn wrong_bytes_are_cut_off_before_their_end_and_not_kept() {
    let (content, liar) = (image(), Liar::start());
    liar.put("app", "1", &content);
    let digest = layer(&content);
    let right = content.bytes(&digest).to_vec();
    let mut wrong = right.clone();
    wrong[LAYER / 2] ^= 1;
    let binary = "application/octet-stream";
    liar.blob("app", &digest, Answer::new(binary, wrong));
    let node = Node::fetching(&liar.host());
    assert_eq!(node.manifest("1").status, 200);
    let got = node.blob(&digest);
    assert!(got.status == 200 && !got.whole && got.body.len() < right.len(), "{} of {}", got.body.len(), right.len());
    assert!(!node.store.blob(&digest).exists());
    let ingests = node.store.root().join("content/ingest");
    assert_eq!(std::fs::read_dir(&ingests).map_or(0, Iterator::count), 0, "nothing of it is gone on with");
    liar.blob("app", &digest, Answer::new(binary, right.clone()));
    let got = node.blob(&digest);
    assert!(got.whole && got.body == right);
    node.store.is_sound();
}

#[test]
fn a_registry_that_dies_in_the_middle_costs_no_byte_twice() {
    let content = image();
    let Some(registry) = registry_with(&content) else { return };
    let proxy = Proxy::start(registry.address());
    let node = Node::fetching(&proxy.host());
    assert_eq!(node.manifest("1").status, 200);
    proxy.set_default(Fault::Refuse);
    proxy.next([Fault::CutAfter(LAYER as u64 / 2)]);
    proxy.cut_all();
    let digest = layer(&content);
    let got = node.blob(&digest);
    assert!(got.status == 200 && !got.whole && got.body.len() > LAYER / 4, "{}: {}", got.head, got.body.len());
    proxy.set_default(Fault::None);
    let before = proxy.counts().down;
    assert_eq!(Digest::of(&node.blob(&digest).body), digest);
    let came = proxy.counts().down - before;
    assert!(came < LAYER as u64 * 3 / 4, "{came} bytes came for the second half");
    node.store.is_sound();
}

#[test]
fn a_daemon_that_is_killed_in_the_middle_goes_on_where_it_was() {
    let content = image();
    let Some(registry) = registry_with(&content) else { return };
    let proxy = Proxy::start(registry.address());
    let node = Node::fetching(&proxy.host());
    assert_eq!(node.manifest("1").status, 200);
    let digest = layer(&content);
    proxy.set_default(Fault::StallAfter(LAYER as u64 / 2));
    proxy.cut_all();
    let mut asking = Asking::new(&node.host, "GET", &blob_path(&digest));
    asking.reader.read_exact(&mut vec![0; LAYER / 4]).unwrap();
    let node = node.killed();
    proxy.set_default(Fault::None);
    let before = proxy.counts().down;
    assert_eq!(Digest::of(&node.blob(&digest).body), digest);
    let came = proxy.counts().down - before;
    assert!(came < LAYER as u64, "{came} bytes of {LAYER}");
    node.store.is_sound();
}

/// Answers everything with 429, as Docker Hub does, and counts.
fn limited() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (host, asked) = (listener.local_addr().unwrap().to_string(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream);
            let mut head = String::new();
            while reader.read_line(&mut head).is_ok_and(|read| read > 2) {}
            count.fetch_add(1, Ordering::SeqCst);
            let _ = write!(
                reader.get_mut(),
                "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3000\r\nRateLimit-Limit: 100;w=21600\r\n\
                 RateLimit-Remaining: 0;w=21600\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
    });
    (host, asked)
}

#[test]
fn a_registry_that_limits_requests_is_left_alone_for_as_long_as_it_wants() {
    let (host, asked) = limited();
    let mut node = Node::fetching(&host);
    let first = node.manifest("1");
    assert_eq!(first.status, 429, "{}", first.text());
    let so_far = asked.load(Ordering::SeqCst);
    for _ in 0..3 {
        let got = node.manifest("1");
        let wait: u64 = got.header("retry-after").unwrap().parse().unwrap();
        assert!(got.status == 429 && (2900..=3001).contains(&wait), "{}", got.head);
        assert!(got.text().contains("0 of 100 requests left in 21600 s"), "{}", got.text());
        assert!(got.text().contains("try again in"), "{}", got.text());
    }
    assert_eq!(asked.load(Ordering::SeqCst), so_far, "it was not asked again");
    let line = format!("orlop_registry_requests_remaining{{host=\"{host}\"}} 0");
    assert!(node.metrics().contains(&line), "{}", node.metrics());
}

#[test]
fn a_mirror_gives_what_is_named_and_takes_nothing() {
    let content = image();
    let Some(registry) = registry_with(&content) else { return };
    let node = Node::new(&registry.host(), &format!("give = [\"{UPSTREAM}/app\"]\nfetch = [\"{UPSTREAM}/cached/*\"]"));
    assert_eq!(node.manifest("1").status, 404, "it is not here");
    import(&node.store, &format!("{UPSTREAM}/app:1"), &content);
    import(&node.store, &format!("{UPSTREAM}/secret:1"), &image_of(43));
    let got = node.manifest("1");
    assert_eq!(got.header("docker-content-digest"), Some(content.root.digest.as_str()), "{}", got.head);
    assert_eq!(node.ask(&format!("/v2/{UPSTREAM}/app/manifests/1")).status, 200, "by its path");
    assert!(node.blob(&layer(&content)).whole);
    assert_eq!(given(&registry, "/v2/app/"), 0, "nothing is fetched");
    let ask = |path: &str| node.ask(&format!("{path}?ns={UPSTREAM}")).status;
    assert_eq!(ask("/v2/secret/manifests/1"), 404);
    let secret = layer(&image_of(43));
    assert_eq!(ask(&format!("/v2/secret/blobs/{secret}")), 404);
    assert_eq!(ask(&format!("/v2/app/blobs/{secret}")), 404, "a digest alone opens nothing");
    assert_eq!(ask(&format!("/v2/cached/app/blobs/{secret}")), 404, "its registry does not have it there");
    assert_eq!(ask("/v2/app/tags/list"), 404);
    for (method, path) in
        [("PUT", "/v2/app/manifests/1"), ("DELETE", "/v2/app/manifests/1"), ("POST", "/v2/app/blobs/uploads/")]
    {
        let path = format!("{path}?ns={UPSTREAM}");
        assert_eq!(self::ask(&node.host, method, &path).status, 405, "{method} {path}");
    }
    assert_eq!(node.manifest("1").status, 200);
    assert_eq!(node.ask("/v2/app/manifests/1?ns=other.example").status, 404, "the registry's own repository");
}

fn image_of(seed: u64) -> Content {
    Content::image(&Image::host().layer(Layer::noise("data", seed, 10_000)))
}

#[test]
fn a_mirror_that_is_its_own_mirror_asks_the_registry() {
    let content = image();
    let Some(registry) = registry_with(&content) else { return };
    let node = Node::fetching(&registry.host());
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        registry.host(),
        node.host
    );
    at(&node.hosts, &text);
    assert_eq!(node.manifest("1").status, 200);
    let digest = layer(&content);
    assert_eq!(Digest::of(&node.blob(&digest).body), digest);
    assert_eq!(given(&registry, digest.as_str()), 1);
    node.store.is_sound();
}

#[test]
fn rules_know_a_mirrored_repository_by_its_whole_name() {
    let content = image();
    let Some(registry) = registry_with(&content) else { return };
    let node = |repositories: &str| {
        let rule = format!("{{ repositories = [{repositories}], users = [\"anonymous\"], actions = [\"pull\"] }}");
        let fetch = format!("fetch = [\"{UPSTREAM}/*\"]");
        Node::with_rules(&registry.host(), &format!("permissions = [{rule}]"), &fetch)
    };
    let digest = layer(&content);
    let closed = node("\"app\", \"other.example/*\"");
    for got in [closed.manifest("1"), closed.blob(&digest), closed.ask(&format!("/v2/{UPSTREAM}/app/manifests/1"))] {
        assert!([401, 403].contains(&got.status), "{}", got.head);
    }
    assert_eq!(given(&registry, "/v2/app/"), 0, "nothing is fetched for them");
    let open = node(&format!("\"{UPSTREAM}/app\""));
    assert_eq!(open.manifest("1").status, 200);
    assert!(open.blob(&digest).whole);
}

#[test]
fn what_policy_keeps_out_is_not_given() {
    let content = image();
    let Some(registry) = registry_with(&content) else { return };
    let node = Node::fetching(&registry.host());
    let policy = node.store.path("policy.toml");
    std::fs::write(
        &policy,
        format!("[default]\nrequire = \"accept\"\n[[rule]]\nimages = [\"{UPSTREAM}/app\"]\nrequire = \"reject\"\n"),
    )
    .unwrap();
    let config = node.store.path("config.toml");
    let text = std::fs::read_to_string(&config).unwrap() + &format!("[verify]\npolicy = {policy:?}\n");
    std::fs::write(&config, text).unwrap();
    let node = node.killed();
    let refused = node.manifest("1");
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert_eq!(node.manifest(content.root.digest.as_str()).status, 403);
    assert_eq!(node.blob(&layer(&content)).status, 404, "nothing that was let in has it");
    assert_eq!(node.store.records(), Vec::<String>::new());
    assert_eq!(given(&registry, "/blobs/"), 0);
}

/// docker-registry is a mirror too, and this one may be behind it.
#[test]
fn another_registry_may_stand_before_the_mirrored_one() {
    let content = image();
    let Some(registry) = registry_with(&content) else { return };
    let Some(between) = Registry::start(&Options::new().mirror_of(&registry.url())) else { return };
    let node = Node::fetching(&between.host());
    assert_eq!(node.manifest("1").status, 200);
    let digest = layer(&content);
    assert_eq!(Digest::of(&node.blob(&digest).body), digest);
}
