//! containerd.services.version.v1.

use orlop_api::containerd::services::version::v1::VersionResponse;
use orlop_api::containerd::services::version::v1::version_server::Version;
use tonic::{Request, Response};

use crate::{Answer, Server};

/// The version of containerd's API that is served, and Orlop's own: clients compare it as a semantic version and want
/// 2.0 or more.
const VERSION: &str = concat!("2.3.0+orlop.", env!("CARGO_PKG_VERSION"));

#[tonic::async_trait]
impl Version for Server {
    async fn version(&self, _: Request<()>) -> Answer<VersionResponse> {
        Ok(Response::new(VersionResponse { version: VERSION.into(), revision: String::new() }))
    }
}
