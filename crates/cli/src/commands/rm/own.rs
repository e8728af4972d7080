//! Removal from Orlop's own store, which plans and executes itself, into its trash.

use super::{FreeSpace, Outcome, Plan};
use crate::client::pb;
use crate::commands::Context;
use crate::error::Result;

/// What the removal would do. Changes nothing.
pub(in crate::commands) async fn plan(context: &Context, request: pb::RemoveRequest) -> Result<Plan> {
    Ok(context.clients.orlop().plan_remove(request).await?.into_inner().into())
}

/// Executes the removal, if its plan still has the hash that the request has, and compares what came of it.
pub(in crate::commands) async fn execute(context: &Context, request: pb::RemoveRequest) -> Result<Plan> {
    let space = FreeSpace::now(context);
    let answer = context.clients.orlop().remove(request).await?.into_inner();
    let mut plan = Plan::from(answer.executed.unwrap_or_default());
    plan.trash = answer.trash;
    let outcome = if plan.trash.is_empty() {
        Outcome::measured(plan.freed_now, space.given_back(context), 0)
    } else {
        let entries = context.clients.orlop().list_trash(pb::ListTrashRequest {}).await?.into_inner().entries;
        let held = entries.into_iter().find(|entry| entry.id == plan.trash).map(|entry| entry.bytes);
        // The trash counts what lies in it, whoever else has it.
        in_trash(plan.freed_when_trash_empties + plan.elsewhere, held)
    };
    plan.outcome = Some(outcome);
    Ok(plan)
}

fn in_trash(planned: u64, held: Option<u64>) -> Outcome {
    let differs = held.filter(|held| *held != planned);
    let words = |held| {
        let (planned, held) = (crate::output::size(planned), crate::output::size(held));
        format!("planned were {planned}, the trash has got {held}")
    };
    Outcome { planned, freed: held, differences: differs.map(words).into_iter().collect() }
}
