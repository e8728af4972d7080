//! `orlop install`: Orlop beneath the containerd of this node, and out again.
//!
//! Finds the containerd ([`target`]), asks the Orlop that is to lie beneath it ([`daemon`]), makes of its configuration and of what is
//! wanted ([`wants`]) the changes of its files ([`plan`], [`edit`]), keeps what was there and a journal beside it ([`files`]), restarts
//! containerd by its product's own command ([`restart`]), and sees whether a container starts ([`trial`]). If one does not, all of it
//! is undone.
//!
//! # Invariants
//! - Before the first file is changed a container has started without Orlop: what does not work then is not blamed on Orlop later, and
//!   nothing is changed.
//! - A journal that says `installing` or `reverting` is of a run that was cut short: the next one puts the old files back before it
//!   does anything else.
//! - Whoever edited a file since is not overruled: what Orlop changed is taken out of what he wrote, or he is told the difference.
//! - Containers that have their snapshots in Orlop lose them with its snapshotter: `--revert` refuses while there are any.
//!
//! # Concurrency
//! One run at a time on a configuration ([`files::Place`]).

mod daemon;
mod edit;
mod files;
mod hide;
mod plan;
mod program;
mod report;
mod restart;
mod target;
mod trial;
mod wants;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use daemon::Daemon;
use files::{Edit, Journal, Phase, Place};
use orlop_server::Owner;
use report::{Report, State};
use restart::Plugins;
use target::{Layout, Target};
use wants::{Containerd, Profile, SNAPSHOTTER, Wanted};

use crate::args::Global;
use crate::error::{Class, CliError, Result};
use crate::find::places::{self, Product};
use crate::find::probe::Server;
use crate::settings::Settings;

/// Where a raw socket is if nobody says.
const RAW_SOCKET: &str = "/run/orlop/raw.sock";

/// Options of `install`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The containerd is the first that answers of MicroK8s, k3s, rke2 and the system's (kubeadm), or that at --address. Its old
configuration is kept beside it (*.orlop-old, with *.orlop-state). A container is started before and after; if it does not
start any more, the old configuration comes back and containerd is restarted with it. A run that was cut short is undone by
the next one. Orlop must serve the raw socket already: packaging/systemd, or orlop serve --raw-socket PATH.

Examples:
  orlop install --dry-run               the differences and the commands; nothing is changed
  orlop install                         Orlop pulls and unpacks, containerd skips its download
  orlop install --profile differ --content-store
  orlop install --revert                the old configuration, byte for byte if nobody edited the new one
  orlop --host /host install            from a container of the host's processes that has its files at /host")]
pub(crate) struct Args {
    /// Say what would be changed, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Take it back
    #[arg(long, conflicts_with_all = ["profile", "content_store", "raw_socket"])]
    revert: bool,
    /// Who brings images and who unpacks them
    #[arg(long, value_enum, default_value = "remote")]
    profile: Profile,
    /// Keep containerd's blobs in Orlop's store too; only for a containerd that has none yet, or whose blobs Orlop has adopted
    #[arg(long)]
    content_store: bool,
    /// What Orlop calls this containerd: its raw socket in serve.raw_sockets of the configuration
    #[arg(long, value_name = "OWNER", default_value = "containerd")]
    owner: String,
    /// The raw socket [default: the owner's in the configuration, else /run/orlop/raw.sock]
    #[arg(long, value_name = "PATH")]
    raw_socket: Option<PathBuf>,
    /// What restarts containerd, a line for /bin/sh [default: what its product wants, see --dry-run]
    #[arg(long, value_name = "COMMAND")]
    restart_command: Option<String>,
    /// The file to edit [default: what the running containerd reads, or its product's template]
    #[arg(long, value_name = "FILE")]
    containerd_config: Option<PathBuf>,
    /// How long the restart, and then the container, may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// Start no container, before or after
    #[arg(long)]
    no_check: bool,
    /// With --revert: also if containers have their snapshots in Orlop, which then cannot be restarted or removed
    #[arg(long, requires = "revert")]
    force: bool,
}

/// What a run works with.
struct Run<'a> {
    global: &'a Global,
    args: &'a Args,
    settings: Settings,
    target: Target,
    place: Place,
    patience: Duration,
}

