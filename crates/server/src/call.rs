//! What the headers of a call say.

use std::sync::Arc;

use orlop_api::{ACTOR_HEADER, LEASE_HEADER, NAMESPACE_HEADER};
use orlop_metadata::{Scope, validate_namespace};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use crate::daemon::peer::Peer;
use crate::status::ToStatus;

/// Who the history names when neither the client nor the kernel says.
const DEFAULT_ACTOR: &str = "grpc";

/// An actor's name is a word or two; what is longer is cut.
const MAX_ACTOR_BYTES: usize = 64;

/// The namespace, lease and actor of a call.
///
/// # Errors
/// `FAILED_PRECONDITION` without a namespace, `INVALID_ARGUMENT` if it cannot be one, as containerd answers.
pub(crate) fn scope<T>(request: &Request<T>) -> Result<Scope, Status> {
    let headers = request.metadata();
    let namespace = header(headers, NAMESPACE_HEADER)?.ok_or_else(|| {
        Status::failed_precondition(format!("namespace is required: send the {NAMESPACE_HEADER} header"))
    })?;
    validate_namespace(namespace).map_err(|e| e.to_status())?;
    let peer = request.extensions().get::<Arc<Peer>>().map(|peer| peer.actor());
    let actor = header(headers, ACTOR_HEADER)?.or(peer.as_deref()).unwrap_or(DEFAULT_ACTOR);
    // Headers are visible ASCII: any byte is a boundary.
    let scope = Scope::new(namespace, &actor[..actor.len().min(MAX_ACTOR_BYTES)]);
    Ok(match header(headers, LEASE_HEADER)? {
        Some(lease) => scope.with_lease(lease),
        None => scope,
    })
}

fn header<'a>(headers: &'a MetadataMap, name: &str) -> Result<Option<&'a str>, Status> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let text =
        value.to_str().map_err(|_| Status::invalid_argument(format!("header {name}: expected visible ASCII")))?;
    Ok((!text.is_empty()).then_some(text))
}
