//! Faults, made as they come about, and what a doctor says of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use orlop_api::NAMESPACE_HEADER;
use orlop_api::containerd::services::content::v1 as content;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_api::containerd::services::images::v1 as images;
use orlop_api::containerd::services::images::v1::images_client::ImagesClient;
use orlop_api::containerd::services::leases::v1 as leases;
use orlop_api::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_oci::Digest;
use orlop_testkit::containerd::Programs;
use orlop_testkit::image::Content;
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::Request;
use tonic::transport::Channel;

use crate::common::Done;
use crate::node::{Node, image};

/// The kubelet's namespace.
pub(crate) const K8S: &str = "k8s.io";
/// Seconds by which a store is aged: two days.
pub(crate) const AGED: u64 = 2 * 24 * 3600;

/// A node on which something lives: an image with a container on it, a lease of somebody who is at work and what it holds.
pub(crate) struct Ward {
    pub(crate) node: Node,
    /// The image that lives.
    pub(crate) live: String,
    runtime: Runtime,
}

impl Ward {
    pub(crate) fn open(programs: &Programs) -> Option<Self> {
        let node = Node::start(programs)?;
        let live = node.pull("calico/cni:v3.25.1", &image("cni", 200_000));
        let runtime = Runtime::new().unwrap();
        let ward = Self { node, live, runtime };
        ward.ctr(&["containers", "create", &ward.live, "web-1"]);
        let end = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(20);
        let blob = ward.loose(b"of somebody who is at work");
        ward.lease("pulling", &[("containerd.io/gc.expire", &end.to_string())], &[("content", blob.as_str())]);
        ward.collect();
        Some(ward)
    }

    /// Runs `ctr` in the kubelet's namespace.
    #[track_caller]
    pub(crate) fn ctr(&self, args: &[&str]) -> String {
        self.node.containerd.ctr(K8S, args).ok().stdout
    }

    /// Has containerd collect garbage.
    pub(crate) fn collect(&self) {
        self.ctr(&["leases", "create", "--id", "gone"]);
        self.ctr(&["leases", "rm", "--sync", "gone"]);
    }

    /// Everything that is listed in the kubelet's namespace.
    pub(crate) fn items(&self) -> BTreeSet<String> {
        let mut items: BTreeSet<String> = BTreeSet::new();
        let quiet = |args: &[&str]| self.ctr(args).lines().map(str::to_owned).collect::<Vec<_>>();
        items.extend(self.node.records().into_iter().map(|name| format!("record {name}")));
        items.extend(quiet(&["content", "ls", "-q"]).into_iter().map(|digest| format!("blob {digest}")));
        let first = |line: &String| line.split("  ").next().unwrap_or_default().trim().to_owned();
        items.extend(quiet(&["snapshots", "ls"]).iter().skip(1).map(|line| format!("snapshot {}", first(line))));
        items.extend(quiet(&["leases", "ls", "-q"]).into_iter().map(|id| format!("lease {id}")));
        items.extend(quiet(&["containers", "ls", "-q"]).into_iter().map(|id| format!("container {id}")));
        let writes = quiet(&["content", "active"]);
        items.extend(writes.iter().skip(1).map(|line| format!("write {}", line.split_whitespace().next().unwrap())));
        items
    }

    /// What the doctor finds.
    #[track_caller]
    pub(crate) fn problems(&self, args: &[&str]) -> Vec<Value> {
        let done = self.node.run(&[&["doctor", "-o", "json"], args].concat());
        let document: Value =
            serde_json::from_str(&done.out).unwrap_or_else(|e| panic!("{e}: {}{}", done.out, done.err));
        assert_eq!(document["schema"], "orlop.doctor/v1");
        let problems = document["problems"].as_array().unwrap().clone();
        let expected = if problems.is_empty() { 0 } else { 5 };
        assert_eq!((done.code, &document["ok"]), (expected, &Value::Bool(problems.is_empty())), "{}", done.err);
        problems
    }

