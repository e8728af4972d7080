//! `orlop stores`: what stores this machine has, and which one a command uses.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use futures::future::join_all;
use serde::Serialize;

use crate::args::{Format, Global};
use crate::error::Result;
use crate::find::places::{Place, Product};
use crate::find::probe::{Found, Server, State, home, image_records, namespaces};
use crate::find::{self, is_root};
use crate::holder;
use crate::output::{self, Table};
use crate::paint::Tone;
use crate::settings::Settings;

/// Options of `stores`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Commands that look (images, explain, df, rm --plan, watch, …) use the first of: what --address or --root says, Orlop's
own store, and the containerd of MicroK8s, k3s, rke2, k0s, the system and Docker that answers first. Commands that bring
images in (pull, import, tag, …) use Orlop's own.

Examples:
  orlop stores
  orlop --host /host stores             in a container that has the host's file system at /host")]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Namespace {
    name: String,
    images: Option<u64>,
}

#[derive(Serialize)]
struct Row {
    product: &'static str,
    name: &'static str,
    state: &'static str,
    version: Option<String>,
    address: Option<PathBuf>,
    root: Option<PathBuf>,
    namespaces: Vec<Namespace>,
    /// The namespace that commands mean without `--namespace`.
    namespace: Option<String>,
    used: bool,
    /// Why it is used.
    why: Option<String>,
    /// What is in the way of using it.
    problem: Option<String>,
    /// What to do about that.
    advice: Option<String>,
}

#[derive(Serialize)]
struct Stores {
    schema: &'static str,
    stores: Vec<Row>,
}

