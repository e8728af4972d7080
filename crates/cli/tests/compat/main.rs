//! The compatibility table of docs/compatibility.md: each client's commands, run against `orlop serve` and against a
//! containerd of the client's generation, and compared: exit code, standard output and standard error, line by line.
//!
//! - [`step`] is what a case is, [`scenes`] are the cases; [`client`] calls the clients, [`pair`] has both sides.
//! - [`help`] takes the list of commands from the client itself: one without a case fails the test.
//! - [`answer`] says what is normalised, and why; nothing else may differ but a [`deviation`] that the case declares.
//! - [`table`] makes the rows. No row is written by hand: `ORLOP_WRITE_TABLE=1 cargo test -p orlop --test compat` writes
//!   what was found, and without that variable the test fails if the document says otherwise.
//!
//! Where a client or its containerd is missing, the test says so and does not look at its rows.

#[path = "../common/mod.rs"]
mod common;

mod answer;
mod client;
mod deviation;
mod events;
mod help;
mod pair;
mod scenes;
mod step;
mod table;
mod words;

use answer::{Answer, difference};
use client::Client;
use common::document;
use deviation::Deviation;
use help::Leaf;
use pair::Pair;
use step::{Scene, Step};
use table::Tried;

/// All that goes wrong is told at once.
struct Run {
    pair: Pair,
    leaves: Vec<Leaf>,
    tried: Vec<Tried>,
    wrong: Vec<String>,
}

impl Run {
    fn start(client: Client) -> Option<Self> {
        let pair = Pair::start(client)?;
        let leaves = help::leaves(pair.program(), client);
        Some(Self { pair, leaves, tried: Vec::new(), wrong: Vec::new() })
    }

    fn scene(&mut self, scene: &Scene) {
        let client = self.pair.client;
        for step in scene.steps.iter().filter(|step| step.clients.contains(&client)) {
            let declared = step.deviations(client);
            let agree = |theirs: &Answer, ours: &Answer| verdict(&declared, theirs, ours).is_ok();
            let [theirs, ours] = self.pair.run(scene.namespace, step, &agree);
            self.record(scene.namespace, step, &theirs, &ours);
        }
    }

    fn record(&mut self, namespace: &str, step: &Step, theirs: &Answer, ours: &Answer) {
        let client = self.pair.client;
        let declared = step.deviations(client);
        if let Err(wrong) = verdict(&declared, theirs, ours) {
            self.wrong.push(format!("{} -n {namespace} {} ({}): {wrong}", client.name(), step.line, step.form));
        }
        // The rows of the client that does the work itself are of the commands that can be done so.
        if client == Client::Ctr24Local && !step.line.contains("%LOCAL") {
            return;
        }
        match self.leaves.iter().position(|leaf| leaf.takes(step.line)) {
            Some(leaf) => self.tried.push(Tried { leaf, form: step.form, differs: declared }),
            None => self.wrong.push(format!("{}: its help has no command for {:?}", client.name(), step.line)),
        }
    }

    /// Every command of the client has a case, or a reason why it has none.
    fn is_complete(&mut self) {
        let client = self.pair.client;
        let excused = scenes::not_compared(client);
        for (at, leaf) in self.leaves.iter().enumerate() {
            let wanted = client != Client::Ctr24Local || leaf.has_local;
            let tried = self.tried.iter().any(|tried| tried.leaf == at);
            if wanted && !tried && !excused.iter().any(|name| leaf.is_below(name)) {
                self.wrong.push(format!("{}: `{}` has no case", client.name(), leaf.name()));
            }
        }
        for name in excused {
            if !self.leaves.iter().any(|leaf| leaf.is_below(name)) {
                self.wrong.push(format!("{}: there is no `{name}` to be excused", client.name()));
            }
        }
    }

    fn finish(mut self) {
        self.is_complete();
        let client = self.pair.client.name();
        assert!(self.wrong.is_empty(), "{client}, {} wrong:\n{}", self.wrong.len(), self.wrong.join("\n"));
        let mut found = table::rows(client, &self.leaves, &self.tried);
        if self.pair.client != Client::Ctr24Local {
            let names: Vec<String> = scenes::not_compared(self.pair.client).iter().map(|n| format!("`{n}`")).collect();
            found +=
                &format!("\nNot compared, since they run containers or do not ask the server: {}.\n", names.join(", "));
        }
        document::settle(client, &found);
    }
}

/// Whether the answers are the same, or differ in just the ways that are declared.
fn verdict(declared: &[&'static Deviation], theirs: &Answer, ours: &Answer) -> Result<(), String> {
    if declared.is_empty() {
        return if theirs == ours { Ok(()) } else { Err(format!("differs\n{}", difference(theirs, ours))) };
    }
    if !Deviation::explain(declared, theirs, ours) {
        return Err(format!("differs in more than is declared\n{}", difference(theirs, ours)));
    }
    for at in 0..declared.len() {
        let mut others = declared.to_vec();
        let without = others.remove(at);
        if Deviation::explain(&others, theirs, ours) {
            return Err(format!("\"{}\" is declared and does not happen", without.name));
        }
    }
    Ok(())
}

fn compare(client: Client) {
    let Some(mut run) = Run::start(client) else { return };
    for scene in scenes::of(client) {
        run.scene(scene);
    }
    if matches!(client, Client::Ctr16 | Client::Ctr24) {
        let [theirs, ours] = events::watch(&run.pair);
        run.record(events::NAMESPACE, &events::STEP, &theirs, &ours);
    }
    run.finish();
}

#[test]
fn ctr_of_containerd_1_6_sees_no_difference_but_those_declared() {
    compare(Client::Ctr16);
}

#[test]
fn ctr_of_containerd_2_4_sees_no_difference_but_those_declared() {
    compare(Client::Ctr24);
}

#[test]
fn ctr_of_containerd_2_4_that_works_itself_sees_no_difference_but_those_declared() {
    compare(Client::Ctr24Local);
}

#[test]
fn crictl_sees_no_difference_but_those_declared() {
    compare(Client::Crictl);
}

/// Each deviation that some case declares is explained, and none that no case declares.
#[test]
fn the_table_explains_its_words() {
    let used = |deviation: &Deviation| {
        let scenes = [Client::Ctr16, Client::Ctr24, Client::Ctr24Local, Client::Crictl].map(scenes::of);
        let steps = scenes.iter().flatten().flat_map(|scene| scene.steps.iter()).chain([&events::STEP]);
        steps.flat_map(|step| step.but.into_iter().flatten()).any(|but| std::ptr::eq(but.1, deviation))
    };
    for deviation in scenes::DEVIATIONS {
        assert!(used(deviation), "no case declares \"{}\"", deviation.name);
    }
    document::settle("deviations", &table::legend(scenes::DEVIATIONS));
}
