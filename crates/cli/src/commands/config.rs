//! `orlop config`: the configuration file shown, checked, and as it is in effect.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::args::{Format, Global};
use crate::config::{self, Config};
use crate::error::{Class, CliError, Result};
use crate::settings::Settings;
use crate::{credentials, output, policy, registry};

/// What to do with it.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  orlop config default > /etc/orlop/config.toml
  orlop config check /etc/orlop/config.toml")]
pub(crate) enum Command {
    /// Print a commented file with every key and its default
    Default,
    /// Say whether a file is right
    Check {
        /// The file [default: the one that would be read]
        file: Option<PathBuf>,
    },
    /// Print what is in effect: options, environment and file together
    Dump,
}

/// Runs `config`.
pub(crate) fn run(global: &Global, command: &Command) -> Result<ExitCode> {
    match command {
        Command::Default => output::print_text(config::DEFAULT)?,
        Command::Check { file } => check(file.clone().or_else(|| global.config.clone()), global.output)?,
        Command::Dump => dump(global)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A file without a mistake; one with a mistake is an error.
#[derive(Serialize)]
struct Right {
    schema: &'static str,
    ok: bool,
    file: PathBuf,
}

/// What is in effect.
#[derive(Serialize)]
struct Effective {
    schema: &'static str,
    config: Config,
}

fn check(file: Option<PathBuf>, format: Format) -> Result<()> {
    let file = file.unwrap_or_else(|| config::DEFAULT_FILE.into());
    let config = config::read(&file)?;
    policy::gate(&config.verify)?;
    credentials::providers(&config.credentials)?;
    registry::check(&config.registry)?;
    check_hosts(&config.hosts_dir)?;
    match format {
        Format::Name => output::line(file.display().to_string()),
        Format::Table | Format::Wide => output::line(format!("{}: right", file.display())),
        format => output::document(format, &Right { schema: "orlop.config.check/v1", ok: true, file }),
    }
}

/// Reads every `hosts.toml` below the directories: a mistake in one would otherwise show at the first pull from its host.
fn check_hosts(directories: &str) -> Result<()> {
    let wrong = |path: &Path, why: String| CliError::new(Class::Usage, format!("{}: {why}", path.display()));
    for directory in std::env::split_paths(directories) {
        let hosts = match std::fs::read_dir(&directory) {
            // Who has no mirrors has no such directory.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            read => read.map_err(CliError::at("read", &directory))?,
        };
        for host in hosts {
            let base = host.map_err(CliError::at("read", &directory))?.path();
            let path = base.join("hosts.toml");
            let text = match std::fs::read_to_string(&path) {
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => continue,
                read => read.map_err(CliError::at("read", &path))?,
            };
            orlop_remote::read_hosts_toml(&text, &base).map_err(|error| wrong(&path, error.to_string()))?;
        }
    }
    Ok(())
}

fn dump(global: &Global) -> Result<()> {
    let settings = Settings::load(global)?;
    let effective = Config { root: Some(settings.root), address: settings.address, ..settings.config };
    if output::is_document(global.output) {
        return output::document(global.output, &Effective { schema: "orlop.config.dump/v1", config: effective });
    }
    let text = toml::to_string_pretty(&effective).map_err(|e| CliError::new(Class::Failed, e.to_string()))?;
    output::print_text(&text)
}
