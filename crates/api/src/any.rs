//! Messages within messages. Type URLs are bare full names, as containerd's clients write and expect them.

use prost::{DecodeError, Message, Name};
use prost_types::Any;

/// A message that can be within another.
pub trait Wrapped: Message + Name + Default {}

impl<M: Message + Name + Default> Wrapped for M {}

/// Wraps a message.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// The message in a wrapper; `None` if it is of another type.
pub fn unpack<M: Wrapped>(any: &Any) -> Option<Result<M, DecodeError>> {
    (any.type_url == M::full_name()).then(|| M::decode(any.value.as_slice()))
}
