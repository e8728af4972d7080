//! Progress of pulls, pushes and imports: bars on a terminal, plain lines elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Instant;

use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressStyle};

use crate::args::Global;
use crate::client::pb;
use crate::client::pb::blob_progress::{Limit, Stage};
use crate::output::{short, size};

/// Shows what happens to each blob.
pub(crate) enum Progress {
    /// Says nothing.
    Quiet,
    /// One line when a blob is done.
    Lines { done: HashMap<String, ()> },
    /// One bar a blob.
    Bars { all: MultiProgress, bars: HashMap<String, Bar> },
}

/// One blob's bar, with what its rate is computed from.
pub(crate) struct Bar {
    bar: ProgressBar,
    started: Instant,
    first_offset: u64,
    finished: bool,
}

impl Progress {
    /// Bars if standard error is a terminal.
    pub(crate) fn new(global: &Global) -> Self {
        if global.quiet {
            Self::Quiet
        } else if std::io::stderr().is_terminal() {
            Self::Bars { all: MultiProgress::new(), bars: HashMap::new() }
        } else {
            Self::Lines { done: HashMap::new() }
        }
    }

    /// Shows one event.
    pub(crate) fn event(&mut self, event: &pb::Progress) {
        if !event.message.is_empty() {
            self.message(&event.message);
        }
        if let Some(blob) = &event.blob {
            match self {
                Self::Quiet => {}
                Self::Lines { done } => line(done, blob),
                Self::Bars { all, bars } => bar(all, bars, blob),
            }
        }
    }

    fn message(&self, text: &str) {
        match self {
            Self::Quiet => {}
            Self::Lines { .. } => eprintln!("{text}"),
            // A terminal that went away is no reason to stop.
            Self::Bars { all, .. } => drop(all.println(text)),
        }
    }
}

const fn is_end(stage: Stage) -> bool {
    matches!(stage, Stage::Complete | Stage::Present | Stage::Mounted)
}

const fn word(stage: Stage) -> &'static str {
    match stage {
        Stage::Waiting => "waiting",
        Stage::Fetching => "fetching",
        Stage::Verifying => "verifying",
        Stage::Unpacking => "unpacking",
        Stage::Complete => "done",
        Stage::Present => "already here",
        Stage::Pushing => "pushing",
        Stage::Mounted => "mounted from another repository",
    }
}

const fn limit_word(limit: Limit) -> &'static str {
    match limit {
        Limit::Unknown => "",
        Limit::Network => "waits for network",
        Limit::Inflate => "waits for inflate",
        Limit::Disk => "waits for disk",
    }
}

fn line(done: &mut HashMap<String, ()>, blob: &pb::BlobProgress) {
    if is_end(blob.stage()) && done.insert(blob.digest.clone(), ()).is_none() {
        eprintln!("{:<9}{}  {:>10}  {}", blob.kind, short(&blob.digest), size(blob.total), word(blob.stage()));
    }
}

fn bar(all: &MultiProgress, bars: &mut HashMap<String, Bar>, blob: &pb::BlobProgress) {
    let entry = bars.entry(blob.digest.clone()).or_insert_with(|| {
        let bar = all.add(ProgressBar::new(blob.total.max(1)));
        bar.set_style(style());
        Bar { bar, started: Instant::now(), first_offset: blob.offset, finished: false }
    });
    if entry.finished {
        return;
    }
    // An archive's blob comes before it is known what it is.
    entry.bar.set_prefix(format!("{:<9}{}", blob.kind, short(&blob.digest)));
    entry.bar.set_length(blob.total.max(1));
    entry.bar.set_position(blob.offset.min(blob.total));
    if is_end(blob.stage()) {
        entry.finished = true;
        entry.bar.finish_with_message(format!("{:>10}  {}", size(blob.total), word(blob.stage())));
    } else {
        entry.bar.set_message(entry.text(blob));
    }
}

impl Bar {
    /// `3.1 / 28.2 MiB  12.1 MiB/s  2s left  unpacking, waits for inflate`.
    fn text(&self, blob: &pb::BlobProgress) -> String {
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        let rate = blob.offset.saturating_sub(self.first_offset) as f64 / seconds;
        let mut text = format!("{:>10} / {:<10}", size(blob.offset), size(blob.total));
        if rate > 1.0 {
            let left = blob.total.saturating_sub(blob.offset) as f64 / rate;
            text.push_str(&format!("  {:>11}/s  {:>4.0}s left", BinaryBytes(rate as u64).to_string(), left));
        }
        text.push_str("  ");
        text.push_str(word(blob.stage()));
        let limit = limit_word(blob.limit());
        if !limit.is_empty() {
            text.push_str(", ");
            text.push_str(limit);
        }
        text
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix}  [{bar:24}]  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
