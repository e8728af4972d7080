//! `orlop pull`.

use std::io::{IsTerminal as _, Read as _};

use orlop_oci::{Kind, classify};
use serde::Serialize;

use super::Context;
use crate::args::Format;
use crate::client::pb;
use crate::error::{Class, CliError, Result};
use crate::output::{self, size};
use crate::progress::Progress;

/// How to reach a registry.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RegistryArgs {
    /// Talk HTTP to the registry, not HTTPS (loopback registries need no flag)
    #[arg(long)]
    plain_http: bool,
    /// User and password, instead of what ~/.docker/config.json has; only the user with --password-stdin
    #[arg(long, value_name = "U:P")]
    user: Option<String>,
    /// Read the password from standard input: arguments can be listed by every user of the machine
    #[arg(long, requires = "user")]
    password_stdin: bool,
    /// containerd's certs.d directory, with a hosts.toml for each registry
    #[arg(long, value_name = "DIR")]
    hosts_dir: Option<String>,
}

impl RegistryArgs {
    /// The options as the API has them.
    pub(crate) fn to_api(&self, context: &Context) -> Result<pb::RegistryOptions> {
        let credentials = self.user.as_deref().map(|user| self.credentials(user)).transpose()?;
        Ok(pb::RegistryOptions {
            plain_http: self.plain_http,
            credentials,
            hosts_dir: absolute(self.hosts_dir.as_deref().unwrap_or(&context.settings.config.hosts_dir)),
            docker_config: context.settings.docker_config.clone(),
        })
    }

    fn credentials(&self, user: &str) -> Result<pb::Credentials> {
        let usage = |what: &str| CliError::new(Class::Usage, format!("--user: {what}"));
        let of = |username: &str, password: String| pb::Credentials { username: username.to_owned(), password };
        match (user.split_once(':'), self.password_stdin) {
            (Some((username, password)), false) => Ok(of(username, password.to_owned())),
            (None, true) => Ok(of(user, password_from_stdin()?)),
            (Some(_), true) => Err(usage("expected USER alone with --password-stdin, found a colon")),
            (None, false) => {
                let hint = "or USER alone, with --password-stdin";
                Err(usage("expected USER:PASSWORD, found no colon").hint(hint))
            }
        }
    }
}

/// More than any password or token that registries give.
const PASSWORD_BYTES: u64 = 64 << 10;

/// The password on standard input, without the end of its line.
fn password_from_stdin() -> Result<String> {
    let usage = |what: &str| CliError::new(Class::Usage, format!("--password-stdin: {what}"));
    let input = std::io::stdin();
    if input.is_terminal() {
        return Err(usage("expected a password, found a terminal, which would show it").hint("feed it: … < FILE"));
    }
    let mut password = String::new();
    let read = input.lock().take(PASSWORD_BYTES + 1).read_to_string(&mut password);
    read.map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => usage("expected a password in UTF-8, found other bytes"),
        _ => CliError::io("read the password from standard input", None, error),
    })?;
    let password = password.strip_suffix('\n').map_or(&*password, |line| line.strip_suffix('\r').unwrap_or(line));
    match password.len() {
        0 => Err(usage("expected a password on standard input, found nothing")),
        length if length as u64 > PASSWORD_BYTES => Err(usage("expected at most 64 KiB, found more")),
        _ => Ok(password.to_owned()),
    }
}

/// The same directories for a daemon, which stands elsewhere.
fn absolute(directories: &str) -> String {
    let all = directories.split(':').filter(|d| !d.is_empty());
    let absolute = all.map(|d| std::path::absolute(d).map_or_else(|_| d.to_owned(), |p| p.display().to_string()));
    absolute.collect::<Vec<_>>().join(":")
}

/// Options of `pull`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  orlop pull alpine                          docker.io/library/alpine:latest
  orlop pull --platform linux/arm64 nginx:1.27
  orlop pull ghcr.io/org/app@sha256:…        exactly this version
  orlop pull --user me --password-stdin registry.example/app < password

