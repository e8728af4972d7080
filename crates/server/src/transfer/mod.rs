//! containerd.services.transfer.v1: images from registries, archives and records to records, archives and registries.
//!
//! | from \ to | image store | export stream | registry |
//! |---|---|---|---|
//! | registry | pull | – | – |
//! | image store | tag | export | push |
//! | import stream | import | the bytes as they are | – |
//!
//! # Invariants
//! - A transfer lives as long as its call: a client that goes away stops it.
//! - The progress stream ends before the call is answered.

mod credentials;
mod place;
mod progress;
mod registry;

use std::io;
use std::sync::Arc;

use orlop_api::containerd::services::transfer::v1 as pb;
use orlop_api::containerd::services::transfer::v1::transfer_server::Transfer;
use orlop_api::containerd::types::transfer as types;
use orlop_image::{Event, ExportRequest, ImportAs, PushRequest};
use orlop_metadata::Scope;
use orlop_oci::MediaKind;
use prost_types::Any;
use tokio::io::AsyncWriteExt;
use tokio_util::io::StreamReader;
use tonic::{Request, Response, Status};

use crate::any::{defined, unpack};
use crate::blocking::blocking;
use crate::convert::descriptor_to_wire;
use crate::status::ToStatus;
use crate::streaming::{Link, bytes};
use crate::{Answer, Server, call};
use progress::Progress;

/// Bytes of an archive that wait for the client.
const PIPE_BYTES: usize = 256 << 10;

/// A source or destination.
enum End {
    Registry(types::OciRegistry),
    Store(types::ImageStore),
    Import(types::ImageImportStream),
    Export(types::ImageExportStream),
}

impl End {
    fn parse(any: Option<Any>, what: &str) -> Result<Self, Status> {
        // What is left out is a message of no type, as in containerd.
        let any = any.unwrap_or_default();
        defined(&any, what)?;
        let broken = |e: prost::DecodeError| crate::any::broken(&any, what, &e);
        if let Some(found) = unpack::<types::OciRegistry>(&any) {
            return found.map(Self::Registry).map_err(broken);
        }
        if let Some(found) = unpack::<types::ImageStore>(&any) {
            return found.map(Self::Store).map_err(broken);
        }
        if let Some(found) = unpack::<types::ImageImportStream>(&any) {
            return found.map(Self::Import).map_err(broken);
        }
        if let Some(found) = unpack::<types::ImageExportStream>(&any) {
            return found.map(Self::Export).map_err(broken);
        }
        Err(Status::unimplemented(format!(
            "{what} of type {:?}: expected OCIRegistry, ImageStore, ImageImportStream or ImageExportStream",
            any.type_url
        )))
    }

    /// The streams that end with the transfer.
    fn streams(&self) -> Vec<String> {
        let named = match self {
            Self::Registry(registry) => {
                let resolver = registry.resolver.as_ref();
                return resolver
                    .into_iter()
                    .flat_map(|r| [r.auth_stream.clone(), r.logs_stream.clone()])
                    .filter(|name| !name.is_empty())
                    .collect();
            }
            Self::Store(_) => return Vec::new(),
            Self::Import(import) => &import.stream,
            Self::Export(export) => &export.stream,
        };
        vec![named.clone()]
    }
}

#[tonic::async_trait]
impl Transfer for Server {
    async fn transfer(&self, request: Request<pb::TransferRequest>) -> Answer<()> {
        let scope = call::scope(&request)?;
        let request = request.into_inner();
        let stream = request.options.map(|options| options.progress_stream).unwrap_or_default();
        let link = if stream.is_empty() { None } else { Some(self.streams().get(&scope.namespace, &stream)?) };
        let source = End::parse(request.source, "source")?;
        let destination = End::parse(request.destination, "destination")?;
        let mut names = source.streams();
        names.extend(destination.streams());
        let progress = Progress::default();
        let result = progress.run(link, self.carry(&scope, source, destination, &progress)).await;
        names.push(stream);
        for name in names {
            self.streams().close(&scope.namespace, &name).await;
        }
        result.map(Response::new)
    }
}

impl Server {
    async fn carry(&self, scope: &Scope, from: End, to: End, progress: &Progress) -> Result<(), Status> {
        match (from, to) {
            (End::Registry(from), End::Store(to)) => self.pull(scope, &from, to, progress).await,
            (End::Store(from), End::Registry(to)) => self.push(scope, from, &to, progress).await,
            (End::Store(from), End::Store(to)) => {
                let place = place::place(to)?;
                self.images().tag_as(scope, &from.name, &place).await.map(drop).map_err(|e| e.to_status())
            }
            (End::Store(from), End::Export(to)) => self.export(scope, from, to, progress).await,
            (End::Import(from), End::Store(to)) => self.import(scope, &from, to, progress).await,
            (End::Import(from), End::Export(to)) => self.echo(scope, &from, &to).await,
            _ => Err(Status::unimplemented("there is no way from this source to this destination")),
        }
    }

    fn link(&self, scope: &Scope, stream: &str) -> Result<Arc<Link>, Status> {
        self.streams().get(&scope.namespace, stream)
    }

