//! `orlop serve`: the daemon. It opens the root, binds the socket, serves until it is told to end.

mod socket;

use std::path::PathBuf;
use std::process::ExitCode;

use orlop_server::Server;
use socket::Socket;

use crate::args::Global;
use crate::embed;
use crate::error::{Class, CliError, Result};
use crate::holder::Held;
use crate::settings::Settings;

/// Options of `serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  orlop serve
  orlop serve --root /data/orlop --socket /run/orlop/orlop.sock
  ctr --address /run/orlop/orlop.sock images ls      containerd's own client, unchanged")]
pub(crate) struct Args {
    /// Where to listen [default: /run/orlop/orlop.sock, or $XDG_RUNTIME_DIR/orlop/orlop.sock when not root]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// Runs `serve`.
pub(crate) async fn run(global: &Global, args: &Args) -> Result<ExitCode> {
    let settings = Settings::load(global)?;
    let path = args.socket.clone().or(settings.default_socket).ok_or_else(|| {
        CliError::new(Class::Usage, "no place for the socket: XDG_RUNTIME_DIR is not set").hint("give --socket PATH")
    })?;
    let images = embed::images(&settings.root).await?;
    let mut held = Held::take(&settings.root)?;
    let socket = Socket::bind(&path)?;
    held.announce(&path)?;
    tracing::info!(socket = %path.display(), root = %settings.root.display(), "serving");
    let listener = socket.listener()?;
    let served = Server::new(images).serve_unix(listener, crate::interrupted()).await;
    socket.remove();
    served.map_err(|e| CliError::new(Class::Failed, format!("serve on {}: {e}", path.display())))?;
    Ok(ExitCode::SUCCESS)
}
