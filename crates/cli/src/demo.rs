//! `orlop demo`: the main job, on real input, in one command.
//!
//! It makes images from this machine's files, starts a registry on loopback, and then runs `orlop`'s own commands, each
//! printed before it runs. What it claims it checks; a claim that does not hold is a failure. Everything is below one
//! temporary directory, which goes when it ends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;

use crate::args::{Cli, Global};
use crate::client::{Clients, pb};
use crate::commands::{Context, dispatch};
use crate::config::Config;
use crate::error::{Class, CliError, Result};
use crate::find::places::{KUBERNETES, Surroundings};
use crate::find::{At, Store};
use crate::output::{self, size};
use crate::settings::Settings;
use crate::{embed, images_made};

/// Options of `demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Needs no network and no daemon. As root it unpacks with overlayfs; otherwise it fetches and verifies without unpacking.
With a network, `orlop pull docker.io/library/alpine` works the same way.")]
pub(crate) struct Args {
    /// Keep the demo's directory and say where it is
    #[arg(long)]
    keep: bool,
}

/// Runs `demo`.
pub(crate) async fn run(global: &Global, args: &Args) -> Result<ExitCode> {
    let dir = tempfile::Builder::new()
        .prefix("orlop-demo-")
        .tempdir()
        .map_err(|e| CliError::io("create a temporary directory", None, e))?;
    let path = dir.path().to_owned();
    let result = Demo::start(global, &path).await?.play().await;
    if args.keep {
        let kept = dir.keep();
        eprintln!("kept {}", kept.display());
    } else {
        dir.close().map_err(CliError::at("remove", &path))?;
        if result.is_ok() {
            output::line("\nThe demo's directory is gone; nothing was left behind.")?;
        }
    }
    result.map(|()| ExitCode::SUCCESS)
}

struct Demo {
    global: Global,
    dir: PathBuf,
    registry: SocketAddr,
    /// Ends with the demo.
    _server: orlop_registry::Server,
    unpack: bool,
}

impl Demo {
    async fn start(global: &Global, dir: &Path) -> Result<Self> {
        let content = orlop_content::LocalStore::open(dir.join("registry"))
            .map_err(|e| CliError::new(Class::Failed, e.to_string()))?;
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .map_err(|e| CliError::io("listen on loopback", None, e))?;
        let index = Arc::new(orlop_registry::MemoryIndex::default());
        let server = orlop_registry::Registry::new(Arc::new(content), index)
            .serve(listener, orlop_registry::ServeOptions::default())
            .map_err(|e| CliError::io("listen on loopback", None, e))?;
        let registry = server.address();
        Ok(Self {
            global: global.clone(),
            dir: dir.to_owned(),
            registry,
            _server: server,
            unpack: rustix::process::geteuid().is_root(),
        })
    }

    async fn play(&self) -> Result<()> {
        title("1. Images from this machine's files, in a registry on loopback")?;
        let (layout, made) = images_made::make(&self.dir)?;
        let builder = self.context("builder").await?;
        let layout = layout.display().to_string();
        self.command(&builder, &["import", "--no-unpack", &layout]).await?;
        for image in &made {
            let local = format!("docker.io/{}", image.name);
            self.command(&builder, &["push", &local, &self.name(image.name)]).await?;
        }
        let node = self.context("node").await?;
        self.pull(&node).await?;
        self.hash_references(&node).await?;
        self.no_disk(&node).await?;
        self.it_returns(&node).await?;
        self.remove(&node).await
    }

    async fn pull(&self, node: &Context) -> Result<()> {
        title("2. Pull: two images that share two layers, one of them under two tags")?;
        for name in ["demo/service:1.0", "demo/service:stable", "demo/worker:1.0"] {
            let mut words = vec!["pull"];
            if !self.unpack {
                words.push("--no-unpack");
            }
            let name = self.name(name);
            words.push(&name);
            self.command(node, &words).await?;
        }
        self.command(node, &["images"]).await?;
        say("One row an image: both tags of demo/service in one row. UNIQUE is what only that image uses.")
    }

