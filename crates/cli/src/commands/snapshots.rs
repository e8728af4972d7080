//! `orlop snapshots`: file trees by key, in `ctr`'s words.

use std::collections::{BTreeMap, HashMap};

use clap::Subcommand;
use orlop_api::containerd::services::snapshots::v1 as api;
use orlop_api::containerd::types::Mount;
use serde::Serialize;

use super::Context;
use super::content::{join_labels, label_mask, parse_labels};
use crate::args::Format;
use crate::error::Result;
use crate::output::{self, Table, size, time};

/// Which driver.
#[derive(Debug, clap::Args)]
pub(crate) struct Driver {
    /// overlayfs or native
    #[arg(long, value_name = "S", default_value = "overlayfs")]
    snapshotter: String,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Snapshots {
    /// List snapshots
    Ls {
        /// containerd's filter syntax: name, parent, kind, labels.KEY
        filter: Vec<String>,
        #[command(flatten)]
        driver: Driver,
    },
    /// Show snapshots under their parents
    Tree {
        #[command(flatten)]
        driver: Driver,
    },
    /// Show what snapshots take on disk, parents not counted
    Usage {
        /// Keys; all if none is given
        keys: Vec<String>,
        #[command(flatten)]
        driver: Driver,
    },
    /// Show one snapshot
    Info {
        /// Its key
        key: String,
        #[command(flatten)]
        driver: Driver,
    },
    /// Show how to mount a snapshot
    Mounts {
        /// Its key
        key: String,
        #[command(flatten)]
        driver: Driver,
    },
    /// Make a writable snapshot; prints how to mount it
    Prepare {
        /// Its key
        key: String,
        /// The committed snapshot below
        parent: Option<String>,
        #[command(flatten)]
        driver: Driver,
    },
    /// Make a read-only view; prints how to mount it
    View {
        /// Its key
        key: String,
        /// The committed snapshot to view
        parent: Option<String>,
        #[command(flatten)]
        driver: Driver,
    },
    /// Commit a writable snapshot under a new key
    Commit {
        /// The new key
        name: String,
        /// The writable snapshot
        key: String,
        #[command(flatten)]
        driver: Driver,
    },
    /// Remove snapshots
    #[command(visible_alias = "remove")]
    Rm {
        /// Their keys
        #[arg(required = true)]
        keys: Vec<String>,
        #[command(flatten)]
        driver: Driver,
    },
    /// Set labels: KEY=VALUE; an empty value deletes
    Label {
        /// Its key
        key: String,
        /// KEY=VALUE
        #[arg(required = true)]
        labels: Vec<String>,
        #[command(flatten)]
        driver: Driver,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Snapshot {
    name: String,
    parent: String,
    kind: &'static str,
    created_at: String,
    updated_at: String,
    labels: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct List {
    schema: &'static str,
    snapshots: Vec<Snapshot>,
}

const fn kind_word(kind: api::Kind) -> &'static str {
    match kind {
        api::Kind::Unknown => "unknown",
        api::Kind::View => "view",
        api::Kind::Active => "active",
        api::Kind::Committed => "committed",
    }
}

fn snapshot(info: api::Info) -> Snapshot {
    Snapshot {
        kind: kind_word(info.kind()),
        created_at: time(info.created_at.as_ref()),
        updated_at: time(info.updated_at.as_ref()),
        name: info.name,
        parent: info.parent,
        labels: info.labels,
    }
}

/// Runs `snapshots`.
pub(crate) async fn run(context: &Context, command: Snapshots) -> Result<()> {
    match command {
        Snapshots::Ls { filter, driver } => list(context, driver, filter).await,
        Snapshots::Tree { driver } => tree(context, driver).await,
        Snapshots::Usage { keys, driver } => usage(context, &driver, keys).await,
        Snapshots::Info { key, driver } => info(context, driver, key).await,
        Snapshots::Mounts { key, driver } => {
            let request = api::MountsRequest { snapshotter: driver.snapshotter, key };
            print_mounts(&context.clients.snapshots().mounts(request).await?.into_inner().mounts)
        }
        Snapshots::Prepare { key, parent, driver } => prepare(context, driver, key, parent).await,
        Snapshots::View { key, parent, driver } => view(context, driver, key, parent).await,
        Snapshots::Commit { name, key, driver } => {
            let labels = gc_root();
            let request =
                api::CommitSnapshotRequest { snapshotter: driver.snapshotter, name, key, labels, ..Default::default() };
            context.clients.snapshots().commit(request).await?;
            Ok(())
        }
        Snapshots::Rm { keys, driver } => remove(context, &driver, keys).await,
        Snapshots::Label { key, labels, driver } => set_labels(context, driver, key, &labels).await,
    }
}

async fn fetch(context: &Context, snapshotter: &str, filters: Vec<String>) -> Result<Vec<api::Info>> {
    let request = api::ListSnapshotsRequest { snapshotter: snapshotter.to_owned(), filters };
    let mut stream = context.clients.snapshots().list(request).await?.into_inner();
    let mut infos = Vec::new();
    while let Some(page) = stream.message().await? {
        infos.extend(page.info);
    }
    Ok(infos)
}

async fn list(context: &Context, driver: Driver, filters: Vec<String>) -> Result<()> {
    let infos = fetch(context, &driver.snapshotter, filters).await?;
    match context.global.output {
        Format::Name => output::names(infos.iter().map(|i| i.name.as_str())),
        Format::Json | Format::Yaml => {
            let snapshots = infos.into_iter().map(snapshot).collect();
            output::document(context.global.output, &List { schema: "orlop.snapshots/v1", snapshots })
        }
        Format::Table | Format::Wide => {
            let mut table = Table::new(&["KEY", "PARENT", "KIND"]);
            for i in infos {
                let kind = kind_word(i.kind()).to_owned();
                table.row([i.name, i.parent, kind]);
            }
            table.print()
        }
    }
}

async fn tree(context: &Context, driver: Driver) -> Result<()> {
    let infos = fetch(context, &driver.snapshotter, Vec::new()).await?;
    let mut children: HashMap<&str, Vec<&str>> = HashMap::new();
    for info in &infos {
        children.entry(&info.parent).or_default().push(&info.name);
    }
    let mut text = String::new();
    let mut stack: Vec<(usize, &str)> = children.get("").into_iter().flatten().rev().map(|n| (0, *n)).collect();
    while let Some((depth, name)) = stack.pop() {
        text.push_str(&"  ".repeat(depth));
        text.push_str(name);
        text.push('\n');
        stack.extend(children.get(name).into_iter().flatten().rev().map(|n| (depth + 1, *n)));
    }
    output::print_text(&text)
}

async fn usage(context: &Context, driver: &Driver, keys: Vec<String>) -> Result<()> {
    let keys = if keys.is_empty() {
        fetch(context, &driver.snapshotter, Vec::new()).await?.into_iter().map(|i| i.name).collect()
    } else {
        keys
    };
    let mut table = Table::new(&["KEY", "SIZE", "INODES"]);
    for key in keys {
        let request = api::UsageRequest { snapshotter: driver.snapshotter.clone(), key: key.clone() };
        let u = context.clients.snapshots().usage(request).await?.into_inner();
        table.row([key, size(u.size.max(0) as u64), u.inodes.to_string()]);
    }
    table.print()
}

async fn info(context: &Context, driver: Driver, key: String) -> Result<()> {
    let request = api::StatSnapshotRequest { snapshotter: driver.snapshotter, key };
    let info = context.clients.snapshots().stat(request).await?.into_inner().info.unwrap_or_default();
    let format = if context.global.output == Format::Yaml { Format::Yaml } else { Format::Json };
    output::document(format, &List { schema: "orlop.snapshots/v1", snapshots: vec![snapshot(info)] })
}

async fn prepare(context: &Context, driver: Driver, key: String, parent: Option<String>) -> Result<()> {
    let request = api::PrepareSnapshotRequest {
        snapshotter: driver.snapshotter,
        key,
        parent: parent.unwrap_or_default(),
        labels: gc_root(),
    };
    print_mounts(&context.clients.snapshots().prepare(request).await?.into_inner().mounts)
}

async fn view(context: &Context, driver: Driver, key: String, parent: Option<String>) -> Result<()> {
    let request = api::ViewSnapshotRequest {
        snapshotter: driver.snapshotter,
        key,
        parent: parent.unwrap_or_default(),
        labels: gc_root(),
    };
    print_mounts(&context.clients.snapshots().view(request).await?.into_inner().mounts)
}

/// What a person makes by hand stays until it is removed by hand; `ctr` does the same.
fn gc_root() -> BTreeMap<String, String> {
    BTreeMap::from([("containerd.io/gc.root".to_owned(), jiff::Timestamp::now().to_string())])
}

async fn remove(context: &Context, driver: &Driver, keys: Vec<String>) -> Result<()> {
    for key in keys {
        let request = api::RemoveSnapshotRequest { snapshotter: driver.snapshotter.clone(), key: key.clone() };
        context.clients.snapshots().remove(request).await?;
        output::line(key)?;
    }
    Ok(())
}

async fn set_labels(context: &Context, driver: Driver, key: String, labels: &[String]) -> Result<()> {
    let labels = parse_labels(labels)?;
    let update_mask = Some(label_mask(&labels));
    let info = api::Info { name: key, labels, ..Default::default() };
    let request = api::UpdateSnapshotRequest { snapshotter: driver.snapshotter, info: Some(info), update_mask };
    let answer = context.clients.snapshots().update(request).await?.into_inner();
    output::line(join_labels(&answer.info.unwrap_or_default().labels))
}

/// As mount(8) takes it, so that it can be pasted after `mount`.
fn print_mounts(mounts: &[Mount]) -> Result<()> {
    for mount in mounts {
        output::line(format!("-t {} {} -o {}", mount.r#type, mount.source, mount.options.join(",")))?;
    }
    Ok(())
}
