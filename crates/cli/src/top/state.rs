//! What is on the screen, and what a key or a piece of news makes of it. Pure: no clock, no terminal, no store; what has to
//! be done comes out as [`Effect`]s.
//!
//! # Invariants
//! - One load and one look at the writes in progress are under way at most.
//! - A plan is executed only from its own page, by a key of its own; nothing else deletes.
//! - What was selected stays selected when the store changes, as long as it is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop_graph::model::Node;
use orlop_oci::Digest;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::data::{Data, ImageRow, LayerRow};
use super::explain;
use super::remove::Removal;

/// A burst of events is over when nothing has come for so long.
const SETTLE: Duration = Duration::from_millis(300);

/// A store that changes all the time is read again so much later than it takes to read it.
const LOAD_FACTOR: u32 = 4;

/// Without events the store is read again so often.
const WITHOUT_EVENTS: Duration = Duration::from_secs(10);

/// Writes in progress are looked at so often while some are, or they are on the screen; else less.
const PULLS: Duration = Duration::from_secs(1);
const NO_PULLS: Duration = Duration::from_secs(5);

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tab {
    Images,
    Layers,
    Pulls,
    Disk,
}

pub(crate) const TABS: [(Tab, &str); 4] =
    [(Tab::Images, "Images"), (Tab::Layers, "Layers"), (Tab::Pulls, "Pulls"), (Tab::Disk, "Disk")];

/// What images and layers are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    Name,
    Size,
    Unpacked,
    Unique,
    Used,
    Age,
}

const IMAGE_SORTS: [Sort; 6] = [Sort::Name, Sort::Size, Sort::Unpacked, Sort::Unique, Sort::Used, Sort::Age];
const LAYER_SORTS: [Sort; 3] = [Sort::Size, Sort::Used, Sort::Name];

/// What keys mean at the moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Mode {
    /// The list.
    List,
    /// A filter is being typed.
    Filter,
    /// A page over the list.
    Page { title: String, lines: Vec<String>, top: usize },
    /// A plan is being computed.
    Planning { name: String },
    /// A plan, which a key executes.
    Plan { removal: Removal, top: usize },
    /// A plan is being executed.
    Removing,
}

/// A write in progress.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pull {
    pub(crate) namespace: String,
    pub(crate) reference: String,
    pub(crate) offset: u64,
    /// 0: unknown.
    pub(crate) total: u64,
    /// Bytes a second since it was looked at before; unknown at the first look.
    pub(crate) rate: Option<u64>,
}

/// What came.
#[derive(Debug)]
pub(crate) enum Message {
    Key(KeyEvent),
    /// The terminal's size changed; the next drawing sees it.
    Resized,
    Tick,
    /// The store without what is still being measured.
    Unmeasured(Box<Data>),
    /// The store, and how long it took to read.
    Loaded(Result<Box<Data>, String>, Duration),
    /// Writes in progress; what could not be listed.
    Pulls(Result<Vec<Pull>, String>),
    /// Something happened in the store, in words.
    Happened(String),
    /// No events come; why.
    Deaf(String),
    Planned(Result<Removal, String>),
    Removed(Result<String, String>),
}

/// What has to be done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    Load { all_namespaces: bool },
    LookAtPulls { all_namespaces: bool },
    Plan { namespace: String, names: Vec<String> },
    Remove(Removal),
    Quit,
    Interrupt,
}

/// What does not work at the moment.
#[derive(Debug, Default)]
struct Troubles {
    /// Reading the store, or a part of it.
    store: Option<String>,
    /// Nothing of it could be read.
    is_unreadable: bool,
    events: Option<String>,
    pulls: Option<String>,
}

/// Where a list stands.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    pub(crate) selected: usize,
    /// The first row on the screen, as the last drawing had it.
    pub(crate) top: std::cell::Cell<usize>,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct State {
    /// What it looks at, in words.
    pub(crate) store: String,
    pub(crate) namespace: String,
    pub(crate) all_namespaces: bool,
    pub(crate) tab: Tab,
    pub(crate) mode: Mode,
    pub(crate) filter: String,
    pub(crate) image_sort: (Sort, bool),
    pub(crate) layer_sort: (Sort, bool),
    pub(crate) data: Option<Arc<Data>>,
    /// Positions in the data, as they are shown.
    pub(crate) images: Vec<usize>,
    pub(crate) layers: Vec<usize>,
    pub(crate) pulls: Vec<Pull>,
    pub(crate) places: [Place; 4],
    /// What came of the last key, and whether that is a failure; it stays until the next one.
    answer: Option<(String, bool)>,
    troubles: Troubles,
    /// The last event, in words.
    news: String,
    /// Since when the store is being read.
    pub(crate) loading: Option<Instant>,
    /// Since when what is shown may be old; when the last news came.
    stale: Option<(Instant, Instant)>,
    /// It is to be read now, whatever else.
    hurry: bool,
    last_load: (Option<Instant>, Duration),
    looking: bool,
    looked: Option<Instant>,
    /// When the writes on the screen were asked for.
    sampled: Option<Instant>,
    pub(crate) now: Instant,
}

