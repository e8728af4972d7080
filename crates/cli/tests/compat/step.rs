//! What a case is: a client's command, what it tries, and how its answers may differ.

use crate::client::{Client, EVERY_CTR};
use crate::deviation::Deviation;
use crate::scenes::WORDS;

/// Commands in one namespace, in order: each finds what those before it left.
pub(crate) struct Scene {
    pub(crate) namespace: &'static str,
    pub(crate) steps: &'static [Step],
}

/// One command, run against both sides.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    /// What is tried; it stands in the table.
    pub(crate) form: &'static str,
    /// The arguments, with `$NAMES` of what the sides have and `%LOCAL` where `--local` goes.
    pub(crate) line: &'static str,
    pub(crate) input: &'static str,
    pub(crate) clients: &'static [Client],
    pub(crate) but: [Option<But>; 3],
    pub(crate) look: Look,
    /// What the daemon does by itself after a change may still be under way: asked again until both agree.
    pub(crate) settles: bool,
}

/// A deviation, and whose.
#[derive(Clone, Copy)]
pub(crate) struct But(pub(crate) &'static [Client], pub(crate) &'static Deviation);

/// How an answer is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Line by line.
    Lines,
    /// As lines in any order.
    Sorted,
    /// Standard output is a layer: its entries.
    Layer,
    /// As on a terminal: what is left on the screen.
    Terminal,
}

/// A command whose answers must be equal.
pub(crate) const fn step(form: &'static str, line: &'static str) -> Step {
    Step { form, line, input: "", clients: EVERY_CTR, but: [None; 3], look: Look::Lines, settles: false }
}

impl Step {
    pub(crate) const fn input(self, input: &'static str) -> Self {
        Self { input, ..self }
    }

    pub(crate) const fn only(self, clients: &'static [Client]) -> Self {
        Self { clients, ..self }
    }

    /// Declares a deviation that clients see.
    pub(crate) const fn but(mut self, clients: &'static [Client], deviation: &'static Deviation) -> Self {
        let mut at = 0;
        while self.but[at].is_some() {
            at += 1;
        }
        self.but[at] = Some(But(clients, deviation));
        self
    }

    /// Declares that every `ctr` shows an error in Orlop's words.
    pub(crate) const fn words(self) -> Self {
        self.but(EVERY_CTR, &WORDS)
    }

    pub(crate) const fn look(self, look: Look) -> Self {
        Self { look, ..self }
    }

    pub(crate) const fn settles(self) -> Self {
        Self { settles: true, ..self }
    }

    /// The deviations that are declared for a client.
    pub(crate) fn deviations(&self, client: Client) -> Vec<&'static Deviation> {
        self.but.iter().flatten().filter(|but| but.0.contains(&client)).map(|but| but.1).collect()
    }
}
