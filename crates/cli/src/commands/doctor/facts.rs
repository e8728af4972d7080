//! What findings need to know and only documents tell: which manifest of an index this platform uses, and what is no image
//! for it at all.

use std::collections::HashMap;
use std::sync::Arc;

use orlop_graph::model::{Facts, MANAGED, Model, Node, NodeId, NodeKind};
use orlop_lens::Documents;
use orlop_oci::{Descriptor, Digest, Document, MediaKind, PlatformMatcher};

use crate::commands::Context;
use crate::error::Result;
use crate::find::places::KUBERNETES;
use crate::look::{Look, Source, words};

/// Reads the targets of all records, each once, and says what they tell.
pub(super) async fn of(context: &Context, look: &Look) -> Result<Facts> {
    let managed = !context.store.is_own() && has_cri(look).await?;
    let mut facts = Facts { managed: managed.then(|| KUBERNETES.to_owned()), ..Facts::default() };
    let model = &look.model;
    let mut targets: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
    for record in model.nodes(NodeKind::Record) {
        if let Some(target) = model.target(record).filter(|target| model.kind(*target) == NodeKind::Blob) {
            targets.entry(target).or_default().push(record);
        }
    }
    let mut documents = Documents::default();
    let wanted = targets.keys().filter_map(|target| match model.node(*target) {
        Node::Blob(row) => Some((Arc::from(model.namespace(row.namespace)), row.digest.clone(), row.size)),
        _ => None,
    });
    look.reader.documents(&mut documents, wanted.collect::<Vec<_>>()).await?;
    for (target, records) in targets {
        let Some(document) = document(model, target, &documents) else { continue };
        let in_managed = facts.managed.as_deref() == Some(model.namespace(model.node(target).namespace()));
        match uses(model, target, &document) {
            Uses::Manifest(manifest) => {
                facts.hosts.insert(target, manifest);
            }
            Uses::Nothing if in_managed => facts.foreign.extend(records),
            Uses::Nothing | Uses::Itself | Uses::Unclear => {}
        }
    }
    Ok(facts)
}

/// Whether somebody writes hash references; of files it is concluded from what it left there.
async fn has_cri(look: &Look) -> Result<bool> {
    match &look.reader {
        Source::Api(reader, _) => Ok(reader.has_cri().await?),
        Source::Files(..) => {
            let rows = look.model.inventory();
            Ok(rows.records.iter().any(|record| record.labels.get(MANAGED).is_some()))
        }
    }
}

fn document(model: &Model, target: NodeId, documents: &Documents) -> Option<Document> {
    let Node::Blob(row) = model.node(target) else { return None };
    Document::parse_as(documents.get(&row.digest)?.clone(), None, row.digest.algorithm()).ok()
}

/// What this platform uses of a target.
enum Uses {
    /// A manifest of the index, here or not.
    Manifest(NodeId),
    /// The target: it is a manifest.
    Itself,
    /// Nothing.
    Nothing,
    /// That is not said here: another index.
    Unclear,
}

fn uses(model: &Model, target: NodeId, document: &Document) -> Uses {
    if let Some(manifest) = document.manifest() {
        let is_image = MediaKind::of(&manifest.config.media_type) == MediaKind::Config;
        return if is_image { Uses::Itself } else { Uses::Nothing };
    }
    let Some(index) = document.index() else { return Uses::Unclear };
    let host = PlatformMatcher::host();
    // One that does not say its platform may be of any: its config tells containerd.
    let rank = |m: &Descriptor| m.platform.as_ref().map_or(Some(usize::MAX), |platform| host.rank(platform));
    let listed = index.manifests.iter().filter(|m| !m.is_attestation());
    let Some((_, best)) = listed.filter_map(|m| Some((rank(m)?, m))).min_by_key(|(rank, _)| *rank) else {
        return Uses::Nothing;
    };
    if best.kind() != MediaKind::Manifest {
        return Uses::Unclear;
    }
    named(model, target, &best.digest).map_or(Uses::Unclear, Uses::Manifest)
}

/// The node of a digest that an index's labels name, or that is here without being named.
fn named(model: &Model, index: NodeId, digest: &Digest) -> Option<NodeId> {
    let labelled = model.manifests(index).into_iter().find(|node| words::name(model, *node) == digest.as_str());
    labelled.or_else(|| model.blob(model.node(index).namespace(), digest))
}
