//! Errors into gRPC statuses: containerd's codes, and for Orlop's own command line the class of the failure and what to
//! do ([`orlop_api::error`]).

use std::io;

use orlop_api::error::{Class, Details, with_details};
use orlop_content::Trouble;
use orlop_image::ErrorKind;
use orlop_metadata::{Fault, ObjectKind};
use orlop_oci::{DigestError, PlatformError, ReferenceError};
use tonic::{Code, Status};
use {
    orlop_content as content, orlop_image as image, orlop_metadata as metadata, orlop_remote as remote,
    orlop_snapshot as snapshot,
};

/// What an error is to a client.
pub(crate) trait ToStatus {
    /// Code, message, class and hint.
    fn to_status(&self) -> Status;
}

impl ToStatus for Status {
    fn to_status(&self) -> Status {
        self.clone()
    }
}

/// Messages travel in headers, for which clients have little room, and each byte may take three there.
const MAX_MESSAGE_BYTES: usize = 2048;

/// An error with what to do: what it says itself, else what the system error beneath it calls for.
fn failed(error: &(dyn std::error::Error + 'static), kind: (Code, Class), hint: &str) -> Status {
    status(&error, kind, if hint.is_empty() { Trouble::beneath(error).advice() } else { hint })
}

fn status(error: &dyn std::fmt::Display, (code, class): (Code, Class), hint: &str) -> Status {
    let hint = if hint.is_empty() { general_hint(class) } else { hint };
    let mut message = error.to_string();
    if message.len() > MAX_MESSAGE_BYTES {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        message.push('…');
    }
    with_details(Status::new(code, message), &Details { class, hint: hint.to_owned() })
}

/// What helps when meta.db is not a database any more, or is gone.
const DAMAGED_DATABASE: &str = "end what has the root open, its daemon too, then run `orlop repair --rebuild-metadata` on this --root: that makes \
                                a new meta.db from blobs, snapshots and history.log, and keeps the old one under another name";

/// What helps when the disk failed beneath the metadata.
const STOPPED: &str = "what was answered holds, and what only reads goes on. Look at the kernel's log (dmesg) and at the disk; when it \
                       is well, start the daemon again, and run `orlop check --deep`";

/// What helps when the database failed and did not say why.
const UNTOLD: &str = "look at what is free of space and inodes (df, df -i), at the kernel's log (dmesg) and at the limit of open files; then \
                      try again";

/// What helps whatever failed.
fn general_hint(class: Class) -> &'static str {
    match class {
        Class::NoSpace => {
            "remove images with `orlop rm`, then give their space back with `orlop gc --trash`; or free space otherwise"
        }
        Class::NotPermitted => "run as the owner of the root (usually with sudo), or use a --root that you may write",
        _ => "",
    }
}

macro_rules! invalid {
    ($($error:ty),*) => {$(
        impl ToStatus for $error {
            fn to_status(&self) -> Status {
                status(self, (Code::InvalidArgument, Class::Usage), "")
            }
        }
    )*};
}

invalid!(DigestError, PlatformError, ReferenceError, metadata::FilterError);

/// A filter that cannot be read, where containerd forgets to say whose fault that is.
pub(crate) fn uncoded(error: &metadata::FilterError) -> Status {
    status(error, (Code::Unknown, Class::Usage), "")
}

impl ToStatus for content::Error {
    fn to_status(&self) -> Status {
        use content::Error as E;
        if let E::Metadata(inner) = self
            && let Some(inner) = inner.downcast_ref::<metadata::Error>()
        {
            return inner.to_status();
        }
        let (kind, hint) = match self {
            E::NotFound { .. } => ((Code::NotFound, Class::NotFound), ""),
            E::AlreadyExists(_) => ((Code::AlreadyExists, Class::Conflict), ""),
            E::Locked(_) => ((Code::Unavailable, Class::Unavailable), ""),
            E::Offset { .. } => ((Code::OutOfRange, Class::Usage), "ask for the status of the write and go on there"),
            E::DigestMismatch { .. } | E::SizeMismatch { .. } => {
                ((Code::FailedPrecondition, Class::Verification), "the source may be damaged; nothing became visible")
            }
            E::Damaged { .. } | E::Resized { .. } | E::Shrunk { .. } => {
                ((Code::DataLoss, Class::Verification), "`orlop check --deep` finds every damaged blob")
            }
            E::TooLarge { .. } => ((Code::FailedPrecondition, Class::Verification), ""),
            E::Invalid(_) => ((Code::InvalidArgument, Class::Usage), ""),
            E::Stopped => ((Code::Cancelled, Class::Interrupted), ""),
            E::Io { source, .. } => (io_kind(source), ""),
            _ => ((Code::Internal, Class::Failed), ""),
        };
        failed(self, kind, hint)
    }
}

