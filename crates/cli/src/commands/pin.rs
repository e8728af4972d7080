//! `orlop pin` and `orlop unpin`.

use super::Context;
use crate::client::pb;
use crate::error::Result;
use crate::output;

/// Options of `pin` and `unpin`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names, digests or image IDs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Runs `pin` or `unpin`.
pub(crate) async fn run(context: &Context, args: &Args, pinned: bool) -> Result<()> {
    let schema = if pinned { "orlop.pin/v1" } else { "orlop.unpin/v1" };
    let mut changed = output::Names::new(context.global.output, schema);
    let worked = async {
        for name in &args.names {
            let request = pb::PinRequest { name: name.clone(), pinned };
            let answer = context.clients.orlop().pin(request).await?.into_inner();
            answer.names.into_iter().try_for_each(|name| changed.add(name))?;
        }
        Ok(())
    }
    .await;
    changed.end(worked)
}
