//! Looking for damage and contradictions.

use std::collections::{BTreeMap, BTreeSet};

use orlop_content::{self as content, Flaw};
use orlop_metadata::{self as metadata, Damage, Damaged, ImageChange, MetadataProblem, Scope, Store};
use orlop_oci::{Descriptor, Digest, Platform};

use crate::catalog::Catalog;
use crate::pull::Stored;
use crate::walk::{self, Node, Select, Tree};
use crate::{Error, Images, Result, labels};

/// What to check.
#[derive(Debug, Clone, Default)]
pub struct CheckRequest {
    /// Hash every blob again, and every file of an unpacked tree.
    pub deep: bool,
    /// Only this image.
    pub name: Option<String>,
}

/// Something is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// A stable word: `blob-damaged`, `blob-missing`, `blob-size`, `blob-unreadable`, `snapshot-missing`, `snapshot-damaged`,
    /// `hash-reference-missing`, `hash-reference-stranded`, `image-incomplete`, `document-invalid`, `metadata-stopped`.
    pub class: &'static str,
    /// What it is about.
    pub subject: String,
    /// What was expected and what was found.
    pub detail: String,
    /// What to do.
    pub fix: String,
}

impl Images {
    /// Looks for damage; finds nothing in a sound store. Without a name every namespace is looked at.
    pub async fn check(&self, scope: &Scope, request: &CheckRequest) -> Result<Vec<Problem>> {
        let mut problems = Vec::new();
        match &request.name {
            Some(name) => {
                let found = self.resolve_name(scope, name).await?;
                let catalog = self.target_catalog(scope, &found.target).await?;
                let name = found.names.first().cloned().unwrap_or_else(|| found.target.digest.to_string());
                self.check_target(scope, &name, &found.target, &mut problems).await?;
                self.check_blobs(catalog.content.into_iter().collect(), request.deep, &mut problems).await?;
            }
            None => {
                for namespace in self.blocking(|store| Ok(store.namespaces()?)).await? {
                    self.check_namespace(&Scope { namespace: namespace.name, ..scope.clone() }, &mut problems).await?;
                }
                let blobs = self.blocking(all_blobs).await?;
                self.check_blobs(blobs.into_iter().collect(), request.deep, &mut problems).await?;
                problems.extend(self.blocking(check_snapshots).await?);
                self.check_trees(request.deep, &mut problems).await?;
                problems.extend(self.blocking(check_metadata).await?);
            }
        }
        problems.sort();
        problems.dedup();
        Ok(problems)
    }

    async fn check_namespace(&self, scope: &Scope, problems: &mut Vec<Problem>) -> Result<()> {
        let catalog = self.catalog(scope).await?;
        let mut targets: BTreeMap<Digest, (&str, &Descriptor)> = BTreeMap::new();
        // What a mirror has is whatever it was asked for, and need not be whole.
        for record in catalog.records.iter().filter(|record| !record.labels.contains_key(labels::CACHED)) {
            targets.entry(record.target.digest.clone()).or_insert((&record.name, &record.target));
        }
        for (name, target) in targets.into_values() {
            self.check_target(scope, name, target, problems).await?;
        }
        if self.settings().is_cri(&scope.namespace) {
            let changes = self.wanted_changes(&scope.namespace, &catalog).await?;
            let existing: BTreeSet<&str> = catalog.records.iter().map(|r| r.name.as_str()).collect();
            problems.extend(changes.iter().filter_map(|change| unreconciled(change, &existing)));
        }
        Ok(())
    }

