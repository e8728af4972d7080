//! Tells grpc.health.v1 whether the store takes changes. Whether the process serves is told without that: as long as it answers.

use tonic_health::ServingStatus;

use crate::Server;

/// The name under which it is asked for.
const WRITABLE: &str = "orlop.writable";

/// Tells it as it is now: before the first who can ask.
pub(super) async fn tell(server: &Server) {
    let writable = server.store().read_only_reason().is_none();
    let status = if writable { ServingStatus::Serving } else { ServingStatus::NotServing };
    server.health().set_service_status(WRITABLE, status).await;
}

/// Tells that the store has stopped writes, once it has.
pub(super) async fn follow(server: Server) {
    server.store().until_stopped().await;
    server.health().set_service_status(WRITABLE, ServingStatus::NotServing).await;
}
