//! Handing over what was adopted for a containerd, once it has Orlop as snapshotter.
//!
//! For each image of its own it is asked, by its API, to prepare the image's layers for unpacking. It asks Orlop, who answers that they are
//! there; so it takes them into its records without unpacking anything. Then the image's config gets the label that keeps them, as
//! after an unpacking.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use orlop_api::containerd::services::images::v1 as images;
use orlop_api::containerd::services::snapshots::v1 as snapshots;
use orlop_image::{ChainOf, Images, Reason, SNAPSHOT_REF, WAITING};
use orlop_metadata::{self as metadata, Scope};
use orlop_oci::{Descriptor, owner};
use serde::Serialize;
use tonic::Code;

use super::{ACTOR, failed};
use crate::args::{Format, Global};
use crate::client::Clients;
use crate::commands::containerd::{self, Containerd};
use crate::embed;
use crate::error::Result;
use crate::find::probe;
use crate::output::{self, count};
use crate::paint::plain;
use crate::settings::Settings;

#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema: &'static str,
    images: BTreeSet<String>,
    snapshots: u64,
    /// Snapshots that still wait.
    waiting: usize,
    left: Vec<Reason>,
}

/// Runs `adopt --hand-over`.
pub(super) async fn run(
    global: &Global,
    settings: &Settings,
    socket: &Path,
    owner: &str,
    snapshotter: &str,
) -> Result<ExitCode> {
    let server = containerd::answering(socket).await?;
    let images = embed::images(&settings.root, &settings.config).await?;
    let mut done = Document { schema: "orlop.adopt.handOver/v1", ..Document::default() };
    let namespaces = match &settings.namespace {
        Some(namespace) => vec![namespace.clone()],
        None => probe::namespaces(&server.channel).await?,
    };
    for namespace in namespaces {
        let to = Containerd { clients: Clients::new(server.channel.clone(), &namespace, ACTOR)?, snapshotter };
        to.under_lease(async |to| Handing { images: &images, owner, to }.namespace(&mut done).await).await?;
    }
    done.waiting = waiting(&images, owner).await?;
    show(global, &done)?;
    Ok(ExitCode::SUCCESS)
}

/// How many snapshots wait for an owner.
async fn waiting(images: &Images, owner: &str) -> Result<usize> {
    let (images, namespace) = (images.clone(), owner::snapshots_namespace(owner));
    embed::blocking(move || match images.store().resources(&namespace, WAITING) {
        Ok(waiting) => Ok(waiting.len()),
        Err(metadata::Error::NotFound { .. }) => Ok(0),
        Err(error) => Err(failed(error.into())),
    })
    .await
}

/// One namespace of that containerd.
struct Handing<'h> {
    images: &'h Images,
    owner: &'h str,
    to: Containerd<'h>,
}

impl Handing<'_> {
    async fn namespace(&self, done: &mut Document) -> Result<()> {
        let listed =
            self.to.clients.images().list(images::ListImagesRequest { filters: Vec::new() }).await?.into_inner();
        let scope = Scope::new(owner::content_namespace(self.owner), ACTOR);
        for image in listed.images {
            let Some(target) = image.target.as_ref().and_then(target) else { continue };
            let chains = match self.images.chains(&scope, &image.name, &target).await {
                Ok(chains) => chains,
                Err(error) => {
                    done.left.push(Reason { name: image.name, reason: error.to_string() });
                    continue;
                }
            };
            for chain in chains.iter().filter(|chain| !chain.chain.is_empty()) {
                match self.chain(chain, done).await? {
                    None => drop(done.images.insert(image.name.clone())),
                    Some(reason) => done.left.push(Reason { name: image.name.clone(), reason }),
                }
            }
        }
        Ok(())
    }

    /// Hands over what an image consists of; says why not, if it cannot be.
    async fn chain(&self, image: &ChainOf, done: &mut Document) -> Result<Option<String>> {
        let mut parent = String::new();
        for chain in &image.chain {
            if !self.to.has_snapshot(chain).await? {
                if !self.hand_over(chain, &parent).await? {
                    return Ok(Some(format!("Orlop has no snapshot {chain} for it: it is unpacked when it is needed")));
                }
                done.snapshots += 1;
            }
            parent.clone_from(chain);
        }
        self.to.keep(&image.config, parent).await?;
        Ok(None)
    }

    /// Has containerd ask for a layer; says whether it has it then.
    async fn hand_over(&self, chain: &str, parent: &str) -> Result<bool> {
        let key = format!("orlop-adopt-{} {chain}", std::process::id());
        let request = snapshots::PrepareSnapshotRequest {
            snapshotter: self.to.snapshotter.to_owned(),
            key: key.clone(),
            parent: parent.to_owned(),
            labels: [(SNAPSHOT_REF.to_owned(), chain.to_owned())].into_iter().collect(),
        };
        match self.to.clients.snapshots().prepare(request).await {
            Err(status) if status.code() == Code::AlreadyExists => Ok(true),
            Err(status) => Err(status.into()),
            Ok(_) => {
                self.to.remove_snapshot(key).await?;
                Ok(false)
            }
        }
    }
}

fn target(found: &orlop_api::containerd::types::Descriptor) -> Option<Descriptor> {
    let size = u64::try_from(found.size).ok()?;
    Some(Descriptor::new(found.media_type.clone(), found.digest.parse().ok()?, size))
}

fn show(global: &Global, done: &Document) -> Result<()> {
    if output::is_document(global.output) {
        return output::document(global.output, done);
    }
    if global.output == Format::Name {
        return output::names(done.images.iter().map(String::as_str));
    }
    let (images, snapshots) = (count(done.images.len() as u64, "image"), count(done.snapshots, "snapshot"));
    output::line(format!("{images}: {snapshots} handed over, {} still wait", done.waiting))?;
    for left in &done.left {
        output::line(format!("  {}: {}", plain(&left.name), plain(&left.reason)))?;
    }
    Ok(())
}
