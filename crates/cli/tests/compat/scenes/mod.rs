//! The cases, by what the commands are about, and the deviations that they declare.

mod content;
mod crictl;
mod images;
mod managed;
mod objects;
mod server;
mod snapshots;
mod transfers;

use crate::client::Client;
use crate::deviation::{Deviation, How};
use crate::events;
use crate::step::Scene;

/// Both fail in the same way and say so in their own words.
pub(crate) static WORDS: Deviation = Deviation {
    name: "the words of an error",
    reason: "both fail with the same exit code, output and, where the client shows it, class of error; Orlop's message says \
             in its own words what was expected and found",
    how: How::Words,
};

/// All deviations, in the order in which the document explains them.
pub(crate) const DEVIATIONS: &[&Deviation] = &[
    &WORDS,
    &transfers::ANY_SNAPSHOTTER,
    &transfers::NOTES_SOURCES,
    &transfers::ARCHIVE_ORDER,
    &managed::DIGEST_RECORD,
    &managed::COMES_BACK,
    &managed::LAST_NAME,
    &server::OWN_VERSION,
    &server::OWN_PLUGINS,
    &server::OWN_DIRECTORY,
    &events::OF_NAMESPACES,
    &events::LAYERS_AT_ONCE,
    &crictl::OWN_NAME,
    &crictl::STATUS,
    &crictl::SPEC,
    &crictl::EXPLAINS,
    &crictl::BOTH_FILE_SYSTEMS,
    &crictl::RUNTIME,
];

/// The scenes of a client.
pub(crate) fn of(client: Client) -> Vec<&'static Scene> {
    if client == Client::Crictl {
        return crictl::SCENES.iter().collect();
    }
    let all = [
        transfers::SCENES,
        images::SCENES,
        content::SCENES,
        snapshots::SCENES,
        objects::SCENES,
        server::SCENES,
        managed::SCENES,
    ];
    let wanted = |scene: &&Scene| {
        // A client that does the work itself is another client for these commands alone.
        client != Client::Ctr24Local
            || scene.steps.iter().any(|step| step.line.contains("%LOCAL ") && !step.form.is_empty())
    };
    all.into_iter().flatten().filter(wanted).collect()
}

/// Commands that ask nothing about images: they run containers, or do not ask the server.
pub(crate) const fn not_compared(client: Client) -> &'static [&'static str] {
    match client {
        Client::Ctr16 => &["pprof", "run", "tasks attach", "tasks start", "install", "oci", "shim"],
        Client::Ctr24 | Client::Ctr24Local => &[
            "pprof",
            "run",
            "tasks attach",
            "tasks start",
            "install",
            "oci",
            "shim",
            "sandboxes",
            "plugins inspect-runtime",
        ],
        Client::Crictl => &[
            "attach",
            "checkpoint",
            "completion",
            "config",
            "create",
            "events",
            "exec",
            "inspect",
            "inspectp",
            "logs",
            "metricdescs",
            "metricsp",
            "pods",
            "port-forward",
            "rm",
            "rmp",
            "run",
            "runp",
            "runtime-config",
            "start",
            "stats",
            "statsp",
            "stop",
            "stopp",
            "update",
            "update-runtime-config",
        ],
    }
}
