//! `orlop top`: a store on a terminal, as it changes.
//!
//! [`state`] holds what is shown and decides, [`draw`] draws it, [`data`] makes rows of a model, [`terminal`] is the
//! terminal. Here the work is done that the state asks for, each piece in a task: keys and drawing wait for no store.

mod data;
mod draw;
mod explain;
mod remove;
mod state;
mod terminal;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use data::{Data, DiskRow};
use draw::Look;
use orlop_api::containerd::services::content::v1::ListStatusesRequest;
use orlop_graph::model::{Gap, Inventory, Model, SnapshotKind, SnapshotRow, Usage};
use remove::Remover;
use state::{Effect, Message, Pull, State};
use terminal::Screen;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use crate::client::pb;
use crate::commands::Context;
use crate::error::{Class, CliError, INTERRUPTED, Result};
use crate::events::{self, Event};
use crate::output::size;

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(250);

/// How long the store may take for a list before it counts as silent. What it answers later is not waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait before events are asked for again.
const AGAIN: Duration = Duration::from_secs(5);

/// Options of `top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Needs a terminal of at least 30x7. It looks only; what `d` plans is deleted when `y` says so.
What happens in the store is shown as it happens; `?` shows all keys.

Examples:
  orlop top
  orlop top --address /run/containerd/containerd.sock -n default")]
pub(crate) struct Args {
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

/// Runs `top`; the exit code.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<u8> {
    if !(std::io::stdout().is_terminal() && std::io::stdin().is_terminal()) {
        return Err(CliError::new(Class::Usage, "this view needs a terminal")
            .hint("`orlop images`, `orlop df` and `orlop watch` print the same for pipes and files"));
    }
    // Tasks share this thread, between keys and drawings: they wait most of the time, and what computes is elsewhere.
    tokio::task::LocalSet::new().run_until(show(context, args)).await
}

async fn show(context: &Context, args: &Args) -> Result<u8> {
    let failed = |e| CliError::io("use the terminal", None, e);
    let mut screen = Screen::take().map_err(failed)?;
    let (messages, mut inbox) = unbounded_channel();
    let failure = terminal::listen(messages.clone());
    let worker = Worker::new(context, messages);
    let mut work = JoinSet::new();
    work.spawn_local(worker.clone().hear());
    let look = Look { colour: crate::paint::is_wanted(&context.global) };
    let namespace = context.store.namespace.clone();
    let mut state = State::new(context.store.to_string(), namespace, args.all_namespaces, Instant::now());
    let mut clock = tokio::time::interval(TICK);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let first = tokio::select! {
            _ = clock.tick() => Message::Tick,
            message = inbox.recv() => message.unwrap_or(Message::Tick),
            Some(ended) = work.join_next() => match ended {
                Err(panicked) if panicked.is_panic() => std::panic::resume_unwind(panicked.into_panic()),
                _ => continue,
            },
        };
        if let Ok(error) = failure.try_recv() {
            return Err(failed(error));
        }
        // What has come together is drawn once.
        let rest = std::iter::from_fn(|| inbox.try_recv().ok());
        for message in std::iter::once(first).chain(rest.take(BURST)) {
            for effect in state.update(message, Instant::now()) {
                match effect {
                    Effect::Quit => return Ok(0),
                    Effect::Interrupt => return Ok(INTERRUPTED),
                    other => drop(work.spawn_local(worker.clone().work(other))),
                }
            }
        }
        screen.terminal.draw(|frame| draw::draw(frame, &state, look, jiff::Timestamp::now())).map_err(failed)?;
    }
}

/// Messages that are taken in before the next drawing.
const BURST: usize = 1000;

/// Does what the state asks for.
#[derive(Clone)]
struct Worker {
    remover: Remover,
    namespace: String,
    /// Where the store's files are, if somebody says.
    root: Option<PathBuf>,
    messages: UnboundedSender<Message>,
    measured: Arc<tokio::sync::Mutex<Measured>>,
}

/// What committed snapshots take; that never changes.
type Measured = HashMap<(Arc<str>, Arc<str>, Arc<str>), Usage>;

impl Worker {
    fn new(context: &Context, messages: UnboundedSender<Message>) -> Self {
        let clients = context.clients.clone();
        let (own, collector) = (context.store.is_own(), context.store.collector());
        let remover = Remover { reader: clients.reader(), clients, own, collector };
        let (namespace, root) = (context.store.namespace.clone(), context.store.root.clone());
        Self { remover, namespace, root, messages, measured: Arc::default() }
    }

    /// The view may have ended; then nobody wants to know.
    fn tell(&self, message: Message) {
        let _ = self.messages.send(message);
    }

    async fn work(self, effect: Effect) {
        match effect {
            Effect::Load { all_namespaces } => self.load(all_namespaces).await,
            Effect::LookAtPulls { all_namespaces } => {
                let found = tokio::time::timeout(PATIENCE, self.pulls(all_namespaces)).await;
                self.tell(Message::Pulls(found.unwrap_or_else(|_| Err(silent()))));
            }
            Effect::Plan { namespace, names } => {
                let planned = tokio::time::timeout(PATIENCE, self.remover.plan(&namespace, &names)).await;
                self.tell(Message::Planned(planned.unwrap_or_else(|_| Err(silent()))));
            }
            // However long it takes: what it does is under way.
            Effect::Remove(removal) => self.tell(Message::Removed(self.remover.execute(&removal).await)),
            Effect::Quit | Effect::Interrupt => {}
        }
    }

