//! `orlop registry`: a stateless gateway to storage that gateways share (docs/operations/shared.md).
//!
//! # Invariants
//! - Signals are heard before anybody can know of the gateway.
//! - It listens when the database and the bucket have answered once; from then on it serves whatever becomes of them, with 503
//!   where they are needed.
//! - It ends after its requests and after what uploads had is written down.
//! - Who may do what is decided by the same code as for a node's registry, from `[registry]` of the configuration.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use orlop_registry::{Registry, ServeOptions};
use orlop_shared::{BucketOptions, CacheOptions, Collector, DatabaseOptions, Options, Shared};
use tokio::net::TcpListener;
use tokio::signal::unix::Signal;

use super::prune::read::size;
use super::watch::duration;
use crate::args::Global;
use crate::config::{Authentication, Config};
use crate::daemon::signals::{Signals, hangups};
use crate::error::{Class, CliError, Result, causes};
use crate::output;
use crate::registry::{Guard, Rules};
use crate::settings::Settings;

/// How long a start waits for a database and a bucket that are not there yet.
const START: Duration = Duration::from_secs(30);
const START_PAUSE: Duration = Duration::from_secs(1);

/// How often, in collections, the bucket is listed.
const SWEEP_EVERY: u32 = 144;

/// Options of `registry`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Any number of gateways serve one database and one bucket; each keeps nothing but its cache. Credentials of the
bucket are taken from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the like, or from the machine's role.
GET /healthz tells that the gateway answers, GET /readyz that the database and the bucket do too.
Who may do what stands in [registry] of the configuration (users, authentication, token_key, permissions, read_only,
audit), and must where other machines reach the address; SIGHUP reads it and the certificate anew.
SIGTERM and SIGINT let requests finish for ten seconds; a second one ends at once.

Examples:
  orlop registry --database postgres://orlop@db/orlop --bucket s3://images --listen 127.0.0.1:5000
  orlop registry --config gateway.toml --database postgres://orlop@db/orlop --listen 0.0.0.0:443 \\
    --bucket 's3://images/prod?endpoint=https://s3.example' --tls-cert tls.crt --tls-key tls.key --cache /var/cache/orlop
  orlop registry --database postgres://orlop@db/orlop --bucket s3://images --collect")]
pub(crate) struct Args {
    /// PostgreSQL, as libpq writes it: postgres://USER:PASSWORD@HOST[,HOST…]/DATABASE[?sslmode=require]
    #[arg(long, env = "ORLOP_DATABASE", hide_env_values = true, value_name = "URL")]
    database: String,
    // No documentation comment: rustdoc would take the second brackets for a link.
    #[arg(
        long,
        env = "ORLOP_BUCKET",
        hide_env_values = true,
        value_name = "URL",
        help = "s3://BUCKET[/PREFIX][?endpoint=URL&region=REGION]"
    )]
    bucket: String,
    /// Where to listen
    #[arg(long, value_name = "ADDR", required_unless_present = "collect")]
    listen: Option<SocketAddr>,
    /// Do not serve: collect and sweep once, say what went, and end
    #[arg(long, conflicts_with = "listen")]
    collect: bool,
    /// A read replica, for lists and manifests by digest
    #[arg(long, env = "ORLOP_DATABASE_REPLICA", hide_env_values = true, value_name = "URL")]
    database_replica: Option<String>,
    /// Certificate authorities of the database, in PEM [default: the system's]
    #[arg(long, value_name = "FILE")]
    database_ca: Option<PathBuf>,
    /// Connections to the database at most: those of all gateways together must stay below its max_connections
    #[arg(long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u16).range(2..))]
    database_connections: u16,
    /// Certificate authorities of the bucket, in PEM, beside the system's
    #[arg(long, value_name = "FILE")]
    bucket_ca: Option<PathBuf>,
    /// Certificate chain in PEM: speak TLS [default: registry.tls_certificate in the configuration]
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Keep small blobs in a directory of this gateway alone
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// How much the cache may hold
    #[arg(long, value_name = "SIZE", default_value = "10GiB", value_parser = size)]
    cache_size: u64,
    /// Larger blobs are not cached
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size)]
    cache_largest: u64,
    /// Send clients to the bucket, by URLs that work for 15 minutes, for blobs of this size and more
    #[arg(long, value_name = "SIZE", value_parser = size)]
    redirect_from: Option<u64>,
    /// How often to collect; the bucket is swept at every 144th time
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    collect_every: Duration,
    /// For how long a push keeps what no manifest needs yet; the same for all gateways
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    lease: Duration,
    /// For how long objects stay that nothing needs: what a database may miss that is restored
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    delete_after: Duration,
    /// How old objects must be that the database does not know to be deleted
    #[arg(long, value_name = "DURATION", default_value = "168h", value_parser = duration)]
    orphan_age: Duration,
    /// For how long a request waits for the bucket
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration)]
    bucket_patience: Duration,
}

