//! `orlop snapshots`: file trees by key, in `ctr`'s words.

use std::collections::{BTreeMap, HashMap};

use clap::Subcommand;
use orlop_api::containerd::services::snapshots::v1 as api;
use orlop_api::containerd::types::Mount;
use orlop_image::GC_ROOT;
use serde::Serialize;

use super::Context;
use super::content::{label_mask, parse_labels, print_labels};
use crate::args::Format;
use crate::error::Result;
use crate::output::{self, Names, Table, size, time};
use crate::paint::plain;

/// Which driver.
#[derive(Debug, clap::Args)]
pub(crate) struct Driver {
    /// overlayfs, erofs or native
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

#[derive(Serialize)]
struct Usage {
    schema: &'static str,
    snapshots: Vec<Used>,
}

#[derive(Serialize)]
struct Used {
    name: String,
    size: u64,
    inodes: u64,
}

#[derive(Serialize)]
struct Mountable {
    schema: &'static str,
    name: String,
    mounts: Vec<Mounting>,
}

#[derive(Serialize)]
struct Mounting {
    r#type: String,
    source: String,
    options: Vec<String>,
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
            let request = api::MountsRequest { snapshotter: driver.snapshotter, key: key.clone() };
            let mounts = context.clients.snapshots().mounts(request).await?.into_inner().mounts;
            print_mounts(context, "orlop.snapshots.mounts/v1", key, mounts)
        }
        Snapshots::Prepare { key, parent, driver } => prepare(context, driver, key, parent).await,
        Snapshots::View { key, parent, driver } => view(context, driver, key, parent).await,
        Snapshots::Commit { name, key, driver } => {
            let (snapshotter, labels) = (driver.snapshotter, gc_root());
            let request =
                api::CommitSnapshotRequest { snapshotter, name: name.clone(), key, labels, ..Default::default() };
            context.clients.snapshots().commit(request).await?;
            Names::one_quietly(context.global.output, "orlop.snapshots.commit/v1", name)
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
    print_list(context, infos)
}

fn print_list(context: &Context, infos: Vec<api::Info>) -> Result<()> {
    match context.global.output {
        Format::Name => output::names(infos.iter().map(|i| i.name.as_str())),
        Format::Json | Format::Yaml => {
            let snapshots = infos.into_iter().map(snapshot).collect();
            output::document(context.global.output, &List { schema: "orlop.snapshots/v1", snapshots })
        }
        Format::Table | Format::Wide => {
            let mut table = Table::new(&["KEY", "PARENT", "KIND"]);
            for i in infos {
                let kind = kind_word(i.kind());
                table.row([plain(&i.name), plain(&i.parent), kind.into()]);
            }
            table.print()
        }
    }
}

async fn tree(context: &Context, driver: Driver) -> Result<()> {
    let infos = fetch(context, &driver.snapshotter, Vec::new()).await?;
    let format = context.global.output;
    if output::is_document(format) {
        return print_list(context, infos);
    }
    let mut children: HashMap<&str, Vec<&str>> = HashMap::new();
    for info in &infos {
        children.entry(&info.parent).or_default().push(&info.name);
    }
    let mut text = String::new();
    let mut stack: Vec<(usize, &str)> = children.get("").into_iter().flatten().rev().map(|n| (0, *n)).collect();
    while let Some((depth, name)) = stack.pop() {
        if format != Format::Name {
            text.push_str(&"  ".repeat(depth));
        }
        output::push_name(&mut text, name);
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
    let mut snapshots = Vec::new();
    for name in keys {
        let request = api::UsageRequest { snapshotter: driver.snapshotter.clone(), key: name.clone() };
        let api::UsageResponse { size, inodes } = context.clients.snapshots().usage(request).await?.into_inner();
        let [size, inodes] = [size, inodes].map(|number| number.max(0) as u64);
        snapshots.push(Used { name, size, inodes });
    }
    match context.global.output {
        Format::Name => output::names(snapshots.iter().map(|used| used.name.as_str())),
        Format::Table | Format::Wide => {
            let mut table = Table::new(&["KEY", "SIZE", "INODES"]);
            for used in snapshots {
                table.row([plain(&used.name).into_owned(), size(used.size), used.inodes.to_string()]);
            }
            table.print()
        }
        format => output::document(format, &Usage { schema: "orlop.snapshots.usage/v1", snapshots }),
    }
}

async fn info(context: &Context, driver: Driver, key: String) -> Result<()> {
    let request = api::StatSnapshotRequest { snapshotter: driver.snapshotter, key };
    let info = context.clients.snapshots().stat(request).await?.into_inner().info.unwrap_or_default();
    let format = match context.global.output {
        Format::Name => return output::line(info.name),
        Format::Yaml => Format::Yaml,
        _ => Format::Json,
    };
    output::document(format, &List { schema: "orlop.snapshots/v1", snapshots: vec![snapshot(info)] })
}

async fn prepare(context: &Context, driver: Driver, key: String, parent: Option<String>) -> Result<()> {
    let request = api::PrepareSnapshotRequest {
        snapshotter: driver.snapshotter,
        key: key.clone(),
        parent: parent.unwrap_or_default(),
        labels: gc_root(),
    };
    let mounts = context.clients.snapshots().prepare(request).await?.into_inner().mounts;
    print_mounts(context, "orlop.snapshots.prepare/v1", key, mounts)
}

async fn view(context: &Context, driver: Driver, key: String, parent: Option<String>) -> Result<()> {
    let request = api::ViewSnapshotRequest {
        snapshotter: driver.snapshotter,
        key: key.clone(),
        parent: parent.unwrap_or_default(),
        labels: gc_root(),
    };
    let mounts = context.clients.snapshots().view(request).await?.into_inner().mounts;
    print_mounts(context, "orlop.snapshots.view/v1", key, mounts)
}

/// What a person makes by hand stays until it is removed by hand; `ctr` does the same.
fn gc_root() -> BTreeMap<String, String> {
    BTreeMap::from([(GC_ROOT.to_owned(), jiff::Timestamp::now().to_string())])
}

async fn remove(context: &Context, driver: &Driver, keys: Vec<String>) -> Result<()> {
    let mut removed = Names::new(context.global.output, "orlop.snapshots.rm/v1");
    let worked = async {
        for key in keys {
            let request = api::RemoveSnapshotRequest { snapshotter: driver.snapshotter.clone(), key: key.clone() };
            context.clients.snapshots().remove(request).await?;
            removed.add(key)?;
        }
        Ok(())
    }
    .await;
    removed.end(worked)
}

async fn set_labels(context: &Context, driver: Driver, key: String, labels: &[String]) -> Result<()> {
    let labels = parse_labels(labels)?;
    let update_mask = Some(label_mask(&labels));
    let info = api::Info { name: key, labels, ..Default::default() };
    let request = api::UpdateSnapshotRequest { snapshotter: driver.snapshotter, info: Some(info), update_mask };
    let answer = context.clients.snapshots().update(request).await?.into_inner();
    let api::Info { name, labels, .. } = answer.info.unwrap_or_default();
    print_labels(context, "orlop.snapshots.label/v1", name, labels)
}

/// As mount(8) takes it, so that it can be pasted after `mount`.
fn print_mounts(context: &Context, schema: &'static str, name: String, mounts: Vec<Mount>) -> Result<()> {
    let text = |mount: &Mount| format!("-t {} {} -o {}\n", mount.r#type, mount.source, mount.options.join(","));
    let mounting = |mount: Mount| Mounting { r#type: mount.r#type, source: mount.source, options: mount.options };
    match context.global.output {
        Format::Name => output::line(name),
        Format::Table | Format::Wide => output::print_text(&mounts.iter().map(text).collect::<String>()),
        format => {
            let mounts = mounts.into_iter().map(mounting).collect();
            output::document(format, &Mountable { schema, name, mounts })
        }
    }
}
