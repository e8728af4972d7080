//! Shell completions and man pages, generated from the one definition of the command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;

use crate::args::Cli;
use crate::error::{CliError, Result};
use crate::output;

/// Options of `completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: orlop completions bash > /etc/bash_completion.d/orlop")]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// Options of `man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: orlop man /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Where the pages go
    dir: PathBuf,
}

/// Runs `completions`.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "orlop", &mut script);
    output::print_text(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `man`.
pub(crate) fn man(args: &ManArgs) -> Result<ExitCode> {
    std::fs::create_dir_all(&args.dir).map_err(CliError::at("create directory", &args.dir))?;
    clap_mangen::generate_to(Cli::command(), &args.dir).map_err(CliError::at("write man pages to", &args.dir))?;
    Ok(ExitCode::SUCCESS)
}