/// Runs `registry`.
pub(crate) async fn run(global: &Global, args: &Args) -> Result<ExitCode> {
    let (mut signals, hangups) = (Signals::listen()?, hangups()?);
    let config = configuration(global, args)?;
    output::set_up_daemon_logging(global, &config.log, None);
    let guard = args.listen.map(|address| Guard::new(&config.registry, address)).transpose()?;
    let opened = tokio::select! {
        opened = open(args) => opened?,
        signal = signals.next() => {
            tracing::info!(signal, "ended before the database and the bucket answered");
            return Ok(ExitCode::SUCCESS);
        }
    };
    match args.listen.zip(guard) {
        Some((address, (guard, rules))) => {
            let reload = Reload { global: global.clone(), args, guard, hangups };
            if config.registry.authentication == Authentication::Token && config.registry.token_key.is_none() {
                tracing::warn!(
                    "the tokens of this gateway count nowhere else: where there are others, set registry.token_key"
                );
            }
            serve(args, opened, address, (reload, rules), signals).await
        }
        None => collect_once(&opened.collector()).await,
    }
}

/// The configuration with what options say instead. What only a node's registry has does not count.
fn configuration(global: &Global, args: &Args) -> Result<Config> {
    let mut config = Settings::load(global)?.config;
    let registry = &mut config.registry;
    (registry.address, registry.name) = (None, None);
    if args.tls_cert.is_some() {
        registry.tls_certificate.clone_from(&args.tls_cert);
        registry.tls_key.clone_from(&args.tls_key);
    }
    config.check_registry()?;
    Ok(config)
}

/// Reads anew who may do what.
struct Reload<'a> {
    global: Global,
    args: &'a Args,
    guard: Guard,
    hangups: Signal,
}

impl Reload<'_> {
    /// At every SIGHUP, until dropped.
    async fn run(&mut self, registry: &Registry) {
        while self.hangups.recv().await.is_some() {
            match self.read() {
                Ok(rules) => {
                    self.guard.apply(rules, registry);
                    tracing::info!("who may do what was read anew");
                }
                Err(CliError { message, hint, .. }) => {
                    let hint = hint.unwrap_or_default();
                    tracing::error!(message, hint, "the new configuration is refused; the old one stays in force");
                }
            }
        }
        std::future::pending().await
    }

    fn read(&self) -> Result<Rules> {
        self.guard.read(&configuration(&self.global, self.args)?.registry)
    }
}

fn options(args: &Args) -> Result<Options> {
    let database = DatabaseOptions {
        replica: args.database_replica.clone(),
        authorities: args.database_ca.as_deref().map(read).transpose()?,
        connections: usize::from(args.database_connections),
        ..DatabaseOptions::new(&args.database)
    };
    let variables = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let bucket = BucketOptions {
        variables: variables.filter(|(name, _)| name.starts_with("AWS_")).collect(),
        authorities: args.bucket_ca.as_deref().map(read).transpose()?,
        patience: args.bucket_patience,
        ..BucketOptions::new(&args.bucket)
    };
    let cache = args.cache.clone().map(|directory| CacheOptions {
        directory,
        bytes: args.cache_size,
        largest: args.cache_largest.min(args.cache_size),
    });
    Ok(Options {
        cache,
        redirect_from: args.redirect_from,
        lease: args.lease,
        delete_after: args.delete_after,
        orphan_age: args.orphan_age,
        ..Options::new(database, bucket)
    })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(CliError::at("read", path))
}

