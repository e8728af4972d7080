//! SIGHUP: what a daemon reads anew while clients go on.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use crate::common::{Orlop, binary};
use orlop_api::NAMESPACE_HEADER;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_api::containerd::services::content::v1::{WriteAction, WriteContentRequest, WriteContentResponse};
use orlop_api::runtime::v1::image_service_client::ImageServiceClient;
use orlop_api::runtime::v1::{Image as CriImage, ImageSpec, ListImagesRequest, PullImageRequest};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::liar::Liar;
use orlop_testkit::served::Served;
use orlop_testkit::tar::Entry;
use rustix::process::Signal;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const ACCEPT: &str = "[default]\nrequire = 'accept'\n";
const REJECT: &str = "[default]\nrequire = 'reject'\n";

/// A daemon with a configuration and a policy of its own, and what a service manager hears of it.
struct Daemon {
    store: Orlop,
    served: Served,
    manager: UnixDatagram,
    registry: Liar,
}

impl Daemon {
    /// `text` follows the keys that name the policy.
    fn start(text: &str) -> Self {
        Self::start_with(text, &[])
    }

    fn start_with(text: &str, options: &[&str]) -> Self {
        let store = Orlop::new();
        let manager = UnixDatagram::bind(store.path("notify")).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let (config, policy) = (store.path("config.toml"), store.path("policy.toml"));
        std::fs::write(&policy, ACCEPT).unwrap();
        std::fs::write(&config, configuration(&policy, text)).unwrap();
        let mut command = binary();
        command.env("NOTIFY_SOCKET", store.path("notify")).arg("--config").arg(&config);
        let served = Served::start(command, &store.root(), options);
        let daemon = Self { store, served, manager, registry: Liar::start() };
        assert!(daemon.hear().contains("READY=1"));
        daemon
    }

    fn configure(&self, text: &str) {
        let text = configuration(&self.store.path("policy.toml"), text);
        std::fs::write(self.store.path("config.toml"), text).unwrap();
    }

    fn policy(&self, text: &str) {
        std::fs::write(self.store.path("policy.toml"), text).unwrap();
    }

    fn hear(&self) -> String {
        let mut buffer = [0; 1024];
        let n = self.manager.recv(&mut buffer).unwrap_or_else(|e| panic!("nothing more: {e}\n{}", self.served.log()));
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    }

    /// Has it read everything anew; returns what it logged meanwhile.
    fn reload(&mut self) -> String {
        let before = self.served.log().len();
        self.served.process().signal(Signal::HUP);
        let reloading = self.hear();
        let lines: Vec<&str> = reloading.lines().collect();
        assert!(lines.contains(&"RELOADING=1"), "{reloading}");
        let clock = lines.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
        assert!(clock.parse::<u64>().unwrap() > 0);
        let ready = self.hear();
        assert!(ready.lines().any(|line| line == "READY=1"), "{ready}");
        self.served.log()[before..].to_owned()
    }

    /// The exit code of a pull by this daemon, of an image of its own.
    fn pull(&self, tag: &str) -> i32 {
        let layer = Layer::new([Entry::file(tag, tag)]);
        let name = self.registry.put("team/app", tag, &Content::image(&Image::host().layer(layer)));
        self.store.run(["pull", &name]).code
    }
}

fn configuration(policy: &std::path::Path, text: &str) -> String {
    format!("verify.policy = {policy:?}\nverify.verifiers = ''\n{text}")
}

/// A write that has begun and is held open.
struct Write {
    send: mpsc::Sender<WriteContentRequest>,
    answers: tonic::Streaming<WriteContentResponse>,
}

