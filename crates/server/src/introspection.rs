//! containerd.services.introspection.v1: what clients look for before they pull or unpack.

use std::borrow::Cow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use orlop_api::containerd::services::introspection::v1 as pb;
use orlop_api::containerd::services::introspection::v1::introspection_server::Introspection;
use orlop_api::containerd::types;
use orlop_api::google::rpc;
use orlop_metadata::Filter;
use orlop_oci::{Digest, Platform};
use tonic::{Code, Request, Response, Status};

use crate::status::ToStatus;
use crate::{Answer, Server};

const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";
const CONTENT: &str = "io.containerd.content.v1";
const METADATA: &str = "io.containerd.metadata.v1";
const DIFFER: &str = "io.containerd.differ.v1";
const GC: &str = "io.containerd.gc.v1";
const EVENT: &str = "io.containerd.event.v1";
const LEASE: &str = "io.containerd.lease.v1";
const STREAMING: &str = "io.containerd.streaming.v1";
const TRANSFER: &str = "io.containerd.transfer.v1";
const VERIFIER: &str = "io.containerd.image-verifier.v1";
const MOUNTS: &str = "io.containerd.mount-manager.v1";
const GRPC: &str = "io.containerd.grpc.v1";

/// containerd's runtime. BuildKit takes a server for containerd only if it lists one, loaded or not, so it is listed with the
/// reason why it is not loaded.
const RUNTIME: (&str, &str, &[&str]) = ("io.containerd.runtime.v2", "task", &[MOUNTS]);

/// What is served beside the snapshotters, under containerd's names: type, id, and the types it stands on. No service is
/// listed that is not served: sandboxes.
const PLUGINS: [(&str, &str, &[&str]); 27] = [
    (CONTENT, "content", &[]),
    (VERIFIER, "bindir", &[]),
    (EVENT, "exchange", &[]),
    (METADATA, "bolt", &[CONTENT, EVENT, SNAPSHOTTER]),
    (GC, "scheduler", &[METADATA]),
    (MOUNTS, "bolt", &[METADATA]),
    (DIFFER, "walking", &[METADATA]),
    (LEASE, "manager", &[METADATA, GC]),
    (TRANSFER, "local", &[LEASE, METADATA, DIFFER, VERIFIER, SNAPSHOTTER]),
    (STREAMING, "manager", &[METADATA]),
    ("io.containerd.cri.v1", "images", &[LEASE, METADATA, SNAPSHOTTER, TRANSFER]),
    (GRPC, "containers", &[METADATA]),
    (GRPC, "content", &[CONTENT]),
    (GRPC, "cri", &["io.containerd.cri.v1"]),
    (GRPC, "diff", &[DIFFER]),
    (GRPC, "events", &[EVENT]),
    (GRPC, "healthcheck", &[]),
    (GRPC, "images", &[METADATA]),
    (GRPC, "introspection", &[]),
    (GRPC, "leases", &[LEASE]),
    (GRPC, "mounts", &[MOUNTS]),
    (GRPC, "namespaces", &[METADATA]),
    (GRPC, "snapshots", &[SNAPSHOTTER]),
    (GRPC, "streaming", &[STREAMING]),
    (GRPC, "tasks", &[METADATA]),
    (GRPC, "transfer", &[TRANSFER, STREAMING]),
    (GRPC, "version", &[]),
];

#[tonic::async_trait]
impl Introspection for Server {
    async fn plugins(&self, request: Request<pb::PluginsRequest>) -> Answer<pb::PluginsResponse> {
        let filter = Filter::parse(&request.into_inner().filters).map_err(|e| e.to_status())?;
        let mut plugins = self.plugins();
        plugins.retain(|plugin| filter.matches(|path| field(plugin, path)));
        Ok(Response::new(pb::PluginsResponse { plugins }))
    }

    async fn server(&self, _: Request<()>) -> Answer<pb::ServerResponse> {
        let pidns = std::fs::metadata("/proc/self/ns/pid").map_or(0, |m| m.ino());
        let pid = u64::from(std::process::id());
        Ok(Response::new(pb::ServerResponse { uuid: self.uuid(), pid, pidns, deprecations: Vec::new() }))
    }

