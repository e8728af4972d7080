//! The command line's shape: global options and the list of commands. Each command's own options stand beside its code.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::commands as c;

const AFTER_HELP: &str = "\
Start here:
  orlop demo                        see the whole thing work on images made from this machine's files
  orlop pull docker.io/library/alpine
  orlop images                      one row an image; --all shows every record, hash references too
  orlop rm --plan NAME              what a removal would free, before it happens

Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 exists or in conflict, 5 verification failed,
6 no space, 7 not permitted, 8 unavailable (network, registry, daemon), 130 interrupted.";

/// The image store of a Kubernetes node: pulls, keeps, explains, verifies and cleans container images.
#[derive(Debug, Parser)]
#[command(name = "orlop", version, after_help = AFTER_HELP, arg_required_else_help = true)]
#[command(propagate_version = true, infer_subcommands = false, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// Where the store is [default: /var/lib/orlop, or $XDG_DATA_HOME/orlop when not root]
    #[arg(long, global = true, env = "ORLOP_ROOT", value_name = "DIR", help_heading = "Global options")]
    pub(crate) root: Option<PathBuf>,
    /// Whether the root comes from the command line itself.
    #[arg(skip)]
    pub(crate) root_by_option: bool,
    /// Speak to the server on this socket: Orlop's or any containerd's [default: the first of `orlop stores`]
    #[arg(long, global = true, env = "ORLOP_ADDRESS", value_name = "SOCKET", help_heading = "Global options")]
    pub(crate) address: Option<PathBuf>,
    /// Whether the address comes from the command line itself.
    #[arg(skip)]
    pub(crate) address_by_option: bool,
    /// Look for stores below DIR, where the file system of a host is mounted: `kubectl debug node/…` has it at /host
    #[arg(long, global = true, env = "ORLOP_HOST", value_name = "DIR", help_heading = "Global options")]
    pub(crate) host: Option<PathBuf>,
    /// containerd namespace [default: where the store has its images: k8s.io, for Docker moby]
    #[arg(
        short,
        long,
        global = true,
        env = "CONTAINERD_NAMESPACE",
        value_name = "NS",
        help_heading = "Global options"
    )]
    pub(crate) namespace: Option<String>,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value = "table", help_heading = "Global options")]
    pub(crate) output: Format,
    /// Configuration file
    #[arg(long, global = true, env = "ORLOP_CONFIG", value_name = "FILE", help_heading = "Global options")]
    pub(crate) config: Option<PathBuf>,
    /// Print only results, no progress and no advice
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub(crate) quiet: bool,
    /// Say more on standard error; twice: everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub(crate) verbose: u8,
    /// No colour
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) no_color: bool,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    Table,
    /// More columns.
    Wide,
    /// One JSON document; shapes are versioned by its `schema`.
    Json,
    /// The same as YAML.
    Yaml,
    /// Names alone, one a line.
    Name,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the main job on images made from this machine's own files; leaves nothing behind
    Demo(crate::demo::Args),
    /// Run the daemon: containerd's API on a socket
    Serve(crate::daemon::Args),
    /// Run a stateless registry gateway over PostgreSQL and a bucket that several of them share
    Registry(c::registry::Args),
    /// Pull images from registries
    Pull(c::pull::Args),
    /// Push an image to a registry
    Push(c::push::Args),
    /// List images, one row each; --all lists every record
    #[command(visible_alias = "ls")]
    Images(c::images::Args),
    /// Show everything known of one image
    Inspect(c::inspect::Args),
    /// Say what a name, digest or key is, what keeps it, what it costs, and what deleting it would do
    Explain(c::explain::Args),
    /// Show what keeps something on disk, and what would have to go for it to go
    Why(c::why::Args),
    /// Map any name, digest, diff ID, chain ID or key to all others
    Resolve(c::resolve::Args),
    /// Show what images consist of: platforms, configs, layers, snapshots, with sizes and what is shared
    Tree(c::tree::Args),
    /// Show how an image was built, step by step
    History(c::history::Args),
    /// Show what names meant and when, who changed them, and where it came from
    Log(c::log::Args),
    /// Give an image further names
    Tag(c::tag::Args),
    /// Remove names, and what only they keep
    Rm(c::rm::Args),
    /// Remove images that nobody needs, by a policy: shows the plan first
    Prune(c::prune::Args),
    /// Undo a removal
    Undo(c::undo::Args),
    /// Keep images whatever cleans up
    Pin(c::pin::Args),
    /// Let pinned images go again
    Unpin(c::pin::Args),
    /// Read images from an archive
    Import(c::import::Args),
    /// Write images to an archive
    Export(c::export::Args),
    /// Mount an image's file system
    Mount(c::mount::MountArgs),
    /// Unmount what `orlop mount` mounted
    Umount(c::mount::UmountArgs),
    /// Look for damage; --deep hashes everything again
    Check(c::check::Args),
    /// Read all blobs and unpacked layers again, slowly if wished, and tell what is damaged
    Scrub(c::scrub::Args),
    /// Set aside what is damaged and fetch sound bytes again, by digest; --plan says first
    Repair(c::repair::Args),
    /// Verify that images are complete, unaltered and signed as policy wants
    Verify(c::verify::Args),
    /// Find what is wrong in any store, why, what it costs and what mends it; --fix mends
    Doctor(c::doctor::Args),
    /// Show what takes how much disk
    Df(c::df::Args),
    /// Collect what nothing needs any more
    Gc(c::gc::Args),
    /// Blobs: list, read, write, label
    #[command(subcommand)]
    Content(c::content::Content),
    /// Snapshots: list, prepare, commit, remove
    #[command(subcommand)]
    Snapshots(c::snapshots::Snapshots),
    /// Leases: list, create, delete
    #[command(subcommand)]
    Leases(c::leases::Leases),
    /// Namespaces: list, create, label, remove
    #[command(subcommand)]
    Namespaces(c::namespaces::Namespaces),
    /// Take over what a containerd's root has, without copying or changing it; --plan says first
    Adopt(c::adopt::Args),
    /// Give content and images to a containerd, without copying them; --plan says first
    GiveBack(c::give_back::Args),
    /// Show what happens in the store, as it happens, in words
    Watch(c::watch::Args),
    /// Watch images, layers, pulls and disk on the terminal; explain, plan and delete
    Top(crate::top::Args),
    /// List the stores of this machine, and say which one is used
    Stores(c::stores::Args),
    /// Show the nodes that this one gives blobs to and takes them from
    Peers(c::peers::Args),
    /// Put Orlop beneath the containerd of this node, or take it out again
    Install(crate::install::Args),
    /// The configuration: its defaults, whether a file is right, what is in effect
    #[command(subcommand)]
    Config(c::config::Command),
    /// Print a completion script for a shell
    Completions(c::generate::CompletionsArgs),
    /// Write man pages into a directory
    Man(c::generate::ManArgs),
}
