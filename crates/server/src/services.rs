//! The one place where services are put together: what is added here is served in process and on the socket.

use orlop_api::MAX_MESSAGE_BYTES;
use orlop_api::containerd::services::containers::v1::containers_server::ContainersServer;
use orlop_api::containerd::services::content::v1::content_server::ContentServer;
use orlop_api::containerd::services::diff::v1::diff_server::DiffServer;
use orlop_api::containerd::services::events::v1::events_server::EventsServer;
use orlop_api::containerd::services::images::v1::images_server::ImagesServer;
use orlop_api::containerd::services::introspection::v1::introspection_server::IntrospectionServer;
use orlop_api::containerd::services::leases::v1::leases_server::LeasesServer;
use orlop_api::containerd::services::mounts::v1::mounts_server::MountsServer;
use orlop_api::containerd::services::namespaces::v1::namespaces_server::NamespacesServer;
use orlop_api::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
use orlop_api::containerd::services::streaming::v1::streaming_server::StreamingServer;
use orlop_api::containerd::services::tasks::v1::tasks_server::TasksServer;
use orlop_api::containerd::services::transfer::v1::transfer_server::TransferServer;
use orlop_api::containerd::services::version::v1::version_server::VersionServer;
use orlop_api::orlop::v1::orlop_server::OrlopServer;
use orlop_api::runtime::v1::image_service_server::ImageServiceServer;
use orlop_api::runtime::v1::runtime_service_server::RuntimeServiceServer;
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::service::{Routes, RoutesBuilder};
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthService;

use crate::Server;
use crate::beside::{ImageCalls, RuntimeCalls};
use crate::raw::Raw;

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
    moving(server, &mut routes);
    cri(server, &mut routes);
    orlop(server, &mut routes);

    about(server, &mut routes);

    routes.routes()
}

/// What a containerd above calls; what tells whoever installs it what is here; and health.
pub(crate) fn raw(raw: &Raw) -> Routes {
    let mut routes = Routes::builder();
    routes
        .add_service(bounded!(VersionServer, raw.server().clone()))
        .add_service(bounded!(IntrospectionServer, raw.server().clone()))
        .add_service(bounded!(ContentServer, raw.clone()))
        .add_service(bounded!(SnapshotsServer, raw.clone()))
        .add_service(bounded!(DiffServer, raw.clone()));
    about(raw.server(), &mut routes);
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
        .add_service(bounded!(ContainersServer, server.clone()))
        .add_service(bounded!(TasksServer, server.clone()))
        .add_service(bounded!(DiffServer, server.clone()))
        .add_service(bounded!(MountsServer, server.clone()))
        .add_service(bounded!(EventsServer, server.clone()))
        .add_service(bounded!(VersionServer, server.clone()))
        .add_service(bounded!(IntrospectionServer, server.clone()));
}

/// containerd's services that move images.
fn moving(server: &Server, routes: &mut RoutesBuilder) {
    routes.add_service(bounded!(StreamingServer, server.clone())).add_service(bounded!(TransferServer, server.clone()));
}

/// What kubelet and crictl call. What a containerd beside has of it is asked there.
fn cri(server: &Server, routes: &mut RoutesBuilder) {
    if let Some(beside) = server.beside() {
        routes.add_service(ImageCalls::new(server, beside)).add_service(RuntimeCalls::new(beside));
        return;
    }
    routes
        .add_service(bounded!(ImageServiceServer, server.cri().clone()))
        .add_service(bounded!(RuntimeServiceServer, server.cri().clone()));
}

/// What containerd has no call for.
fn orlop(server: &Server, routes: &mut RoutesBuilder) {
    routes.add_service(bounded!(OrlopServer, server.clone()));
}

/// Health; and which services there are.
fn about(server: &Server, routes: &mut RoutesBuilder) {
    routes.add_service(HealthServer::new(HealthService::from_health_reporter(server.health())));
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure();
        descriptors().into_iter().fold(builder, |builder, set| builder.register_encoded_file_descriptor_set(set))
    };
    match (builder().build_v1(), builder().build_v1alpha()) {
        (Ok(current), Ok(old)) => {
            routes.add_service(current).add_service(old);
        }
        (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "reflection is not served"),
    }
}

const fn descriptors() -> [&'static [u8]; 2] {
    [orlop_api::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET]
}

/// The path of every method that is defined: `/package.Service/Method`.
pub(crate) fn methods() -> Vec<String> {
    let reflection =
        [tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET, tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET];
    let sets = descriptors().into_iter().chain(reflection);
    let files = sets.filter_map(|set| FileDescriptorSet::decode(set).ok()).flat_map(|set| set.file);
    let mut methods = Vec::new();
    for file in files {
        for service in &file.service {
            let of = |method: &prost_types::MethodDescriptorProto| {
                format!("/{}.{}/{}", file.package(), service.name(), method.name())
            };
            methods.extend(service.method.iter().map(of));
        }
    }
    methods
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_method_is_known_by_its_path() {
        let methods = super::methods();
        for path in [
            "/containerd.services.content.v1.Content/Write",
            "/orlop.v1.Orlop/Pull",
            "/grpc.health.v1.Health/Check",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ] {
            assert!(methods.iter().any(|m| m == path), "{path}");
        }
    }
}
