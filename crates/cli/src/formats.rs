//! What each command can print: with `-o json` and `-o yaml` a document, with `-o name` names alone, one a line.
//!
//! # Invariants
//! - A command prints what was asked for, or says before it does anything that it cannot (exit code 2); it never prints a
//!   table instead.
//! - [`of`] names every command: the compiler asks of a new one what it prints, and `tests/it/formats.rs` runs each in each
//!   format. docs/output.md tells the shapes.

use crate::args::{Command, Format};
use crate::commands::{config, content, snapshots};
use crate::error::{Class, CliError, Result};

/// What a command can print besides text for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prints {
    /// Documents and names.
    Both,
    /// Documents; what it tells of has no name, and why.
    Documents(&'static str),
    /// Neither, and why.
    Neither(&'static str),
}

const MOUNTS: Prints = Prints::Documents("a mount has no name");

/// What a command can print.
fn of(command: &Command) -> Prints {
    use Prints::{Both, Documents, Neither};
    use config::Command as F;
    use content::Content as C;
    use snapshots::Snapshots as S;
    match command {
        Command::Demo(_) => Neither("it is for people to read"),
        Command::Serve(_) => Neither("it answers on sockets; [log] format in the configuration is that of its log"),
        Command::Registry(_) => Neither("it answers over HTTP; [log] format in the configuration is that of its log"),
        Command::Top(_) => {
            Neither("it draws on a terminal; `orlop images`, `orlop df` and `orlop watch` tell the same")
        }
        Command::Completions(_) => Neither("it prints a script"),
        Command::Man(_) => Neither("it writes man pages"),
        Command::Config(F::Default) => Neither("it prints a file with comments; `orlop config dump` tells the values"),
        Command::Config(F::Dump) => Documents("a configuration has no name"),
        Command::Content(C::Get { .. }) => Neither("standard output gets the blob's bytes"),
        Command::Export(args) if args.is_to_standard_output() => {
            Neither("standard output gets the archive; -O FILE writes it elsewhere")
        }
        Command::Df(args) if args.is_sums() => Documents("sums have no names; --by says of what"),
        Command::Gc(_) => Documents("what it collects it counts"),
        Command::Snapshots(S::Mounts { .. }) => MOUNTS,
        Command::Repair(args) if args.rebuild_metadata => Documents("what is back it counts"),
        Command::Pull(_) | Command::Push(_) | Command::Import(_) | Command::Export(_) => Both,
        Command::Images(_) | Command::Inspect(_) | Command::Explain(_) | Command::Why(_) => Both,
        Command::Resolve(_) | Command::Tree(_) | Command::History(_) | Command::Log(_) => Both,
        Command::Tag(_) | Command::Rm(_) | Command::Prune(_) | Command::Undo(_) => Both,
        Command::Pin(_) | Command::Unpin(_) | Command::Mount(_) | Command::Umount(_) => Both,
        Command::Check(_) | Command::Scrub(_) | Command::Repair(_) | Command::Verify(_) => Both,
        Command::Doctor(_) | Command::Df(_) | Command::Watch(_) | Command::Stores(_) | Command::Install(_) => Both,
        Command::Peers(_) => Both,
        Command::Content(_) | Command::Snapshots(_) | Command::Leases(_) | Command::Namespaces(_) => Both,
        Command::Adopt(_) | Command::GiveBack(_) => Both,
        Command::Config(F::Check { .. }) => Both,
    }
}

/// Refuses a format that a command has not.
///
/// # Errors
/// [`Class::Usage`], with the reason.
pub(crate) fn admit(command: &Command, format: Format) -> Result<()> {
    let (name, why) = match (format, of(command)) {
        (Format::Name, Prints::Documents(why) | Prints::Neither(why)) => ("name", why),
        (Format::Json, Prints::Neither(why)) => ("json", why),
        (Format::Yaml, Prints::Neither(why)) => ("yaml", why),
        _ => return Ok(()),
    };
    let hint = match of(command) {
        Prints::Documents(_) => "-o json prints a document",
        _ => "leave -o away",
    };
    Err(CliError::new(Class::Usage, format!("this command has no -o {name}: {why}")).hint(hint))
}
