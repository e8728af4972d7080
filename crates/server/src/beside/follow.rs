//! Following each other's records, for as long as the daemon runs.
//!
//! At the start, whenever that containerd is back, after every change of records on either side and now and then, all records
//! are compared ([`merge`](super::merge)), and what they say is done.

use std::convert::Infallible;
use std::time::Duration;

use futures::StreamExt as _;
use orlop_metadata::{self as metadata, Scope};
use orlop_oci::Digest;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tonic::Status;

use super::merge::{Merge, merge};
use super::{ACTOR, Beside, marks};
use crate::Server;
use crate::blocking::blocking;
use crate::cri::NAMESPACE;

/// Changes come in threes, and pulls of a node at its start in hundreds: they are waited for before all records are read.
const GATHER: Duration = Duration::from_millis(50);

/// All is compared once more so long after the first time: until then that containerd may not have begun to tell what happens.
const SETTLE: Duration = Duration::from_secs(1);

/// How often all is compared although nobody said that anything has changed.
const FULL: Duration = Duration::from_secs(600);

/// How long what failed is left alone, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

impl Beside {
    /// Follows for ever.
    pub(crate) async fn follow(self, server: Server) {
        let mut backoff = BACKOFF.0;
        let mut told = None;
        loop {
            let Err(status) = self.follow_once(&server, &mut backoff, &mut told).await;
            // Once for each reason: it may be away for hours.
            if told.as_deref() != Some(status.message()) {
                let message = status.message();
                tracing::warn!(error = message, "records cannot be compared with containerd's; it is tried again");
                told = Some(message.to_owned());
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    async fn follow_once(
        &self,
        server: &Server,
        backoff: &mut Duration,
        told: &mut Option<String>,
    ) -> Result<Infallible, Status> {
        self.reach().await?;
        let mut ours = server.exchange().subscribe();
        let mut theirs = std::pin::pin!(self.calls().record_events());
        self.end_old_leases().await?;
        let (mut again, mut settle) = (Instant::now(), SETTLE);
        loop {
            tokio::select! {
                biased;
                event = theirs.next() => match event {
                    Some(Ok(_)) => again = again.min(Instant::now() + GATHER),
                    Some(Err(status)) => return Err(self.told(&status)),
                    None => return Err(self.told(&Status::unavailable("its events have ended"))),
                },
                event = ours.recv() => match event {
                    Ok(event) if event.namespace != NAMESPACE || !event.topic.starts_with("/images/") => {}
                    // Whoever missed something looks at everything anyway.
                    Ok(_) | Err(RecvError::Lagged(_)) => again = again.min(Instant::now() + GATHER),
                    Err(RecvError::Closed) => return Err(Status::unavailable("the server is shutting down")),
                },
                () = tokio::time::sleep_until(again) => {
                    let whole = self.compare(server).await?;
                    if whole {
                        (*backoff, *told) = (BACKOFF.0, None);
                        again = Instant::now() + std::mem::replace(&mut settle, FULL);
                    } else {
                        again = Instant::now() + *backoff;
                        *backoff = (*backoff * 2).min(BACKOFF.1);
                    }
                }
            }
        }
    }

    /// Compares all records and does what is to be done. Returns whether all of it could be.
    async fn compare(&self, server: &Server) -> Result<bool, Status> {
        let store = server.store().clone();
        let ours = blocking(move || marks::records(&store)).await?;
        let theirs = self.calls().targets().await.map_err(|status| self.told(&status))?;
        let Merge { give, note, drop } = merge(&ours, &theirs);
        for (name, target) in drop {
            self.drop_record(server, name, target).await?;
        }
        for (name, target) in note {
            let store = server.store().clone();
            blocking(move || marks::mark(&store, &target, &[name], true)).await?;
        }
        let mut whole = true;
        for target in give {
            if let Err(status) = self.give(server, &target, false).await {
                tracing::warn!(error = status.message(), %target, "an image could not be given to containerd; it is tried again");
                whole = false;
            }
        }
        Ok(whole)
    }

    /// Removes a record that containerd has removed or moved. If it was only a hash reference it comes back, and is given anew.
    async fn drop_record(&self, server: &Server, name: String, target: Digest) -> Result<(), Status> {
        tracing::info!(name, %target, "containerd has removed or moved this record: it is removed here too");
        let (store, own) = (server.store().clone(), name.clone());
        blocking(move || {
            marks::mark(&store, &target, std::slice::from_ref(&own), false)?;
            match store.delete_image(&Scope::new(NAMESPACE, ACTOR), &own, Some(&target)) {
                Ok(_) | Err(metadata::Error::NotFound { .. } | metadata::Error::FailedPrecondition { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        })
        .await?;
        server.reconcile(NAMESPACE, &name).await;
        server.collector().request();
        Ok(())
    }
}