impl State {
    pub(crate) fn new(store: String, namespace: String, all_namespaces: bool, now: Instant) -> Self {
        Self {
            store,
            namespace,
            all_namespaces,
            tab: Tab::Images,
            mode: Mode::List,
            filter: String::new(),
            image_sort: (Sort::Name, false),
            layer_sort: (Sort::Size, true),
            data: None,
            images: Vec::new(),
            layers: Vec::new(),
            pulls: Vec::new(),
            places: Default::default(),
            answer: None,
            troubles: Troubles::default(),
            news: String::new(),
            loading: None,
            stale: None,
            hurry: true,
            last_load: (None, Duration::ZERO),
            looking: false,
            looked: None,
            sampled: None,
            now,
        }
    }

    /// Takes in what came; says what is to be done.
    pub(crate) fn update(&mut self, message: Message, now: Instant) -> Vec<Effect> {
        self.now = now;
        let mut effects = Vec::new();
        match message {
            // Over a slow line an escape and the key after it come together.
            Message::Key(key) if key.modifiers.contains(KeyModifiers::ALT) => {
                let plain = key.modifiers - KeyModifiers::ALT;
                effects.extend(self.key(KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE)));
                effects.extend(self.key(KeyEvent::new(key.code, plain)));
            }
            Message::Key(key) => effects.extend(self.key(key)),
            Message::Resized | Message::Tick => {}
            Message::Unmeasured(data) => self.show(Arc::from(data)),
            Message::Loaded(loaded, took) => self.loaded(loaded, took),
            Message::Pulls(found) => self.looked_at_pulls(found),
            Message::Happened(words) => {
                self.troubles.events = None;
                self.news = words;
                self.changed();
            }
            Message::Deaf(why) => {
                let every = WITHOUT_EVENTS.as_secs();
                self.troubles.events = Some(format!("no events, reading every {every} s: {why}"));
            }
            Message::Planned(planned) => self.planned(planned),
            Message::Removed(removed) => {
                self.mode = Mode::List;
                match removed {
                    Ok(words) => self.say(words),
                    Err(why) => self.complain(why),
                }
                self.changed();
            }
        }
        effects.extend(self.due());
        effects
    }

    fn say(&mut self, words: String) {
        self.answer = Some((words, false));
    }

    fn complain(&mut self, words: String) {
        self.answer = Some((words, true));
    }

    /// The last line, and whether it tells of a failure: what the last key did, what does not work, what happened.
    pub(crate) fn said(&self) -> (&str, bool) {
        let Troubles { store, events, pulls, .. } = &self.troubles;
        match (&self.answer, store.as_ref().or(events.as_ref()).or(pulls.as_ref())) {
            (Some((words, failed)), _) => (words, *failed),
            (None, Some(trouble)) => (trouble, true),
            (None, None) => (&self.news, false),
        }
    }

    /// What is shown may be old.
    fn changed(&mut self) {
        let first = self.stale.map_or(self.now, |(first, _)| first);
        self.stale = Some((first, self.now));
    }

    /// What the clock asks for.
    fn due(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        let all_namespaces = self.all_namespaces;
        if self.loading.is_none() && self.is_load_due() {
            self.loading = Some(self.now);
            (self.stale, self.hurry) = (None, false);
            effects.push(Effect::Load { all_namespaces });
        }
        let every = if self.tab == Tab::Pulls || !self.pulls.is_empty() { PULLS } else { NO_PULLS };
        if !self.looking && self.looked.is_none_or(|at| self.now.saturating_duration_since(at) >= every) {
            (self.looking, self.looked) = (true, Some(self.now));
            effects.push(Effect::LookAtPulls { all_namespaces });
        }
        effects
    }

    /// Whether nobody tells of changes.
    const fn is_deaf(&self) -> bool {
        self.troubles.events.is_some() || self.troubles.is_unreadable
    }

    fn is_load_due(&self) -> bool {
        let since = |at: Instant| self.now.saturating_duration_since(at);
        let (Some(last), took) = self.last_load else { return true };
        if self.hurry {
            return true;
        }
        let pause = took * LOAD_FACTOR;
        let settled = self.stale.is_some_and(|(first, news)| since(news) >= SETTLE || since(first) >= SETTLE * 10);
        (settled && since(last) >= pause) || (self.is_deaf() && since(last) >= WITHOUT_EVENTS.max(pause))
    }

    fn loaded(&mut self, loaded: Result<Box<Data>, String>, took: Duration) {
        self.loading = None;
        self.last_load = (Some(self.now), took);
        self.troubles.is_unreadable = loaded.is_err();
        self.troubles.store = match &loaded {
            Ok(data) => data.gaps.first().map(|gap| match data.gaps.len() - 1 {
                0 => format!("not read: {gap}"),
                more => format!("not read: {gap} (and {more} more)"),
            }),
            Err(why) => Some(format!("the store cannot be read: {why}")),
        };
        if let Ok(data) = loaded {
            self.show(Arc::from(data));
        }
    }

    /// Shows other data; what was selected stays so.
    fn show(&mut self, data: Arc<Data>) {
        let image = self.image().map(|row| (row.namespace.clone(), row.name.clone()));
        let layer = self.layer().map(|row| row.digest.clone());
        self.data = Some(data);
        self.arrange();
        self.select_again(image, layer);
    }

    fn select_again(&mut self, image: Option<(Arc<str>, String)>, layer: Option<Digest>) {
        let Some(data) = self.data.clone() else { return };
        let same = |at: &usize| {
            let row = &data.images[*at];
            image.as_ref().is_some_and(|(namespace, name)| row.namespace == *namespace && row.name == *name)
        };
        if let Some(at) = self.images.iter().position(same) {
            self.places[0].selected = at;
        }
        if let Some(at) = self.layers.iter().position(|at| Some(&data.layers[*at].digest) == layer.as_ref()) {
            self.places[1].selected = at;
        }
        self.clamp();
    }

    /// Filters and sorts what there is.
    fn arrange(&mut self) {
        let Some(data) = &self.data else { return };
        let wanted = self.filter.to_lowercase();
        let has = |text: &str| wanted.is_empty() || text.to_lowercase().contains(&wanted);
        let mut images: Vec<usize> =
            (0..data.images.len()).filter(|at| data.images[*at].names.iter().any(|name| has(name))).collect();
        let (sort, reversed) = self.image_sort;
        images.sort_by(|a, b| {
            let (a, b) = (&data.images[*a], &data.images[*b]);
            let order = by_image(sort, a, b);
            (if reversed { order.reverse() } else { order }).then_with(|| a.name.cmp(&b.name))
        });
        let layer_has = |row: &LayerRow| has(row.digest.as_str()) || row.images.iter().any(|name| has(name));
        let mut layers: Vec<usize> = (0..data.layers.len()).filter(|at| layer_has(&data.layers[*at])).collect();
        let (sort, reversed) = self.layer_sort;
        layers.sort_by(|a, b| {
            let (a, b) = (&data.layers[*a], &data.layers[*b]);
            let order = by_layer(sort, a, b);
            (if reversed { order.reverse() } else { order }).then_with(|| a.digest.cmp(&b.digest))
        });
        (self.images, self.layers) = (images, layers);
        self.clamp();
    }

    fn looked_at_pulls(&mut self, found: Result<Vec<Pull>, String>) {
        self.looking = false;
        self.troubles.pulls = found.as_ref().err().map(|why| format!("writes in progress cannot be listed: {why}"));
        let Ok(mut found) = found else { return };
        // An answer is of about the time of its question.
        let between = |(asked, before): (Instant, Instant)| asked.saturating_duration_since(before).as_secs_f64();
        let seconds = self.looked.zip(self.sampled).map_or(0.0, between);
        self.sampled = self.looked;
        let before: BTreeMap<_, _> = self.pulls.iter().map(|p| ((&p.namespace, &p.reference), p.offset)).collect();
        for pull in &mut found {
            let was = before.get(&(&pull.namespace, &pull.reference));
            let rate = |was: &u64| (pull.offset.saturating_sub(*was) as f64 / seconds) as u64;
            pull.rate = was.filter(|_| seconds > 0.0).map(rate);
        }
        found.sort_by(|a, b| (&a.namespace, &a.reference).cmp(&(&b.namespace, &b.reference)));
        self.pulls = found;
        self.clamp();
    }

    fn planned(&mut self, planned: Result<Removal, String>) {
        if !matches!(self.mode, Mode::Planning { .. }) {
            // It was given up meanwhile.
            return;
        }
        self.mode = match planned {
            Ok(removal) => Mode::Plan { removal, top: 0 },
            Err(why) => {
                self.complain(why);
                Mode::List
            }
        };
    }

    /// The image that is selected.
    pub(crate) fn image(&self) -> Option<&ImageRow> {
        let data = self.data.as_deref()?;
        self.images.get(self.places[0].selected).map(|at| &data.images[*at])
    }

    /// The layer that is selected.
    pub(crate) fn layer(&self) -> Option<&LayerRow> {
        let data = self.data.as_deref()?;
        self.layers.get(self.places[1].selected).map(|at| &data.layers[*at])
    }

    /// Rows of the list on the screen.
    pub(crate) fn rows(&self, tab: Tab) -> usize {
        match tab {
            Tab::Images => self.images.len(),
            Tab::Layers => self.layers.len(),
            Tab::Pulls => self.pulls.len(),
            Tab::Disk => self.data.as_ref().map_or(0, |data| data.disk.len()),
        }
    }

    fn clamp(&mut self) {
        for (at, (tab, _)) in TABS.into_iter().enumerate() {
            let last = self.rows(tab).saturating_sub(1);
            self.places[at].selected = self.places[at].selected.min(last);
        }
    }
}

