//! A side of a comparison of mounts, and what its clients see.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use orlop_api::containerd::services::mounts::v1 as pb;
use orlop_api::containerd::services::mounts::v1::mounts_client::MountsClient;
use orlop_api::containerd::types::{ActivationInfo, Mount};
use orlop_metadata::Store;
use orlop_metadata::gc::Disposal;
use orlop_testkit::mounts::{Cleaned, mounted};
use tonic::Status;
use tonic::transport::Channel;

use super::{Node, leased, request};

pub type Map = BTreeMap<String, String>;

pub fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    Mount { r#type: kind.into(), source: source.into(), options, ..Mount::default() }
}

/// A root that is served, where it is, and what unmounts all below it in the end.
pub fn node() -> (Node, PathBuf, Cleaned) {
    let node = Node::new();
    let root = node.store.root().to_owned();
    (node, root.clone(), Cleaned(root))
}

/// Collects until nothing is mounted any more: what a test has closed, a program that another test of this process is just
/// starting may still hold, until it is there.
pub fn collect_until_unmounted(store: &Store) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        store.collect(Disposal::Reclaim).unwrap();
        let left = mounted(store.root());
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "still mounted: {left:?}");
    }
}

/// One side, and a directory in which it may make directories: `a` with `sub/file`, `b` with `other`.
pub struct Side {
    pub channel: Channel,
    pub client: MountsClient<Channel>,
    pub work: PathBuf,
}

impl Side {
    pub fn new(channel: &Channel, root: &Path) -> Self {
        let work = root.join("snapshots/work");
        std::fs::create_dir_all(work.join("a/sub")).unwrap();
        std::fs::create_dir_all(work.join("b")).unwrap();
        std::fs::write(work.join("a/sub/file"), "a").unwrap();
        std::fs::write(work.join("b/other"), "b").unwrap();
        Self { channel: channel.clone(), client: MountsClient::new(channel.clone()), work }
    }

    pub fn at(&self, path: &str) -> String {
        self.work.join(path).display().to_string()
    }

    pub async fn activate(
        &mut self,
        name: &str,
        mounts: Vec<Mount>,
        labels: Map,
        temporary: bool,
        lease: Option<&str>,
    ) -> Result<ActivationInfo, Status> {
        let wanted = pb::ActivateRequest { name: name.into(), mounts, labels, temporary };
        let wanted = lease.map_or_else(|| request(wanted.clone()), |lease| leased(lease, wanted.clone()));
        Ok(self.client.activate(wanted).await?.into_inner().info.unwrap())
    }

    pub async fn info(&mut self, name: &str) -> Result<ActivationInfo, Status> {
        Ok(self.client.info(request(pb::InfoRequest { name: name.into() })).await?.into_inner().info.unwrap())
    }

    pub async fn deactivate(&mut self, name: &str) -> Result<(), Status> {
        self.client.deactivate(request(pb::DeactivateRequest { name: name.into() })).await.map(drop)
    }

    pub async fn names(&mut self) -> Vec<String> {
        let mut listed = self.client.list(request(pb::ListRequest::default())).await.unwrap().into_inner();
        let mut names = Vec::new();
        while let Some(message) = listed.message().await.unwrap() {
            names.extend(message.info.map(|info| info.name));
        }
        names.sort();
        names
    }

    /// What a client sees, without what differs: of the mounts made, containerd keeps type and place alone.
    pub fn shown(&self, answer: Result<ActivationInfo, Status>) -> String {
        let info = match answer {
            Ok(info) => info,
            Err(status) => return format!("{:?}", status.code()),
        };
        let kinds: Vec<String> = info.active.iter().map(|a| a.mount.clone().unwrap().r#type).collect();
        let mut text = format!("{} {kinds:?} {:?} {:?}", info.name, info.system, info.labels);
        for (at, active) in info.active.iter().enumerate() {
            assert!(active.mounted_at.as_ref().is_some_and(|at| at.seconds > 1_700_000_000));
            assert!(mounted(Path::new("/")).iter().any(|(point, _)| *point == Path::new(&active.mount_point)));
            text = text.replace(&active.mount_point, &format!("@{at}"));
        }
        text.replace(&self.work.display().to_string(), "@work")
    }
}