/// Opens the database and the bucket; waits for them for a while, as machines that start together do.
async fn open(args: &Args) -> Result<Shared> {
    let options = options(args)?;
    let deadline = tokio::time::Instant::now() + START;
    loop {
        match Shared::open(options.clone()).await {
            Ok(shared) => return Ok(shared),
            Err(error) if error.is_temporary() && tokio::time::Instant::now() < deadline => {
                tracing::warn!(error = causes(&error), "waiting");
                tokio::time::sleep(START_PAUSE).await;
            }
            Err(error) => return Err(explain(&error)),
        }
    }
}

fn explain(error: &orlop_shared::Error) -> CliError {
    use orlop_shared::Error;
    let class = match error {
        _ if error.is_temporary() => Class::Unavailable,
        Error::Option { .. } | Error::Authorities(_) => Class::Usage,
        Error::Foreign { .. } | Error::Schema { .. } => Class::Conflict,
        _ => Class::Failed,
    };
    CliError::new(class, causes(error))
}

async fn serve(
    args: &Args,
    shared: Shared,
    address: SocketAddr,
    (mut reload, rules): (Reload<'_>, Rules),
    mut signals: Signals,
) -> Result<ExitCode> {
    let registry = Registry::new(Arc::new(shared.store()), Arc::new(shared.index()));
    reload.guard.apply(rules, &registry);
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|e| CliError::io(&format!("listen on {address}"), None, e))?;
    let options = ServeOptions { tls: reload.guard.tls()?, health: Some(Arc::new(shared.clone())) };
    let server = registry.clone().serve(listener, options).map_err(|e| CliError::io("listen", None, e))?;
    tracing::info!(address = %server.address(), "serving");
    let collecting = tokio::spawn(collect(shared.collector(), args.collect_every));
    let signal = tokio::select! {
        signal = signals.next() => signal,
        () = reload.run(&registry) => "SIGHUP",
    };
    tracing::info!(signal, "finishing what runs");
    let finish = async {
        server.shutdown().await;
        shared.settle().await;
    };
    tokio::select! {
        () = finish => {}
        signal = signals.next() => tracing::info!(signal, "ending at once"),
    }
    collecting.abort();
    Ok(ExitCode::SUCCESS)
}

/// Collects every so often; each gateway tries at another moment, and one at a time does it.
async fn collect(collector: Collector, every: Duration) {
    let mut turn = rand_turn();
    tokio::time::sleep(every.mul_f64(f64::from(turn) / f64::from(SWEEP_EVERY))).await;
    loop {
        turn = (turn + 1) % SWEEP_EVERY;
        match collector.collect().await {
            Ok(Some(collected)) => tracing::debug!(?collected, "collected"),
            Ok(None) => tracing::debug!("another gateway collects"),
            Err(error) => tracing::warn!(%error, "collecting goes on later"),
        }
        if turn == 0 {
            match collector.sweep().await {
                Ok(Some(swept)) => tracing::info!(?swept, "swept"),
                Ok(None) => tracing::debug!("another gateway sweeps"),
                Err(error) => tracing::warn!(%error, "sweeping goes on later"),
            }
        }
        tokio::time::sleep(every).await;
    }
}

/// Different for gateways that start together.
fn rand_turn() -> u32 {
    use std::hash::{BuildHasher as _, Hasher as _};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (random % u64::from(SWEEP_EVERY)) as u32
}

async fn collect_once(collector: &Collector) -> Result<ExitCode> {
    let busy = || CliError::new(Class::Conflict, "another gateway collects just now").hint("try again when it is done");
    let collected = collector.collect().await.map_err(|e| explain(&e))?.ok_or_else(busy)?;
    let swept = collector.sweep().await.map_err(|e| explain(&e))?.ok_or_else(busy)?;
    output::line(format!(
        "collected: {} given up, {} deleted, {} dropped",
        output::count(collected.given_up as u64, "blob"),
        output::count(collected.deleted as u64, "object"),
        output::count(collected.uploads as u64, "upload"),
    ))?;
    output::line(format!(
        "swept: {} seen, {} that the database does not know deleted, {} too young",
        output::count(swept.seen as u64, "object"),
        swept.deleted,
        swept.young,
    ))?;
    Ok(ExitCode::SUCCESS)
}
