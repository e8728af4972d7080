//! What a server says of itself.

use crate::client::{EVERY_CTR, NEW};
use crate::deviation::{Deviation, How};
use crate::step::{Scene, step};

pub(crate) static OWN_VERSION: Deviation = Deviation {
    name: "its own version",
    reason: "Orlop names the release of containerd whose API it speaks and, after a plus sign, itself",
    how: How::Other { containerd: "Version:", orlop: "+orlop." },
};

pub(crate) static OWN_PLUGINS: Deviation = Deviation {
    name: "its own parts",
    reason: "Orlop lists what it is made of: its content store, snapshotters, services",
    how: How::Other { containerd: "introspection", orlop: "introspection" },
};

pub(crate) static OWN_DIRECTORY: Deviation = Deviation {
    name: "what a snapshotter can do",
    reason: "Orlop's `overlayfs` keeps its trees elsewhere and can rebase; it does not shift owners",
    how: How::Other { containerd: "io.containerd.snapshotter.v1.overlayfs", orlop: "snapshots/overlayfs" },
};

pub(crate) const SCENES: &[Scene] = &[Scene {
    namespace: "compat-server",
    steps: &[
        step("client and server", "version").but(EVERY_CTR, &OWN_VERSION),
        step("all", "plugins ls").but(EVERY_CTR, &OWN_PLUGINS),
        step("IDs only", "plugins ls -q").but(EVERY_CTR, &OWN_PLUGINS),
        step("by ID", "plugins ls id==overlayfs"),
        step("in detail", "plugins ls -d id==overlayfs").but(EVERY_CTR, &OWN_DIRECTORY),
        step("a bad filter", "plugins ls bad^^").words(),
        step("the server", "info").only(NEW),
        step("what is deprecated", "deprecations list").only(NEW),
    ],
}];
