//! Mounts that a helper program makes, `fuse.…` and `fuse3.…`: the daemon calls it as containerd does. Needs root.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::common::{Orlop, binary};
use orlop_api::containerd::services::leases::v1 as leases;
use orlop_api::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_api::containerd::services::mounts::v1 as pb;
use orlop_api::containerd::services::mounts::v1::mounts_client::MountsClient;
use orlop_api::containerd::types::Mount;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::mounts::mounted;
use orlop_testkit::process::need_root;
use orlop_testkit::served::Served;
use tonic::{Code, Status};

/// A directory of programs: helpers that note how they are called, fail for the source `broken`, and else mount.
struct Helpers {
    directory: tempfile::TempDir,
}

impl Helpers {
    fn new() -> Self {
        let helpers = Self { directory: tempfile::tempdir().unwrap() };
        let calls = helpers.at("calls").display().to_string();
        for name in ["mount.fuse", "mount.fuse3"] {
            helpers.program(
                name,
                &format!(
                    "echo {name} \"$@\" >> {calls}\nif [ \"$1\" = broken ]; then echo no good >&2; exit 3; fi\n\
                     exec mount -t tmpfs -o size=64k helped \"$2\""
                ),
            );
        }
        helpers
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn program(&self, name: &str, script: &str) -> PathBuf {
        let path = self.at(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn path(&self) -> String {
        format!("{}:{}", self.directory.path().display(), std::env::var("PATH").unwrap())
    }
}

fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert(orlop_api::NAMESPACE_HEADER, "test".parse().unwrap());
    request
}

/// What a client sees and what helpers were called with; mount points as `@`.
async fn transcript(socket: &Path, helpers: &Helpers, points: &Path) -> (Vec<String>, Vec<Status>) {
    let channel = orlop_api::channel::unix(socket).await.unwrap();
    let create = leases::CreateRequest { id: "lease".into(), ..Default::default() };
    LeasesClient::new(channel.clone()).create(request(create)).await.unwrap();
    let mut client = MountsClient::new(channel);
    let (mut told, mut failed) = (Vec::new(), Vec::new());
    for (name, kind, source, options, temporary) in [
        ("old", "fuse.sshfs", "host:/", vec![], true),
        ("new", "fuse3.over", "x", vec!["ro", "lowerdir=/a:/b,upperdir=/c"], true),
        ("before", "fuse3.over", "x", vec![], false),
        ("fails", "fuse3.over", "broken", vec!["ro"], true),
    ] {
        let options = options.into_iter().map(str::to_owned).collect();
        let mut mounts = vec![Mount { r#type: kind.into(), source: source.into(), options, ..Mount::default() }];
        if !temporary {
            let next = Mount { r#type: "format/bind".into(), source: "{{ mount 0 }}".into(), ..Mount::default() };
            mounts.push(next);
        }
        let mut wanted = request(pb::ActivateRequest { name: name.into(), mounts, temporary, ..Default::default() });
        wanted.metadata_mut().insert(orlop_api::LEASE_HEADER, "lease".parse().unwrap());
        let point = match client.activate(wanted).await {
            Ok(answer) => {
                let info = answer.into_inner().info.unwrap();
                let point = info.active[0].mount_point.clone();
                let kind = info.active[0].mount.clone().unwrap().r#type;
                told.push(format!("{name} {kind} {:?}", info.system).replace(&point, "@"));
                told.push(format!("mounted {:?}", mounted(points).iter().map(|m| m.1.clone()).collect::<Vec<_>>()));
                let wanted = request(pb::DeactivateRequest { name: name.into() });
                client.deactivate(wanted).await.unwrap();
                point
            }
            Err(status) => {
                failed.push(status);
                String::new()
            }
        };
        let calls = std::fs::read_to_string(helpers.at("calls")).unwrap();
        // Of a call that failed nobody is told the place: it is what stands there.
        let call = calls.lines().last().unwrap();
        let place = if point.is_empty() { call.split(' ').nth(2).unwrap() } else { &point };
        told.push(call.replace(place, "@"));
        assert_eq!(mounted(points), [], "{name}");
    }
    (told, failed)
}

#[test]
fn the_helper_of_a_fuse_type_is_called_as_containerd_calls_it() {
    if !need_root() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (store, helpers) = (Orlop::new(), Helpers::new());
    let mut command = binary();
    command.env("PATH", helpers.path());
    let served = Served::start(command, &store.root(), &[]);
    let (ours, failed) = runtime.block_on(transcript(&served.socket(), &helpers, &store.root()));
    assert_eq!(ours[2], "mount.fuse host:/ @ -t sshfs", "{ours:#?}");
    assert_eq!(ours.last().unwrap(), "mount.fuse3 broken @ -o ro -t over");
    assert_eq!((failed.len(), failed[0].code()), (1, Code::Internal), "{failed:?}");
    assert!(
        failed[0].message().contains("mount.fuse3 failed") && failed[0].message().contains("no good"),
        "{failed:?}"
    );

    let (store, mut command) = (Orlop::new(), binary());
    command.env("PATH", helpers.at("nothing"));
    let served = Served::start(command, &store.root(), &[]);
    let status = runtime.block_on(async {
        let channel = orlop_api::channel::unix(&served.socket()).await.unwrap();
        let mounts = vec![Mount { r#type: "fuse.sshfs".into(), source: "x".into(), ..Mount::default() }];
        let wanted = pb::ActivateRequest { name: "none".into(), mounts, temporary: true, ..Default::default() };
        MountsClient::new(channel).activate(request(wanted)).await.unwrap_err()
    });
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("mount.fuse is not installed"), "{status:?}");

    let Some(programs) = Programs::current() else { return };
    let helpers = Helpers::new();
    let run = format!("PATH={}\nexport PATH\nexec {} \"$@\"", helpers.path(), programs.containerd.display());
    let programs = Programs { containerd: helpers.program("run", &run), ..programs };
    let containerd = Containerd::start(&programs, &Options::default());
    let state = containerd.root().with_file_name("state");
    let (theirs, failed) = runtime.block_on(transcript(&containerd.socket(), &helpers, &state));
    assert_eq!(ours, theirs);
    assert_eq!((failed.len(), failed[0].code()), (1, Code::Unknown), "{failed:?}");
}
