//! Mends what is known to be damaged, as soon as somebody has the bytes again, and lets go what was set aside long ago.

use std::time::Duration;

use orlop_image::{Bringer, End, RepairRequest};
use orlop_metadata::{Damage, Scope};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

use crate::blocking::blocking;
use crate::status::ToStatus;
use crate::{ServeOptions, Server};

/// How often it is looked whether there is something to do.
const LOOK: Duration = Duration::from_secs(60);

/// How far failures may put off the next try.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// Who mends, for the history and for leases.
const ACTOR: &str = "repair";

/// Mends and tidies up, for ever.
pub(super) async fn run(server: Server, mut options: watch::Receiver<ServeOptions>) {
    let mut tries = Tries { of: Vec::new(), pause: LOOK, next: Instant::now() };
    loop {
        let background = options.borrow_and_update().background.clone();
        if let Some(first) = background.repair
            && let Err(status) = tries.step(&server, first).await
        {
            tracing::warn!(error = status.message(), "what is damaged could not be mended; it is tried again");
        }
        let (store, age) = (server.store().clone(), background.quarantine_age);
        match blocking(move || store.empty_quarantine(age)).await {
            Ok(0) => {}
            Ok(entries) => tracing::info!(entries, "removed what had been set aside, and is mended since"),
            Err(status) => tracing::warn!(error = status.message(), "the quarantine could not be emptied"),
        }
        tokio::select! {
            () = tokio::time::sleep(background.repair.unwrap_or(LOOK).min(LOOK)) => {}
            Ok(()) = options.changed() => {}
        }
    }
}

/// What was tried last, and when it is tried again: after twice as long each time, and at once when something else is damaged.
struct Tries {
    of: Vec<Damage>,
    pause: Duration,
    next: Instant,
}

impl Tries {
    async fn step(&mut self, server: &Server, first: Duration) -> Result<(), Status> {
        let damages = known(server).await?;
        if damages != self.of {
            (self.of, self.pause, self.next) = (damages, first, Instant::now());
        }
        if self.of.is_empty() || Instant::now() < self.next {
            return Ok(());
        }
        self.next = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST);
        mend(server).await?;
        self.of = known(server).await?;
        Ok(())
    }
}

async fn known(server: &Server) -> Result<Vec<Damage>, Status> {
    let store = server.store().clone();
    blocking(move || store.damages()).await
}

async fn mend(server: &Server) -> Result<(), Status> {
    let client = server.cri().client();
    let request = RepairRequest { known: true, ..RepairRequest::default() };
    // Each blob is brought in a namespace that has it.
    let scope = Scope::new("default", ACTOR);
    let repaired = server.images().repair(&scope, Bringer::Registries(&client), &request, &|_| {}).await;
    let repaired = repaired.map_err(|e| e.to_status())?;
    server.metrics().repaired(&repaired);
    for mending in &repaired.mendings {
        match &mending.end {
            End::Planned => {}
            End::Mended { from } => tracing::info!(subject = mending.subject, from, "mended"),
            End::Left { reason, .. } => tracing::warn!(subject = mending.subject, reason, "damaged still"),
        }
    }
    Ok(())
}
