//! `orlop adopt`: takes over what a containerd's root has, by reflink or hard link. It works on files, beside a daemon and a containerd
//! that run: it opens Orlop's store itself, and reads the root as `--root DIR` does.

mod document;
mod handing;
mod source;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use orlop_image::{AdoptRequest, Adoption};
use orlop_metadata::Scope;
use orlop_server::Owner;

use crate::args::Global;
use crate::embed;
use crate::error::{Class, CliError, Result};
use crate::find::{self, Reach};
use crate::fresh::Fresh;
use crate::settings::Settings;
pub(super) use document::left;
pub(super) use source::{Source, refuse_elsewhere};

/// Who the history says it was.
const ACTOR: &str = "orlop adopt";

/// Options of `adopt`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Nothing is copied and nothing in DIR is changed; it must be on the file system of Orlop's store. What is
there already is passed over: after an interruption the same command goes on. Active snapshots stay where
they are. What DIR has too frees nothing when Orlop removes it, nor the other way round.

Examples:
  orlop adopt --plan /var/lib/containerd
  orlop adopt --namespace k8s.io /var/lib/containerd
  orlop adopt --owner containerd /var/lib/containerd    before that containerd gets Orlop below it
  orlop adopt --owner containerd --hand-over /run/containerd/containerd.sock    once it has")]
pub(crate) struct Args {
    /// The root of a containerd [default: that of the first of `orlop stores` that is not Orlop's]
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Show what would be adopted, and change nothing
    #[arg(long)]
    plan: bool,
    /// Not for Orlop's own use: for the containerd whose raw socket has this name
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// Adopt content and records, but no snapshots
    #[arg(long)]
    no_snapshots: bool,
    /// Have the containerd at this socket, which has Orlop as snapshotter now, take what was adopted for it
    #[arg(long, value_name = "SOCKET", requires = "owner", conflicts_with_all = ["plan", "no_snapshots", "directory"])]
    hand_over: Option<PathBuf>,
    /// By what name that containerd knows Orlop's snapshotter
    #[arg(long, value_name = "NAME", default_value = "orlop-overlay", requires = "hand_over")]
    snapshotter: String,
}

/// Runs `adopt`.
pub(crate) async fn run(global: &Global, args: &Args) -> Result<ExitCode> {
    let settings = Settings::load(global)?;
    if let Some(owner) = &args.owner {
        Owner::new(owner).map_err(|error| CliError::new(Class::Usage, error.to_string()))?;
    }
    if let (Some(socket), Some(owner)) = (&args.hand_over, &args.owner) {
        return handing::run(global, &settings, socket, owner, &args.snapshotter).await;
    }
    let source = Source::find(&settings, args.directory.as_deref()).await?;
    let request = AdoptRequest {
        namespaces: settings.namespace.iter().cloned().collect(),
        owner: args.owner.clone(),
        no_snapshots: args.no_snapshots,
    };
    refuse_elsewhere(&source, &settings.root, !args.no_snapshots)?;
    let adoption = match args.plan {
        true => plan(&settings, &source, &request).await?,
        false => adopt(&settings, &source, &request).await?,
    };
    document::show(global, args, &settings, &source, &adoption)?;
    Ok(ExitCode::SUCCESS)
}

async fn plan(settings: &Settings, source: &Source, request: &AdoptRequest) -> Result<Adoption> {
    let is_there = find::is_root(find::places::Product::Orlop, &settings.root);
    let images = match is_there {
        true => Some(embed::images(&settings.root, &settings.config).await?),
        false => None,
    };
    let (foreign, request) = (source.foreign(), request.clone());
    embed::blocking(move || {
        let store = images.as_ref().map(orlop_image::Images::store);
        orlop_image::plan_adoption(store, &*foreign, &request).map_err(failed)
    })
    .await
}

async fn adopt(settings: &Settings, source: &Source, request: &AdoptRequest) -> Result<Adoption> {
    let fresh = Fresh::of(settings, Reach::Make);
    let adopted = async {
        let images = embed::images(&settings.root, &settings.config).await?;
        let foreign: Arc<dyn orlop_image::Foreign> = source.foreign();
        images.adopt(&Scope::new(find::places::KUBERNETES, ACTOR), foreign, request).await.map_err(failed)
    };
    match (adopted.await, fresh) {
        (Err(error), Some(fresh)) => {
            fresh.abandon().await;
            Err(error)
        }
        (adopted, _) => adopted,
    }
}

/// What stopped it.
pub(super) fn failed(error: orlop_image::Error) -> CliError {
    CliError::from(orlop_server::status_of(&error))
}
