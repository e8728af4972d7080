//! The first error of the disk beneath the metadata, while many clients are connected: no more is written, that is said wherever one
//! looks, what only reads is answered, and a new start writes again.

use std::collections::BTreeMap;
use std::path::Path;

use orlop_api::runtime::v1 as cri;
use orlop_api::runtime::v1::image_service_client::ImageServiceClient;
use orlop_testkit::faults::{Act, Fault, Faults, Rule};
use orlop_testkit::process::output;
use orlop_testkit::served::Served;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::common::{self, Orlop};
use crate::verdict::images::image;

const CLIENTS: usize = 16;

/// A call of the daemon, in a file of the metadata, and what it comes back with.
const FIRST: [(&str, &str, Fault); 4] = [
    ("fsync", "meta.db-wal", Fault::Io),
    ("pwrite64", "meta.db-wal", Fault::ReadOnly),
    ("write", "history.log", Fault::Io),
    ("fdatasync", "history.log", Fault::Io),
];

fn health(runtime: &Runtime, channel: &Channel, service: &str) -> i32 {
    let asked = HealthCheckRequest { service: service.to_owned() };
    runtime.block_on(HealthClient::new(channel.clone()).check(asked)).expect("an answer").into_inner().status
}

/// What kubelet asks all the time.
async fn kubelet_reads(channel: Channel, id: String) {
    let mut images = ImageServiceClient::new(channel);
    let listed = images.list_images(cri::ListImagesRequest::default()).await.expect("ListImages").into_inner();
    assert_eq!(listed.images.len(), 1);
    let image = Some(cri::ImageSpec { image: id, ..Default::default() });
    let status = images.image_status(cri::ImageStatusRequest { image, verbose: true }).await.expect("ImageStatus");
    assert!(status.into_inner().image.is_some());
    let usage = images.image_fs_info(cri::ImageFsInfoRequest {}).await.expect("ImageFsInfo").into_inner();
    assert_eq!(usage.image_filesystems.len(), 1);
}

fn serve(store: &Orlop, faults: &mut Option<Faults>) -> Served {
    let mut binary = common::binary();
    *faults = Some(Faults::over(&mut binary, &store.root()).expect("the daemon can be watched"));
    Served::start(binary, &store.root(), &["--metrics", "127.0.0.1:0"])
}

fn archive(store: &Orlop, word: &str) -> String {
    let path = store.path(&format!("{word}.tar"));
    let name = format!("docker.io/library/{word}:1");
    std::fs::write(&path, orlop_testkit::archive::oci_archive(&[(&name, &image(word))])).expect("an archive");
    path.display().to_string()
}

/// What is told while nothing is written.
fn says_so(store: &Orlop, metrics: &str) {
    let page = common::get(metrics, "/metrics");
    assert!(page.contains("\norlop_read_only 1\n"), "{page}");
    let stores = store.ok(["stores"]);
    assert!(stores.contains("it takes no changes: ") && stores.contains("start it again"), "{stores}");
    let checked = store.run(["check"]);
    assert_eq!(checked.code, 5, "{}", checked.err);
    assert!(checked.out.contains("metadata-stopped"), "{}", checked.out);
}

fn refuses(store: &Orlop, args: &[&str]) {
    let done = store.run(args);
    assert_eq!(done.code, 8, "{args:?}: {}", done.err);
    for says in ["takes no changes any more", "os error", "  hint: ", "start the daemon again"] {
        assert!(done.err.contains(says), "{args:?}: no {says} in {}", done.err);
    }
}

fn one(call: &'static str, file: &'static str, fault: Fault) {
    let store = Orlop::new();
    store.ok(["import", &archive(&store, "one")]);
    let (id, two) = (image("one").image_id().expect("an image").to_string(), archive(&store, "two"));
    let mut faults = None;
    let mut served = serve(&store, &mut faults);
    let faults = faults.expect("it was started");
    let metrics = common::metrics_address(&mut served);
    let runtime = Runtime::new().expect("a runtime");
    let channel = |socket: &Path| runtime.block_on(orlop_api::channel::unix(socket)).expect("a connection");
    let clients: Vec<Channel> = (0..CLIENTS).map(|_| channel(&served.socket())).collect();
    assert_eq!(health(&runtime, &clients[0], "orlop.writable"), 1, "SERVING");

    // Once: the disk may do as if it were well again, but what it was told before is lost.
    let which = Box::new(move |site: &orlop_testkit::faults::Site| site.call == call && site.path == Path::new(file));
    faults.set(Rule { which, from: 0, lasting: false, act: Act::Fail(fault) });
    let done = output(&mut store.command(["tag", "one:1", "first:1"]));
    assert_eq!(faults.clear().len(), 1, "{call} of {file} was not called");
    assert!(!done.status.success());
    crate::outcome::wrong(&done, fault).unwrap_or_else(|found| panic!("{found}"));

    let writes: [&[&str]; 6] =
        [&["tag", "one:1", "x:1"], &["rm", "one:1"], &["import", &two], &["gc"], &["leases", "create"], &["scrub"]];
    std::thread::scope(|scope| {
        for args in writes {
            let store = &store;
            scope.spawn(move || refuses(store, args));
        }
        runtime.block_on(async {
            let mut reads = tokio::task::JoinSet::new();
            for client in &clients {
                reads.spawn(kubelet_reads(client.clone(), id.clone()));
            }
            reads.join_all().await;
        });
    });
    store.ok(["export", "one:1", "-O", store.path("out.tar").to_str().expect("a plain path")]);
    store.ok(["verify", "-q", "one:1"]);
    served.process().wait_for(|_| (health(&runtime, &clients[0], "orlop.writable") == 2).then_some(()));
    assert_eq!(health(&runtime, &clients[0], ""), 1, "the process serves");
    says_so(&store, &metrics);
    let log = served.log();
    assert_eq!(log.matches("the disk fails beneath the metadata").count(), 1, "{log}");
    drop((clients, served));

    let served = store.serve(&[]);
    assert_eq!(health(&runtime, &channel(&served.socket()), "orlop.writable"), 1, "SERVING again");
    store.ok(["tag", "--force", "one:1", "x:1"]);
    store.ok(["import", &two]);
    let targets: BTreeMap<String, String> = store.json(["images", "--all"])["records"]
        .as_array()
        .expect("records")
        .iter()
        .map(|record| (record["name"].to_string(), record["target"]["digest"].to_string()))
        .collect();
    for name in ["one:1", "x:1", "two:1"] {
        assert!(targets.contains_key(&format!("\"docker.io/library/{name}\"")), "{name}: {targets:?}");
    }
    store.is_sound();
}

#[test]
fn the_first_error_of_the_disk_stops_writes_and_says_so() {
    if !(common::is_root("faults") && Faults::available()) {
        return;
    }
    for (call, file, fault) in FIRST {
        one(call, file, fault);
    }
}
