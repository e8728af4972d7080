//! Deleting an image: a plan that is shown, then exactly that or nothing.
//!
//! Orlop's own store plans and removes itself, into its trash. On a foreign store the plan is that of `orlop rm`, computed from
//! what it lists, and everything is read again before anything is deleted: if the plan is another one then, nothing is. What is
//! left of a race, [`removal`] says.

use std::collections::BTreeSet;

use orlop_graph::model::{Collector, Model, Node, NodeId, Removal as Goes, SnapshotKind, SnapshotRow};
use orlop_lens::Reader;
use orlop_oci::classify;

use super::data::clean;
use crate::client::{Clients, pb};
use crate::look::removal;
use crate::look::words::{called, name, place};
use crate::output::{count, short, size};

/// A removal that can be executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Removal {
    /// `sha256:…` over what it does.
    pub(crate) hash: String,
    pub(crate) namespace: String,
    /// Records.
    pub(crate) names: Vec<String>,
    /// What it does, in words.
    pub(crate) lines: Vec<String>,
}

/// Plans and removes.
#[derive(Debug, Clone)]
pub(crate) struct Remover {
    pub(crate) clients: Clients,
    pub(crate) reader: Reader,
    /// Whether the store is Orlop's.
    pub(crate) own: bool,
    /// Which labels its collection follows.
    pub(crate) collector: Collector,
}

impl Remover {
    /// What removing these records would do.
    pub(crate) async fn plan(&self, namespace: &str, names: &[String]) -> Result<Removal, String> {
        if !self.own {
            return Ok(self.foreign(namespace, names).await?.0);
        }
        let request = pb::RemoveRequest { names: asked(names), ..Default::default() };
        let clients = self.clients.in_namespace(namespace).map_err(|e| e.message)?;
        let plan = clients.orlop().plan_remove(request).await.map_err(said)?.into_inner();
        Ok(Removal {
            hash: plan.plan.clone(),
            namespace: namespace.to_owned(),
            names: asked(names),
            lines: own_lines(&plan),
        })
    }

    /// Does what was planned; says what came of it.
    pub(crate) async fn execute(&self, removal: &Removal) -> Result<String, String> {
        if self.own {
            return self.execute_own(removal).await;
        }
        let (now, model, records) = self.foreign(&removal.namespace, &removal.names).await?;
        if now.hash != removal.hash {
            return Err("the store has changed since it was planned: nothing was deleted; plan again".into());
        }
        let clients = self.clients.in_namespace(&removal.namespace).map_err(|e| e.message)?;
        removal::delete(&clients, &model, &records).await.map_err(|e| e.message)?;
        Ok(format!("{} deleted", count(records.records.len() as u64, "record")))
    }

    async fn execute_own(&self, removal: &Removal) -> Result<String, String> {
        let clients = self.clients.in_namespace(&removal.namespace).map_err(|e| e.message)?;
        let (names, plan) = (removal.names.clone(), removal.hash.clone());
        let request = pb::RemoveRequest { names, plan, ..Default::default() };
        let answer = clients.orlop().remove(request).await.map_err(said)?.into_inner();
        let executed = answer.executed.unwrap_or_default();
        let deleted = count(executed.records.len() as u64, "record");
        if answer.trash.is_empty() {
            return Ok(format!("{deleted} deleted, {} freed", size(executed.freed_now)));
        }
        let trashed = size(executed.freed_when_trash_empties);
        Ok(format!("{deleted} deleted, {trashed} in the trash: orlop undo {} brings it back", answer.trash))
    }

    /// The plan of a foreign store, what it was read from, and what goes.
    async fn foreign(&self, namespace: &str, names: &[String]) -> Result<(Removal, Model, Goes), String> {
        let mut inventory = self.reader.inventory(None).await.map_err(|e| e.to_string())?;
        inventory.collector = self.collector;
        // An empty list that could not be read must not look like nobody's claim.
        if let Some(gap) = inventory.gaps.first() {
            return Err(format!("what keeps the image cannot be known: {}: {}", gap.what, gap.why));
        }
        let mut model = Model::new(inventory);
        let asked = records(&model, namespace, names)?;
        let gone = model.removal(&asked).snapshots;
        let wanted: BTreeSet<_> = gone.into_iter().filter_map(|node| place(&model, node)).collect();
        let wanted = |row: &SnapshotRow| {
            row.kind == SnapshotKind::Committed
                && wanted.contains(&(row.namespace, row.snapshotter.clone(), row.key.clone()))
        };
        let measured = self.reader.usage(model.inventory(), wanted).await.map_err(|e| e.to_string())?;
        model.take_usage(measured);
        let (removal, goes) = planned(&model, namespace, names)?;
        Ok((removal, model, goes))
    }
}