/// Runs `stores`.
pub(crate) async fn run(global: &Global, _args: &Args) -> Result<ExitCode> {
    let settings = Settings::load(global)?;
    let found = found(&settings).await?;
    let used = used(&settings, &found);
    let rows = found.into_iter().enumerate().map(|(at, found)| {
        let why = used.as_ref().filter(|(chosen, _)| *chosen == at).map(|(_, why)| why.clone());
        row(found, why, &settings)
    });
    let stores = join_all(rows).await;
    match global.output {
        Format::Json | Format::Yaml => {
            output::document(global.output, &Stores { schema: "orlop.stores/v1", stores })?;
        }
        Format::Name => {
            let places: Vec<String> = stores.iter().map(place).collect();
            output::names(places.iter().map(String::as_str))?;
        }
        Format::Table | Format::Wide => print(&stores, &settings)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Every store, the one whose address was given first.
async fn found(settings: &Settings) -> Result<Vec<Found>> {
    let root = settings.root.clone();
    let holder = tokio::task::spawn_blocking(move || holder::find(&root)).await.ok().transpose()?.flatten();
    let served = holder.map(|holder| holder.socket);
    let socket = served.or_else(|| settings.default_socket.clone().filter(|_| !settings.root_given));
    // An empty path is a socket that nobody has.
    let foreign = settings.root_given.then(|| find::foreign_root(&settings.root)).flatten();
    let root = Some(settings.root.clone()).filter(|_| foreign.is_none());
    let own = Place { product: Product::Orlop, socket: socket.unwrap_or_default(), root };
    let mut found = find::all(settings, own).await;
    if let Some(product) = foreign {
        // A server of it is another row: only its files are what the option names.
        found.retain(|other| matches!(other.state, State::Running(_)) || other.root.as_ref() != Some(&settings.root));
        let (socket, root) = (PathBuf::new(), Some(settings.root.clone()));
        found.insert(0, Found { product, socket, root, state: State::Files });
    }
    if let Some(address) = &settings.address {
        let at = found.iter().position(|other| &other.socket == address);
        let given = match at {
            Some(at) => found.remove(at),
            None => find::given(address, settings).await,
        };
        found.insert(0, given);
    }
    Ok(found)
}

/// Which of them a command that looks uses, and why: the same order in which it is searched.
fn used(settings: &Settings, found: &[Found]) -> Option<(usize, String)> {
    if settings.address.is_some() {
        return Some((0, "its address was given".to_owned()));
    }
    let running = |f: &Found| matches!(f.state, State::Running(_));
    let at_root = |f: &Found| f.product == Product::Orlop && f.root.as_ref() == Some(&settings.root);
    if settings.root_given {
        let given =
            |f: &Found| at_root(f) || (f.root.as_ref() == Some(&settings.root) && f.socket.as_os_str().is_empty());
        return found.iter().position(given).map(|at| (at, "its root was given".to_owned()));
    }
    if let Some(at) = found.iter().position(|f| at_root(f) || (f.product == Product::Orlop && running(f))) {
        return Some((at, "it is Orlop's own".to_owned()));
    }
    found.iter().position(running).map(|at| (at, "no Orlop store is here, and it is the first that answers".to_owned()))
}

async fn row(found: Found, why: Option<String>, settings: &Settings) -> Row {
    let Found { product, socket, root, state } = found;
    let mut row = Row {
        product: product.id(),
        name: product.name(),
        state: "running",
        version: None,
        address: (!socket.as_os_str().is_empty()).then_some(socket),
        root,
        namespaces: Vec::new(),
        namespace: None,
        used: why.is_some(),
        why,
        problem: None,
        advice: None,
    };
    match state {
        State::Running(server) => look_into(&mut row, product, server, settings).await,
        State::NotPermitted(why) => {
            (row.state, row.problem) = ("not-permitted", Some(why));
            row.advice = Some("run orlop as root (sudo), or join the group that the socket belongs to".into());
        }
        State::NoAnswer(why) => {
            (row.state, row.problem) = ("no-answer", Some(why));
            row.advice = Some(format!("start it: {}", product.start()));
        }
        State::Files if product == Product::Orlop => row.state = "files",
        State::Files if settings.root_given && row.root.as_ref() == Some(&settings.root) => {
            row.state = "files";
            let root = settings.root.display();
            row.problem = Some(format!("{root} is a containerd's root, of which --root reads the files only"));
            row.advice = Some(format!(
                "look into it: orlop --root {root} images; for what changes something, --address of its server"
            ));
        }
        State::Files => {
            row.state = "files";
            let root = row.root.as_deref().unwrap_or(Path::new("DIR")).display();
            row.problem = Some("its server does not run".into());
            row.advice = Some(format!("start it: {}; or read its files: --root {root}", product.start()));
        }
        State::Absent => row.state = "absent",
    }
    row
}

/// What a server says of itself; what it does not say stays unknown.
async fn look_into(row: &mut Row, product: Product, server: Server, settings: &Settings) {
    let home = match &settings.namespace {
        Some(namespace) => Ok(namespace.clone()),
        None => home(product, &server.channel).await,
    };
    row.namespace = home.ok();
    match namespaces(&server.channel).await {
        Ok(names) => {
            let counts = names.into_iter().map(async |name| {
                let images = image_records(&server.channel, &name).await.ok();
                Namespace { name, images }
            });
            row.namespaces = join_all(counts).await;
        }
        Err(status) => row.problem = Some(format!("its namespaces cannot be listed: {}", status.message())),
    }
    if let Some(reason) = server.read_only().await {
        row.problem = Some(format!("it takes no changes: {reason}"));
        row.advice = Some("when its disk is well, start it again".into());
    }
    row.version = server.version;
}

fn place(row: &Row) -> String {
    let address = row.address.as_ref().filter(|_| row.state != "files");
    address.or(row.root.as_ref()).map(|path| path.display().to_string()).unwrap_or_default()
}

fn print(stores: &[Row], settings: &Settings) -> Result<()> {
    let mut table = Table::new(&["USED", "PRODUCT", "STATE", "VERSION", "AT", "NAMESPACES (IMAGE RECORDS)"]);
    for row in stores {
        let state = match row.state {
            "not-permitted" => Tone::Bad.paint("not permitted"),
            "no-answer" => Tone::Bad.paint("nobody answers"),
            "files" if row.product == Product::Orlop.id() => Tone::Faint.paint("no daemon"),
            "files" => Tone::Faint.paint("files only"),
            "running" => Tone::Good.paint("running"),
            state => Tone::Faint.paint(state),
        }
        .to_string();
        let count = |n: &Namespace| match n.images {
            Some(images) => format!("{} ({images})", n.name),
            None => format!("{} (?)", n.name),
        };
        let namespaces = row.namespaces.iter().map(count).collect::<Vec<_>>().join(", ");
        let used = if row.used { Tone::Good.paint("*").to_string() } else { String::new() };
        let version = row.version.as_deref().unwrap_or_default().trim_start_matches('v');
        table.row([&used, row.name, &state, version, &place(row), &namespaces]);
    }
    table.print()?;
    let used = stores.iter().find(|row| row.used);
    output::line(match used {
        Some(Row { name, namespace: Some(namespace), why: Some(why), .. }) => {
            format!("\n* commands that look use {name}, namespace {namespace}: {why}")
        }
        Some(Row { name, why: Some(why), .. }) => format!("\n* commands that look use {name}: {why}"),
        _ if is_root(Product::Orlop, &settings.root) || settings.root_given => {
            format!("\ncommands use Orlop's own store at {}", settings.root.display())
        }
        _ => "\nno store can be used; `orlop pull` makes Orlop's own".to_owned(),
    })?;
    for row in stores {
        if let (Some(problem), Some(advice)) = (&row.problem, &row.advice) {
            output::line(format!("  {}: {problem}; {advice}", row.name))?;
        }
    }
    Ok(())
}
