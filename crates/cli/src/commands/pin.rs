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
    for name in &args.names {
        let request = pb::PinRequest { name: name.clone(), pinned };
        let answer = context.clients.orlop().pin(request).await?.into_inner();
        output::names(answer.names.iter().map(String::as_str))?;
    }
    Ok(())
}
