//! Pulling to a place.

use orlop_metadata::{Scope, Store};
use orlop_oci::{Descriptor, MediaKind, Reference, RepositoryName};
use orlop_remote::Client;
use tracing::field::Empty;
use tracing::info_span;

use super::{Place, records, required_names};
use crate::gate::Shelf;
use crate::pull::{Registry, resolve, signatures};
use crate::span::within;
use crate::{Error, Event, Images, Result, Sink};

impl Images {
    /// Pulls what `reference` means at its registry. Returns the records written and what they point at.
    ///
    /// # Errors
    /// As [`Images::pull`].
    pub async fn pull_as(
        &self,
        scope: &Scope,
        client: &Client,
        reference: &str,
        place: &Place,
        sink: Sink<'_>,
    ) -> Result<(Vec<String>, Descriptor)> {
        check_whole(reference)?;
        let parsed: Reference = reference.parse()?;
        let Some(repository) = parsed.repository().cloned() else {
            let reason = "an image ID names no repository: give the image's name, or name@digest";
            return Err(Error::Name { name: reference.to_owned(), reason });
        };
        let span = info_span!("pull", image = %parsed, error = Empty);
        within(span, self.pull_to(scope, client, &parsed, repository, place, sink)).await
    }

    async fn pull_to(
        &self,
        scope: &Scope,
        client: &Client,
        reference: &Reference,
        repository: RepositoryName,
        place: &Place,
        sink: Sink<'_>,
    ) -> Result<(Vec<String>, Descriptor)> {
        let target = resolve(client, reference).await?.descriptor;
        let name = reference.to_string();
        if target.kind() == MediaKind::Schema1 {
            return Err(Error::Name { name, reason: "schema 1 manifests are not supported" });
        }
        sink(Event::Target(target.clone()));
        let plan = self.place_plan(place)?;
        let mut changes = records(place, &target);
        let written = required_names(&changes, &target)?;
        let origin = Registry::new(self, client, repository);
        self.under_lease(scope, async |scope| {
            let session = self.session(scope.clone(), &origin, sink);
            let [tags, referrers] = signatures(client, &origin.repository);
            let shelves: [&dyn Shelf; 2] = [&tags, &referrers];
            // What is pulled counts as well as what it is to be called here.
            session.admit(&name, &target, &shelves).await?;
            session.admit_records(&mut changes, &shelves).await?;
            let tree = session.bring(&name, &target, &plan).await?;
            let owned = scope.clone();
            let write = move |store: &Store| Ok(store.replace_images(&owned, &changes)?);
            session.finish(std::iter::once(&tree), &plan, write).await
        })
        .await?;
        self.reconcile_all(scope, &written).await?;
        Ok((written, target))
    }
}

/// Clients of this way write references out: nothing is added to them.
fn check_whole(reference: &str) -> Result<()> {
    let object = reference.split_once('/').map(|(_, path)| path.rsplit('/').next().unwrap_or(path));
    if object.is_some_and(|object| object.contains([':', '@'])) {
        return Ok(());
    }
    let reason = "a reference must be whole here: HOST/PATH:TAG or HOST/PATH@DIGEST";
    Err(Error::Name { name: reference.to_owned(), reason })
}
