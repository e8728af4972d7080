//! The commands, one module each: their options, the call, the rendering.

pub(crate) mod adopt;
pub(crate) mod check;
pub(crate) mod config;
mod containerd;
pub(crate) mod content;
pub(crate) mod df;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod export;
pub(crate) mod gc;
pub(crate) mod generate;
pub(crate) mod give_back;
pub(crate) mod history;
pub(crate) mod images;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod leases;
pub(crate) mod log;
pub(crate) mod mount;
pub(crate) mod namespaces;
pub(crate) mod peers;
pub(crate) mod pin;
pub(crate) mod prune;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod rebuild;
pub(crate) mod registry;
pub(crate) mod repair;
pub(crate) mod resolve;
pub(crate) mod rm;
pub(crate) mod scrub;
pub(crate) mod snapshots;
pub(crate) mod stores;
pub(crate) mod tag;
pub(crate) mod tree;
pub(crate) mod undo;
pub(crate) mod verify;
pub(crate) mod watch;
pub(crate) mod why;

use std::process::ExitCode;

use crate::args::{Cli, Command, Global};
use crate::client::Clients;
use crate::embed;
use crate::error::Result;
use crate::find::places::KUBERNETES;
use crate::find::{At, Reach, Store};
use crate::formats;
use crate::fresh::Fresh;
use crate::settings::Settings;

/// What every command works with.
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) settings: Settings,
    /// What `clients` speak to.
    pub(crate) store: Store,
    pub(crate) clients: Clients,
}

impl Context {
    /// Says something on standard error, unless `--quiet`.
    pub(crate) fn say(&self, text: impl AsRef<str>) {
        if !self.global.quiet {
            eprintln!("{}", crate::paint::fit(text.as_ref()));
        }
    }

    /// Says which store is used if nobody had said it whole: one that was found, or a namespace that follows the product.
    fn say_what_was_found(&self) {
        let Store { namespace, why, root, .. } = &self.store;
        tracing::info!(store = %self.store, ?root, namespace, why, "this store is used");
        let usual = self.settings.namespace.is_some() || namespace == KUBERNETES;
        let was_said = self.settings.address.is_some() && usual;
        if !self.store.is_own() && !was_said {
            self.say(format!("using {}, namespace {namespace} ({why})", self.store));
        }
    }
}

/// Runs one command; `actor` is what the history says of who ran it.
pub(crate) async fn run(cli: Cli, actor: &str) -> Result<ExitCode> {
    formats::admit(&cli.command, cli.global.output)?;
    match cli.command {
        Command::Completions(args) => return generate::completions(&args),
        Command::Man(args) => return generate::man(&args),
        Command::Config(command) => return config::run(&cli.global, &command),
        Command::Demo(args) => return crate::demo::run(&cli.global, &args).await,
        Command::Serve(args) => return crate::daemon::run(&cli.global, &args).await,
        Command::Registry(args) => return registry::run(&cli.global, &args).await,
        Command::Stores(args) => return stores::run(&cli.global, &args).await,
        Command::Install(args) => return crate::install::run(&cli.global, &args).await,
        Command::Adopt(args) => return adopt::run(&cli.global, &args).await,
        Command::GiveBack(args) => return give_back::run(&cli.global, &args).await,
        Command::Repair(args) if args.rebuild_metadata => return rebuild::run(&cli.global, &args).await,
        _ => {}
    }
    let settings = Settings::load(&cli.global)?;
    let reach = reach(&cli.command);
    let fresh = Fresh::of(&settings, reach);
    let (channel, store) = embed::connect(&settings, reach).await?;
    let fresh = fresh.filter(|_| store.at == At::Directory(settings.root.clone()));
    let clients = Clients::new(channel, &store.namespace, actor)?;
    let context = Context { global: cli.global, settings, store, clients };
    context.say_what_was_found();
    let done = dispatch(&context, cli.command).await;
    if let (Err(_), Some(fresh)) = (&done, fresh) {
        drop(context);
        fresh.abandon().await;
    }
    done
}