    /// Reads the store; sizes of snapshots that are not known yet come a little later.
    async fn load(&self, all_namespaces: bool) {
        let began = Instant::now();
        let read = tokio::time::timeout(PATIENCE, self.inventory()).await;
        let mut inventory = match read.unwrap_or_else(|_| Err(silent())) {
            Ok(inventory) => inventory,
            Err(why) => return self.tell(Message::Loaded(Err(why), began.elapsed())),
        };
        let unknown = inventory.snapshots.iter().any(measurable);
        if unknown {
            if let Ok(data) = self.data(inventory.clone(), all_namespaces).await {
                self.tell(Message::Unmeasured(data));
            }
            if let Err(error) = self.remover.reader.measure(&mut inventory, measurable).await {
                inventory.gaps.push(Gap { what: "sizes of snapshots".into(), why: error.to_string() });
            }
            self.remember(&inventory).await;
        }
        let made = self.data(inventory, all_namespaces).await;
        self.tell(Message::Loaded(made, began.elapsed()));
    }

    async fn data(&self, inventory: Inventory, all_namespaces: bool) -> Result<Box<Data>, String> {
        let namespace = (!all_namespaces).then(|| self.namespace.clone());
        let mut more = self.kept_by_orlop().await;
        let root = self.root.clone();
        let made = tokio::task::spawn_blocking(move || {
            more.extend(root.as_deref().and_then(file_system));
            Data::new(Model::new(inventory), namespace.as_deref(), more)
        });
        let made = made.await;
        made.map(Box::new).map_err(|e| format!("what was read cannot be put together: {e}"))
    }

    /// What only Orlop's own store knows of its disk.
    async fn kept_by_orlop(&self) -> Vec<DiskRow> {
        if !self.remover.own {
            return Vec::new();
        }
        let asked = self.remover.clients.orlop();
        let answer = { asked }.disk_usage(pb::DiskUsageRequest { without_images: true }).await;
        let Ok(usage) = answer.map(tonic::Response::into_inner) else { return Vec::new() };
        vec![
            DiskRow::new("trash", usage.trash, "orlop gc --trash frees it"),
            DiskRow::new("metadata", usage.metadata, ""),
        ]
    }

    async fn inventory(&self) -> Result<Inventory, String> {
        let read = self.remover.reader.inventory(None).await;
        let mut inventory = read.map_err(|e| e.to_string())?;
        inventory.collector = self.remover.collector;
        let measured = self.measured.lock().await;
        for row in &mut inventory.snapshots {
            let namespace = inventory.namespaces[usize::from(row.namespace)].name.clone();
            if row.kind == SnapshotKind::Committed {
                row.usage = measured.get(&(namespace, row.snapshotter.clone(), row.key.clone())).copied();
            }
        }
        Ok(inventory)
    }

    async fn remember(&self, inventory: &Inventory) {
        let known = inventory.snapshots.iter().filter_map(|row| {
            let namespace = inventory.namespaces[usize::from(row.namespace)].name.clone();
            let key = (namespace, row.snapshotter.clone(), row.key.clone());
            row.usage.filter(|_| row.kind == SnapshotKind::Committed).map(|usage| (key, usage))
        });
        *self.measured.lock().await = known.collect();
    }

    async fn pulls(&self, all_namespaces: bool) -> Result<Vec<Pull>, String> {
        let mut namespaces = vec![self.namespace.clone()];
        if all_namespaces {
            let all = self.remover.reader.namespaces().await.map_err(|e| e.to_string())?;
            namespaces = all.into_iter().map(|row| row.name.to_string()).collect();
        }
        let mut found = Vec::new();
        for namespace in namespaces {
            let clients = self.remover.clients.in_namespace(&namespace).map_err(|e| e.message)?;
            let answer = clients.content().list_statuses(ListStatusesRequest::default()).await;
            let statuses = answer.map_err(|status| status.message().to_owned())?.into_inner().statuses;
            found.extend(statuses.into_iter().map(|status| Pull {
                namespace: namespace.clone(),
                reference: status.r#ref,
                offset: status.offset.try_into().unwrap_or(0),
                total: status.total.try_into().unwrap_or(0),
                rate: None,
            }));
        }
        Ok(found)
    }

    /// Tells of events for ever; where none can be had, why.
    async fn hear(self) {
        loop {
            let why = match self.events().await {
                Ok(()) => "the server ended the stream".to_owned(),
                Err(error) => error.message,
            };
            self.tell(Message::Deaf(why));
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn events(&self) -> Result<()> {
        let mut stream = events::subscribe(&self.remover.clients, Vec::new()).await?;
        while let Some(envelope) = stream.message().await? {
            let event = Event::of(envelope);
            let note = event.hash_reference().map(|note| format!(" ({note})")).unwrap_or_default();
            self.tell(Message::Happened(format!("{}: {} {}{note}", event.namespace, event.what, event.subject)));
        }
        Ok(())
    }
}

/// How full the file system is that a store's files are on.
fn file_system(root: &std::path::Path) -> Option<DiskRow> {
    let stat = rustix::fs::statvfs(root).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    let note = format!("of {}, {} free", size(bytes(stat.f_blocks)), size(bytes(stat.f_bavail)));
    Some(DiskRow::new("its file system, used", bytes(stat.f_blocks.saturating_sub(stat.f_bfree)), note))
}

fn silent() -> String {
    format!("no answer within {} s", PATIENCE.as_secs())
}

/// What others write to is left alone: to measure it, its snapshotter would have to walk it.
fn measurable(row: &SnapshotRow) -> bool {
    row.kind == SnapshotKind::Committed && row.usage.is_none()
}
