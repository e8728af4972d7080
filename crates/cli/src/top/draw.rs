//! The screen: a title, tabs, a list or a page over it, what happened last, what keys do. Drawing changes nothing but where
//! a list begins.
//!
//! Nothing is wider than the terminal: columns that do not fit are left out, the least needed first.

use std::time::Instant;

use jiff::Timestamp;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::data::{ImageRow, LayerRow};
use super::state::{Mode, Place, Pull, Sort, State, TABS, Tab};
use crate::output::{short, size};

/// Below this nothing useful fits.
const LEAST: (u16, u16) = (30, 7);

/// How things look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    pub(crate) colour: bool,
}

impl Look {
    fn accent(self) -> Style {
        self.with(Color::Cyan)
    }

    fn problem(self) -> Style {
        self.with(Color::Red).add_modifier(Modifier::BOLD)
    }

    fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    fn with(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }
}

/// A column: its title, how wide it is, how a row fills it. The first one takes what is left.
struct Column<R> {
    title: &'static str,
    width: u16,
    sort: Option<Sort>,
    cell: fn(&R, &Shown) -> String,
}

/// What cells need besides their row.
struct Shown {
    now: Timestamp,
    all_namespaces: bool,
}

/// Columns of images, the least needed last.
const IMAGES: [Column<ImageRow>; 7] = [
    Column { title: "IMAGE", width: 24, sort: Some(Sort::Name), cell: image_name },
    Column { title: "SIZE", width: 10, sort: Some(Sort::Size), cell: |row, _| size(row.size.compressed) },
    Column { title: "OWN", width: 10, sort: Some(Sort::Unique), cell: own },
    Column { title: "USED", width: 5, sort: Some(Sort::Used), cell: |row, _| number(row.containers) },
    Column { title: "UNPACKED", width: 10, sort: Some(Sort::Unpacked), cell: unpacked },
    Column { title: "REFS", width: 5, sort: None, cell: |row, _| row.names.len().to_string() },
    Column { title: "AGE", width: 5, sort: Some(Sort::Age), cell: |row, shown| age(row.created, shown.now) },
];

const LAYERS: [Column<LayerRow>; 4] = [
    Column { title: "LAYER", width: 20, sort: Some(Sort::Name), cell: layer_name },
    Column { title: "SIZE", width: 10, sort: Some(Sort::Size), cell: |row, _| size(row.bytes) },
    Column { title: "IMAGES", width: 7, sort: Some(Sort::Used), cell: |row, _| row.images.len().to_string() },
    Column { title: "", width: 0, sort: None, cell: |_, _| String::new() },
];

const PULLS: [Column<Pull>; 5] = [
    Column { title: "WRITE IN PROGRESS", width: 24, sort: None, cell: |row, _| super::data::clean(&row.reference) },
    Column { title: "", width: 12, sort: None, cell: |row, _| bar(row) },
    Column { title: "DONE", width: 10, sort: None, cell: |row, _| size(row.offset) },
    Column {
        title: "OF",
        width: 10,
        sort: None,
        cell: |row, _| if row.total > 0 { size(row.total) } else { "?".into() },
    },
    Column { title: "A SECOND", width: 10, sort: None, cell: |row, _| row.rate.map(size).unwrap_or_default() },
];

/// Draws everything.
pub(crate) fn draw(frame: &mut Frame<'_>, state: &State, look: Look, clock: Timestamp) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let (width, height) = LEAST;
        let text = format!("too small: {width}x{height} needed; q quits");
        text_at(frame, area, 0, Line::raw(text));
        return;
    }
    let shown = Shown { now: clock, all_namespaces: state.all_namespaces };
    title(frame, area, state, look);
    let body = Rect { y: 2, height: area.height - 4, ..area };
    match &state.mode {
        Mode::Page { title, lines, top } => page(frame, body, title, lines, *top, look),
        Mode::Plan { removal, top } => page(frame, body, "Plan", &removal.lines, *top, look),
        Mode::Planning { name } => {
            page(frame, body, "Plan", &[format!("planning what deleting {name} would do…")], 0, look)
        }
        Mode::Removing => page(frame, body, "Plan", &["deleting…".to_owned()], 0, look),
        Mode::List | Mode::Filter => list(frame, body, state, look, &shown),
    }
    foot(frame, area, state, look);
}

