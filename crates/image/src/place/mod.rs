//! Putting images where containerd's transfer service is told to: under the very names and labels that a client gives,
//! without the hash references and completions of the other operations.
//!
//! # Invariants
//! - A record that is there is replaced: its labels go, as containerd's update without a mask makes them go.
//! - In CRI-managed namespaces the reconciler has run before an operation ends, so that hash references exist there too.

mod names;
mod pull;

use orlop_metadata::{Labels, Replacement, Scope};
use orlop_oci::{Descriptor, Platform};

pub use names::NameRule;

use crate::gate;
use crate::pull::Plan;
use crate::walk::{Matching, Select};
use crate::{Error, Images, Result};

/// Where an image goes, and what of it.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// The record's name; empty: only what `rules` say.
    pub name: String,
    /// The labels of every record written.
    pub labels: Labels,
    /// Manifests of an index that are wanted; none: all.
    pub platforms: Vec<Platform>,
    /// Of the other platforms manifests and configs too.
    pub all_metadata: bool,
    /// At most so many manifests of an index; 0: no limit.
    pub manifest_limit: usize,
    /// Further names.
    pub rules: Vec<NameRule>,
    /// What is to be unpacked, and with which snapshotter (empty: the default).
    pub unpack: Vec<(Platform, String)>,
}

/// How an archive is read.
#[derive(Debug, Clone, Default)]
pub struct ImportAs {
    /// Where its images go.
    pub place: Place,
}

impl Images {
    /// Gives what `source` points at the names of a place. Returns the records written.
    ///
    /// # Errors
    /// NotFound if no record has exactly this name, or if the place has no name; [`Error::Refused`].
    pub async fn tag_as(&self, scope: &Scope, source: &str, place: &Place) -> Result<Vec<String>> {
        let (namespace, name) = (scope.namespace.clone(), source.to_owned());
        let target = self.blocking(move |store| Ok(store.image(&namespace, &name)?)).await?.target;
        let mut changes = names::records(place, &target);
        let written = required_names(&changes, &target)?;
        for record in &mut changes {
            let by = self.admit(scope, &record.name, &target).await?;
            gate::remember(record, &by);
        }
        let owned = scope.clone();
        self.blocking(move |store| Ok(store.replace_images(&owned, &changes)?)).await?;
        self.reconcile_all(scope, &written).await?;
        Ok(written)
    }

    pub(crate) async fn reconcile_all(&self, scope: &Scope, names: &[String]) -> Result<()> {
        if self.settings().is_cri(&scope.namespace) {
            for name in names {
                self.reconcile_image(&scope.namespace, name).await?;
            }
        }
        Ok(())
    }

    /// What a place means for fetching and unpacking.
    pub(crate) fn place_plan(&self, place: &Place) -> Result<Plan> {
        let select = if place.platforms.is_empty() && place.manifest_limit == 0 {
            Select::All
        } else {
            let (platforms, metadata, limit) = (place.platforms.clone(), place.all_metadata, place.manifest_limit);
            Select::Matching(Matching { platforms, metadata, limit })
        };
        if place.unpack.is_empty() {
            return Ok(self.plan(select, Vec::new(), "", 0));
        }
        let known = |driver: &str| driver.is_empty() || self.store().driver(driver).is_ok();
        let Some((_, snapshotter)) = place.unpack.iter().find(|(_, driver)| known(driver)) else {
            let tried = place.unpack.iter().map(|(platform, driver)| format!("{platform} with {driver}"));
            return Err(Error::CannotUnpack { tried: tried.collect() });
        };
        let platforms = place.unpack.iter().filter(|(_, driver)| driver == snapshotter);
        Ok(self.plan(select, platforms.map(|(platform, _)| platform.clone()).collect(), snapshotter, 0))
    }
}

/// The names of records; none is an error.
pub(crate) fn required_names(records: &[Replacement], target: &Descriptor) -> Result<Vec<String>> {
    let names: Vec<String> = records.iter().map(|record| record.name.clone()).collect();
    if names.is_empty() { Err(Error::NotFound(format!("a name for {}", target.digest))) } else { Ok(names) }
}

pub(crate) use names::{archive_records, records};