impl ToStatus for snapshot::Error {
    fn to_status(&self) -> Status {
        use snapshot::Error as E;
        let kind = match self {
            E::Hostile { .. } | E::LinkTarget { .. } | E::Limit { .. } | E::Damaged { .. } => {
                (Code::FailedPrecondition, Class::Verification)
            }
            E::Unsupported { .. } => (Code::FailedPrecondition, Class::Failed),
            E::BadMount { .. } => (Code::InvalidArgument, Class::Usage),
            E::NotMountedHere { .. } => (Code::Unimplemented, Class::Usage),
            E::Io { source, .. } | E::Source { source } => io_kind(source),
            _ => (Code::Internal, Class::Failed),
        };
        failed(self, kind, "")
    }
}

impl ToStatus for metadata::Error {
    fn to_status(&self) -> Status {
        use metadata::Error as E;
        // containerd: the request names a snapshotter that cannot be, not an object that is gone.
        if let E::NotFound { kind: ObjectKind::Snapshotter, name } = self {
            let message = format!("snapshotter {name:?} is not one of this store's: invalid argument");
            return status(&message, (Code::InvalidArgument, Class::Usage), "");
        }
        let kind = match self {
            E::NotFound { .. } => (Code::NotFound, Class::NotFound),
            E::AlreadyExists { .. } => (Code::AlreadyExists, Class::Conflict),
            E::FailedPrecondition { .. } => (Code::FailedPrecondition, Class::Conflict),
            E::Invalid { .. } => (Code::InvalidArgument, Class::Usage),
            E::Filter(inner) => return inner.to_status(),
            E::NewerFormat { .. } => (Code::FailedPrecondition, Class::Failed),
            E::ReadOnly { .. } => (Code::PermissionDenied, Class::NotPermitted),
            E::Stopped { .. } => (Code::FailedPrecondition, Class::Unavailable),
            E::ForeignRoot { .. } | E::Opened { .. } => (Code::FailedPrecondition, Class::Conflict),
            E::Lost { .. } => (Code::DataLoss, Class::Verification),
            E::InUse { .. } | E::Moved => (Code::Unavailable, Class::Unavailable),
            E::TrashEmpty => (Code::NotFound, Class::NotFound),
            E::Content(inner) => return inner.to_status(),
            E::Snapshot(inner) => return inner.to_status(),
            E::Io { source, .. } => io_kind(source),
            E::Database { .. } => database_kind(self),
            _ => (Code::Internal, Class::Failed),
        };
        let hint = match self {
            E::NotFound { kind: ObjectKind::Trash, .. } => {
                "`orlop undo --list` shows what can be undone; what `gc --trash` emptied, rested for too long or gave way when space was \
                 needed is gone for good: pull it again"
            }
            E::ForeignRoot { .. } => "give --root a directory of its own: a new or an empty one, or that of a store",
            E::TrashEmpty => {
                "what `rm --no-trash` removed, `gc --trash` emptied or gave way when space was needed is gone for good: pull it again"
            }
            E::Database { .. } if self.fault() == Fault::Damaged => DAMAGED_DATABASE,
            E::Lost { .. } => DAMAGED_DATABASE,
            E::Opened { .. } => "end its daemon, and let commands that run finish; then try again",
            E::Stopped { .. } => STOPPED,
            E::Database { .. } if self.fault() == Fault::Other => UNTOLD,
            _ => "",
        };
        failed(self, kind, hint)
    }
}

impl ToStatus for image::Error {
    fn to_status(&self) -> Status {
        use image::Error as E;
        let code = match self {
            E::Metadata(inner) => return inner.to_status(),
            E::Content(inner) => return inner.to_status(),
            E::Exists { .. } => Code::AlreadyExists,
            E::Interrupted => Code::Cancelled,
            _ => code_of(self.kind()),
        };
        let class = if matches!(self, E::Interrupted) { Class::Interrupted } else { class_of(self.kind()) };
        failed(self, (code, class), hint(self))
    }
}

