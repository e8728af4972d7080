//! Parts of operations in spans of their own.

use tracing::field::display;
use tracing::{Instrument, Span};

use crate::Result;

/// Awaits a part in its span; the span takes the error, if it has a field for it.
pub(crate) async fn within<T>(span: Span, part: impl Future<Output = Result<T>>) -> Result<T> {
    let done = part.instrument(span.clone()).await;
    note(&span, done)
}

/// The same for what blocks.
pub(crate) fn entered<T>(span: Span, part: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = span.in_scope(part);
    note(&span, done)
}

fn note<T>(span: &Span, done: Result<T>) -> Result<T> {
    if let Err(error) = &done {
        span.record("error", display(error));
    }
    done
}
