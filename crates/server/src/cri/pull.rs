//! PullImage: one pull for all who want the same, a bound on pulls at once, and an end to those that stand still.
//!
//! # Invariants
//! - Callers share a pull only if they asked for the same name with the same secret: nobody gets an image by another's.
//! - A shared pull goes on as long as any of its callers waits, and stops when the last one goes away.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use orlop_api::runtime::v1::PullImageRequest;
use orlop_image::{Error, Outcome, PullRequest};
use orlop_oci::Reference;
use orlop_remote::{Client, Login};
use tonic::Status;
use tracing::Instrument;

use super::status::{cri_status, pull_status};
use super::{Cri, auth, scope};
use crate::blocking::blocking;

mod progress;
pub(crate) use progress::Progress;

/// Where older kubelets name the runtime handler of a sandbox.
const RUNTIME_HANDLER: &str = "io.containerd.cri.runtime-handler";

type Answer = Result<String, Status>;
type Flight = Shared<BoxFuture<'static, Answer>>;

/// What tells one pull from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Wanted {
    reference: String,
    snapshotter: String,
    login: Option<Login>,
}

/// The pulls that are going on.
#[derive(Default)]
pub(super) struct Pulls {
    flights: Mutex<HashMap<Wanted, WeakShared<BoxFuture<'static, Answer>>>>,
}

impl Pulls {
    /// The pull that is going on, or the one that `start` makes.
    fn join(&self, wanted: &Wanted, start: impl FnOnce() -> BoxFuture<'static, Answer>) -> Flight {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        // What ended, or was given up, is nobody's any more.
        flights.retain(|_, flight| flight.upgrade().is_some());
        if let Some(flight) = flights.get(wanted).and_then(WeakShared::upgrade).filter(|f| f.peek().is_none()) {
            return flight;
        }
        let flight = start().shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(wanted.clone(), weak);
        }
        flight
    }
}

impl Cri {
    /// Pulls, and answers with the image ID.
    pub(crate) async fn pull(&self, request: PullImageRequest) -> Answer {
        let wanted = self.wanted(&request)?;
        let cri = self.clone();
        let flight = self.inner.pulls.join(&wanted, || {
            let wanted = wanted.clone();
            // Whoever of the callers drives it, it belongs to the first.
            async move { cri.run(wanted).await }.in_current_span().boxed()
        });
        flight.await
    }

    fn wanted(&self, request: &PullImageRequest) -> Result<Wanted, Status> {
        let image = request.image.clone().unwrap_or_default();
        let parsed: Result<Reference, Error> = image.image.parse().map_err(Error::from);
        let reference = parsed.map_err(|e| pull_status(&image.image, &e))?;
        let annotated = request.sandbox_config.as_ref().and_then(|sandbox| sandbox.annotations.get(RUNTIME_HANDLER));
        let handler = if image.runtime_handler.is_empty() { annotated } else { Some(&image.runtime_handler) };
        let now = self.now();
        let snapshotter = handler.and_then(|handler| now.settings.runtime_snapshotters.get(handler));
        Ok(Wanted {
            reference: reference.to_string(),
            snapshotter: snapshotter.cloned().unwrap_or_default(),
            login: auth::login(request.auth.as_ref())?,
        })
    }

    async fn run(self, wanted: Wanted) -> Answer {
        let now = self.now();
        let _permit = match &now.permits {
            Some(permits) => permits.acquire().await.ok(),
            None => None,
        };
        let client = self.client_with(wanted.login.clone());
        let before = self.target(&wanted.reference).await?;
        let outcome = self.watched(&client, &wanted).await?;
        let id = outcome.image_ids.first().map(ToString::to_string);
        match id {
            Some(id) => {
                tracing::info!(image = wanted.reference, id, bytes = outcome.bytes_transferred, "image pulled");
                Ok(id)
            }
            None => self.refuse_artifact(&wanted.reference, &outcome, before.as_deref()).await,
        }
    }

    async fn watched(&self, client: &Client, wanted: &Wanted) -> Result<Outcome, Status> {
        let request = PullRequest {
            reference: wanted.reference.clone(),
            snapshotter: wanted.snapshotter.clone(),
            no_unpack: !self.now().settings.unpack,
            ..PullRequest::default()
        };
        let (progress, scope) = (Progress::default(), scope());
        let sink = |event| progress.note(&event);
        let timeout = self.now().settings.progress_timeout;
        tokio::select! {
            pulled = self.images().pull(&scope, client, &request, &sink) => {
                pulled.map_err(|error| pull_status(&wanted.reference, &error))
            }
            what = progress.stalled(timeout) => Err(Status::cancelled(format!(
                "pull {:?}: given up, since nothing came for {timeout:?}: {what}; what has come is kept, and the next pull \
                 goes on there",
                wanted.reference
            ))),
        }
    }

    /// What a name points at.
    async fn target(&self, name: &str) -> Result<Option<String>, Status> {
        let (store, name) = (self.images().store().clone(), name.to_owned());
        blocking(move || match store.image(super::NAMESPACE, &name) {
            Ok(image) => Ok(Some(image.target.digest.to_string())),
            Err(orlop_metadata::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    /// An artifact cannot be run, listed or removed by CRI: unless its name was there before, it goes again.
    async fn refuse_artifact(&self, name: &str, outcome: &Outcome, before: Option<&str>) -> Answer {
        let digest = outcome.target.digest.clone();
        if before != Some(digest.as_str()) {
            let (store, name) = (self.images().store().clone(), name.to_owned());
            blocking(move || match store.delete_image(&scope(), &name, Some(&digest)) {
                Ok(_) | Err(orlop_metadata::Error::NotFound { .. }) => {
                    store.collect(orlop_metadata::gc::Disposal::Reclaim).map(drop)
                }
                Err(error) => Err(error),
            })
            .await?;
        }
        let reason = "it is an artifact, not a container image";
        Err(cri_status(&Error::Name { name: name.to_owned(), reason }))
    }
}
