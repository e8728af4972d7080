//! Messages within messages. Type URLs are bare full names, as containerd's clients write and expect them.

use std::collections::HashSet;
use std::sync::LazyLock;

pub(crate) use orlop_api::any::{pack, unpack};
use prost::Message;
use prost_types::{Any, FileDescriptorSet};
use tonic::Status;

/// Full names of all messages that are defined.
static DEFINED: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let set = FileDescriptorSet::decode(orlop_api::DESCRIPTORS).unwrap_or_default();
    let of = |file: &prost_types::FileDescriptorProto| {
        file.message_type.iter().map(|message| format!("{}.{}", file.package(), message.name())).collect::<Vec<_>>()
    };
    set.file.iter().flat_map(of).collect()
});

/// Refuses a wrapped message of a type that nobody defines, with containerd's code; what is of a type that is defined, whatever
/// its URL begins with, is for the call to judge.
pub(crate) fn defined(any: &Any, what: &str) -> Result<(), Status> {
    let url = any.type_url.as_str();
    if DEFINED.contains(url.rsplit('/').next().unwrap_or(url)) {
        return Ok(());
    }
    Err(Status::unknown(format!(
        "{what} of type {url:?}: not found; expected the bare full name of a message, as in containerd.types.transfer.ImageStore"
    )))
}

/// Refuses a wrapped message that cannot be read, with containerd's code.
pub(crate) fn broken(any: &Any, what: &str, error: &prost::DecodeError) -> Status {
    Status::unknown(format!("{what} of type {:?}: {error}", any.type_url))
}
