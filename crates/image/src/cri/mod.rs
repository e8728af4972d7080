//! Images as CRI counts them: one an image ID, complete for the host's platform, with every record that leads to it.
//!
//! [`CriCatalog`] keeps such a picture of one namespace in memory and brings it up to date when the store has changed,
//! whichever process changed it. What a target stands for follows from its digest, so only changed records and new
//! targets are looked at again; blobs are looked for again only when some were dropped.
//!
//! # Invariants
//! - A [`CriView`] is what one snapshot of the store says, and never changes. Two calls of [`CriCatalog::view`] give the
//!   same one (the same `Arc`) unless something that it shows, or the settings, have changed.
//! - Incomplete images, other platforms' images and artifacts are not in it.
//!
//! # Concurrency
//! Whoever finds the picture out of date renews it; others that ask meanwhile wait for that. If renewing fails, the next
//! call starts from nothing.

mod gist;
mod names;
mod state;
mod view;

use std::sync::Arc;

use orlop_metadata::gc::Disposal;
use orlop_metadata::{ImageChange, Scope};
use tokio::sync::Mutex;

pub use gist::Gist;
use state::State;
pub use view::{CriImage, CriView, Pinned};

use crate::{Error, Images, Result};

/// The images of a namespace as CRI counts them.
pub struct CriCatalog {
    images: Images,
    namespace: String,
    state: Mutex<Option<State>>,
}

impl CriCatalog {
    /// A catalog of a namespace; reads nothing yet.
    pub fn new(images: Images, namespace: impl Into<String>) -> Self {
        Self { images, namespace: namespace.into(), state: Mutex::default() }
    }

    /// The operations on the same root.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// What is there now: everything that was committed before the call is in it.
    pub async fn view(&self) -> Result<Arc<CriView>> {
        let mut state = self.state.lock().await;
        let version = self.images.blocking(|store| Ok(store.version()?)).await?;
        let settings = self.images.settings();
        if let Some(state) = state.as_ref().filter(|state| state.version == version && state.is_by(&settings)) {
            return Ok(state.view.clone());
        }
        let mut renewed = self.renew(state.take().unwrap_or_default()).await?;
        // Read before the rest: what was committed since then makes the next call look again.
        renewed.version = version;
        let view = renewed.view.clone();
        *state = Some(renewed);
        Ok(view)
    }

    async fn renew(&self, mut state: State) -> Result<State> {
        let (mut state, unread) = self.refreshed(std::mem::take(&mut state)).await?;
        if unread.is_empty() {
            return Ok(state);
        }
        // Documents that another program brought: they are read once, and their gist is remembered in the store.
        let scope = Scope::new(self.namespace.clone(), "cri");
        self.images.partial_catalog(&scope, unread).await?;
        state = self.refreshed(state).await?.0;
        Ok(state)
    }

    /// Brings the state up to date with the store, and says which records' documents nobody has read yet.
    async fn refreshed(&self, mut state: State) -> Result<(State, Vec<orlop_metadata::Image>)> {
        let (namespace, settings) = (self.namespace.clone(), self.images.settings());
        self.images
            .blocking(move |store| {
                let unread = state.refresh(store, &namespace, &settings)?;
                Ok((state, unread))
            })
            .await
    }

    /// Removes every record of the image that `text` means, in one transaction, and gives the space back before it
    /// returns: pins are not looked at, and an image that is not there is success. Returns the records removed.
    ///
    /// # Errors
    /// [`Error::Ambiguous`] if `text` is the start of several images' IDs.
    pub async fn remove(&self, scope: &Scope, text: &str) -> Result<Vec<String>> {
        let view = self.view().await?;
        let image = match view.resolve(text) {
            Err(Error::NotFound(_)) => return Ok(Vec::new()),
            other => other?,
        };
        let names: Vec<String> = image.names.iter().map(|name| name.to_string()).collect();
        let changes: Vec<ImageChange> = names.iter().map(|name| ImageChange::Delete { name: name.clone() }).collect();
        let scope = Scope { namespace: self.namespace.clone(), ..scope.clone() };
        self.images
            .blocking(move |store| {
                store.write_images(&scope, &changes)?;
                store.collect(Disposal::Reclaim)?;
                // Kubelet removes images when the disk gets full, and evicts pods if that did not help.
                if let Err(error) = store.relieve() {
                    tracing::warn!(%error, "an image was removed, and the trash could not be emptied with it");
                }
                Ok(())
            })
            .await?;
        Ok(names)
    }
}

impl Images {
    /// Removes an image as CRI's RemoveImage does; see [`CriCatalog::remove`].
    pub async fn remove_image(&self, scope: &Scope, text: &str) -> Result<Vec<String>> {
        CriCatalog::new(self.clone(), scope.namespace.clone()).remove(scope, text).await
    }
}
