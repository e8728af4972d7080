//! `orlop tag`.

use super::Context;
use crate::client::pb;
use crate::error::Result;
use crate::output;

/// Options of `tag`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
SRC is a name, a digest, an image ID, or NAME@{N}: what NAME meant N changes ago.
The new names get their hash references too. No byte is copied.

Examples:
  orlop tag alpine:3.20 registry.example/base:1
  orlop tag --force app:1.0@{1} app:1.0          roll back")]
pub(crate) struct Args {
    /// The image
    #[arg(value_name = "SRC")]
    source: String,
    /// Its new names
    #[arg(required = true, value_name = "DST")]
    names: Vec<String>,
    /// Move names that exist
    #[arg(short, long)]
    force: bool,
}

/// Runs `tag`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    let request = pb::TagRequest { source: args.source.clone(), names: args.names.clone(), force: args.force };
    let mut answer = context.clients.orlop().tag(request).await?.into_inner();
    answer.names.sort();
    let mut names = output::Names::new(context.global.output, "orlop.tag/v1");
    let told = answer.names.into_iter().try_for_each(|name| names.add(name));
    names.end(told)
}
