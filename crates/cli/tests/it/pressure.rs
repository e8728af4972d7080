//! Disks on which space runs out, on file systems that differ in how it does: what rests in the trash gives way to work, what is lent
//! for removals is taken by nobody else, and no process ends by it. With a daemon, while many clients are connected, and without.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::common::{Done, Orlop};
use orlop_api::runtime::v1 as cri;
use orlop_api::runtime::v1::image_service_client::ImageServiceClient;
use orlop_oci::Compression;
use orlop_testkit::archive;
use orlop_testkit::disk::{Disk, SMALL};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::served::Served;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

const MEBIBYTE: usize = 1 << 20;

/// Clients that are connected beside those that work.
const CLIENTS: usize = 16;

/// Clients that work at once.
const WORKERS: u64 = 4;

fn noise(seed: u64, bytes: usize) -> Content {
    Content::image(&Image::host().layer(Layer::noise("noise", seed, bytes).packed(Compression::Gzip)))
}

/// An archive, beside the disk, of an image that takes twice so many bytes: packed, and unpacked.
fn archived(store: &Orlop, word: &str, seed: u64, bytes: usize) -> String {
    let file = store.path(&format!("{word}.tar"));
    let name = format!("docker.io/library/{word}:1");
    std::fs::write(&file, archive::oci_archive(&[(&name, &noise(seed, bytes))])).unwrap();
    file.to_str().unwrap().to_owned()
}

fn import(store: &Orlop, word: &str, seed: u64, bytes: usize) {
    store.ok(["import", &archived(store, word, seed, bytes)]);
}

/// What `orlop undo --list` lists, newest first.
fn undoable(store: &Orlop) -> Vec<String> {
    let listed = store.json(["undo", "--list"]);
    let entries = listed["entries"].as_array().unwrap();
    entries.iter().map(|entry| entry["id"].as_str().unwrap().to_owned()).collect()
}

/// A daemon that leaves the trash alone as long as nobody meets a full disk.
fn serve(store: &Orlop) -> Served {
    let config = store.path("config.toml");
    std::fs::write(&config, "[gc]\ntrash_free_percent = 0\n").unwrap();
    store.serve(&["--config", config.to_str().unwrap()])
}

/// A test on each kind of file system.
fn on_each(test: impl Fn(&Disk, &Orlop)) {
    for kind in SMALL {
        let Some(disk) = Disk::of(kind) else { return };
        eprintln!("on {kind:?}");
        test(&disk, &Orlop::below(&disk.path()));
    }
}

/// Connections of clients that stay open; each asks what kubelet asks.
struct Crowd {
    runtime: Runtime,
    channels: Vec<Channel>,
}

impl Crowd {
    fn connect(socket: &Path) -> Self {
        let runtime = Runtime::new().unwrap();
        let channel = || runtime.block_on(orlop_api::channel::unix(socket)).unwrap();
        let channels = (0..CLIENTS).map(|_| channel()).collect();
        Self { runtime, channels }
    }

    /// Each of them is answered.
    fn is_served(&self) {
        for channel in &self.channels {
            let mut images = ImageServiceClient::new(channel.clone());
            self.runtime.block_on(images.list_images(cri::ListImagesRequest::default())).unwrap();
            self.runtime.block_on(images.image_fs_info(cri::ImageFsInfoRequest {})).unwrap();
        }
    }

    fn remove(&self, name: &str) {
        let image = Some(cri::ImageSpec { image: name.to_owned(), ..Default::default() });
        let mut images = ImageServiceClient::new(self.channels[0].clone());
        self.runtime.block_on(images.remove_image(cri::RemoveImageRequest { image })).unwrap();
    }
}

/// Regression: the import failed, although the trash had more than it needed.
#[test]
fn the_oldest_of_the_trash_gives_way_and_undo_says_what_is_gone() {
    on_each(|disk, store| {
        import(store, "old", 1, 9 * MEBIBYTE);
        import(store, "newer", 2, MEBIBYTE);
        store.ok(["rm", "old:1"]);
        store.ok(["rm", "newer:1"]);
        let [newer, old] = undoable(store).try_into().unwrap();
        let fresh = archived(store, "fresh", 3, 6 * MEBIBYTE);
        disk.fill_but(5 << 20);
        let done = store.run(["import", &fresh]);
        assert_eq!(done.code, 0, "{}", done.err);
        assert!(done.err.contains("gave way"), "{}", done.err);
        store.ok(["verify", "-q", "fresh:1"]);
        assert_eq!(undoable(store), [newer]);
        let gone = store.run(["undo", &old]);
        assert_eq!(gone.code, 3, "{}", gone.err);
        assert!(gone.err.contains("when space was needed"), "{}", gone.err);
        store.ok(["undo"]);
        store.ok(["verify", "-q", "newer:1", "fresh:1"]);
        let nothing = store.run(["undo"]);
        assert_eq!(nothing.code, 3, "{}", nothing.err);
        assert!(nothing.err.contains("when space was needed"), "{}", nothing.err);
        // Nothing is left that could give way.
        let before = store.records();
        let large = store.run(["import", &archived(store, "large", 4, 30 * MEBIBYTE)]);
        assert_eq!(large.code, 6, "{}", large.err);
        assert_eq!(store.records(), before);
        store.is_sound();
    });
}