An interrupted pull resumes where it stopped. Nothing is visible before it is complete and verified.")]
pub(crate) struct Args {
    /// What to pull
    #[arg(required = true, value_name = "REF")]
    references: Vec<String>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// os/arch[/variant]; may be given several times [default: this machine's]
    #[arg(long, value_name = "P")]
    platform: Vec<String>,
    /// Every platform of the image, attestations too
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
    /// Fetch and verify, but make no snapshots
    #[arg(long)]
    no_unpack: bool,
    /// overlayfs, erofs or native
    #[arg(long, value_name = "S")]
    snapshotter: Option<String>,
    /// Keep it whatever cleans up
    #[arg(long)]
    pin: bool,
    /// Layers fetched at once [default: 3]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    concurrency: u32,
}

/// What a pull, push or import came to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Done {
    schema: &'static str,
    names: Vec<String>,
    target: String,
    image_ids: Vec<String>,
    bytes_transferred: u64,
    bytes_present: u64,
    verified_by: Vec<String>,
}

impl Done {
    pub(crate) fn new(schema: &'static str, done: pb::Done) -> Self {
        Self {
            schema,
            names: done.names,
            target: done.target.map(|t| t.digest).unwrap_or_default(),
            image_ids: done.image_ids,
            bytes_transferred: done.bytes_transferred,
            bytes_present: done.bytes_present,
            verified_by: done.verified_by,
        }
    }

    /// The names that were given, without the hash references that follow from them.
    fn given_names(&self) -> Vec<&str> {
        let of = |wanted: &[Kind]| -> Vec<&str> {
            self.names.iter().map(String::as_str).filter(|name| wanted.contains(&classify(name))).collect()
        };
        let names = of(&[Kind::Tag, Kind::Other]);
        if names.is_empty() { of(&[Kind::Digest]) } else { names }
    }

    /// Prints it in the format asked for; `verb` is for the table.
    pub(crate) fn print(&self, context: &Context, verb: &str) -> Result<()> {
        if output::is_document(context.global.output) {
            return output::document(context.global.output, self);
        }
        let names = self.given_names();
        output::names(names.iter().copied())?;
        if let ([_], false) = (names.as_slice(), context.global.output == Format::Name) {
            output::line(format!("  digest    {}", self.target))?;
            for id in &self.image_ids {
                output::line(format!("  image ID  {id}"))?;
            }
        }
        context.say(format!(
            "{verb} {}: {} transferred, {} were here",
            output::short(&self.target),
            size(self.bytes_transferred),
            size(self.bytes_present)
        ));
        for by in &self.verified_by {
            context.say(format!("verified by {by}"));
        }
        Ok(())
    }
}

/// Shows progress until the operation is done.
pub(crate) async fn follow(context: &Context, mut stream: tonic::Streaming<pb::Progress>) -> Result<pb::Done> {
    let mut progress = Progress::new(&context.global);
    while let Some(event) = stream.message().await? {
        progress.event(&event);
        if let Some(done) = event.done {
            return Ok(done);
        }
    }
    Err(CliError::new(Class::Unavailable, "the server ended the operation without a result"))
}

/// Runs `pull`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    // Once: standard input has the password once.
    let registry = args.registry.to_api(context)?;
    for reference in &args.references {
        let request = pb::PullRequest {
            reference: reference.clone(),
            registry: Some(registry.clone()),
            platforms: args.platform.clone(),
            all_platforms: args.all_platforms,
            no_unpack: args.no_unpack,
            snapshotter: args
                .snapshotter
                .clone()
                .or_else(|| context.settings.config.snapshotter.clone())
                .unwrap_or_default(),
            pin: args.pin,
            concurrency: args.concurrency,
        };
        let stream = context.clients.orlop().pull(request).await?.into_inner();
        Done::new("orlop.pull/v1", follow(context, stream).await?).print(context, "pulled")?;
    }
    Ok(())
}