fn by_image(sort: Sort, a: &ImageRow, b: &ImageRow) -> std::cmp::Ordering {
    match sort {
        Sort::Name => a.name.cmp(&b.name),
        Sort::Size => a.size.compressed.cmp(&b.size.compressed),
        Sort::Unpacked => a.size.unpacked.cmp(&b.size.unpacked),
        Sort::Unique => a.size.unique.cmp(&b.size.unique),
        Sort::Used => a.containers.cmp(&b.containers),
        Sort::Age => b.created.cmp(&a.created),
    }
}

fn by_layer(sort: Sort, a: &LayerRow, b: &LayerRow) -> std::cmp::Ordering {
    match sort {
        Sort::Used => a.images.len().cmp(&b.images.len()),
        Sort::Name => a.digest.cmp(&b.digest),
        _ => a.bytes.cmp(&b.bytes),
    }
}

/// Lines that a page key moves by.
const PAGE: isize = 10;

impl State {
    fn key(&mut self, key: KeyEvent) -> Option<Effect> {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Some(Effect::Interrupt);
        }
        self.answer = None;
        match &mut self.mode {
            Mode::List => self.list_key(key.code),
            Mode::Filter => {
                self.filter_key(key.code);
                None
            }
            Mode::Page { lines, top, .. } => {
                match key.code {
                    KeyCode::Esc | KeyCode::Enter | KeyCode::Char('q') => self.mode = Mode::List,
                    code => scroll(top, lines.len(), code),
                }
                None
            }
            Mode::Planning { .. } => {
                if matches!(key.code, KeyCode::Esc | KeyCode::Char('q')) {
                    self.mode = Mode::List;
                }
                None
            }
            Mode::Plan { removal, top } => match key.code {
                KeyCode::Char('y') => {
                    let removal = removal.clone();
                    self.mode = Mode::Removing;
                    Some(Effect::Remove(removal))
                }
                KeyCode::Esc | KeyCode::Char('n' | 'q') => {
                    self.mode = Mode::List;
                    self.say("nothing was changed".into());
                    None
                }
                code => {
                    scroll(top, removal.lines.len(), code);
                    None
                }
            },
            // It cannot be taken back.
            Mode::Removing => None,
        }
    }

    fn list_key(&mut self, code: KeyCode) -> Option<Effect> {
        match code {
            KeyCode::Char('q') => return Some(Effect::Quit),
            KeyCode::Char(digit @ '1'..='4') => self.tab = TABS[digit as usize - '1' as usize].0,
            KeyCode::Tab | KeyCode::Right => self.turn(1),
            KeyCode::BackTab | KeyCode::Left => self.turn(TABS.len() - 1),
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Esc => {
                self.filter.clear();
                self.arrange();
            }
            KeyCode::Char('s') => self.sort_by_next(),
            KeyCode::Char('r') => self.reverse(),
            KeyCode::Char('u') => self.hurry = true,
            KeyCode::Char('a') => {
                self.all_namespaces = !self.all_namespaces;
                self.hurry = true;
            }
            KeyCode::Enter | KeyCode::Char('e') => self.explain(),
            KeyCode::Char('d') | KeyCode::Delete => return self.plan(),
            KeyCode::Char('?' | 'h') => self.page("Keys", HELP.iter().map(|line| (*line).to_owned()).collect()),
            code => self.move_by(code),
        }
        None
    }

    fn filter_key(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.mode = Mode::List,
            KeyCode::Esc => {
                self.filter.clear();
                self.mode = Mode::List;
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) if !c.is_control() => self.filter.push(c),
            _ => {}
        }
        self.arrange();
    }

    pub(crate) fn tab_at(&self) -> usize {
        TABS.iter().position(|(tab, _)| *tab == self.tab).unwrap_or_default()
    }

    fn turn(&mut self, by: usize) {
        self.tab = TABS[(self.tab_at() + by) % TABS.len()].0;
    }

    fn sort_by_next(&mut self) {
        let next = |all: &[Sort], (now, _): (Sort, bool)| {
            let at = all.iter().position(|sort| *sort == now).unwrap_or_default();
            let sort = all[(at + 1) % all.len()];
            // Names from a, the largest, most used and newest first.
            (sort, !matches!(sort, Sort::Name | Sort::Age))
        };
        match self.tab {
            Tab::Images => self.image_sort = next(&IMAGE_SORTS, self.image_sort),
            Tab::Layers => self.layer_sort = next(&LAYER_SORTS, self.layer_sort),
            Tab::Pulls | Tab::Disk => {}
        }
        self.arrange();
    }

    fn reverse(&mut self) {
        match self.tab {
            Tab::Images => self.image_sort.1 = !self.image_sort.1,
            Tab::Layers => self.layer_sort.1 = !self.layer_sort.1,
            Tab::Pulls | Tab::Disk => {}
        }
        self.arrange();
    }

    fn move_by(&mut self, code: KeyCode) {
        let last = self.rows(self.tab).saturating_sub(1);
        let at = self.tab_at();
        moved(&mut self.places[at].selected, last, code);
    }

    fn explain(&mut self) {
        let Some(data) = self.data.clone() else { return };
        let lines = match self.tab {
            Tab::Images => self.image().map(|row| explain::image(&data, row)),
            Tab::Layers => self.layer().map(|row| explain::layer(&data, row)),
            Tab::Pulls | Tab::Disk => None,
        };
        if let Some(lines) = lines {
            self.page("Explained", lines);
        }
    }

    fn page(&mut self, title: &str, lines: Vec<String>) {
        self.mode = Mode::Page { title: title.to_owned(), lines, top: 0 };
    }

    fn plan(&mut self) -> Option<Effect> {
        let model = &self.data.as_deref()?.model;
        let row = self.image().filter(|_| self.tab == Tab::Images)?;
        let names = row.records.iter().filter_map(|record| match model.node(*record) {
            Node::Record(record) => Some(record.name.to_string()),
            _ => None,
        });
        let (name, namespace, names) = (row.name.clone(), row.namespace.to_string(), names.collect());
        self.mode = Mode::Planning { name };
        Some(Effect::Plan { namespace, names })
    }
}