impl Write {
    async fn begin(socket: PathBuf, name: &str) -> Result<Self, tonic::Status> {
        let channel = orlop_api::channel::unix(&socket).await.unwrap();
        let (send, receive) = mpsc::channel(1);
        send.send(WriteContentRequest { r#ref: name.into(), ..Default::default() }).await.unwrap();
        let mut request = tonic::Request::new(ReceiverStream::new(receive));
        request.metadata_mut().insert(NAMESPACE_HEADER, "test".parse().unwrap());
        let mut answers = ContentClient::new(channel).write(request).await?.into_inner();
        answers.message().await?.unwrap();
        Ok(Self { send, answers })
    }

    async fn commit(mut self) -> String {
        let last = WriteContentRequest {
            action: WriteAction::Commit.into(),
            data: b"held".to_vec().into(),
            ..Default::default()
        };
        self.send.send(last).await.unwrap();
        self.answers.message().await.unwrap().unwrap().digest
    }
}

#[test]
fn the_next_pull_obeys_the_policy_that_was_changed() {
    let mut daemon = Daemon::start("");
    assert_eq!(daemon.pull("1"), 0, "{}", daemon.served.log());
    daemon.policy(REJECT);
    assert_eq!(daemon.pull("2"), 0, "what is on the disk counts when it is read");
    let log = daemon.reload();
    assert!(log.contains("read anew") && !log.contains("WARN"), "{log}");
    assert_eq!(daemon.pull("3"), 5, "{}", daemon.served.log());
    daemon.policy(ACCEPT);
    daemon.reload();
    assert_eq!(daemon.pull("3"), 0, "{}", daemon.served.log());
}

#[test]
fn a_broken_file_is_refused_whole_and_clients_notice_nothing() {
    let mut daemon = Daemon::start("[log]\nlevel = 'info'\n");
    let runtime = Runtime::new().unwrap();
    let held = runtime.block_on(Write::begin(daemon.served.socket(), "held")).unwrap();
    daemon.policy(REJECT);
    daemon.configure("[log]\nlevel = 'debug'\n[serve]\nmax_cals = 1\n");
    let log = daemon.reload();
    let place = format!("{}:6: unknown key serve.max_cals", daemon.store.path("config.toml").display());
    assert!(log.contains("ERROR") && log.contains(&place) && log.contains("serve.max_calls"), "{log}");
    assert_eq!(daemon.pull("1"), 0, "not even the policy beside it counts");
    assert!(!daemon.served.log().contains(" DEBUG "), "{}", daemon.served.log());

    daemon.configure("");
    daemon.policy("[default]\nrequire = 'perhaps'\n");
    let log = daemon.reload();
    assert!(log.contains("ERROR") && log.contains("policy.toml:2"), "{log}");
    std::fs::remove_file(daemon.store.path("config.toml")).unwrap();
    assert!(daemon.reload().contains("read configuration"), "{}", daemon.served.log());
    assert_eq!(daemon.pull("2"), 0, "{}", daemon.served.log());

    daemon.configure("");
    daemon.policy(ACCEPT);
    assert!(!daemon.reload().contains("ERROR"), "{}", daemon.served.log());
    let digest = runtime.block_on(held.commit());
    assert_eq!(digest, orlop_oci::Digest::of(b"held").to_string(), "the write outlived it all");
}

#[test]
fn what_cannot_change_is_named_and_stays_and_the_rest_changes() {
    let mut daemon = Daemon::start("");
    daemon.configure(
        "[serve]\nsocket_mode = '0600'\n[log]\nlevel = 'debug'\nformat = 'json'\n[traces]\nservice_name = 'other'\n",
    );
    let log = daemon.reload();
    assert!(log.contains("log.format serve.socket_mode traces.service_name"), "{log}");
    assert!(log.contains("changed=\"log.level\""), "{log}");
    daemon.store.ok(["images"]);
    let call = daemon.served.process().wait_for(|daemon| {
        let log = daemon.log();
        let line = log.lines().find(|line| line.contains(" DEBUG ") && line.contains("ListImages"))?;
        Some(line.to_owned())
    });
    assert!(!call.starts_with('{'), "{call}");
    daemon.configure("");
    daemon.reload();
    let before = daemon.served.log().len();
    daemon.store.ok(["images"]);
    daemon.reload();
    assert!(!daemon.served.log()[before..].contains(" DEBUG "), "{}", daemon.served.log());
}

#[test]
fn bounds_follow_and_hold_for_what_is_there() {
    let mut daemon = Daemon::start("");
    let runtime = Runtime::new().unwrap();
    let socket = daemon.served.socket();
    let held = runtime.block_on(Write::begin(socket.clone(), "first")).unwrap();
    daemon.configure("[serve]\nmax_calls = 1\n");
    daemon.reload();
    let refused = runtime.block_on(Write::begin(socket.clone(), "second")).err().unwrap();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    daemon.configure("[serve]\nmax_calls = 2\n");
    daemon.reload();
    runtime.block_on(Write::begin(socket, "second")).unwrap();
    runtime.block_on(held.commit());
}

#[test]
fn names_that_are_to_be_pinned_are_pinned_at_once() {
    let mut daemon = Daemon::start("[images]\npin_unsupplied = false\n");
    assert_eq!(daemon.pull("1"), 0);
    let (runtime, socket) = (Runtime::new().unwrap(), daemon.served.socket());
    let listed = || -> CriImage {
        runtime.block_on(async {
            let channel = orlop_api::channel::unix(&socket).await.unwrap();
            let answer = ImageServiceClient::new(channel).list_images(ListImagesRequest::default()).await.unwrap();
            answer.into_inner().images.remove(0)
        })
    };
    assert!(!listed().pinned);
    let name = format!("{}/team/app:1", daemon.registry.host());
    daemon.configure(&format!("[images]\npin_unsupplied = false\npinned = ['{name}']\n"));
    daemon.reload();
    assert!(listed().pinned);
    // The records say so too as soon as they are reconciled: a removal is refused.
    daemon.served.process().wait_for(|_| (daemon.store.run(["rm", &name]).code == 4).then_some(()));
}

impl Daemon {
    /// Writes a directory by which its registry is a mirror of one that cannot be.
    fn mirrors(&self, hosts: &std::path::Path) {
        std::fs::create_dir_all(hosts.join("registry.invalid")).unwrap();
        let mirror = format!("[host.\"http://{}\"]\ncapabilities = ['pull', 'resolve']\n", self.registry.host());
        std::fs::write(hosts.join("registry.invalid/hosts.toml"), mirror).unwrap();
    }

    /// Has it pull an image that only a mirror can have; the image ID.
    fn pull_mirrored(&self) -> Result<String, tonic::Status> {
        Runtime::new().unwrap().block_on(async {
            let channel = orlop_api::channel::unix(&self.served.socket()).await.unwrap();
            let image = Some(ImageSpec { image: "registry.invalid/team/app:mirrored".into(), ..Default::default() });
            let request = PullImageRequest { image, ..Default::default() };
            ImageServiceClient::new(channel).pull_image(request).await.map(|answer| answer.into_inner().image_ref)
        })
    }
}

#[test]
fn the_next_pull_asks_the_mirrors_of_the_new_directory() {
    let mut daemon = Daemon::start("");
    let image = Content::image(&Image::host().layer(Layer::new([Entry::file("mirrored", "mirrored")])));
    daemon.registry.put("team/app", "mirrored", &image);
    let refused = daemon.pull_mirrored().unwrap_err();
    assert!(refused.message().contains("registry.invalid"), "{refused}");
    let hosts = daemon.store.path("hosts");
    daemon.mirrors(&hosts);
    daemon.pull_mirrored().unwrap_err();
    daemon.configure(&format!("hosts_dir = {hosts:?}\n"));
    let log = daemon.reload();
    assert!(log.contains("changed=\"hosts_dir\""), "{log}");
    assert_eq!(daemon.pull_mirrored().unwrap(), image.image_id().unwrap().to_string());
    daemon.configure("");
    daemon.reload();
    daemon.pull_mirrored().unwrap_err();
}

#[test]
fn the_mirrors_of_the_option_are_asked_whatever_the_file_says() {
    let mirrored = Daemon::start("");
    let image = Content::image(&Image::host().layer(Layer::new([Entry::file("mirrored", "mirrored")])));
    mirrored.registry.put("team/app", "mirrored", &image);
    let hosts = mirrored.store.path("hosts");
    mirrored.mirrors(&hosts);
    let mut daemon = Daemon::start_with("hosts_dir = '/nonexistent'\n", &["--hosts-dir", hosts.to_str().unwrap()]);
    assert_eq!(daemon.pull_mirrored().unwrap(), image.image_id().unwrap().to_string());
    daemon.configure("hosts_dir = '/elsewhere'\n[gc]\nfull_hours = 1\n");
    let log = daemon.reload();
    assert!(log.contains("changed=\"gc.full_hours\""), "{log}");
    assert_eq!(daemon.pull_mirrored().unwrap(), image.image_id().unwrap().to_string());
}

#[test]
fn the_trash_follows_the_new_days() {
    let mut daemon = Daemon::start("[gc]\ntrash_free_percent = 0\n");
    assert_eq!(daemon.pull("1"), 0);
    daemon.store.ok(["rm", &format!("{}/team/app:1", daemon.registry.host())]);
    assert!(!daemon.store.ok(["undo", "--list"]).is_empty());
    daemon.configure("[gc]\ntrash_free_percent = 0\ntrash_days = 0\nfull_hours = 1\n");
    let log = daemon.reload();
    assert!(log.contains("changed=\"gc.full_hours gc.trash_days\""), "{log}");
    daemon.served.process().wait_for(|daemon| daemon.log().contains("emptied the trash").then_some(()));
    assert_eq!(daemon.store.run(["undo"]).code, 3, "nothing is left to be undone");
}
