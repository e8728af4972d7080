//! The commands that a client has, from its own `--help`: none can be forgotten.

use std::path::Path;

use crate::client::{self, Client};
use crate::words;

/// A command without subcommands: the names that each of its words has, the first as the client lists it.
#[derive(Debug)]
pub(crate) struct Leaf {
    words: Vec<Vec<String>>,
    /// Whether it can be told to do the work itself.
    pub(crate) has_local: bool,
}

impl Leaf {
    /// Its name: `ls` and `rm` for what is listed as `list` and `delete`, everything else as it is listed.
    pub(crate) fn name(&self) -> String {
        let usual = |names: &Vec<String>| {
            let short = names.iter().find(|name| ["ls", "rm"].contains(&name.as_str()));
            short.unwrap_or(&names[0]).clone()
        };
        self.words.iter().map(usual).collect::<Vec<_>>().join(" ")
    }

    /// Whether a command line is one of this command.
    pub(crate) fn takes(&self, line: &str) -> bool {
        let words = words::split(line);
        let mut rest = words.iter();
        self.words.iter().all(|names| {
            loop {
                match rest.next() {
                    // Options of a group have a value each.
                    Some(option) if option.starts_with("--") => drop(rest.next()),
                    Some(word) => return names.contains(word),
                    None => return false,
                }
            }
        })
    }

    /// Whether it is, or is below, a command of this name.
    pub(crate) fn is_below(&self, name: &str) -> bool {
        let mut own = self.words.iter();
        name.split(' ').all(|word| own.next().is_some_and(|names| names.iter().any(|n| n == word)))
    }
}

/// All commands of a client.
pub(crate) fn leaves(program: &Path, client: Client) -> Vec<Leaf> {
    let mut found = Vec::new();
    let depth = if client == Client::Crictl { 1 } else { 3 };
    collect(program, &mut Vec::new(), depth, &mut found);
    assert!(found.len() > 20, "{}: only {} commands in its help", client.name(), found.len());
    found
}

fn collect(program: &Path, above: &mut Vec<Vec<String>>, depth: usize, found: &mut Vec<Leaf>) {
    let path: Vec<&str> = above.iter().map(|names| names[0].as_str()).collect();
    let said = client::help(program, &path);
    let below = if above.len() < depth { commands(&said) } else { Vec::new() };
    if below.is_empty() {
        found.push(Leaf { words: above.clone(), has_local: said.contains("--local ") });
    }
    for names in below {
        above.push(names);
        collect(program, above, depth, found);
        above.pop();
    }
}

/// The section of commands: each line its names, then what it does.
fn commands(help: &str) -> Vec<Vec<String>> {
    let section = help.lines().skip_while(|line| *line != "COMMANDS:").skip(1);
    section
        .take_while(|line| line.starts_with("   "))
        .map(|line| line.trim_start())
        .map(|line| line.split("  ").next().unwrap_or(line))
        .map(|names| names.split(", ").map(|name| name.trim().to_owned()).collect::<Vec<_>>())
        .filter(|names| names[0] != "help")
        .collect()
}