    /// Whether the documents of a target make sense, and whether an image of it is complete.
    async fn check_target(
        &self,
        scope: &Scope,
        name: &str,
        target: &Descriptor,
        problems: &mut Vec<Problem>,
    ) -> Result<()> {
        let pull = format!("orlop pull {name}");
        let content = self.store().content(scope);
        let tree = match walk::walk(&Stored(content), name, target, &Select::Present).await {
            Ok(tree) => tree,
            // What is damaged otherwise is found when blobs are checked, without reading them too.
            Err(Error::Content(content::Error::Damaged { digest, actual })) => {
                problems.push(blob_problem(&digest, &Flaw::Bytes { actual }, None));
                return Ok(());
            }
            Err(Error::Content(content::Error::Resized { .. })) => return Ok(()),
            Err(Error::Content(error)) if error.is_bad_medium() => {
                let flaw = Flaw::Unreadable { reason: error.to_string() };
                problems.push(blob_problem(&at(&error).unwrap_or_else(|| target.digest.clone()), &flaw, None));
                return Ok(());
            }
            Err(error @ (Error::Document { .. } | Error::Inconsistent { .. } | Error::TooDeep { .. })) => {
                let detail = format!("{name}: {error}");
                problems.push(Problem {
                    class: "document-invalid",
                    subject: target.digest.to_string(),
                    detail,
                    fix: pull,
                });
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let catalog = self.target_catalog(scope, target).await?;
        problems.extend(lacking(name, &tree, &catalog, self.platform(), &pull));
        self.check_held_snapshots(scope, name, &tree, problems).await
    }

    /// Whether the snapshots that configs say they hold are there.
    async fn check_held_snapshots(
        &self,
        scope: &Scope,
        name: &str,
        tree: &Tree,
        problems: &mut Vec<Problem>,
    ) -> Result<()> {
        let configs: Vec<Digest> =
            tree.manifests().filter_map(|n| n.image.as_ref().map(|i| i.id.digest().clone())).collect();
        let (scope, name) = (scope.clone(), name.to_owned());
        let missing = self.blocking(move |store| held_snapshots(store, &scope, &configs, &name)).await?;
        problems.extend(missing);
        Ok(())
    }

    /// Whether blobs that rows name are there, as large as the rows say, and (deep) hash to their names.
    async fn check_blobs(&self, blobs: Vec<(Digest, u64)>, deep: bool, problems: &mut Vec<Problem>) -> Result<()> {
        let raw = self.store().raw_content();
        let known = self.blocking(|store| Ok(store.damages()?)).await?;
        let mut known: BTreeMap<Digest, Damage> = known.into_iter().filter_map(of_blob).collect();
        for (digest, size) in blobs {
            let flaw = if deep {
                content::examine(&**raw, &digest, Some(size), &()).await?
            } else {
                glance(&**raw, &digest, size).await?
            };
            let damage = known.remove(&digest);
            problems.extend(flaw.map(|flaw| blob_problem(&digest, &flaw, damage.as_ref())));
        }
        Ok(())
    }
}

impl Images {
    /// Whether trees are what they were when they were committed; without `deep` only what was found before is told.
    async fn check_trees(&self, deep: bool, problems: &mut Vec<Problem>) -> Result<()> {
        let trees = self.blocking(|store| Ok(store.trees()?)).await?;
        let known = self.blocking(|store| Ok(store.damages()?)).await?;
        for tree in trees {
            let compared = if deep { self.compare_tree(&tree, &()).await? } else { None };
            let known = known.iter().find(|damage| damage.what == tree.damaged());
            let detail = match (compared, known) {
                (Some(comparison), _) => comparison.compared().fault().map(|_| comparison.compared().detail()),
                (None, known) => known.map(|damage| damage.detail.clone()),
            };
            let Some(detail) = detail else { continue };
            problems.extend(self.blocking(move |store| tree_problem(store, &tree, detail)).await?);
        }
        Ok(())
    }
}

/// A tree that is damaged, and what of that; nothing if it is gone by now.
fn tree_problem(store: &Store, tree: &metadata::Tree, detail: String) -> Result<Option<Problem>> {
    let Some(concerned) = store.affected(&tree.damaged())?.into_iter().next() else { return Ok(None) };
    let subject = format!("{}/{}/{}", tree.namespace, tree.driver, tree.key);
    let used = match concerned.containers.as_slice() {
        [] => String::new(),
        containers => format!("; containers stand on it: {}", containers.join(" ")),
    };
    let fix = concerned.images.first().map_or("orlop repair".to_owned(), |image| format!("orlop repair {image}"));
    Ok(Some(Problem { class: "snapshot-damaged", subject, detail: format!("{detail}{used}"), fix }))
}

fn of_blob(damage: Damage) -> Option<(Digest, Damage)> {
    match &damage.what {
        Damaged::Blob(digest) => Some((digest.clone(), damage)),
        Damaged::Snapshot { .. } => None,
    }
}

/// The blob that a file of the store is, by its path.
fn at(error: &content::Error) -> Option<Digest> {
    let content::Error::Io { path, .. } = error else { return None };
    let (algorithm, hex) = (path.parent()?.file_name()?.to_str()?, path.file_name()?.to_str()?);
    format!("{algorithm}:{hex}").parse().ok()
}

/// What is wrong with a blob as far as that is seen without reading it.
async fn glance(raw: &dyn content::Store, digest: &Digest, size: u64) -> Result<Option<Flaw>> {
    match raw.info(digest).await {
        Err(content::Error::NotFound { .. }) => Ok(Some(Flaw::Missing)),
        Err(error) if error.is_bad_medium() => Ok(Some(Flaw::Unreadable { reason: error.to_string() })),
        Err(error) => Err(error.into()),
        Ok(info) if info.size != size => Ok(Some(Flaw::Size { expected: size, actual: info.size })),
        Ok(_) => Ok(None),
    }
}

fn blob_problem(digest: &Digest, flaw: &Flaw, damage: Option<&Damage>) -> Problem {
    // What was set aside is missing now, and was something else before.
    let aside = damage.filter(|_| *flaw == Flaw::Missing).and_then(|d| Some((d, d.quarantine.as_ref()?)));
    let (fault, detail) = match aside {
        Some((damage, entry)) => {
            (damage.fault.as_str(), format!("{}; what was there is in quarantine/{entry}", damage.detail))
        }
        None => (flaw.as_str(), flaw.to_string()),
    };
    let class = match fault {
        "missing" => "blob-missing",
        "size" => "blob-size",
        "unreadable" => "blob-unreadable",
        _ => "blob-damaged",
    };
    Problem { class, subject: digest.to_string(), detail, fix: repair(digest) }
}

fn repair(digest: &Digest) -> String {
    format!("orlop repair {digest}")
}

/// What no image of a target can be without.
fn lacking(name: &str, tree: &Tree, catalog: &Catalog, host: &Platform, fix: &str) -> Option<Problem> {
    let problem = |detail| {
        let (subject, fix) = (name.to_owned(), fix.to_owned());
        Some(Problem { class: "image-incomplete", subject, detail, fix })
    };
    if tree.nodes.is_empty() {
        return problem(format!("{name}: its target is not in this store"));
    }
    let lacks = |node: &Node| -> Vec<String> {
        let children = node.document.children().into_iter();
        let absent = children.filter(|d| d.urls.is_empty() && !catalog.content.contains_key(&d.digest));
        absent.map(|d| format!("{} {}", walk::kind_word(d), d.digest)).collect()
    };
    // An index of other platforms only is complete as soon as one of them is.
    let judged: Vec<Vec<String>> = match tree.image_for(host) {
        Some(node) => vec![lacks(node)],
        None => tree.manifests().map(lacks).collect(),
    };
    // An index may name no manifest at all; then there is nothing that it could lack.
    if judged.iter().any(Vec::is_empty) || (judged.is_empty() && tree.missing.is_empty()) {
        return None;
    }
    let missing = judged.into_iter().next().unwrap_or_else(|| vec!["every manifest of its index".to_owned()]);
    problem(format!("{name}: missing {}", missing.join(", ")))
}

/// Snapshots that `gc.ref.snapshot` labels of configs name and that are not there.
fn held_snapshots(store: &Store, scope: &Scope, configs: &[Digest], name: &str) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for config in configs {
        let held = match store.content(scope).stat(config) {
            Ok(info) => info.labels,
            Err(metadata::Error::NotFound { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        for (label, key) in held {
            let Some(driver) = label.strip_prefix(labels::GC_SNAPSHOT).filter(|d| store.driver(d).is_ok()) else {
                continue;
            };
            match store.snapshots(scope, driver)?.stat(&key) {
                Ok(_) => {}
                Err(metadata::Error::NotFound { .. }) => problems.push(Problem {
                    class: "snapshot-missing",
                    subject: format!("{}/{driver}/{key}", scope.namespace),
                    detail: format!("{name}: it was unpacked, and its snapshot is not there"),
                    fix: format!("orlop pull {name}"),
                }),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(problems)
}

/// A record that the reconciler would change.
fn unreconciled(change: &ImageChange, existing: &BTreeSet<&str>) -> Option<Problem> {
    let fix = "orlop gc".to_owned();
    match change {
        ImageChange::Delete { name } => {
            let detail = "no name needs it any more".to_owned();
            Some(Problem { class: "hash-reference-stranded", subject: name.clone(), detail, fix })
        }
        ImageChange::Upsert { name, .. } if !existing.contains(name.as_str()) => {
            let detail = "a name of its image exists, it does not".to_owned();
            Some(Problem { class: "hash-reference-missing", subject: name.clone(), detail, fix })
        }
        // Labels and times of what exists are no damage.
        ImageChange::Upsert { .. } => None,
    }
}

/// The blobs of all namespaces, with their sizes.
pub(crate) fn all_blobs(store: &Store) -> Result<BTreeMap<Digest, u64>> {
    let mut blobs = BTreeMap::new();
    for namespace in store.namespaces()? {
        let scope = Scope::new(namespace.name, "check");
        blobs.extend(store.content(&scope).find(&[])?.into_iter().map(|info| (info.digest, info.size)));
    }
    Ok(blobs)
}

/// Whether every snapshot's tree is there.
fn check_snapshots(store: &Store) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for driver in store.drivers() {
        let there: BTreeSet<u64> =
            driver.list().map_err(metadata::Error::from)?.into_iter().map(|(id, _)| id.0).collect();
        for namespace in store.namespaces()? {
            let scope = Scope::new(namespace.name.clone(), "check");
            for (id, info) in store.snapshots(&scope, driver.name())?.ids()? {
                if !there.contains(&id.0) {
                    let subject = format!("{}/{}/{}", namespace.name, driver.name(), info.name);
                    let detail = format!("its tree {} is gone", driver.root().join(id.0.to_string()).display());
                    let fix = "remove the image and pull it again".to_owned();
                    problems.push(Problem { class: "snapshot-missing", subject, detail, fix });
                }
            }
        }
    }
    Ok(problems)
}

fn check_metadata(store: &Store) -> Result<Vec<Problem>> {
    let problems = store.check_metadata()?.into_iter().map(|problem| {
        let (class, subject, detail) = match problem {
            MetadataProblem::Damaged { detail } => ("metadata-damaged", "meta.db".to_owned(), detail),
            MetadataProblem::Edges { namespace, kind, name } => {
                let detail = "what collection knows of it is not what it states".to_owned();
                ("metadata-edges", format!("{namespace}/{kind}/{name}"), detail)
            }
            MetadataProblem::LogLine { line } => {
                ("history-damaged", "history.log".to_owned(), format!("line {line} does not check"))
            }
            MetadataProblem::LogMissing { seq } => (
                "history-missing",
                "history.log".to_owned(),
                format!("change {seq} is not in it as the database has it"),
            ),
            other => ("metadata", "meta.db".to_owned(), format!("{other:?}")),
        };
        let fix = match class {
            "metadata-damaged" => "end what has the root open, then `orlop repair --rebuild-metadata`",
            _ => "keep a copy of the root and report it",
        };
        Problem { class, subject, detail, fix: fix.to_owned() }
    });
    Ok(problems.chain(stopped(store)).collect())
}

/// That the store takes no changes since its disk failed.
fn stopped(store: &Store) -> Option<Problem> {
    let fix =
        "look at the kernel's log (dmesg) and at the disk; when it is well, start the daemon again and check again";
    Some(Problem {
        class: "metadata-stopped",
        subject: "meta.db".to_owned(),
        detail: format!("no changes are taken: {}", store.stopped()?),
        fix: fix.to_owned(),
    })
}