    async fn pull(
        &self,
        scope: &Scope,
        from: &types::OciRegistry,
        to: types::ImageStore,
        progress: &Progress,
    ) -> Result<(), Status> {
        let client = self.registry_client(scope, from)?;
        let place = place::place(to)?;
        let registry = format!("OCI Registry ({})", from.reference);
        progress.say(format!("Resolving from {registry}"));
        let sink = |event: Event| {
            if let Event::Target(target) = &event {
                progress.say(format!("Pulling from {registry}"));
                progress.named("fetching image content", &from.reference, Some(target));
                progress.root(&from.reference, target, "downloading");
            }
            progress.push(event);
        };
        let pulled = self.images().pull_as(scope, &client, &from.reference, &place, &sink).await;
        let (names, target) = pulled.map_err(|e| e.to_status())?;
        for name in names {
            progress.named("saved", &name, Some(&target));
        }
        progress.say(format!("Completed pull from {registry}"));
        Ok(())
    }

    async fn push(
        &self,
        scope: &Scope,
        from: types::ImageStore,
        to: &types::OciRegistry,
        progress: &Progress,
    ) -> Result<(), Status> {
        let client = self.registry_client(scope, to)?;
        let place = place::place(from)?;
        let record = self.record(scope, &place.name).await?;
        let registry = format!("OCI Registry ({})", to.reference);
        progress.say(format!("Pushing to {registry}"));
        progress.named("pushing content", &record.name, Some(&record.target));
        let sink = |event: Event| {
            if let Event::Target(target) = &event {
                // The record's descriptor has annotations, which are part of how the target is shown.
                let whole = target.digest == record.target.digest;
                progress.root(&record.name, if whole { &record.target } else { target }, "uploading");
            }
            progress.push(event);
        };
        let request = PushRequest {
            source: record.name.clone(),
            destination: to.reference.clone(),
            // Only an index has platforms to choose from: a manifest is pushed as it is, as containerd pushes it.
            platforms: if record.target.kind() == MediaKind::Index { place.platforms } else { Vec::new() },
            concurrency: 0,
        };
        self.images().push(scope, &client, &request, &sink).await.map_err(|e| e.to_status())?;
        progress.named("pushed content", &record.name, Some(&record.target));
        progress.say_of(format!("Completed push to {registry}"), &record.target);
        Ok(())
    }

    /// A record by its exact name.
    async fn record(&self, scope: &Scope, name: &str) -> Result<orlop_metadata::Image, Status> {
        let (store, namespace, name) = (self.store().clone(), scope.namespace.clone(), name.to_owned());
        blocking(move || store.image(&namespace, &name)).await
    }

    async fn import(
        &self,
        scope: &Scope,
        from: &types::ImageImportStream,
        to: types::ImageStore,
        progress: &Progress,
    ) -> Result<(), Status> {
        let link = self.link(scope, &from.stream)?;
        if from.force_compress {
            return Err(Status::unimplemented("layers are kept as the archive has them: import without compression"));
        }
        let request = ImportAs { place: place::place(to)? };
        progress.say("Importing".to_owned());
        let mut reader = StreamReader::new(Box::pin(bytes::receive(link)));
        let imported = self.images().import_as(scope, &mut reader, &request, &|_| ()).await;
        for (name, target) in imported.map_err(|e| e.to_status())? {
            progress.named("saved", &name, Some(&target));
        }
        progress.say("Completed import".to_owned());
        Ok(())
    }

    async fn export(
        &self,
        scope: &Scope,
        from: types::ImageStore,
        to: types::ImageExportStream,
        progress: &Progress,
    ) -> Result<(), Status> {
        let link = self.link(scope, &to.stream)?;
        let source = place::place(from)?;
        if source.rules.iter().any(|rule| rule.is_prefix) {
            return Err(Status::unimplemented("images are exported by their full names, not by prefixes"));
        }
        let names = Some(source.name).filter(|name| !name.is_empty()).into_iter();
        let names: Vec<String> = names.chain(source.rules.into_iter().map(|rule| rule.name)).collect();
        for name in &names {
            self.record(scope, name).await?;
        }
        progress.say("Exporting".to_owned());
        let request = ExportRequest {
            names,
            platforms: place::platforms(to.platforms),
            all_platforms: to.all_platforms,
            verbatim: true,
            no_docker_manifest: to.skip_compatibility_manifest,
            ..ExportRequest::default()
        };
        let (mut writer, reader) = tokio::io::duplex(PIPE_BYTES);
        let exporting = async {
            let done = self.images().export(scope, &request, &mut writer).await.map_err(|e| e.to_status());
            // The archive's end is the stream's; after an error the client must not take the rest for whole.
            let ended = writer.shutdown().await.map_err(|e| broken(&e));
            done.and(ended)
        };
        let sending = async { bytes::send(&link, reader).await.map_err(|e| broken(&e)) };
        tokio::try_join!(exporting, sending)?;
        progress.say("Completed export".to_owned());
        Ok(())
    }

    async fn echo(
        &self,
        scope: &Scope,
        from: &types::ImageImportStream,
        to: &types::ImageExportStream,
    ) -> Result<(), Status> {
        let (from, to) = (self.link(scope, &from.stream)?, self.link(scope, &to.stream)?);
        let reader = StreamReader::new(Box::pin(bytes::receive(from)));
        bytes::send(&to, reader).await.map_err(|e| broken(&e))
    }
}

fn broken(error: &io::Error) -> Status {
    Status::aborted(format!("the client's stream broke: {error}"))
}

/// A descriptor as a message.
fn described(descriptor: &orlop_oci::Descriptor) -> orlop_api::containerd::types::Descriptor {
    descriptor_to_wire(descriptor)
}
