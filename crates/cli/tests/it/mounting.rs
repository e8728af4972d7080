//! What a daemon has mounted for its clients: when it ends, is killed, has no right to mount, or lacks a program.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common;
use crate::common::{Orlop, binary};
use orlop_api::containerd::services::leases::v1 as leases;
use orlop_api::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_api::containerd::services::mounts::v1 as pb;
use orlop_api::containerd::services::mounts::v1::mounts_client::MountsClient;
use orlop_api::containerd::types::{ActivationInfo, Mount};
use orlop_api::{LEASE_HEADER, NAMESPACE_HEADER};
use orlop_testkit::archive::oci_archive;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::mounts::{Cleaned, loops, mounted, need_file_system, need_loop_devices, no_loops};
use orlop_testkit::process::{Daemon, need, need_root};
use orlop_testkit::served::Served;
use orlop_testkit::tar::Entry;
use rustix::process::Signal;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

const NOBODY: u32 = 65534;

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE_HEADER, "test".parse().unwrap());
    request.metadata_mut().insert(LEASE_HEADER, "lease".parse().unwrap());
    request
}

/// Mount points, and what is left to the client.
type Shown = (Vec<String>, Vec<Mount>);

/// A client of a socket, with a lease that outlasts the daemon.
struct Client {
    runtime: Runtime,
    mounts: MountsClient<Channel>,
}

impl Client {
    fn of(socket: &Path) -> Self {
        let runtime = Runtime::new().unwrap();
        let channel = runtime.block_on(orlop_api::channel::unix(socket)).unwrap();
        let lease = leases::CreateRequest { id: "lease".into(), ..Default::default() };
        let mut wanted = request(lease);
        wanted.metadata_mut().remove(LEASE_HEADER);
        // After a restart it is there.
        let _ = runtime.block_on(LeasesClient::new(channel.clone()).create(wanted));
        Self { runtime, mounts: MountsClient::new(channel) }
    }

    fn activate(&mut self, name: &str, mounts: Vec<Mount>, temporary: bool) -> Result<ActivationInfo, Status> {
        let wanted = pb::ActivateRequest { name: name.into(), mounts, labels: BTreeMap::new(), temporary };
        let answer = self.runtime.block_on(self.mounts.activate(request(wanted)))?;
        Ok(answer.into_inner().info.unwrap())
    }

    fn info(&mut self, name: &str) -> Result<Shown, Status> {
        let answer = self.runtime.block_on(self.mounts.info(request(pb::InfoRequest { name: name.into() })))?;
        Ok(parts(answer.into_inner().info.unwrap()))
    }

    fn deactivate(&mut self, name: &str) -> Result<(), Status> {
        let wanted = request(pb::DeactivateRequest { name: name.into() });
        self.runtime.block_on(self.mounts.deactivate(wanted)).map(drop)
    }
}

fn parts(info: ActivationInfo) -> Shown {
    (info.active.into_iter().map(|active| active.mount_point).collect(), info.system)
}

