//! `orlop`: the one binary. It parses arguments, reads the environment, connects, renders, and picks exit codes.
//!
//! The only crate that reads environment variables, the terminal or configuration files. Commands speak gRPC alone: to
//! a daemon's socket, else to the same services in this process (design: one API, in process or over a
//! socket). Data goes to standard output, everything else to standard error.

mod args;
mod client;
mod commands;
mod config;
mod credentials;
mod daemon;
mod demo;
mod embed;
mod error;
mod events;
mod find;
mod formats;
mod fresh;
mod holder;
mod images_made;
mod install;
mod look;
mod memory;
mod output;
mod paint;
mod policy;
mod progress;
mod registry;
mod settings;
mod top;

use std::io;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, ColorChoice, CommandFactory, FromArgMatches};
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    // Before options are understood: what is wrong with them is told in colour too.
    let is_wanted = paint::is_wanted_with(std::env::args_os().any(|arg| arg == "--no-color"));
    let colour = if is_wanted { ColorChoice::Auto } else { ColorChoice::Never };
    let parsed = args::Cli::command().color(colour).try_get_matches().and_then(|matches| {
        let actor = format!("orlop {}", matches.subcommand_name().unwrap_or_default());
        let mut cli = args::Cli::from_arg_matches(&matches)?;
        cli.global.root_by_option = by_option(&matches, "root");
        cli.global.address_by_option = by_option(&matches, "address");
        Ok((cli, actor))
    });
    let (cli, actor) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return error::usage(&error),
    };
    paint::set_up(&cli.global);
    // The daemon hears signals itself, to finish what runs; and its log is configured.
    let alone = matches!(cli.command, args::Command::Serve(_) | args::Command::Registry(_));
    memory::few_arenas();
    if !alone {
        output::set_up_logging(&cli.global);
    }
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(source) => return error::report(&error::CliError::io("start the runtime", None, source)),
    };
    let code = runtime.block_on(async {
        tokio::select! {
            result = commands::run(cli, &actor) => match result {
                Ok(code) => code,
                Err(error) => error::report(&error),
            },
            () = interrupted(), if !alone => ExitCode::from(error::INTERRUPTED),
        }
    });
    // Tasks that wait for the network are dropped; a write that is in a system call ends first.
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    code
}

/// What tasks run on. Where no descriptor is left for signals tokio panics: here that is an error like any other.
fn runtime() -> io::Result<Runtime> {
    let shown = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let built = std::panic::catch_unwind(|| tokio::runtime::Builder::new_multi_thread().enable_all().build());
    std::panic::set_hook(shown);
    built.unwrap_or_else(|_| {
        let why = std::os::unix::net::UnixStream::pair().err();
        Err(why.unwrap_or_else(|| rustix::io::Errno::MFILE.into()))
    })
}

/// Whether a value was given on the command line, not by the environment.
fn by_option(matches: &ArgMatches, id: &str) -> bool {
    matches.value_source(id) == Some(ValueSource::CommandLine)
}

/// Waits for SIGINT or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        return std::future::pending().await;
    };
    tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
}