#[test]
fn a_daemon_lets_the_trash_give_way_to_many_at_once_and_starts_again() {
    on_each(|disk, store| {
        for seed in 0..8 {
            import(store, &format!("old{seed}"), seed, 2 * MEBIBYTE);
        }
        (0..8).for_each(|seed| drop(store.ok(["rm", &format!("old{seed}:1")])));
        let names: Vec<String> = (0..WORKERS).map(|n| format!("new{n}")).collect();
        let files: Vec<String> =
            names.iter().zip(100..).map(|(name, seed)| archived(store, name, seed, 3 * MEBIBYTE)).collect();
        disk.fill_but(2 << 20);
        let served = serve(store);
        let crowd = Crowd::connect(&served.socket());
        let done: Vec<Done> = thread::scope(|scope| {
            let import = |file: &'_ String| {
                let file = file.clone();
                scope.spawn(move || store.run(["import", &file]))
            };
            let running: Vec<_> = files.iter().map(import).collect();
            crowd.is_served();
            running.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        for done in &done {
            assert_eq!(done.code, 0, "{}\n{}", done.err, served.log());
        }
        crowd.is_served();
        assert!(served.log().contains("gave way"), "{}", served.log());
        drop((crowd, served));
        let served = serve(store);
        let crowd = Crowd::connect(&served.socket());
        crowd.is_served();
        store.ok(["verify", "-q"].into_iter().map(str::to_owned).chain(names.iter().map(|name| format!("{name}:1"))));
        drop((crowd, served));
        store.is_sound();
    });
}

/// Kubelet removes an image when the disk gets full, and looks at the file system again.
#[test]
fn what_kubelet_removes_takes_the_trash_with_it_where_the_disk_gets_full() {
    on_each(|disk, store| {
        import(store, "old", 1, 4 * MEBIBYTE);
        import(store, "roomy", 2, MEBIBYTE);
        import(store, "tight", 3, MEBIBYTE);
        store.ok(["rm", "old:1"]);
        let served = serve(store);
        let crowd = Crowd::connect(&served.socket());
        crowd.remove("docker.io/library/roomy:1");
        assert_eq!(undoable(store).len(), 1, "nobody needs the space");
        disk.fill_but(12 << 20);
        crowd.remove("docker.io/library/tight:1");
        assert_eq!(undoable(store).len(), 0);
        crowd.is_served();
        drop((crowd, served));
        store.is_sound();
    });
}

/// What others do who bring something in, until they are told to stop.
fn bring(store: &Orlop, file: &str, ended: &AtomicBool) {
    while !ended.load(Ordering::SeqCst) {
        let done = store.run(["import", file]);
        assert!([0, 6].contains(&done.code), "{}: {}", done.code, done.err);
        let name = file.rsplit('/').next().unwrap().replace(".tar", ":1");
        let removed = store.run(["rm", "--no-trash", &name]);
        assert!([0, 3].contains(&removed.code), "{}: {}", removed.code, removed.err);
    }
}

/// Images are removed from a disk without a free block, each by a client of its own, while others bring something in.
fn removed_beside_others(store: &Orlop, seeds: std::ops::Range<u64>) {
    let files: Vec<String> =
        (0..WORKERS).map(|n| archived(store, &format!("other{n}"), 100 + n, 4 * MEBIBYTE)).collect();
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let ended = &ended;
        let others: Vec<_> = files.iter().map(|file| scope.spawn(move || bring(store, file, ended))).collect();
        let removing: Vec<_> =
            seeds.map(|seed| scope.spawn(move || store.run(["rm", &format!("mine{seed}:1")]))).collect();
        let done: Vec<Done> = removing.into_iter().map(|worker| worker.join().unwrap()).collect();
        ended.store(true, Ordering::SeqCst);
        others.into_iter().for_each(|worker| worker.join().unwrap());
        for done in done {
            assert_eq!(done.code, 0, "{}", done.err);
        }
    });
}

/// Regression: what was lent to one was taken by another that brought something in.
#[test]
fn what_is_lent_for_removals_is_taken_by_nobody_else() {
    on_each(|disk, store| {
        (0..12).for_each(|seed| import(store, &format!("mine{seed}"), seed, MEBIBYTE / 4));
        disk.fill();
        removed_beside_others(store, 0..6);
        std::fs::remove_file(disk.path().join("filler")).unwrap();
        store.is_sound();
        disk.fill();
        let served = serve(store);
        let crowd = Crowd::connect(&served.socket());
        removed_beside_others(store, 6..12);
        crowd.is_served();
        drop((crowd, served));
        assert!(store.records().iter().all(|name| !name.contains("mine")), "{:?}", store.records());
        store.is_sound();
    });
}
