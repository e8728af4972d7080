//! Where Orlop answers a bad call otherwise than containerd, and why. docs/compatibility.md has the same in words.

use tonic::Code;

use crate::sides::Generation;
use crate::sides::Generation::{Current, Old};

/// Codes that differ for a reason.
#[derive(Debug)]
pub(crate) struct Deviation {
    /// The cases; all if none is named.
    cases: &'static [&'static str],
    /// The calls in each of them.
    calls: &'static [&'static str],
    containerd: Code,
    orlop: Code,
    /// Of which generation; of both if none is named.
    generation: Option<Generation>,
}

impl Deviation {
    const fn new(calls: &'static [&'static str], containerd: Code, orlop: Code) -> Self {
        Self { cases: &[], calls, containerd, orlop, generation: None }
    }

    const fn of(self, generation: Generation) -> Self {
        Self { generation: Some(generation), ..self }
    }

    const fn within(self, cases: &'static [&'static str]) -> Self {
        Self { cases, ..self }
    }

    /// Whether it is about this call.
    pub(crate) fn is_of(&self, generation: Generation, call: &str) -> bool {
        let within = |case: &&str| call.strip_prefix(*case)?.strip_prefix(": ");
        let rest = if self.cases.is_empty() { Some(call) } else { self.cases.iter().find_map(within) };
        let whole = |before: &str| before.is_empty() || [": ", ".", "/"].iter().any(|end| before.ends_with(end));
        let named = |rest: &str| self.calls.iter().any(|name| rest.strip_suffix(name).is_some_and(whole));
        rest.is_some_and(named) && self.generation.is_none_or(|one| one == generation)
    }

    /// Whether it is about none of these calls, though its case is among them.
    pub(crate) fn is_idle<'a>(&self, generation: Generation, calls: impl Iterator<Item = &'a String> + Clone) -> bool {
        let tried = |case: &&str| calls.clone().any(|call| call.starts_with(&format!("{case}: ")));
        self.generation.is_none_or(|one| one == generation)
            && (self.cases.is_empty() || self.cases.iter().any(tried))
            && !calls.clone().any(|call| self.is_of(generation, call))
    }

    /// The codes of containerd and of Orlop.
    pub(crate) const fn codes(&self) -> (Code, Code) {
        (self.containerd, self.orlop)
    }
}

/// Calls that end the whole containerd if their message is empty: it looks into what is not there.
const DEADLY_TO_OLD: [&str; 2] = ["diff.v1.Diff/Apply", "events.v1.Events/Forward"];
const DEADLY_TO_CURRENT: [&str; 12] = [
    "containers.v1.Containers/Create",
    "containers.v1.Containers/Update",
    "content.v1.Content/Update",
    "diff.v1.Diff/Apply",
    "events.v1.Events/Forward",
    "images.v1.Images/Create",
    "images.v1.Images/Update",
    "leases.v1.Leases/AddResource",
    "leases.v1.Leases/DeleteResource",
    "namespaces.v1.Namespaces/Create",
    "namespaces.v1.Namespaces/Update",
    "snapshots.v1.Snapshots/Update",
];

/// Cases whose message is refused before anybody looks into it.
pub(crate) const NO_MESSAGE: [&str; 5] =
    ["no field", "a field of 2 GiB", "a tag without its value", "an end without a beginning", NO_TEXT];

/// The case of a message whose first field is no text.
pub(crate) const NO_TEXT: &str = "no text";

/// Whether a containerd is asked: not what would end it, and 1.6 not about text, which it does not look at.
pub(crate) fn is_asked(generation: Generation, call: &str) -> bool {
    if generation == Current && call.starts_with("expected \"word\"") {
        return false;
    }
    let Some((case, method)) = call.split_once(": /containerd.services.") else {
        return generation == Current || !call.starts_with(NO_TEXT);
    };
    if NO_MESSAGE.contains(&case) {
        return generation == Current || case != NO_TEXT;
    }
    let deadly: &[&str] = if generation == Old { &DEADLY_TO_OLD } else { &DEADLY_TO_CURRENT };
    !deadly.contains(&method)
}

/// Cases in which no call is told a namespace.
const NO_NAMESPACE: &[&str] = &["no namespace", "empty namespace"];

/// Cases in which every call is told a namespace that cannot be one.
const BAD_NAMESPACE: &[&str] = &["slash", "dash", "dots", "space", "long", "not ASCII"];

/// Cases of a namespace that nobody made.
const UNKNOWN_NAMESPACE: &[&str] = &["unknown namespace", "unknown field"];

/// Cases of empty messages.
const EMPTY: &[&str] = &[
    "unknown namespace",
    "unknown field",
    "no namespace",
    "empty namespace",
    "slash",
    "dash",
    "dots",
    "space",
    "long",
    "not ASCII",
];

