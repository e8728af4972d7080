//! Whether a registry is well, for who balances load over several: outside `/v2/`, without credentials.
//!
//! - `GET /healthz`: the process answers. Where this fails, starting it anew may help.
//! - `GET /readyz`: what it stands on answers too. Where this fails, requests are better sent elsewhere; starting it anew
//!   would not help.

use async_trait::async_trait;
use axum::body::Body;
use http::{HeaderValue, Method, Response, StatusCode, Uri, header};

/// Knows whether what a registry stands on answers.
#[async_trait]
pub trait Health: Send + Sync {
    /// `Err` says in a line what does not answer.
    async fn check(&self) -> Result<(), String>;
}

/// The answer, if it is one of these pages that is asked for.
pub(crate) async fn answer(health: Option<&dyn Health>, method: Method, uri: Uri) -> Option<Response<Body>> {
    let state = match uri.path() {
        "/healthz" => Ok(()),
        "/readyz" => match health {
            Some(health) => health.check().await,
            None => Ok(()),
        },
        _ => return None,
    };
    let (status, mut text) = match (&method, state) {
        (&Method::GET | &Method::HEAD, Ok(())) => (StatusCode::OK, "ok".to_owned()),
        (&Method::GET | &Method::HEAD, Err(why)) => (StatusCode::SERVICE_UNAVAILABLE, why),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are supported here".to_owned()),
    };
    text.push('\n');
    let mut response = Response::new(Body::from(if method == Method::HEAD { String::new() } else { text }));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Some(response)
}