/// One line, cut at the edge.
fn text_at(frame: &mut Frame<'_>, area: Rect, y: u16, line: Line<'_>) {
    if y < area.height {
        frame.render_widget(line, Rect { y: area.y + y, height: 1, ..area });
    }
}

fn title(frame: &mut Frame<'_>, area: Rect, state: &State, look: Look) {
    let namespace = if state.all_namespaces { "all namespaces" } else { &state.namespace };
    let store = cut(&state.store, usize::from(area.width).saturating_sub(columns(namespace) + 13));
    let line = Line::from(vec![
        Span::styled("orlop top", look.accent().add_modifier(Modifier::BOLD)),
        Span::raw(format!("  {store}  {namespace}")),
    ]);
    text_at(frame, area, 0, line);
    let mut spans = tabs(state, true);
    if Line::from(spans.clone()).width() > area.width.into() {
        spans = tabs(state, false);
    }
    if !state.filter.is_empty() || state.mode == Mode::Filter {
        spans.push(Span::styled(format!("  /{}", super::data::clean(&state.filter)), look.accent()));
    }
    text_at(frame, area, 1, Line::from(spans));
}

/// The tabs; with the numbers of their rows, where there is room.
fn tabs(state: &State, counted: bool) -> Vec<Span<'static>> {
    let tab = |(at, (tab, name)): (usize, (Tab, &str))| {
        let rows = if counted && tab != Tab::Disk { format!(" {}", state.rows(tab)) } else { String::new() };
        let style = if tab == state.tab { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        let space = if counted { " " } else { "" };
        Span::styled(format!("{space}{} {name}{rows} ", at + 1), style)
    };
    TABS.into_iter().enumerate().map(tab).collect()
}

fn list(frame: &mut Frame<'_>, body: Rect, state: &State, look: Look, shown: &Shown) {
    let place = &state.places[state.tab_at()];
    let sorted = match state.tab {
        Tab::Images => Some(state.image_sort),
        Tab::Layers => Some(state.layer_sort),
        _ => None,
    };
    let Some(data) = state.data.as_deref() else {
        let words = if state.loading.is_some() { "reading the store…" } else { "" };
        return text_at(frame, body, 1, Line::raw(words));
    };
    match state.tab {
        Tab::Images => {
            let rows = |at: usize| &data.images[state.images[at]];
            table(frame, body, &IMAGES, (state.images.len(), rows), place, sorted, look, shown);
        }
        Tab::Layers => {
            let rows = |at: usize| &data.layers[state.layers[at]];
            table(frame, body, &LAYERS, (state.layers.len(), rows), place, sorted, look, shown);
        }
        Tab::Pulls => {
            let rows = |at: usize| &state.pulls[at];
            table(frame, body, &PULLS, (state.pulls.len(), rows), place, sorted, look, shown);
        }
        Tab::Disk => {
            for (at, row) in data.disk.iter().take(usize::from(body.height)).enumerate() {
                let bytes = if row.bytes > 0 || row.note.is_empty() { size(row.bytes) } else { String::new() };
                let line = Line::raw(format!("{:<42} {bytes:>10}  {}", cut(&row.what, 42), row.note));
                text_at(frame, body, at as u16, line);
            }
        }
    }
}

