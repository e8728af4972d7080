//! What people ask a node's image service. The names are those of "CRI" in docs/compatibility.md.

use serde_json::Value;

use super::WORDS;
use crate::answer::Answer;
use crate::client::CRICTL;
use crate::deviation::{Deviation, How};
use crate::step::{Scene, Step, step};

pub(crate) static OWN_NAME: Deviation = Deviation {
    name: "its own name",
    reason: "to CRI Orlop gives its own name and version",
    how: How::Other { containerd: "RuntimeName: containerd", orlop: "RuntimeName: orlop" },
};

pub(crate) static STATUS: Deviation = Deviation {
    name: "no runtime's state",
    reason: "Orlop reports `RuntimeReady` and `NetworkReady` as false and what it is, where containerd reports its runtimes \
             and its network",
    how: How::Other { containerd: "RuntimeReady", orlop: "ImageStoreOnly" },
};

pub(crate) static SPEC: Deviation = Deviation {
    name: "`Image.spec`",
    reason: "containerd never sets it; in Orlop `image` is the image ID",
    how: How::Same(without_spec),
};

pub(crate) static EXPLAINS: Deviation = Deviation {
    name: "`orlop` in the verbose status",
    reason: "beside containerd's `info` Orlop tells the image's records, its target and why it is pinned",
    how: How::Same(without_explanation),
};

pub(crate) static BOTH_FILE_SYSTEMS: Deviation = Deviation {
    name: "both lists of file systems",
    reason: "containerd's `containerFilesystems` is empty; Orlop gives both lists, and true figures after each change",
    how: How::Other { containerd: "\"containerFilesystems\": []", orlop: "snapshots/overlayfs" },
};

pub(crate) static RUNTIME: Deviation = Deviation {
    name: "no containers",
    reason: "calls of the runtime service are answered with `UNIMPLEMENTED` and what Orlop is",
    how: How::Other { containerd: "", orlop: "code = Unimplemented" },
};

/// Changes what was printed as JSON.
fn in_json(mut answer: Answer, change: impl Fn(&mut Value)) -> Answer {
    if let Ok(mut document) = serde_json::from_str(&answer.whole) {
        change(&mut document);
        let text = serde_json::to_string_pretty(&document).unwrap_or_default();
        (answer.out, answer.whole) = (text.lines().map(str::to_owned).collect(), text);
    }
    answer
}

fn without_spec(answer: Answer) -> Answer {
    in_json(answer, |document| {
        let images = document.get_mut("images").and_then(Value::as_array_mut);
        for image in images.into_iter().flatten() {
            image.as_object_mut().map(|image| image.remove("spec"));
        }
        document.get_mut("status").and_then(Value::as_object_mut).map(|status| status.remove("spec"));
    })
}

fn without_explanation(answer: Answer) -> Answer {
    in_json(answer, |document| {
        document.as_object_mut().map(|document| document.remove("orlop"));
    })
}

const fn ask(form: &'static str, line: &'static str) -> Step {
    step(form, line).only(CRICTL)
}

pub(crate) const SCENES: &[Scene] = &[Scene {
    namespace: "k8s.io",
    steps: &[
        ask("client and server", "version").but(CRICTL, &OWN_NAME),
        ask("the runtime's state", "info").but(CRICTL, &STATUS),
        ask("nothing", "images"),
        ask("nothing", "imagefsinfo").but(CRICTL, &BOTH_FILE_SYSTEMS),
        ask("an index", "pull $REGISTRY/multi:1"),
        ask("again", "pull $REGISTRY/multi:1"),
        ask("by digest", "pull $REGISTRY/multi@$INDEX"),
        ask("a manifest", "pull $REGISTRY/docker:1"),
        ask("a tag that is not there", "pull $REGISTRY/multi:none").but(CRICTL, &WORDS),
        ask("a registry that is not there", "pull 127.0.0.1:1/x:1").but(CRICTL, &WORDS),
        ask("a bad reference", "pull bad..REF").but(CRICTL, &WORDS),
        ask("all", "images"),
        ask("IDs only", "images -q"),
        ask("with digests", "images --digests"),
        ask("in full", "images --no-trunc"),
        ask("pinned", "images --pinned"),
        ask("verbose", "images -v"),
        ask("as JSON", "images -o json").but(CRICTL, &SPEC),
        ask("one", "images $REGISTRY/multi:1"),
        ask("a repository", "images $REGISTRY/multi"),
        ask("by reference", "images -f reference=multi"),
        ask("an image", "inspecti $REGISTRY/multi:1").but(CRICTL, &SPEC).but(CRICTL, &EXPLAINS),
        ask("status only", "inspecti -q $REGISTRY/multi:1").but(CRICTL, &SPEC),
        ask("by ID", "inspecti -q $CONFIG").but(CRICTL, &SPEC),
        ask("an image that is not there", "inspecti $REGISTRY/none:1"),
        ask("images", "imagefsinfo").but(CRICTL, &BOTH_FILE_SYSTEMS),
        ask("containers", "ps").but(CRICTL, &RUNTIME),
        ask("an image that is not there", "rmi $REGISTRY/none:1"),
        ask("by name", "rmi $REGISTRY/multi:1"),
        ask("", "images"),
        ask("all", "rmi --all"),
        ask("", "images"),
        ask("no image", "rmi"),
    ],
}];
