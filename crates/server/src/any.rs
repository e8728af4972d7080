//! Messages within messages. Type URLs are bare full names, as containerd's clients write and expect them.

use prost::{Message, Name};
use prost_types::Any;

/// Wraps a message.
pub(crate) fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// The message in a wrapper; `None` if it is of another type.
pub(crate) fn unpack<M: Message + Name + Default>(any: &Any) -> Option<Result<M, prost::DecodeError>> {
    (any.type_url == M::full_name()).then(|| M::decode(any.value.as_slice()))
}