/// Runs `install`.
pub(crate) async fn run(global: &Global, args: &Args) -> Result<ExitCode> {
    if !args.dry_run && !rustix::process::geteuid().is_root() {
        return Err(CliError::new(Class::NotPermitted, "the configuration of a containerd is root's")
            .hint("run it as root (sudo); --dry-run shows what it would change"));
    }
    let settings = Settings::load(global)?;
    let target = Target::find(&settings, args).await?;
    let place = Place::take(&target.file(), &target.directory(), args.dry_run || args.revert)?;
    let patience = Duration::from_secs(args.timeout);
    let run = Run { global, args, settings, target, place, patience };
    let journal = run.place.read()?;
    let journal = run.recover(journal).await?;
    let report = if args.revert { run.revert(journal).await? } else { run.install(journal).await? };
    report.print(global.output)?;
    Ok(ExitCode::SUCCESS)
}

impl Run<'_> {
    fn say(&self, text: impl AsRef<str>) {
        if !self.global.quiet {
            eprintln!("{}", crate::paint::fit(text.as_ref()));
        }
    }

    /// Undoes what a run that was cut short has left, and forgets it. Returns what is installed then.
    async fn recover(&self, journal: Option<Journal>) -> Result<Option<Journal>> {
        let journal = match journal {
            Some(journal) if journal.phase != Phase::Installed => journal,
            whole => return Ok(whole),
        };
        let what = if journal.phase == Phase::Installing { "an installation" } else { "a revert" };
        let said = format!("{what} of {} was cut short", journal.at);
        if self.args.dry_run {
            return Err(CliError::new(
                Class::Conflict,
                format!("{said}: the next run that is no --dry-run puts the old configuration back"),
            )
            .hint("orlop install --revert"));
        }
        self.say(format!("{said}; the old configuration comes back"));
        // Somebody may have mended it by hand meanwhile: what he wrote stays, without what Orlop added.
        for back in plan::revert(&self.target, &self.place, &journal)? {
            back.put()?;
        }
        self.place.restore_previous(&journal)?;
        let before = self.plugins().await.unwrap_or_default();
        self.restart(&before, journal.previous.is_some()).await?;
        self.place.forget(&journal)?;
        self.place.read()
    }

    async fn install(&self, journal: Option<Journal>) -> Result<Report> {
        let mut report = Report::new("install", &self.target);
        let Some(server) = &self.target.server else {
            return Err(CliError::new(Class::Unavailable, format!("{} does not answer", self.target.name()))
                .hint("--containerd-config alone is for --revert; give --address of a containerd that runs, too"));
        };
        let (major, _) = self.target.version()?;
        let before = Plugins::of(&server.channel).await?;
        let above = Containerd { generation: major, overlayfs: before.has("overlayfs") };
        let owner = Owner::new(&self.args.owner).map_err(|error| CliError::new(Class::Usage, error.to_string()))?;
        let (wanted, daemon) = self.wanted(&owner, &mut report).await?;
        let edits = plan::install(&self.target, &wanted, above, &self.place, journal.as_ref())?;
        report.edits(&self.target, &edits);
        if edits.iter().all(Edit::is_done) {
            return Ok(report);
        }
        if edits.iter().filter_map(|edit| edit.before.as_deref()).any(plan::leaves_cri_out) {
            report
                .note("CRI is disabled in this containerd: its other clients have to name the snapshotter themselves");
        }
        if let Some(root) = self.target.root.as_deref().filter(|_| wanted.content)
            && !journal.as_ref().is_some_and(|journal| journal.content_store)
        {
            daemon::refuse_content(&self.target.name(), root, &owner, daemon.as_ref()).await?;
        }
        if self.args.dry_run {
            report.state = State::Planned;
            return Ok(report);
        }
        self.preflight(&edits).await?;
        self.try_old(server, &before).await?;
        self.change(&wanted, journal, &edits, &before).await?;
        (report.state, report.checked) = (State::Done, !self.args.no_check);
        Ok(report)
    }

    /// Sees whether a container starts before anything is changed.
    async fn try_old(&self, server: &Server, before: &Plugins) -> Result<()> {
        if self.args.no_check {
            return Ok(());
        }
        let hint = "mend that first; or go on without looking: --no-check";
        let own = before.own().ok_or_else(|| {
            let message = "expected a snapshotter of containerd's own that works, found none; nothing was changed";
            CliError::new(Class::Failed, message).hint(hint)
        })?;
        let failed = because("a container does not start even now, without Orlop; nothing was changed");
        trial::run(&server.channel, own, self.patience).await.map_err(|error| failed(error).hint(hint))
    }

    /// Writes the files, restarts, looks; undoes all of it if that fails.
    async fn change(&self, wanted: &Wanted, journal: Option<Journal>, edits: &[Edit], before: &Plugins) -> Result<()> {
        let product = self.target.product.id();
        let (owner, raw) = (self.args.owner.clone(), wanted.raw.clone());
        let mut new = Journal::new(product, wanted.profile, wanted.content, owner, raw);
        new.files = edits.iter().map(|edit| self.place.changed(edit)).collect();
        new.previous = journal.map(|journal| self.place.previous(journal)).transpose()?;
        self.place.begin(&new, edits)?;
        match self.try_new(edits, before).await {
            Ok(()) => {
                new.phase = Phase::Installed;
                new.previous = None;
                self.place.write(&new)
            }
            Err(failed) => Err(self.roll_back(&new, before, failed).await),
        }
    }

    async fn try_new(&self, edits: &[Edit], before: &Plugins) -> Result<()> {
        for edit in edits.iter().filter(|edit| !edit.is_done()) {
            files::put(&edit.path, Some(&edit.after))?;
        }
        let server = self.restart(before, true).await?;
        match server.filter(|_| !self.args.no_check) {
            Some(server) => trial::run(&server.channel, SNAPSHOTTER, self.patience)
                .await
                .map_err(because("a container does not start on Orlop's snapshotter")),
            None => Ok(()),
        }
    }

    async fn roll_back(&self, journal: &Journal, before: &Plugins, failed: CliError) -> CliError {
        self.say(format!("{}; the old configuration comes back", failed.message));
        let had = journal.previous.is_some();
        let back = async {
            self.place.restore(journal)?;
            self.restart(before, had).await?;
            self.place.forget(journal)
        };
        let (message, hint) = match back.await {
            Ok(()) => (
                format!("{}; the old configuration is back, and containerd runs with it", failed.message),
                "containerd's log and that of orlop serve have more",
            ),
            Err(error) => (
                format!("{}; and undoing it failed: {}", failed.message, error.message),
                "start containerd with what is in *.orlop-old beside its configuration; `orlop install --revert` goes on with it",
            ),
        };
        CliError::new(Class::Failed, message).hint(hint)
    }

    async fn revert(&self, journal: Option<Journal>) -> Result<Report> {
        let mut report = Report::new("revert", &self.target);
        let Some(mut journal) = journal else { return Ok(report) };
        let backs = plan::revert(&self.target, &self.place, &journal)?;
        report.backs(&self.target, &backs);
        self.refuse_users(&mut report).await?;
        if self.args.dry_run {
            report.state = State::Planned;
            return Ok(report);
        }
        let before = self.plugins().await.unwrap_or_default();
        journal.phase = Phase::Reverting;
        self.place.write(&journal)?;
        for back in &backs {
            back.put()?;
        }
        let server = self.restart(&before, false).await?;
        self.place.forget(&journal)?;
        report.state = State::Done;
        if let Some(server) = server.filter(|_| !self.args.no_check) {
            let plugins = Plugins::of(&server.channel).await?;
            let own = plugins.own().unwrap_or("overlayfs");
            let failed = because("the old configuration is back, but a container does not start with it");
            let tried = trial::run(&server.channel, own, self.patience).await;
            tried.map_err(|error| failed(error).hint("containerd's log has more"))?;
            report.checked = true;
        }
        report.note("images that Orlop brought have no layers in containerd now, which still lists them: `orlop doctor` names them, \
                     `crictl rmi NAME` has them pulled again");
        Ok(report)
    }

    /// Restarts containerd; without a socket to ask at nobody waits for it.
    async fn restart(&self, before: &Plugins, beneath: bool) -> Result<Option<Server>> {
        self.say(format!("restarting {}: {}", self.target.product.name(), self.target.restart));
        let restarted = match self.target.socket {
            Some(_) => restart::restart(&self.target, before, beneath, self.patience).await.map(Some),
            None => restart::command(&self.target.restart, self.patience).await.map(|()| None),
        };
        restarted.map_err(|error| error.hint("mend that; the next `orlop install --revert` goes on from here"))
    }

    async fn plugins(&self) -> Option<Plugins> {
        let server = self.target.server.as_ref()?;
        Plugins::of(&server.channel).await.ok()
    }

    /// What is wanted, as Orlop's daemon says it.
    async fn wanted(&self, owner: &Owner, report: &mut Report) -> Result<(Wanted, Option<Daemon>)> {
        let configured = self.settings.config.serve.raw_sockets.get(&owner.to_string()).cloned();
        let raw = self.args.raw_socket.clone().or(configured).unwrap_or_else(|| RAW_SOCKET.into());
        let raw = std::path::absolute(&raw).map_err(CliError::at("resolve", &raw))?;
        let host = self.settings.around.host.as_deref();
        let daemon = match Daemon::find(&raw, owner, host).await {
            Ok(daemon) => Some(daemon),
            Err(error) if self.args.dry_run => {
                report.note(format!("{}: {}", error.message, error.hint.unwrap_or_default()));
                None
            }
            Err(error) => return Err(error),
        };
        let root = daemon.as_ref().and_then(|daemon| daemon.root.clone()).unwrap_or_else(|| match host {
            Some(_) => places::OWN_ROOT.into(),
            None => self.settings.root.clone(),
        });
        let trees = root.join("snapshots/overlayfs");
        Ok((Wanted { profile: self.args.profile, content: self.args.content_store, raw, trees }, daemon))
    }

    /// Containers whose snapshots go out of reach keep a revert from happening.
    async fn refuse_users(&self, report: &mut Report) -> Result<()> {
        let Some(server) = &self.target.server else {
            report.note("containerd does not answer: whether containers have their snapshots in Orlop is not known");
            return Ok(());
        };
        let users = trial::users(&server.channel, SNAPSHOTTER).await?;
        if users.is_empty() || self.args.force {
            return Ok(());
        }
        let first = users.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        let more = users.len().saturating_sub(5);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let containers = crate::output::count(users.len() as u64, "container");
        let message = format!("{containers} with snapshots in Orlop: {first}{more}");
        if self.args.dry_run {
            report.note(format!("{message}: the revert would be refused"));
            return Ok(());
        }
        Err(CliError::new(Class::Conflict, message).hint(
            "drain the node and remove them first (kubectl drain; crictl rmp -fa); --force goes on without: they run on until they \
             end, and cannot be restarted or removed",
        ))
    }

    /// Has containerd itself read the new file, where it can be asked before it is restarted.
    async fn preflight(&self, edits: &[Edit]) -> Result<()> {
        let (Product::Containerd, Layout::File(file), Some(program)) =
            (self.target.product, &self.target.layout, &self.target.program)
        else {
            return Ok(());
        };
        let Some(edit) = edits.iter().find(|edit| edit.path == *file) else { return Ok(()) };
        let directory = file.parent().unwrap_or(Path::new("/"));
        // Beside the real one: what it imports may be named from there.
        let written = tempfile::Builder::new().prefix(".orlop-").suffix(".tmp").tempfile_in(directory);
        let written = written.map_err(CliError::at("write in", directory))?;
        std::fs::write(written.path(), &edit.after).map_err(CliError::at("write", written.path()))?;
        let mut dump = tokio::process::Command::new(program);
        dump.arg("--config").arg(written.path()).args(["config", "dump"]).stdin(std::process::Stdio::null());
        let Ok(Ok(dumped)) = tokio::time::timeout(self.patience, dump.output()).await else {
            tracing::info!(program = %program.display(), "containerd's program cannot be asked about the new configuration");
            return Ok(());
        };
        if !dumped.status.success() {
            let said = String::from_utf8_lossy(&dumped.stderr).trim().to_owned();
            let message = format!("containerd does not take the new configuration; nothing was changed: {said}");
            return Err(CliError::new(Class::Failed, message).hint("--dry-run shows it"));
        }
        let effective = edit::parse(&String::from_utf8_lossy(&dumped.stdout)).ok();
        match effective.as_ref().and_then(wants::snapshotter) {
            Some(other) if other != SNAPSHOTTER => Err(CliError::new(
                Class::Conflict,
                format!("expected the snapshotter {SNAPSHOTTER} to be in effect, found {other}: a file that {} imports says it", file.display()),
            )
            .hint("containerd config dump shows what is in effect; take it out of that file; nothing was changed")),
            _ => Ok(()),
        }
    }
}

/// For `map_err`: what it means that something went wrong.
fn because(what: &str) -> impl Fn(CliError) -> CliError {
    move |error| CliError { message: format!("{what}: {}", error.message), ..error }
}