/// Without its names an image loses its hash references by itself; those are asked for only where there is nothing else.
fn asked(names: &[String]) -> Vec<String> {
    let tags: Vec<String> = names.iter().filter(|name| !classify(name).is_hash_reference()).cloned().collect();
    if tags.is_empty() { names.to_vec() } else { tags }
}

fn said(status: tonic::Status) -> String {
    let error = crate::error::CliError::from(status);
    let hint = error.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{}{hint}", error.message)
}

fn records(model: &Model, namespace: &str, names: &[String]) -> Result<Vec<NodeId>, String> {
    let number = model.inventory().namespaces.iter().position(|row| &*row.name == namespace);
    let number = number.ok_or_else(|| format!("namespace {namespace} is gone"))?;
    let found =
        |name: &String| model.record(number as u16, name).ok_or_else(|| format!("{} is gone already", clean(name)));
    names.iter().map(found).collect()
}

/// What deleting these records of a foreign store would do. Pure.
fn planned(model: &Model, namespace: &str, names: &[String]) -> Result<(Removal, Goes), String> {
    let asked = records(model, namespace, names)?;
    if let Some(pinned) = asked.iter().find(|record| model.is_pinned(**record)) {
        return Err(format!("{} is pinned: it is not deleted", clean(&name(model, *pinned))));
    }
    let goes = model.removal(&asked);
    let weight = &goes.freed;
    let shared = model.cost(&goes.records).shared_bytes();
    let mut lines = vec!["Records that go".to_owned()];
    lines.extend(goes.records.iter().map(|record| format!("  {}", clean(&name(model, *record)))));
    lines.push(format!("Content that goes: {}, {}", count(weight.blobs, "blob"), size(weight.blob_bytes)));
    let unknown = if weight.unmeasured > 0 { format!(", {} not measured", weight.unmeasured) } else { String::new() };
    let snapshots = count(weight.snapshots, "snapshot");
    lines.push(format!("Unpacked that goes: {snapshots}, {}{unknown}", size(weight.snapshot_bytes)));
    if goes.garbage.bytes() > 0 {
        lines.push(format!("  of it {} are garbage already", size(goes.garbage.bytes())));
    }
    lines.push(format!("Stays, kept by others: {}", size(shared)));
    for user in &goes.in_use {
        match model.node(*user) {
            Node::Container(row) => {
                lines.push(format!("  container {} uses it and keeps its snapshots", clean(&row.id)));
            }
            _ => lines.push(format!("  {} keeps some of it", clean(&called(model, *user)))),
        }
    }
    if !goes.unpullable.is_empty() {
        lines.push("No registry is known to have it: it cannot be pulled again".into());
    }
    lines.push(String::new());
    lines.push(format!("Freed {}; there is no trash: this cannot be undone", size(weight.bytes())));
    let hash = removal::hash(model, &goes).to_string();
    Ok((Removal { hash, namespace: namespace.to_owned(), names: names.to_vec(), lines }, goes))
}

fn own_lines(plan: &pb::Plan) -> Vec<String> {
    let mut lines = vec!["Records that go".to_owned()];
    lines.extend(plan.records.iter().map(|name| format!("  {}", clean(name))));
    let bytes: u64 = plan.blobs.iter().map(|blob| blob.size).sum();
    lines.push(format!("Content that goes: {}, {}", count(plan.blobs.len() as u64, "blob"), size(bytes)));
    let bytes: u64 = plan.snapshots.iter().map(|snapshot| snapshot.bytes).sum();
    lines.push(format!("Unpacked that goes: {}, {}", count(plan.snapshots.len() as u64, "snapshot"), size(bytes)));
    for (title, reasons) in [
        ("Comes back at once", &plan.returns),
        ("No registry is known to have", &plan.unpullable),
        ("Stays, in use", &plan.in_use),
    ] {
        if !reasons.is_empty() {
            lines.push(title.to_owned());
            lines.extend(reasons.iter().map(|r| format!("  {}: {}", short(&clean(&r.name)), clean(&r.reason))));
        }
    }
    lines.push(String::new());
    lines.push(format!(
        "Freed now {}, when the trash empties {}; orlop undo brings it back until then",
        size(plan.freed_now),
        size(plan.freed_when_trash_empties)
    ));
    lines
}

