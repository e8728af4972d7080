//! Rows into messages: one message a row costs more than the row, one message for all has no bound.

use orlop_api::MAX_MESSAGE_BYTES;
use prost::Message;
use tonic::Status;

use crate::AnswerStream;
use crate::daemon::flow::piece_bytes;

/// Bytes at which a page is full: few enough that one is read while the next is made and neither leaves the processor's
/// cache, and well under the bound of a message, so that one more row fits.
const PAGE_BYTES: usize = 64 << 10;

/// A list in one message has more bytes than that may have; `instead` is what to do.
pub(crate) fn too_long(what: &str, bytes: usize, instead: &str) -> Status {
    Status::resource_exhausted(format!(
        "the list of {what} has {bytes} bytes and more, and a message at most {MAX_MESSAGE_BYTES}: {instead}"
    ))
}

/// Streams rows in pages that `wrap` makes messages of. Each page is made when it is sent.
pub(crate) fn pages<R, M, I>(rows: I, wrap: fn(Vec<R>) -> M) -> AnswerStream<M>
where
    R: Message + 'static,
    M: Send + 'static,
    I: IntoIterator<Item = R>,
    I::IntoIter: Send + 'static,
{
    let mut rows = rows.into_iter();
    Box::pin(futures::stream::iter(std::iter::from_fn(move || {
        let mut page = Vec::new();
        let mut bytes = 0;
        let full = piece_bytes().min(PAGE_BYTES);
        while bytes < full {
            let Some(row) = rows.next() else { break };
            bytes += row.encoded_len();
            page.push(row);
        }
        (!page.is_empty()).then(|| Ok::<_, Status>(wrap(page)))
    })))
}
