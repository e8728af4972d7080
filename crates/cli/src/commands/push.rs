//! `orlop push`.

use super::Context;
use super::pull::{Done, RegistryArgs, follow};
use crate::client::pb;
use crate::error::Result;

/// Options of `push`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  orlop push registry.example/app:1.0
  orlop push app:1.0 127.0.0.1:5000/app:1.0

What the registry has already is not sent; layers of its other repositories are mounted.")]
pub(crate) struct Args {
    /// What to push: a name, digest or image ID
    #[arg(value_name = "SRC")]
    source: String,
    /// Where to; the source's own name if not given
    #[arg(value_name = "DEST")]
    destination: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Only this platform; may be given several times [default: all that are here]
    #[arg(long, value_name = "P")]
    platform: Vec<String>,
}

/// Runs `push`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    let request = pb::PushRequest {
        source: args.source.clone(),
        destination: args.destination.clone().unwrap_or_default(),
        registry: Some(args.registry.to_api(context)?),
        platforms: args.platform.clone(),
    };
    let stream = context.clients.orlop().push(request).await?.into_inner();
    Done::new("orlop.push/v1", follow(context, stream).await?).print(context, "pushed")
}