/// A list of which only what is seen is rendered.
#[expect(clippy::too_many_arguments, reason = "they are what a table is made of, and it has one caller")]
fn table<'r, R: 'r>(
    frame: &mut Frame<'_>,
    body: Rect,
    columns: &[Column<R>],
    (count, row): (usize, impl Fn(usize) -> &'r R),
    place: &Place,
    sorted: Option<(Sort, bool)>,
    look: Look,
    shown: &Shown,
) {
    let fitting = fitting(columns, body.width);
    let first = body.width - fitting.iter().skip(1).map(|column| column.width + 1).sum::<u16>();
    let cells = |texts: &mut dyn Iterator<Item = String>| {
        let mut line = String::new();
        for (at, (text, column)) in texts.zip(&fitting).enumerate() {
            if at == 0 {
                line += &padded(&cut(&text, first.into()), first.into());
            } else {
                let width = usize::from(column.width);
                line += &format!(" {:>width$}", cut(&text, width));
            }
        }
        line
    };
    let header = |column: &&Column<R>| match sorted {
        Some((sort, reversed)) if column.sort == Some(sort) => {
            format!("{}{}", column.title, if reversed { "↓" } else { "↑" })
        }
        _ => column.title.to_owned(),
    };
    let titles = cells(&mut fitting.iter().map(header));
    text_at(frame, body, 0, Line::styled(titles, look.accent().add_modifier(Modifier::BOLD)));
    let height = usize::from(body.height.saturating_sub(1)).max(1);
    let top = scrolled(place, count, height);
    for (y, at) in (top..count.min(top + height)).enumerate() {
        let line = cells(&mut fitting.iter().map(|column| (column.cell)(row(at), shown)));
        let style = if at == place.selected { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        text_at(frame, body, y as u16 + 1, Line::styled(line, style));
    }
}

/// As many columns as fit beside the first.
fn fitting<R>(columns: &[Column<R>], width: u16) -> Vec<&Column<R>> {
    let mut left = width;
    let mut fit: Vec<&Column<R>> = Vec::new();
    for column in columns.iter().filter(|column| column.width > 0) {
        let takes = column.width + u16::from(!fit.is_empty());
        if takes > left {
            break;
        }
        left -= takes;
        fit.push(column);
    }
    fit
}

/// The first row that is seen: as before, if the selected one is among what is seen then.
fn scrolled(place: &Place, count: usize, height: usize) -> usize {
    let top = place.top.get().min(count.saturating_sub(height));
    let top = top.clamp(place.selected.saturating_sub(height - 1), place.selected);
    place.top.set(top);
    top
}

fn page(frame: &mut Frame<'_>, body: Rect, title: &str, lines: &[String], top: usize, look: Look) {
    text_at(frame, body, 0, Line::styled(title.to_owned(), look.accent().add_modifier(Modifier::BOLD)));
    let width = usize::from(body.width);
    let wrapped: Vec<String> = lines.iter().skip(top).flat_map(|line| wrap(line, width)).collect();
    for (y, line) in wrapped.into_iter().take(usize::from(body.height) - 1).enumerate() {
        text_at(frame, body, y as u16 + 1, Line::raw(line));
    }
}

fn foot(frame: &mut Frame<'_>, area: Rect, state: &State, look: Look) {
    let loading = state.loading.map(|since| loading(since, state.now)).unwrap_or_default();
    let (said, failed) = state.said();
    let style = if failed { look.problem() } else { look.dim() };
    let words = cut(&super::data::clean(said), usize::from(area.width).saturating_sub(columns(&loading)));
    let room = usize::from(area.width).saturating_sub(columns(&words));
    let line = Line::from(vec![Span::styled(words, style), Span::raw(format!("{loading:>room$}"))]);
    text_at(frame, area, area.height - 2, line);
    let keys: &[&str] = match &state.mode {
        Mode::Filter => &["type", "Enter keeps the filter", "Esc drops it"],
        Mode::Page { .. } => &["up down", "Esc back"],
        Mode::Plan { .. } => &["y delete exactly this", "n nothing", "up down"],
        Mode::Planning { .. } => &["Esc gives up"],
        Mode::Removing => &[],
        Mode::List => &["? keys", "q quit", "/ filter", "s sort", "e explain", "d delete", "a all namespaces"],
    };
    let mut hints = String::new();
    for key in keys {
        let gap = if hints.is_empty() { "" } else { "   " };
        if columns(&hints) + gap.len() + key.len() <= area.width.into() {
            hints += &format!("{gap}{key}");
        }
    }
    let style = if matches!(state.mode, Mode::Plan { .. }) { look.problem() } else { look.dim() };
    text_at(frame, area, area.height - 1, Line::styled(hints, style));
}

/// Said only if it takes long enough to wonder.
fn loading(since: Instant, now: Instant) -> String {
    match now.saturating_duration_since(since).as_secs() {
        0 => String::new(),
        seconds => format!("  reading, {seconds} s"),
    }
}

fn image_name(row: &ImageRow, shown: &Shown) -> String {
    let pin = if row.pinned { " (pinned)" } else { "" };
    if shown.all_namespaces { format!("{}: {}{pin}", row.namespace, row.name) } else { format!("{}{pin}", row.name) }
}

fn layer_name(row: &LayerRow, _: &Shown) -> String {
    format!("{}  {}", short(row.digest.as_str()), row.images.first().map_or("", String::as_str))
}

fn own(row: &ImageRow, _: &Shown) -> String {
    // Shared and unique are of blobs and of what is measured.
    if row.size.unmeasured > 0 { format!("{}+", size(row.size.unique)) } else { size(row.size.unique) }
}

fn unpacked(row: &ImageRow, _: &Shown) -> String {
    if row.size.unmeasured > 0 { "…".into() } else { size(row.size.unpacked) }
}

fn number(number: usize) -> String {
    if number == 0 { String::new() } else { number.to_string() }
}

/// `12s`, `5m`, `3h`, `41d`.
fn age(created: Option<Timestamp>, now: Timestamp) -> String {
    let Some(created) = created else { return String::new() };
    let seconds = (now.as_second() - created.as_second()).max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn bar(row: &Pull) -> String {
    const WIDTH: u64 = 10;
    if row.total == 0 {
        return String::new();
    }
    let done = (row.offset.min(row.total).saturating_mul(WIDTH) / row.total) as usize;
    format!("[{}{}]", "#".repeat(done), " ".repeat(WIDTH as usize - done))
}

/// Columns that a text takes.
fn columns(text: &str) -> usize {
    Span::raw(text).width()
}

/// A text within so many columns. What is cut out is the middle: names differ at their ends.
fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    if width < 3 {
        return text.chars().take(width).filter(|c| c.is_ascii()).collect();
    }
    let mut tail = String::new();
    for c in text.chars().rev() {
        if columns(&tail) + columns(&c.to_string()) > (width - 1) * 2 / 3 {
            break;
        }
        tail.insert(0, c);
    }
    let mut head = String::new();
    for c in text.chars() {
        if columns(&head) + columns(&c.to_string()) + 1 + columns(&tail) > width {
            break;
        }
        head.push(c);
    }
    format!("{head}…{tail}")
}

fn padded(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(columns(text))))
}

/// A line in pieces that fit; what follows the first is indented as the line is.
fn wrap(line: &str, width: usize) -> Vec<String> {
    if columns(line) <= width {
        return vec![line.to_owned()];
    }
    let indent = " ".repeat(line.len() - line.trim_start().len());
    let mut lines = vec![indent.clone()];
    for word in line.split_whitespace() {
        let last = lines.last_mut().expect("there is one");
        let blank = last.trim().is_empty();
        if columns(last) + usize::from(!blank) + columns(word) <= width {
            if !blank {
                last.push(' ');
            }
            last.push_str(word);
            continue;
        }
        // A digest may be wider than a small terminal.
        let mut piece = if blank { lines.pop().unwrap_or_default() } else { indent.clone() };
        for c in word.chars() {
            if columns(&piece) + columns(&c.to_string()) > width {
                lines.push(std::mem::replace(&mut piece, indent.clone()));
            }
            piece.push(c);
        }
        lines.push(piece);
    }
    lines
}
