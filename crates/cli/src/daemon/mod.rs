//! `orlop serve`: the daemon. It opens the root, binds the socket, serves until it is told to end.

mod signals;
mod socket;

use std::path::PathBuf;
use std::process::ExitCode;

use orlop_server::{ServeOptions, Server};
use signals::Signals;
use socket::Socket;

use tokio::sync::oneshot;

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
    let mut signals = Signals::listen()?;
    let settings = Settings::load(global)?;
    let path = args.socket.clone().or(settings.default_socket).ok_or_else(|| {
        CliError::new(Class::Usage, "no place for the socket: XDG_RUNTIME_DIR is not set").hint("give --socket PATH")
    })?;
    let images = embed::images(&settings.root).await?;
    let mut held = Held::take(&settings.root)?;
    let (socket, listener) = Socket::bind(&path)?;
    held.announce(&path)?;
    tracing::info!(socket = %path.display(), root = %settings.root.display(), "serving");
    let listener = for_runtime(listener).map_err(CliError::at("listen on", &path))?;
    let (stop, stopped) = oneshot::channel::<()>();
    let (server, options) = (Server::new(images), ServeOptions::default());
    let serving = server.serve(vec![listener], &options, async { drop(stopped.await) });
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served,
        signal = signals.next() => {
            tracing::info!(signal, limit = ?options.shutdown_limit, "finishing what runs");
            drop(stop);
            tokio::select! {
                served = serving => served,
                signal = signals.next() => {
                    tracing::warn!(signal, "ended at once");
                    socket.remove();
                    // Nothing is lost: what is acknowledged is on disk, and writes in progress can be resumed.
                    std::process::exit(crate::error::INTERRUPTED.into());
                }
            }
        }
    };
    socket.remove();
    served.map_err(|e| CliError::io("serve on", Some(&path), e))?;
    Ok(ExitCode::SUCCESS)
}

/// The only handle to the socket: once it is dropped, nobody waits in its queue for an answer that will not come.
fn for_runtime(listener: std::os::unix::net::UnixListener) -> std::io::Result<tokio::net::UnixListener> {
    listener.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(listener)
}