#[cfg(test)]
mod tests {
    use orlop_graph::model::PINNED;
    use orlop_oci::Digest;

    use super::super::tests::inventory;
    use super::*;

    const CNI: &str = "docker.io/calico/cni:v3.25.1";
    const NODE: &str = "docker.io/calico/node:v3.25.1";

    /// All names of an image in the sample, its hash references too.
    fn names(model: &Model, name: &str) -> Vec<String> {
        let number = model.inventory().namespaces.iter().position(|row| &*row.name == "k8s.io").unwrap();
        let record = model.record(number as u16, name).unwrap();
        let family = model.family(record).into_iter();
        let name = |node| match model.node(node) {
            Node::Record(row) => row.name.to_string(),
            other => panic!("{other:?}"),
        };
        family.map(name).collect()
    }

    fn plan(model: &Model, name: &str) -> Removal {
        planned(model, "k8s.io", &names(model, name)).unwrap().0
    }

    #[test]
    fn what_another_image_keeps_stays() {
        let model = Model::new(inventory());
        let text = plan(&model, CNI).lines.join("\n");
        // Its manifest, config and upper layer; the lower one is the other image's too.
        assert!(text.contains("Content that goes: 3 blobs, 3.0 MiB"), "{text}");
        assert!(text.contains("Unpacked that goes: 1 snapshot, 10.0 MiB"), "{text}");
        assert!(text.contains("Stays, kept by others: 13.0 MiB"), "{text}");
        assert!(text.contains("Freed 13.0 MiB; there is no trash"), "{text}");
        assert!(text.contains("No registry is known to have it"), "{text}");
        assert!(!text.contains("container"), "{text}");
        let text = plan(&model, NODE).lines.join("\n");
        assert!(text.contains("container c0ffee uses it"), "{text}");
    }

    #[test]
    fn the_last_name_takes_its_hash_references_and_one_of_these_alone_frees_nothing() {
        let model = Model::new(inventory());
        let (removal, goes) = planned(&model, "k8s.io", &[CNI.to_owned()]).unwrap();
        assert!(removal.lines.last().unwrap().starts_with("Freed 13.0 MiB"), "{:?}", removal.lines);
        let all = names(&model, CNI);
        assert_eq!((goes.records.len(), all.len()), (3, 3));
        let hash = all.into_iter().find(|name| name.starts_with("sha256:")).unwrap();
        let (removal, _) = planned(&model, "k8s.io", &[hash]).unwrap();
        assert!(removal.lines.last().unwrap().starts_with("Freed 0 B"), "{:?}", removal.lines);
    }

    #[test]
    fn the_hash_follows_all_that_the_plan_means() {
        let of = |change: fn(&mut orlop_graph::model::Inventory)| {
            let mut all = inventory();
            change(&mut all);
            let model = Model::new(all);
            planned(&model, "k8s.io", &[CNI.to_owned()]).unwrap().0.hash
        };
        let same = of(|_| ());
        assert_eq!(of(|all| drop(all.records.remove(8))), same, "what has nothing to do with it changes nothing");
        assert_ne!(of(|all| all.records[0].target = Digest::of(b"elsewhere")), same, "the tag moved");
        assert_ne!(of(|all| drop(all.records.drain(1..3))), same, "it is the last name now");
    }

    #[test]
    fn what_is_pinned_or_gone_is_not_planned() {
        let mut all = inventory();
        all.records[0].labels = [(PINNED, "pinned")].into_iter().collect();
        let model = Model::new(all);
        assert!(planned(&model, "k8s.io", &[CNI.to_owned()]).unwrap_err().contains("pinned"));
        assert!(planned(&model, "k8s.io", &["gone".to_owned()]).unwrap_err().contains("gone already"));
        assert!(planned(&model, "other", &[CNI.to_owned()]).unwrap_err().contains("namespace other"));
    }

    #[test]
    fn hash_references_are_asked_for_only_where_there_is_nothing_else() {
        let id = Digest::of(b"id").to_string();
        assert_eq!(asked(&[CNI.to_owned(), id.clone()]), [CNI]);
        assert_eq!(asked(std::slice::from_ref(&id)), [id]);
    }
}
