//! `orlop explain`: what a thing is, what keeps it, what it costs, and what its deletion would do.

mod deletion;
mod facts;
mod text;
mod what;

use std::sync::Arc;

use orlop_graph::model::{Node, NodeId, NodeKind};
use orlop_lens::Documents;
use orlop_oci::{Descriptor, Document, ImageId, PlatformMatcher};
use serde::Serialize;

use super::Context;
use crate::args::Format;
use crate::error::{Class, CliError, Result};
use crate::look::paths::{self, InSnapshot};
use crate::look::{Look, words};
use crate::output;

/// Options of `explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
X is a name, a digest, an image ID, a chain ID, a snapshot's key, a lease, a container, or the first digits of one (four at
least); or an absolute path: of this host below a snapshot or a container's root, or else inside images.

Examples:
  orlop explain sha256:e5a475…            why is this record here, and can I delete it?
  orlop explain docker.io/calico/cni@sha256:9a2c99…
  orlop explain /var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/38
  orlop explain /etc/ssl/openssl.cnf      which images have this file
  orlop explain pull alpine               where each blob of it came from, and how fast
  orlop explain alpine -o json | jq '.things[].cost.alone.bytes'")]
pub(crate) struct Args {
    /// What to explain; `pull X`: who was asked for each blob of an image when it was pulled
    #[arg(value_name = "X", required = true, num_args = 1..=2)]
    names: Vec<String>,
}

/// `orlop.explain/v1` (docs/lens.md).
#[derive(Serialize)]
struct Explained<'a> {
    schema: &'static str,
    store: String,
    /// If X is a path: what each snapshot has there.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    files: &'a [InSnapshot],
    things: &'a [facts::Explanation],
}

/// Runs `explain`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    let name = match args.names.as_slice() {
        [name] => name,
        [pull, image] if pull == "pull" => return super::peers::explain(context, image).await,
        _ => {
            let message = format!("one thing at a time, or `pull X`: found {:?}", args.names.join(" "));
            return Err(CliError::new(Class::Usage, message));
        }
    };
    let look = Look::around(context, name).await?;
    let meant = paths::meant(context, &look, name).await?;
    let nodes = meant.nodes();
    // Only what these things keep is measured: each snapshot is a call.
    let look = look.measured(|model| facts::of_interest(model, &nodes)).await?.for_the_rest_of_the_process();
    let mut things = Vec::new();
    for node in nodes {
        let author = what::author(context, &look.model, node).await;
        let mut thing = facts::Explanation::of(context, &look.model, node, author);
        if thing.image_id.is_none() {
            thing.image_id = host_id(&look, node).await?.map(|id| id.to_string());
        }
        things.push(thing);
    }
    if output::is_document(context.global.output) {
        let store = context.store.to_string();
        return output::document(
            context.global.output,
            &Explained { schema: "orlop.explain/v1", store, files: &meant.files, things: &things },
        );
    }
    if context.global.output == Format::Name {
        return output::names(folded(things).iter().map(|thing| thing.thing.name.as_str()));
    }
    meant.lines(&look.model).into_iter().try_for_each(output::line)?;
    if meant.files.len() > 1 {
        let first = meant.files[0].host_path.display();
        return output::line(format!("\n`orlop explain {first}` explains the first"));
    }
    output::print_text(&text::all(&folded(things)))
}

/// The image ID for this platform of a record that points at an index: of several manifests labels do not tell which one it
/// is, the index does.
async fn host_id(look: &Look, record: NodeId) -> Result<Option<ImageId>> {
    let model = &look.model;
    let target = match model.kind(record) {
        NodeKind::Record => model.target(record),
        _ => None,
    };
    let Some(Node::Blob(row)) = target.map(|target| model.node(target)) else { return Ok(None) };
    let mut documents = Documents::default();
    let namespace: Arc<str> = model.namespace(row.namespace).into();
    look.reader.documents(&mut documents, [(namespace, row.digest.clone(), row.size)]).await?;
    let raw = documents.get(&row.digest).cloned();
    let document = raw.and_then(|raw| Document::parse_as(raw, None, row.digest.algorithm()).ok());
    let host = PlatformMatcher::host();
    let rank = |manifest: &&Descriptor| host.rank(manifest.platform.as_ref()?).filter(|_| !manifest.is_attestation());
    let index = document.as_ref().and_then(Document::index);
    let ranked = index.into_iter().flat_map(|index| &index.manifests).filter_map(|m| Some((rank(&m)?, m)));
    let best = ranked.min_by_key(|(rank, _)| *rank).map(|(_, manifest)| &manifest.digest);
    let config = best.and_then(|digest| model.config(model.blob(row.namespace, digest)?));
    Ok(config.and_then(|config| words::name(model, config).parse().ok()).map(ImageId::new))
}

/// For people: of an image ID, which is also the digest of the config, the record alone; it says so itself.
fn folded(mut things: Vec<facts::Explanation>) -> Vec<facts::Explanation> {
    if things.iter().any(|thing| thing.thing.kind == "record") {
        things.retain(|thing| thing.thing.kind != "blob");
    }
    things
}