/// Of calls that all are sent the same.
pub(crate) const EVERYTHING: &[Deviation] = &[
    // A field of the wrong wire type is none to Go, and a fault to Rust.
    Deviation::new(&["/containerd.services.content.v1.Content/Write"], Code::InvalidArgument, Code::Internal)
        .within(&[NO_TEXT])
        .of(Current),
    // A namespace that is missing is told before anything else that is.
    Deviation::new(
        &[
            "content.v1.Content/Delete",
            "content.v1.Content/Info",
            "content.v1.Content/Read",
            "content.v1.Content/Write",
            "Snapshots/Cleanup",
            "Snapshots/Commit",
            "Snapshots/List",
            "Snapshots/Mounts",
            "Snapshots/Prepare",
            "Snapshots/Remove",
            "Snapshots/Stat",
            "Snapshots/Usage",
            "Snapshots/View",
            "Tasks/Exec",
        ],
        Code::InvalidArgument,
        Code::FailedPrecondition,
    )
    .within(NO_NAMESPACE),
    Deviation::new(
        &["Content/Update", "Containers/Update", "Images/Create", "Images/Update", "Snapshots/Update"],
        Code::InvalidArgument,
        Code::FailedPrecondition,
    )
    .within(NO_NAMESPACE)
    .of(Old),
    Deviation::new(&["Streaming/Stream", "Transfer/Transfer"], Code::Unknown, Code::FailedPrecondition)
        .within(NO_NAMESPACE)
        .of(Current),
    Deviation::new(&["Streaming/Stream", "Transfer/Transfer"], Code::Unknown, Code::InvalidArgument)
        .within(BAD_NAMESPACE)
        .of(Current),
    Deviation::new(&["Tasks/Metrics"], Code::Unknown, Code::FailedPrecondition).within(NO_NAMESPACE),
    Deviation::new(&["Tasks/Metrics"], Code::Unknown, Code::InvalidArgument).within(BAD_NAMESPACE),
    // 1.6 changes the namespace and then fails to tell of it.
    Deviation::new(&["Namespaces/Update"], Code::Unknown, Code::InvalidArgument)
        .within(&["no namespace", "empty namespace", "slash", "dash", "dots", "space", "long", "not ASCII"])
        .of(Old),
    Deviation::new(&["Namespaces/Update"], Code::Ok, Code::InvalidArgument).within(UNKNOWN_NAMESPACE).of(Old),
    // What is missing of the message is told before what is missing in the store.
    Deviation::new(&["Leases/AddResource", "Leases/DeleteResource"], Code::NotFound, Code::InvalidArgument)
        .within(UNKNOWN_NAMESPACE)
        .of(Old),
    // No snapshotter is the default one.
    Deviation::new(&["Snapshots/Cleanup", "Snapshots/List"], Code::InvalidArgument, Code::Ok).within(UNKNOWN_NAMESPACE),
    Deviation::new(
        &["Snapshots/Mounts", "Snapshots/Remove", "Snapshots/Stat", "Snapshots/Usage"],
        Code::InvalidArgument,
        Code::NotFound,
    )
    .within(UNKNOWN_NAMESPACE),
    // An empty name is no name; docs/compatibility.md, CRI.
    Deviation::new(&["ImageService/ImageStatus", "ImageService/RemoveImage"], Code::Ok, Code::InvalidArgument)
        .within(EMPTY),
];

/// Of labels.
pub(crate) const LABELS: &[Deviation] = &[
    // A lease's labels have the bound of all labels.
    Deviation::new(&["create lease"], Code::Ok, Code::InvalidArgument).within(TOO_LONG),
    Deviation::new(&["of the lease: delete"], Code::Ok, Code::NotFound).within(TOO_LONG),
    // containerd forgets to say whose fault it is.
    Deviation::new(&["update namespace", "update a label of namespace"], Code::Unknown, Code::InvalidArgument)
        .within(TOO_LONG),
];

/// Cases of labels that are too long.
const TOO_LONG: &[&str] = &["4097 bytes", "a mebibyte"];

/// Of messages within messages.
pub(crate) const WRAPPED: &[Deviation] = &[
    // What is wrong with a layer is the layer's fault, whoever asks again.
    Deviation::new(&["apply"], Code::Unknown, Code::FailedPrecondition),
    // Options that nothing looks at are not read.
    Deviation::new(&["plugin"], Code::Unknown, Code::Unimplemented).within(BROKEN).of(Current),
    Deviation::new(&["no plugin"], Code::Unknown, Code::NotFound).within(BROKEN).of(Current),
];

/// Cases of messages of the right name that cannot be read.
const BROKEN: &[&str] =
    &["broken ImageStore", "broken OCIRegistry", "broken ImageImportStream", "broken ImageExportStream"];

/// Of offsets, sizes and digests.
pub(crate) const OFFSETS: &[Deviation] = &[
    // containerd takes a negative offset for the end of what is there.
    Deviation::new(
        &["commit at -1", "commit at -9223372036854775808", "write at -1", "write at -9223372036854775808"],
        Code::Ok,
        Code::OutOfRange,
    ),
    // So the ref is still there.
    Deviation::new(&["commit at -1: abort", "commit at -9223372036854775808: abort"], Code::NotFound, Code::Ok),
];

/// Of field masks.
pub(crate) const MASKS: &[Deviation] = &[
    // containerd forgets to say whose fault it is.
    Deviation::new(&["namespace by a mebibyte of a path"], Code::Unknown, Code::InvalidArgument),
];

/// Of filters.
pub(crate) const FILTERS: &[Deviation] = &[];

/// Of writers.
pub(crate) const WRITERS: &[Deviation] = &[
    // containerd fails to rename what is not there.
    Deviation::new(&["aborted: commit"], Code::Unknown, Code::NotFound),
];
