//! Tells grpc.health.v1 whether the store takes changes. Whether the process serves is told without that: as long as it answers.

use tonic_health::ServingStatus;

use crate::Server;

/// The name under which it is asked for.
const WRITABLE: &str = "orlop.writable";

/// Follows the store, for ever.
pub(super) async fn run(server: Server) {
    let health = server.health();
    let writable = server.store().read_only_reason().is_none();
    let status = if writable { ServingStatus::Serving } else { ServingStatus::NotServing };
    health.set_service_status(WRITABLE, status).await;
    server.store().until_stopped().await;
    health.set_service_status(WRITABLE, ServingStatus::NotServing).await;
}
