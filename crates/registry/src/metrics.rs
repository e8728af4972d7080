//! Metrics for Prometheus over HTTP: one page, whoever renders it.

use std::future::Future;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

/// The format of OpenMetrics, which Prometheus asks for by default.
const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers `GET /metrics` with what `render` gives, or with its message and 503, until dropped.
pub async fn serve<F, R>(listener: TcpListener, render: F)
where
    F: Fn() -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<String, String>> + Send + 'static,
{
    let page = move || async move {
        match render().await {
            Ok(text) => ([(header::CONTENT_TYPE, MEDIA_TYPE)], text).into_response(),
            Err(message) => (StatusCode::SERVICE_UNAVAILABLE, message).into_response(),
        }
    };
    let served = axum::serve(listener, Router::new().route("/metrics", get(page))).await;
    if let Err(error) = served {
        tracing::error!(%error, "metrics are not served any more");
    }
}