fn scroll(top: &mut usize, lines: usize, code: KeyCode) {
    moved(top, lines.saturating_sub(1), code);
}

fn moved(at: &mut usize, last: usize, code: KeyCode) {
    let by = match code {
        KeyCode::Up | KeyCode::Char('k') => -1,
        KeyCode::Down | KeyCode::Char('j') => 1,
        KeyCode::PageUp => -PAGE,
        KeyCode::PageDown | KeyCode::Char(' ') => PAGE,
        KeyCode::Home | KeyCode::Char('g') => isize::MIN / 2,
        KeyCode::End | KeyCode::Char('G') => isize::MAX / 2,
        _ => 0,
    };
    *at = at.saturating_add_signed(by).min(last);
}

const HELP: [&str; 13] = [
    "1 2 3 4, Tab   images, layers, pulls in flight, disk",
    "up down j k    select; PgUp PgDn Home End by more",
    "/              show only what has a text in one of its names; Esc shows all",
    "s              sort by the next column",
    "r              the other way round",
    "a              all namespaces, or one",
    "Enter, e       explain what is selected: names, what keeps it, what it costs",
    "d              plan what deleting the image would do; nothing goes before y",
    "u              read the store again now",
    "q              quit; Ctrl-C too",
    "",
    "REFS: its names, hash references too; they cost nothing.",
    "OWN: what no other image keeps: about what its deletion frees.",
];
