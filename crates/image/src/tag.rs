//! Names: tag, untag, pin, undo.

use std::collections::BTreeSet;

use orlop_metadata::{self as metadata, HistoryEntry, Image, ImageChange, Labels, Scope, UndoReport};
use orlop_oci::{Descriptor, Digest, ImageId, Reference};

use crate::pull::Naming;
use crate::remove::ATTEMPTS;
use crate::{Error, Images, Result, labels};

impl Images {
    /// Writes further names for what `source` means (also `name@{N}`: what the name meant N changes ago), with the
    /// hash references that go with them. Returns the records written.
    ///
    /// # Errors
    /// [`Error::Exists`] if a name points elsewhere already and `force` is false; [`Error::Refused`] if policy does not
    /// let the image have one of the names.
    pub async fn tag(&self, scope: &Scope, source: &str, names: &[String], force: bool) -> Result<Vec<String>> {
        let target = self.resolve_name(scope, source).await?.target;
        let managed = self.managed_id(scope, &target).await?;
        let mut changes = Vec::new();
        let mut tagged = Vec::new();
        for name in names {
            let reference = new_name(name, &target)?;
            self.check_free(scope, &reference.to_string(), &target, force).await?;
            let mut naming = Naming::new(&reference.to_string());
            let by = self.admit(scope, &naming.name, &target).await?;
            naming.verified = crate::gate::label(&target.digest, &by);
            changes.extend(naming.changes(&target, managed.as_ref()));
            tagged.push(naming.name);
        }
        let written = crate::pull::names(&changes);
        let owned = scope.clone();
        self.blocking(move |store| Ok(store.write_images(&owned, &changes)?)).await?;
        for name in tagged {
            self.reconcile_image(&scope.namespace, &name).await?;
        }
        Ok(written)
    }

    /// The image ID of a target, where CRI looks after the namespace and the image is complete.
    pub(crate) async fn managed_id(&self, scope: &Scope, target: &Descriptor) -> Result<Option<ImageId>> {
        if !self.settings().is_cri(&scope.namespace) {
            return Ok(None);
        }
        let catalog = self.target_catalog(scope, target).await?;
        Ok(catalog.complete_image(&target.digest, self.platform()))
    }

    async fn check_free(&self, scope: &Scope, name: &str, target: &Descriptor, force: bool) -> Result<()> {
        match self.named_record(scope, name).await? {
            Some(existing) if !force && existing.target.digest != target.digest => Err(Error::Exists {
                name: name.to_owned(),
                found: existing.target.digest,
                given: target.digest.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Deletes one record and nothing else; hash references that a name needs come back. Returns what came back.
    pub async fn untag(&self, scope: &Scope, name: &str) -> Result<Vec<String>> {
        let record = self.named_record(scope, name).await?.ok_or_else(|| Error::NotFound(name.to_owned()))?;
        let (owned, deleted) = (scope.clone(), record.name.clone());
        self.blocking(move |store| Ok(store.delete_image(&owned, &deleted, None)?)).await?;
        Ok(self.reconcile_image(&scope.namespace, &record.name).await?.created)
    }

    /// Sets or removes the pin on all records of an image. Returns them.
    ///
    /// Nothing else of a record changes: if anybody has written one of them since it was read, all is done anew.
    pub async fn pin(&self, scope: &Scope, name: &str, pinned: bool) -> Result<Vec<String>> {
        for _ in 0..ATTEMPTS {
            if let Some(names) = self.try_pin(scope, name, pinned).await? {
                return Ok(names);
            }
        }
        Err(metadata::Error::Moved.into())
    }

    /// Returns nothing, and has done nothing, if the records changed meanwhile.
    async fn try_pin(&self, scope: &Scope, name: &str, pinned: bool) -> Result<Option<Vec<String>>> {
        let seen = self.blocking(|store| Ok(store.last_change()?)).await?;
        let found = self.resolve_name(scope, name).await?;
        let catalog = self.kin_of(scope, &found.target).await?;
        let records = self.siblings(&catalog, &found.target.digest);
        if records.is_empty() && !found.names.is_empty() {
            return Ok(None);
        }
        let targets: BTreeSet<Digest> = records.iter().map(|record| record.target.digest.clone()).collect();
        let value = if pinned { labels::PINNED_VALUE } else { "" };
        let upsert = |record: &Image| ImageChange::Upsert {
            name: record.name.clone(),
            target: record.target.clone(),
            labels: Labels::from([(labels::PINNED.to_owned(), value.to_owned())]),
        };
        let changes: Vec<_> = records.into_iter().map(upsert).collect();
        let names = crate::pull::names(&changes);
        let (owned, decided_on) = (scope.clone(), names.clone());
        let left = self
            .blocking(move |store| {
                let of_image = |digest: &Option<Digest>| digest.as_ref().is_some_and(|digest| targets.contains(digest));
                let concerns = |entry: &HistoryEntry| {
                    decided_on.contains(&entry.name) || of_image(&entry.old) || of_image(&entry.new)
                };
                let outdated = |_: &ImageChange, since: &[HistoryEntry]| since.iter().any(concerns);
                Ok(store.write_images_decided_at(&owned, seen, changes, outdated)?)
            })
            .await?;
        Ok(left.is_empty().then_some(names))
    }

    /// Undoes one removal (`None`: the newest), then reconciles.
    pub async fn undo(&self, scope: &Scope, id: Option<&str>) -> Result<UndoReport> {
        let (owned, id) = (scope.clone(), id.map(str::to_owned));
        let report = self.blocking(move |store| Ok(store.undo(&owned, id.as_deref())?)).await?;
        let mut namespaces: Vec<&String> = report.images.iter().map(|(namespace, _)| namespace).collect();
        namespaces.dedup();
        for namespace in namespaces {
            self.reconcile(namespace).await?;
        }
        Ok(report)
    }
}

/// A name that may be given to a target: a tag, or a digest reference that tells the truth.
pub(crate) fn new_name(name: &str, target: &Descriptor) -> Result<Reference> {
    let refuse = |reason| Error::Name { name: name.to_owned(), reason };
    match name.parse::<Reference>()? {
        Reference::Id(_) => Err(refuse("an image ID cannot be given as a name: it follows from the image")),
        Reference::Digest { digest, .. } if digest != target.digest => {
            Err(refuse("the digest is not that of the image; a name with a digest must tell the truth"))
        }
        reference => Ok(reference),
    }
}