/// What to do about an image, an archive or a registry that is not as it should be.
fn hint(error: &image::Error) -> &str {
    use image::Error as E;
    match error {
        E::Layer {
            source:
                snapshot::Error::Hostile { .. }
                | snapshot::Error::LinkTarget { .. }
                | snapshot::Error::Limit { .. }
                | snapshot::Error::Damaged { .. },
            ..
        } => {
            "nothing of the image became visible. Its bytes are what its digest says, so pulling again will not help: \
             ask who built it, or use another version"
        }
        E::DiffId { .. }
        | E::Inconsistent { .. }
        | E::Document { .. }
        | E::TooDeep { .. }
        | E::TooLarge { .. }
        | E::TooMany { .. } => {
            "nothing of the image became visible. The image is malformed: ask who built it, or use another version"
        }
        E::NoPlatform { .. } => "choose one of these with --platform, or take all with --all-platforms",
        E::Incomplete { .. } => {
            "nothing became visible: bring what is missing too, or choose a platform that is complete"
        }
        E::Scrubbing => "wait for it; ROOT/scrub says how far it has come",
        E::Archive(_) => {
            "nothing became visible. Write the archive again, e.g. with `docker save`, `skopeo copy` or `orlop export`"
        }
        E::Remote(inner) => remote_hint(inner),
        E::Refused(refusal) => refusal.advice(),
        _ => "",
    }
}

fn remote_hint(error: &remote::Error) -> &'static str {
    use remote::Error as E;
    match error.principal() {
        E::NotFound { .. } => "check the name and the tag; some registries answer so, too, if a login is missing",
        E::Unauthorized { .. } => "log in with `docker login`, or give --user USER:PASSWORD",
        E::Denied { .. } => "ask the registry's owner for access, or use another --user",
        E::Dns { .. } => "check the name, and this machine's DNS",
        E::Connect { .. } | E::Timeout { .. } | E::Broken { .. } | E::Skipped { .. } => {
            "check address and network (behind a proxy: HTTPS_PROXY, NO_PROXY) and try again: what came is kept, and a pull \
             goes on where it stopped"
        }
        E::TooManyRequests { .. } | E::Status { .. } => {
            "try again later: what came is kept, and a pull goes on where it stopped"
        }
        E::DigestMismatch { .. } | E::SizeMismatch { .. } | E::TooLarge { .. } | E::Protocol { .. } => {
            "nothing became visible. The registry, or something on the way, gives wrong bytes: try again, or another mirror"
        }
        E::Document { .. } => {
            "nothing of the image became visible. The image is malformed: ask who built it, or use another version"
        }
        _ => "",
    }
}

fn code_of(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Conflict | ErrorKind::Verification | ErrorKind::Unsupported => Code::FailedPrecondition,
        ErrorKind::NoSpace => Code::ResourceExhausted,
        ErrorKind::Permission => Code::PermissionDenied,
        ErrorKind::Unavailable | ErrorKind::Disk | ErrorKind::Files => Code::Unavailable,
        ErrorKind::Failed => Code::Internal,
    }
}

fn class_of(kind: ErrorKind) -> Class {
    match kind {
        ErrorKind::Invalid => Class::Usage,
        ErrorKind::NotFound => Class::NotFound,
        ErrorKind::Conflict => Class::Conflict,
        ErrorKind::Verification => Class::Verification,
        ErrorKind::NoSpace => Class::NoSpace,
        ErrorKind::Permission => Class::NotPermitted,
        ErrorKind::Unavailable | ErrorKind::Files => Class::Unavailable,
        ErrorKind::Unsupported | ErrorKind::Disk | ErrorKind::Failed => Class::Failed,
    }
}

/// A missing file within the store is no object that a client could have named: it stays internal.
fn io_kind(error: &io::Error) -> (Code, Class) {
    match Trouble::of(error) {
        Trouble::Full => (Code::ResourceExhausted, Class::NoSpace),
        Trouble::Denied | Trouble::ReadOnly => (Code::PermissionDenied, Class::NotPermitted),
        Trouble::Disk => (Code::Unavailable, Class::Failed),
        Trouble::Files => (Code::Unavailable, Class::Unavailable),
        Trouble::Other => (Code::Internal, Class::Failed),
    }
}

fn database_kind(error: &metadata::Error) -> (Code, Class) {
    match error.fault() {
        Fault::Full => (Code::ResourceExhausted, Class::NoSpace),
        Fault::ReadOnly => (Code::PermissionDenied, Class::NotPermitted),
        Fault::Busy => (Code::Unavailable, Class::Unavailable),
        Fault::Damaged => (Code::DataLoss, Class::Verification),
        Fault::Other => (Code::Internal, Class::Failed),
    }
}