    async fn hash_references(&self, node: &Context) -> Result<()> {
        title("3. The hash references")?;
        self.command(node, &["images", "--all"]).await?;
        let records = records(node).await?;
        let count = |kind: &str| records.iter().filter(|r| r.kind == kind).count();
        expect(count("tag") == 3, "three tags")?;
        expect(count("digest") == 2 && count("id") == 2, "two hash references for each image")?;
        say("\
name:tag         what you asked for
name@sha256:…    the same image by the digest of its manifest: exactly this version, whatever the tag means later
sha256:…         the same image by the digest of its config: the image ID, by which kubelet and containers know it
All records of an image point at one target; they are names, not copies.")
    }

    async fn no_disk(&self, node: &Context) -> Result<()> {
        title("4. They cost no disk")?;
        let mut plain = self.context("plain").await?;
        plain.clients = plain.clients.in_namespace("plain")?;
        for name in ["demo/service:1.0", "demo/service:stable", "demo/worker:1.0"] {
            self.quiet_pull(&plain, &self.name(name)).await?;
        }
        let with = bytes_below(&node.settings.root)?;
        let without = bytes_below(&plain.settings.root)?;
        expect(records(&plain).await?.iter().all(|r| r.kind == "tag"), "the second store has no hash references")?;
        self.command(node, &["df"]).await?;
        say(format!(
            "The same images pulled into a second store without hash references:\n\
             {with} bytes of content and snapshots with them, {without} bytes without: a difference of {}.",
            with.abs_diff(without)
        ))?;
        expect(with == without, "a store with hash references is as large as one without, to the byte")
    }

    async fn it_returns(&self, node: &Context) -> Result<()> {
        title("5. Deleting one is futile: it returns")?;
        let before = records(node).await?;
        let id = before.iter().find(|r| r.kind == "id").map(|r| r.name.clone()).unwrap_or_default();
        self.command(node, &["rm", "--plan", &id]).await?;
        self.command(node, &["rm", &id]).await?;
        let after = records(node).await?;
        expect(after.iter().any(|r| r.name == id), "the hash reference is back")?;
        expect(after.len() == before.len(), "and no other record came or went")?;
        say(format!("{} was deleted and is back: its image still has a name.", output::short(&id)))?;
        self.command(node, &["log", &id]).await
    }

    async fn remove(&self, node: &Context) -> Result<()> {
        title("6. Verify, remove, undo, remove for good")?;
        let service = self.name("demo/service:1.0");
        let stable = self.name("demo/service:stable");
        let worker = self.name("demo/worker:1.0");
        self.command(node, &["verify", &service, &worker]).await?;
        let full = bytes_below(&node.settings.root)?;
        self.command(node, &["rm", "--plan", &service, &stable]).await?;
        self.command(node, &["rm", &service, &stable]).await?;
        say("Its hash references went with its last name; the layers it shared stay for the other image.")?;
        self.command(node, &["undo"]).await?;
        expect(bytes_below(&node.settings.root)? == full, "undo brings back every byte")?;
        self.command(node, &["rm", &service, &stable, &worker]).await?;
        self.command(node, &["gc", "--trash"]).await?;
        self.command(node, &["check", "--deep"]).await?;
        expect(records(node).await?.is_empty(), "no record is left")?;
        expect(bytes_below(&node.settings.root)? == 0, "no byte of content or snapshots is left")?;
        say(format!("{} given back; content and snapshots hold 0 bytes.", size(full)))
    }

    /// The name of an image in the demo's registry.
    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.registry)
    }

    /// A store of its own below the demo's directory.
    async fn context(&self, store: &str) -> Result<Context> {
        let root = self.dir.join(store);
        let channel = embed::open(&root).await?;
        let clients = Clients::new(channel, KUBERNETES, "orlop demo")?;
        let settings = Settings {
            root,
            root_given: true,
            address: None,
            default_socket: None,
            namespace: None,
            around: Surroundings::default(),
            docker_config: String::new(),
            config: Config::default(),
            left_out: Vec::new(),
        };
        let store = Store::own(At::Directory(settings.root.clone()), KUBERNETES.to_owned(), "the demo's own");
        Ok(Context { global: self.global.clone(), settings, store, clients })
    }

    /// Prints a command and runs it, as if it had been typed.
    async fn command(&self, context: &Context, words: &[&str]) -> Result<()> {
        output::line(format!("\n$ orlop {}", words.join(" ")))?;
        self.execute(context, words).await
    }

    async fn quiet_pull(&self, context: &Context, name: &str) -> Result<()> {
        let mut request = pb::PullRequest { reference: name.to_owned(), no_unpack: !self.unpack, ..Default::default() };
        request.registry = Some(pb::RegistryOptions::default());
        let mut stream = context.clients.orlop().pull(request).await?.into_inner();
        while stream.message().await?.is_some() {}
        Ok(())
    }

    async fn execute(&self, context: &Context, words: &[&str]) -> Result<()> {
        let line = std::iter::once("orlop").chain(words.iter().copied());
        let cli = Cli::try_parse_from(line).map_err(|e| CliError::new(Class::Usage, e.to_string()))?;
        let code = Box::pin(dispatch(context, cli.command)).await?;
        expect(code == ExitCode::SUCCESS, "the command succeeds")
    }
}

fn title(text: &str) -> Result<()> {
    output::line(format!("\n== {text}"))
}

fn say(text: impl AsRef<str>) -> Result<()> {
    output::line(format!("\n{}", text.as_ref()))
}

fn expect(holds: bool, claim: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(CliError::new(Class::Failed, format!("the demo's claim does not hold: {claim}"))) }
}

async fn records(context: &Context) -> Result<Vec<pb::RecordRow>> {
    let mut stream = context.clients.orlop().list_records(pb::ListRecordsRequest::default()).await?.into_inner();
    let mut rows = Vec::new();
    while let Some(page) = stream.message().await? {
        rows.extend(page.rows);
    }
    Ok(rows)
}

/// Allocated bytes of all files of blobs and trees below a root, hard links once; snapshots' own `meta` is metadata.
fn bytes_below(root: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut seen = std::collections::HashSet::new();
    let mut total = 0;
    let mut open = vec![root.join("content/blobs"), root.join("snapshots")];
    while let Some(dir) = open.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(CliError::io("list", Some(&dir), e)),
        };
        for entry in entries {
            let entry = entry.map_err(CliError::at("list", &dir))?;
            let path = entry.path();
            let metadata = entry.metadata().map_err(CliError::at("stat", &path))?;
            if metadata.is_dir() {
                open.push(path);
            } else if entry.file_name() != "meta" && seen.insert((metadata.dev(), metadata.ino())) {
                total += metadata.blocks() * 512;
            }
        }
    }
    Ok(total)
}
