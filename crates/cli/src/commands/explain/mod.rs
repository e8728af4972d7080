//! `orlop explain`: what a thing is, what keeps it, what it costs, and what its deletion would do.

mod deletion;
mod facts;
mod text;
mod what;

use serde::Serialize;

use super::Context;
use crate::error::Result;
use crate::look::{Look, Measured, find};
use crate::output;

/// Options of `explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
X is a name, a digest, an image ID, a chain ID, a snapshot's key, a lease, a container, or the first digits of one (four at
least).

Examples:
  orlop explain sha256:e5a475…            why is this record here, and can I delete it?
  orlop explain docker.io/calico/cni@sha256:9a2c99…
  orlop explain alpine -o json | jq '.things[].cost.alone.bytes'")]
pub(crate) struct Args {
    /// What to explain
    #[arg(value_name = "X")]
    name: String,
}

/// `orlop.explain/v1` (docs/lens.md).
#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    store: String,
    things: &'a [facts::Explanation],
}

/// Runs `explain`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    let look = Look::at(context, Measured::None).await?;
    let nodes: Vec<_> =
        find(&look.model, &args.name, &context.store.namespace)?.into_iter().map(|found| found.node).collect();
    // Only what these things keep is measured: each snapshot is a call.
    let look = look.measured(|model| facts::of_interest(model, &nodes)).await?;
    let mut things = Vec::new();
    for node in nodes {
        let author = what::author(context, &look.model, node).await;
        things.push(facts::Explanation::of(context, &look.model, node, author));
    }
    if output::is_document(context.global.output) {
        let store = context.store.to_string();
        return output::document(
            context.global.output,
            &Document { schema: "orlop.explain/v1", store, things: &things },
        );
    }
    output::print_text(&text::all(&folded(things)))
}

/// For people: of an image ID, which is also the digest of the config, the record alone; it says so itself.
fn folded(mut things: Vec<facts::Explanation>) -> Vec<facts::Explanation> {
    if things.iter().any(|thing| thing.thing.kind == "record") {
        things.retain(|thing| thing.thing.kind != "blob");
    }
    things
}