fn mount(kind: &str, source: &Path, options: &[&str]) -> Mount {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    Mount { r#type: kind.into(), source: source.display().to_string(), options, ..Mount::default() }
}

fn ext4(source: &Path) -> Mount {
    mount("mkfs/ext4", source, &["X-containerd.mkfs.size=8m", "loop"])
}

/// A directory below a root in which clients may have things made.
fn work(root: &Path) -> PathBuf {
    let work = root.join("snapshots/work");
    std::fs::create_dir_all(work.join("tree/sub")).unwrap();
    work
}

fn can_mount_files() -> bool {
    need_root() && need_loop_devices() && need_file_system("ext4") && need("mkfs.ext4", "e2fsprogs").is_some()
}

/// Two activations and what they wrote: one with a loop device, one that leaves something to the client.
fn activated(client: &mut Client, work: &Path) -> Vec<(&'static str, Shown)> {
    let below = mount("format/bind", Path::new("{{ mount 0 }}/sub"), &["rbind"]);
    let image = client.activate("image", vec![ext4(&work.join("image"))], true).unwrap();
    std::fs::write(Path::new(&image.active[0].mount_point).join("file"), "written").unwrap();
    let bound = client.activate("bound", vec![mount("bind", &work.join("tree"), &["rbind"]), below], false).unwrap();
    vec![("image", parts(image)), ("bound", parts(bound))]
}

/// They are all there, work, and end as if nothing had been.
fn still_there(client: &mut Client, points: &Path, work: &Path, before: &[(&str, Shown)]) {
    for (name, shown) in before {
        assert_eq!(&client.info(name).unwrap(), shown);
    }
    assert_eq!((mounted(points).len(), loops(work).len()), (2, 1));
    let image = &before[0].1.0[0];
    assert_eq!(std::fs::read_to_string(Path::new(image).join("file")).unwrap(), "written");
    for (name, _) in before {
        client.deactivate(name).unwrap();
    }
    no_loops(work);
    assert_eq!(mounted(points).len(), 0);
}

/// What containerd does is seen first: activations outlast it, whichever way it ends.
#[test]
fn activations_outlast_the_daemon_however_it_ends() {
    if !can_mount_files() {
        return;
    }
    for signal in [Signal::TERM, Signal::KILL] {
        if let Some(programs) = Programs::current() {
            let mut containerd = Containerd::start(&programs, &Options::default());
            let (work, state) = (work(&containerd.root()), containerd.root().with_file_name("state"));
            let before = activated(&mut Client::of(&containerd.socket()), &work);
            containerd.restart(signal);
            still_there(&mut Client::of(&containerd.socket()), &state, &work, &before);
        }
        let store = Orlop::new();
        let _cleaned = Cleaned(store.root());
        let mut served = store.serve(&[]);
        let work = work(&store.root());
        let before = activated(&mut Client::of(&served.socket()), &work);
        served.process().signal(signal);
        served.process().wait();
        assert_eq!((mounted(&store.root()).len(), loops(&work).len()), (2, 1), "{signal:?}");
        let served = store.serve(&[]);
        still_there(&mut Client::of(&served.socket()), &store.root(), &work, &before);
        assert_eq!(std::fs::read_dir(store.root().join("mounts")).unwrap().count(), 0);
        drop(served);
        store.is_sound();
    }
}

/// What was lost while no daemon was there, as by a restart of the machine, is found out; its device went with it.
#[test]
fn what_was_unmounted_meanwhile_is_forgotten_by_the_next_daemon() {
    if !can_mount_files() {
        return;
    }
    let store = Orlop::new();
    let _cleaned = Cleaned(store.root());
    let mut served = store.serve(&[]);
    let work = work(&store.root());
    let before = activated(&mut Client::of(&served.socket()), &work);
    served.process().kill();
    rustix::mount::unmount(before[0].1.0[0].as_str(), rustix::mount::UnmountFlags::empty()).unwrap();
    no_loops(&work);
    let mut served = store.serve(&[]);
    let root = store.root();
    served.process().wait_for(|_| (std::fs::read_dir(root.join("mounts")).unwrap().count() == 1).then_some(()));
    let mut client = Client::of(&served.socket());
    assert_eq!(client.info("image").unwrap_err().code(), Code::NotFound);
    assert_eq!(client.info("bound").unwrap(), before[1].1);
    client.deactivate("bound").unwrap();
    assert_eq!(mounted(&root).len(), 0);
}

/// A daemon that finds `program` where its `PATH` says: a script, or nothing.
fn with_program(store: &Orlop, name: &str, script: Option<&str>) -> Served {
    let bin = store.path("bin");
    std::fs::create_dir_all(&bin).unwrap();
    if let Some(script) = script {
        // A new file each time: one that is written cannot be executed.
        std::fs::write(bin.join("new"), format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(bin.join("new"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(bin.join("new"), bin.join(name)).unwrap();
    }
    let mut command = binary();
    command.env("PATH", &bin);
    Served::start(command, &store.root(), &[])
}

#[test]
fn a_program_that_is_missing_or_fails_is_named_and_leaves_nothing() {
    let store = Orlop::new();
    std::fs::create_dir_all(store.root()).unwrap();
    for (script, code, words) in [
        (None, Code::FailedPrecondition, vec!["mkfs.ext4 is not installed", "e2fsprogs"]),
        (
            Some("echo half >/proc/self/fd/0; echo 'its reason' >&2; exit 3"),
            Code::Internal,
            vec!["its reason", "exit status: 3"],
        ),
        (Some("kill -9 $$"), Code::Internal, vec!["mkfs.ext4 failed", "signal: 9"]),
        (Some("echo 'x: No space left on device' >&2; exit 1"), Code::ResourceExhausted, vec!["No space left"]),
    ] {
        let served = with_program(&store, "mkfs.ext4", script);
        let image = work(&store.root()).join("image");
        let mut client = Client::of(&served.socket());
        let told = client.activate("a", vec![ext4(&image)], false).unwrap_err();
        assert!(told.code() == code && words.iter().all(|word| told.message().contains(word)), "{script:?}: {told:?}");
        assert!(!image.exists());
        assert_eq!(std::fs::read_dir(image.parent().unwrap()).unwrap().count(), 1, "only the tree");
        assert_eq!(std::fs::read_dir(store.root().join("mounts")).unwrap().count(), 0);
        assert_eq!(client.info("a").unwrap_err().code(), Code::NotFound);
    }
}

/// Killed between the first mount and the second, a daemon leaves the first; the next one takes it back when it starts, not
/// after the hour that an activation may take.
#[test]
fn what_a_killed_daemon_was_making_is_taken_back_by_the_next() {
    if !need_root() {
        return;
    }
    let store = Orlop::new();
    std::fs::create_dir_all(store.root()).unwrap();
    let _cleaned = Cleaned(store.root());
    let gate = store.path("gate");
    rustix::fs::mknodat(rustix::fs::CWD, &gate, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    // It waits until somebody reads what it says.
    let mut served = with_program(&store, "mkfs.ext4", Some(&format!("echo $$ >{}", gate.display())));
    let (socket, root) = (served.socket(), store.root());
    let image = work(&root).join("image");
    let mounts = vec![mount("bind", &work(&root).join("tree"), &["rbind"]), ext4(&image)];
    let asked = std::thread::spawn(move || Client::of(&socket).activate("a", mounts, true).map(drop));
    served.process().wait_for(|_| (mounted(&root).len() == 1).then_some(()));
    served.process().kill();
    assert_ne!(asked.join().unwrap().unwrap_err().code(), Code::Ok);
    assert_eq!(mounted(&root).len(), 1, "nobody is there to take it back");
    // Lets the program end, now or when it gets there.
    let _gate = std::fs::File::options().read(true).write(true).open(&gate).unwrap();
    let mut served = store.serve(&[]);
    served.process().wait_for(|_| mounted(&root).is_empty().then_some(()));
    served.process().wait_for(|_| (std::fs::read_dir(root.join("mounts")).unwrap().count() == 0).then_some(()));
    assert!(!image.exists());
    assert_eq!(Client::of(&served.socket()).info("a").unwrap_err().code(), Code::NotFound);
    drop(served);
    store.is_sound();
}

#[test]
fn a_daemon_that_may_not_mount_says_so_and_leaves_nothing() {
    if !need_root() || need("mkfs.ext4", "e2fsprogs").is_none() {
        return;
    }
    let store = Orlop::new();
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(store.path(""), open).unwrap();
    let (program, socket, root) = (store.path("orlop"), store.path("s"), store.root());
    common::publish(&program);
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &NOBODY.to_string(), "--regid", &NOBODY.to_string(), "--clear-groups"]).arg(&program);
    command
        .arg("serve")
        .arg("--root")
        .arg(&root)
        .arg("--socket")
        .arg(&socket)
        .env_remove("ORLOP_CONFIG")
        .current_dir("/");
    let mut daemon = Daemon::start(&mut command, &store.path("log")).unwrap();
    daemon.wait_for(|_| std::os::unix::net::UnixStream::connect(&socket).ok());
    let work = work(&root);
    for path in [work.clone(), work.join("tree")] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let mut client = Client::of(&socket);
    // What takes no right to mount is done.
    let made = client.activate("left", vec![ext4(&work.join("image"))], false).unwrap();
    assert_eq!((made.active.len(), made.system.len()), (0, 1));
    assert_eq!(std::fs::metadata(work.join("image")).unwrap().len(), 8 << 20);
    client.deactivate("left").unwrap();
    let (tree, image) = (work.join("tree"), work.join("image"));
    for (name, wanted) in [
        ("bind", mount("bind", &tree, &["rbind"])),
        ("tmpfs", mount("tmpfs", Path::new("tmpfs"), &[])),
        ("overlay", mount("overlay", Path::new("overlay"), &[&format!("lowerdir={0}:{0}/sub", tree.display())])),
        ("loop", ext4(&image)),
        ("erofs", mount("erofs", &image, &[])),
    ] {
        let told = client.activate(name, vec![wanted], true).unwrap_err();
        assert_eq!(told.code(), Code::PermissionDenied, "{name}: {told:?}");
        let says = told.message().contains("may not mount") || told.message().contains("/dev/loop");
        assert!(says, "{name}: {}", told.message());
        assert_eq!(std::fs::read_dir(root.join("mounts")).unwrap().count(), 0, "{name}");
        assert_eq!(client.info(name).unwrap_err().code(), Code::NotFound);
    }
    assert_eq!((mounted(&root).len(), loops(&root).len()), (0, 0));
}

/// Regression: after a start of the machine, or a mount that failed on a full disk and could not be taken back, `umount` failed because
/// nothing was mounted, and `mount` because something was.
#[test]
fn a_mount_that_is_gone_is_put_away() {
    if !need_root() {
        return;
    }
    let store = Orlop::new();
    let image = Content::image(&Image::host().layer(Layer::new([Entry::file("hello", "hello")])));
    let (archive, place) = (store.path("image.tar"), store.path("mounted"));
    std::fs::write(&archive, oci_archive(&[("docker.io/library/good:1", &image)])).unwrap();
    store.ok(["import", archive.to_str().unwrap()]);
    std::fs::create_dir(&place).unwrap();
    let place = place.to_str().unwrap();
    store.ok(["mount", "good:1", place]);
    rustix::mount::unmount(place, rustix::mount::UnmountFlags::empty()).unwrap();
    let done = store.run(["mount", "good:1", place]);
    assert!(done.code == 4 && done.err.contains("orlop umount"), "{done:?}");
    store.ok(["umount", place]);
    store.ok(["mount", "good:1", place]);
    assert_eq!(std::fs::read_to_string(Path::new(place).join("hello")).unwrap(), "hello");
    store.ok(["umount", place]);
    assert_eq!(store.ok(["leases", "ls", "-o", "name"]), "");
    store.is_sound();
}
