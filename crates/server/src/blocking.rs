//! The store's calls block; the runtime's workers must not.

use tonic::Status;

use crate::status::ToStatus;

/// Runs `call` on the blocking pool, in the span of whoever waits for it.
pub(crate) async fn blocking<T, E>(call: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, Status>
where
    T: Send + 'static,
    E: ToStatus + Send + 'static,
{
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(call)).await {
        Ok(result) => result.map_err(|e| e.to_status()),
        Err(stopped) => match stopped.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Status::cancelled("the server is shutting down")),
        },
    }
}