    async fn plugin_info(&self, request: Request<pb::PluginInfoRequest>) -> Answer<pb::PluginInfoResponse> {
        let request = request.into_inner();
        if let Some(options) = &request.options {
            crate::any::defined(options, "options")?;
        }
        let found = self.plugins().into_iter().find(|p| p.r#type == request.r#type && p.id == request.id);
        let plugin =
            found.ok_or_else(|| Status::not_found(format!("plugin {}.{}: not found", request.r#type, request.id)))?;
        if request.options.is_some() {
            return Err(Status::unimplemented(format!("plugin {}.{} tells nothing more", plugin.r#type, plugin.id)));
        }
        Ok(Response::new(pb::PluginInfoResponse { plugin: Some(plugin), extra: None }))
    }
}

impl Server {
    fn plugins(&self) -> Vec<pb::Plugin> {
        let platform = platform(&Platform::host());
        let mut plugins: Vec<pb::Plugin> = PLUGINS.iter().map(plugin).collect();
        for plugin in &mut plugins {
            match plugin.r#type.as_str() {
                CONTENT => export(plugin, "root", &self.store().root().join("content")),
                METADATA => {
                    export(plugin, "path", &self.store().root().join("meta.db"));
                    plugin.exports.insert("policy".into(), "shared".into());
                }
                DIFFER => {
                    plugin.platforms.push(platform.clone());
                    plugin.exports.insert("confinement".into(), orlop_snapshot::confinement().to_string());
                }
                _ => {}
            }
        }
        plugins.push(unloaded(&RUNTIME));
        for driver in self.store().drivers() {
            let mut plugin = plugin(&(SNAPSHOTTER, driver.name(), &[]));
            plugin.platforms.push(platform.clone());
            export(&mut plugin, "root", driver.root());
            if driver.supports_rebase() {
                plugin.capabilities.push("rebase".into());
            }
            if let Err(why) = driver.available() {
                plugin.init_err = Some(skipped(why.to_string()));
            }
            plugins.push(plugin);
        }
        plugins
    }

    /// Follows from where the root is, so that nothing has to be kept for it.
    fn uuid(&self) -> String {
        let root = self.store().root();
        let place = std::fs::metadata(root).map_or((0, 0), |m| (m.dev(), m.ino()));
        let digest = Digest::of(format!("{} {}:{}", root.display(), place.0, place.1).as_bytes());
        let hex = digest.hex();
        // Version 8: a UUID by one's own rule (RFC 9562 section 5.8).
        format!("{}-{}-8{}-8{}-{}", &hex[..8], &hex[8..12], &hex[12..15], &hex[15..18], &hex[18..30])
    }
}

fn plugin((kind, id, requires): &(&str, &str, &[&str])) -> pb::Plugin {
    let requires = requires.iter().map(|&kind| kind.to_owned()).collect();
    pb::Plugin { r#type: (*kind).to_owned(), id: (*id).to_owned(), requires, ..pb::Plugin::default() }
}

fn unloaded(listed: &(&str, &str, &[&str])) -> pb::Plugin {
    pb::Plugin { init_err: Some(skipped("Orlop keeps images and runs nothing".to_owned())), ..plugin(listed) }
}

/// Why a plugin is not used here, in the words by which clients know that this is no fault.
fn skipped(why: String) -> rpc::Status {
    rpc::Status { code: Code::Unimplemented.into(), message: format!("{why}: skip plugin"), details: Vec::new() }
}

fn export(plugin: &mut pb::Plugin, name: &str, path: &Path) {
    plugin.exports.insert(name.into(), path.display().to_string());
}

fn platform(platform: &Platform) -> types::Platform {
    types::Platform {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        variant: platform.variant.clone().unwrap_or_default(),
        ..types::Platform::default()
    }
}

fn field<'a>(plugin: &'a pb::Plugin, path: &[String]) -> Option<Cow<'a, str>> {
    let [name] = path else { return None };
    match name.as_str() {
        "type" => Some(Cow::Borrowed(plugin.r#type.as_str())),
        "id" => Some(Cow::Borrowed(plugin.id.as_str())),
        _ => None,
    }
}