/// Which stores a command is for.
const fn reach(command: &Command) -> Reach {
    use content::Content as C;
    use leases::Leases as L;
    use namespaces::Namespaces as N;
    use snapshots::Snapshots as S;
    match command {
        Command::Explain(_) | Command::Why(_) | Command::Doctor(_) => Reach::Any,
        Command::Resolve(_) | Command::Tree(_) | Command::Prune(_) => Reach::Any,
        Command::Watch(_) | Command::Top(_) => Reach::Live,
        Command::Images(_) | Command::Inspect(_) | Command::Rm(_) | Command::Df(_) => Reach::Any,
        Command::History(_) | Command::Log(_) => Reach::Any,
        Command::Content(C::Ls { .. } | C::Get { .. } | C::Active)
        | Command::Snapshots(S::Ls { .. } | S::Tree { .. } | S::Usage { .. } | S::Info { .. } | S::Mounts { .. })
        | Command::Leases(L::Ls { .. } | L::Resources { .. })
        | Command::Namespaces(N::Ls) => Reach::Any,
        Command::Content(_) | Command::Snapshots(_) | Command::Leases(_) | Command::Namespaces(_) => Reach::Given,
        Command::Pull(_) | Command::Import(_) => Reach::Make,
        _ => Reach::Own,
    }
}

/// Runs one command on an open store.
pub(crate) async fn dispatch(context: &Context, command: Command) -> Result<ExitCode> {
    match command {
        Command::Pull(args) => pull::run(context, &args).await?,
        Command::Push(args) => push::run(context, &args).await?,
        Command::Images(args) => images::run(context, &args).await?,
        Command::Inspect(args) => inspect::run(context, &args).await?,
        Command::History(args) => history::run(context, &args).await?,
        Command::Log(args) => log::run(context, &args).await?,
        Command::Explain(args) => explain::run(context, &args).await?,
        Command::Why(args) => why::run(context, &args).await?,
        Command::Resolve(args) => resolve::run(context, &args).await?,
        Command::Tree(args) => tree::run(context, &args).await?,
        Command::Tag(args) => tag::run(context, &args).await?,
        Command::Rm(args) => rm::run(context, &args).await?,
        Command::Prune(args) => prune::run(context, &args).await?,
        Command::Undo(args) => undo::run(context, &args).await?,
        Command::Pin(args) => pin::run(context, &args, true).await?,
        Command::Unpin(args) => pin::run(context, &args, false).await?,
        Command::Import(args) => import::run(context, &args).await?,
        Command::Export(args) => export::run(context, &args).await?,
        Command::Mount(args) => mount::mount(context, &args).await?,
        Command::Umount(args) => mount::umount(context, &args).await?,
        Command::Check(args) => return check::run(context, &args).await,
        Command::Scrub(args) => return scrub::run(context, &args).await,
        Command::Repair(args) => return repair::run(context, &args).await,
        Command::Verify(args) => return verify::run(context, &args).await,
        Command::Doctor(args) => return doctor::run(context, &args).await,
        Command::Df(args) => df::run(context, &args).await?,
        Command::Peers(args) => peers::run(context, &args).await?,
        Command::Gc(args) => gc::run(context, &args).await?,
        Command::Content(command) => content::run(context, command).await?,
        Command::Snapshots(command) => snapshots::run(context, command).await?,
        Command::Leases(command) => leases::run(context, command).await?,
        Command::Namespaces(command) => namespaces::run(context, command).await?,
        Command::Watch(args) => watch::run(context, &args).await?,
        Command::Top(args) => return crate::top::run(context, &args).await.map(ExitCode::from),
        Command::Demo(_)
        | Command::Serve(_)
        | Command::Registry(_)
        | Command::Stores(_)
        | Command::Install(_)
        | Command::Adopt(_)
        | Command::GiveBack(_)
        | Command::Config(_)
        | Command::Completions(_)
        | Command::Man(_) => unreachable!("handled before a store is opened"),
    }
    Ok(ExitCode::SUCCESS)
}