    /// Class and subject of what the doctor finds.
    #[track_caller]
    pub(crate) fn found(&self, args: &[&str]) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        self.problems(args).iter().map(|p| (text(&p["class"]), text(&p["subject"]))).collect()
    }

    /// Has the doctor mend, as its own plan says; the plan.
    #[track_caller]
    pub(crate) fn mended(&self, args: &[&str]) -> Value {
        let before = self.items();
        let document = self.node.json(&[&["doctor", "--fix"], args].concat());
        assert_eq!(self.items(), before, "a plan changes nothing");
        let hash = document["plan"]["plan"].as_str().unwrap().to_owned();
        let other = Digest::of(b"another plan").to_string();
        let refused = self.node.run(&[&["doctor", "--fix", "--execute", &other], args].concat());
        assert_eq!(refused.code, 4, "{}", refused.err);
        let done = self.node.json(&[&["doctor", "--fix", "--execute", &hash], args].concat());
        assert_eq!(done["plan"]["differences"], serde_json::json!([]), "{done:#}");
        document["plan"].clone()
    }

    /// Runs a command that the doctor prints, as an operator would.
    #[track_caller]
    pub(crate) fn printed(&self, problem: &Value) {
        printed(problem, &self.node.programs);
    }

    fn channel(&self) -> Channel {
        let socket = self.node.containerd.socket();
        self.runtime.block_on(orlop_api::channel::unix(&socket)).unwrap()
    }

    /// A lease with these labels that lists these things.
    pub(crate) fn lease(&self, id: &str, labels: &[(&str, &str)], resources: &[(&str, &str)]) {
        self.runtime.block_on(lease(self.channel(), id, labels, resources));
    }

    /// A record of any name, beside another of the same image, with these labels.
    pub(crate) fn record(&self, name: &str, like: &str, labels: &[(&str, &str)]) {
        let mut client = ImagesClient::new(self.channel());
        self.runtime.block_on(async {
            let known = client.get(request(images::GetImageRequest { name: like.to_owned() })).await.unwrap();
            let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let image = known.into_inner().image.map(|image| images::Image { name: name.to_owned(), labels, ..image });
            client.create(request(images::CreateImageRequest { image, ..Default::default() })).await.unwrap();
        });
    }

    /// A blob that nothing refers to.
    pub(crate) fn loose(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.write(&format!("loose {digest}"), bytes, Some(&digest));
        digest
    }

    /// Writes, and commits if it is said what; else the write stays as it is.
    pub(crate) fn write(&self, reference: &str, bytes: &[u8], commit: Option<&Digest>) {
        self.runtime.block_on(write(self.channel(), reference, bytes, commit, &[]));
    }

    /// Two days pass for everything that is there now.
    pub(crate) fn age(&mut self) {
        self.age_and(|_| {});
    }

    /// The same, with another change to the database.
    pub(crate) fn age_and(&mut self, also: impl FnOnce(&mut [u8])) {
        self.node.containerd.changed(|root| {
            let database = root.join("io.containerd.metadata.v1.bolt/meta.db");
            let mut bytes = std::fs::read(&database).unwrap();
            assert!(made_older(&mut bytes, "createdat") > 0, "no times in {}", database.display());
            also(&mut bytes);
            std::fs::write(&database, bytes).unwrap();
            for ingest in std::fs::read_dir(root.join("io.containerd.content.v1.content/ingest")).unwrap() {
                let ingest = ingest.unwrap().path();
                let then = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(AGED as i64);
                for name in ["startedat", "updatedat"] {
                    std::fs::write(ingest.join(name), then.to_string()).unwrap();
                }
                let data = std::fs::File::options().write(true).open(ingest.join("data")).unwrap();
                let aged = std::time::Duration::from_secs(AGED);
                data.set_modified(std::time::SystemTime::now() - aged).unwrap();
            }
        });
    }
}

/// Runs a command that the doctor prints, as an operator would.
#[track_caller]
pub(crate) fn printed(problem: &Value, programs: &Programs) {
    // The registry of the test speaks plain HTTP.
    let command = problem["fix"].as_str().unwrap().replace("content fetch", "content fetch --plain-http");
    let own = Path::new(env!("CARGO_BIN_EXE_orlop")).parent().unwrap();
    let theirs = programs.ctr.parent().unwrap();
    let path = format!("{}:{}:/usr/bin:/bin", theirs.display(), own.display());
    let output = Command::new("sh").args(["-c", &command]).env("PATH", path).output().unwrap();
    let done = Done::of(&output);
    assert_eq!(done.code, 0, "{command}\n{}{}", done.out, done.err);
}

/// Makes a lease with these labels that lists these things.
pub(crate) async fn lease(channel: Channel, id: &str, labels: &[(&str, &str)], resources: &[(&str, &str)]) {
    let mut client = LeasesClient::new(channel);
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    client.create(request(leases::CreateRequest { id: id.to_owned(), labels })).await.unwrap();
    for (kind, name) in resources {
        let resource = Some(leases::Resource { id: (*name).to_owned(), r#type: (*kind).to_owned() });
        let wanted = leases::AddResourceRequest { id: id.to_owned(), resource };
        client.add_resource(request(wanted)).await.unwrap();
    }
}

/// Writes, and commits with these labels if it is said what; else the write stays as it is.
pub(crate) async fn write(
    channel: Channel,
    reference: &str,
    bytes: &[u8],
    commit: Option<&Digest>,
    labels: &[(&str, &str)],
) {
    let mut client = ContentClient::new(channel);
    let action = if commit.is_some() { content::WriteAction::Commit } else { content::WriteAction::Write };
    let message = content::WriteContentRequest {
        action: action.into(),
        r#ref: reference.to_owned(),
        data: bytes.to_vec().into(),
        total: bytes.len() as i64,
        expected: commit.map(ToString::to_string).unwrap_or_default(),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ..Default::default()
    };
    let mut answers = client.write(request(tokio_stream::iter([message]))).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
}

/// Moves every time of this name in a containerd's database into the past; how many there were. Data pages have no checksum.
pub(crate) fn made_older(bytes: &mut [u8], name: &str) -> usize {
    // Go's binary form of a time: a version, then seconds since the year 1.
    let key = [name.as_bytes(), b"\x01"].concat();
    let places: Vec<usize> =
        bytes.windows(key.len()).enumerate().filter(|(_, w)| *w == key).map(|(at, _)| at + key.len()).collect();
    for at in &places {
        let field: &mut [u8; 8] = (&mut bytes[*at..*at + 8]).try_into().unwrap();
        *field = (u64::from_be_bytes(*field) - AGED).to_be_bytes();
    }
    places.len()
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE_HEADER, K8S.parse().unwrap());
    request
}

/// The blob of an image's last layer.
pub(crate) fn own_layer(content: &Content) -> Digest {
    content.layers().pop().unwrap()
}
