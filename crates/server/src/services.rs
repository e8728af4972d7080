//! The one place where services are put together: what is added here is served in process and on the socket.

use orlop_api::MAX_MESSAGE_BYTES;
use orlop_api::containerd::services::content::v1::content_server::ContentServer;
use orlop_api::containerd::services::diff::v1::diff_server::DiffServer;
use orlop_api::containerd::services::events::v1::events_server::EventsServer;
use orlop_api::containerd::services::images::v1::images_server::ImagesServer;
use orlop_api::containerd::services::introspection::v1::introspection_server::IntrospectionServer;
use orlop_api::containerd::services::leases::v1::leases_server::LeasesServer;
use orlop_api::containerd::services::namespaces::v1::namespaces_server::NamespacesServer;
use orlop_api::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
use orlop_api::containerd::services::version::v1::version_server::VersionServer;
use orlop_api::orlop::v1::orlop_server::OrlopServer;
use tonic::service::{Routes, RoutesBuilder};

use crate::Server;

/// A service with the bound on messages. The second argument is what implements it.
macro_rules! bounded {
    ($service:ident, $implementation:expr) => {
        $service::new($implementation)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    };
}

/// Every service of a server. Each group has a function of its own.
pub(crate) fn all(server: &Server) -> Routes {
    let mut routes = Routes::builder();
    store(server, &mut routes);

    orlop(server, &mut routes);

    routes.routes()
}

/// containerd's services over the store.
fn store(server: &Server, routes: &mut RoutesBuilder) {
    routes
        .add_service(bounded!(ContentServer, server.clone()))
        .add_service(bounded!(ImagesServer, server.clone()))
        .add_service(bounded!(LeasesServer, server.clone()))
        .add_service(bounded!(NamespacesServer, server.clone()))
        .add_service(bounded!(SnapshotsServer, server.clone()))
        .add_service(bounded!(DiffServer, server.clone()))
        .add_service(bounded!(EventsServer, server.clone()))
        .add_service(bounded!(VersionServer, server.clone()))
        .add_service(bounded!(IntrospectionServer, server.clone()));
}

/// What containerd has no call for.
fn orlop(server: &Server, routes: &mut RoutesBuilder) {
    routes.add_service(bounded!(OrlopServer, server.clone()));
}
