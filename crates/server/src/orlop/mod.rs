//! orlop.v1: what containerd's API has no call for.

mod archive;
mod keep;
pub(crate) mod peers;
mod progress;
mod repair;
mod rows;
mod scrub;
mod surroundings;
mod verify;

use orlop_api::orlop::v1 as pb;
use orlop_api::orlop::v1::orlop_server::Orlop;
use orlop_image::{ListRequest, PullRequest, PushRequest};
use orlop_remote::{Client, ClientOptions};
use tonic::{Request, Response, Streaming};

use crate::blocking::blocking;
use crate::convert::platforms;
use crate::page::pages;
use crate::status::ToStatus;
use crate::{Answer, AnswerStream, Server, call};

/// Rows of the history if the client does not say.
const HISTORY_LIMIT: usize = 1000;

#[tonic::async_trait]
impl Orlop for Server {
    type PullStream = AnswerStream<pb::Progress>;
    type PushStream = AnswerStream<pb::Progress>;
    type ImportStream = AnswerStream<pb::Progress>;
    type ExportStream = AnswerStream<pb::ExportResponse>;
    type ListImagesStream = AnswerStream<pb::ListImagesResponse>;
    type ListRecordsStream = AnswerStream<pb::ListRecordsResponse>;
    type HistoryStream = AnswerStream<pb::HistoryResponse>;
    type CheckStream = AnswerStream<pb::CheckResponse>;
    type ScrubStream = AnswerStream<pb::ScrubResponse>;
    type RepairStream = AnswerStream<pb::RepairResponse>;
    type SurroundingsStream = AnswerStream<pb::SurroundingsResponse>;
    type SourcesStream = AnswerStream<pb::SourcesResponse>;

    async fn pull(&self, request: Request<pb::PullRequest>) -> Answer<Self::PullStream> {
        let scope = call::scope(&request)?;
        let request = request.into_inner();
        let client = client(self, request.registry);
        let request = PullRequest {
            reference: request.reference,
            platforms: platforms(&request.platforms)?,
            all_platforms: request.all_platforms,
            no_unpack: request.no_unpack,
            snapshotter: request.snapshotter,
            pin: request.pin,
            concurrency: request.concurrency as usize,
        };
        let images = self.images().clone();
        Ok(Response::new(progress::stream(move |events| async move {
            images.pull(&scope, &client, &request, &|event| events.push(event)).await
        })))
    }

    async fn push(&self, request: Request<pb::PushRequest>) -> Answer<Self::PushStream> {
        let scope = call::scope(&request)?;
        let request = request.into_inner();
        let client = client(self, request.registry);
        let request = PushRequest {
            source: request.source,
            destination: request.destination,
            platforms: platforms(&request.platforms)?,
            concurrency: 0,
        };
        let images = self.images().clone();
        Ok(Response::new(progress::stream(move |events| async move {
            images.push(&scope, &client, &request, &|event| events.push(event)).await
        })))
    }

    async fn import(&self, request: Request<Streaming<pb::ImportRequest>>) -> Answer<Self::ImportStream> {
        let scope = call::scope(&request)?;
        Ok(Response::new(archive::import(self.images().clone(), scope, request.into_inner())))
    }

    async fn export(&self, request: Request<pb::ExportRequest>) -> Answer<Self::ExportStream> {
        let scope = call::scope(&request)?;
        Ok(Response::new(archive::export(self.images().clone(), scope, request.into_inner())?))
    }

    async fn list_images(&self, request: Request<pb::ListImagesRequest>) -> Answer<Self::ListImagesStream> {
        let scope = call::scope(&request)?;
        let request = request.into_inner();
        let request = ListRequest { filters: request.filters, all_namespaces: request.all_namespaces };
        let found = self.images().image_rows(&scope, &request).await.map_err(|e| e.to_status())?;
        Ok(Response::new(pages(found.map(rows::image), |rows| pb::ListImagesResponse { rows })))
    }

    async fn list_records(&self, request: Request<pb::ListRecordsRequest>) -> Answer<Self::ListRecordsStream> {
        let scope = call::scope(&request)?;
        let pb::ListRecordsRequest { filters, all_namespaces, brief } = request.into_inner();
        let request = ListRequest { filters, all_namespaces };
        let found = self.images().record_rows(&scope, &request).await.map_err(|e| e.to_status())?;
        Ok(Response::new(pages(found.map(move |row| rows::record(row, brief)), |rows| pb::ListRecordsResponse {
            rows,
        })))
    }

    async fn inspect(&self, request: Request<pb::InspectRequest>) -> Answer<pb::InspectResponse> {
        let scope = call::scope(&request)?;
        let found = self.images().inspect(&scope, &request.into_inner().name).await.map_err(|e| e.to_status())?;
        Ok(Response::new(pb::InspectResponse {
            row: Some(rows::image(found.row)),
            documents: found.documents.into_iter().map(rows::document).collect(),
            snapshots: found.snapshots.into_iter().map(rows::snapshot).collect(),
        }))
    }

    async fn history(&self, request: Request<pb::HistoryRequest>) -> Answer<Self::HistoryStream> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let request = request.into_inner();
        let limit = if request.limit == 0 { HISTORY_LIMIT } else { request.limit as usize };
        let found = blocking(move || keep::history(&store, &scope.namespace, &request.name, limit)).await?;
        Ok(Response::new(pages(found.into_iter().map(rows::change), |rows| pb::HistoryResponse { rows })))
    }

    async fn tag(&self, request: Request<pb::TagRequest>) -> Answer<pb::TagResponse> {
        let scope = call::scope(&request)?;
        let request = request.into_inner();
        let written = self.images().tag(&scope, &request.source, &request.names, request.force).await;
        Ok(Response::new(pb::TagResponse { names: written.map_err(|e| e.to_status())? }))
    }

    async fn pin(&self, request: Request<pb::PinRequest>) -> Answer<pb::PinResponse> {
        let scope = call::scope(&request)?;
        let request = request.into_inner();
        let names = self.images().pin(&scope, &request.name, request.pinned).await.map_err(|e| e.to_status())?;
        Ok(Response::new(pb::PinResponse { names }))
    }

    async fn plan_remove(&self, request: Request<pb::RemoveRequest>) -> Answer<pb::Plan> {
        let scope = call::scope(&request)?;
        let request = keep::removal(request.into_inner());
        let plan = self.images().plan_remove(&scope, &request).await.map_err(|e| e.to_status())?;
        Ok(Response::new(rows::plan(plan)))
    }

    async fn remove(&self, request: Request<pb::RemoveRequest>) -> Answer<pb::RemoveResponse> {
        let scope = call::scope(&request)?;
        let request = keep::removal(request.into_inner());
        let removed = self.images().remove(&scope, &request).await.map_err(|e| e.to_status())?;
        Ok(Response::new(pb::RemoveResponse {
            executed: Some(rows::plan(removed.plan)),
            trash: removed.trash.unwrap_or_default(),
            returned: removed.returned,
        }))
    }

    async fn list_trash(&self, request: Request<pb::ListTrashRequest>) -> Answer<pb::ListTrashResponse> {
        call::scope(&request)?;
        let store = self.store().clone();
        let entries = blocking(move || store.trash()).await?;
        Ok(Response::new(pb::ListTrashResponse { entries: entries.into_iter().map(rows::trash).collect() }))
    }

    async fn undo(&self, request: Request<pb::UndoRequest>) -> Answer<pb::UndoResponse> {
        let scope = call::scope(&request)?;
        let id = request.into_inner().id;
        let id = (!id.is_empty()).then_some(id.as_str());
        let report = self.images().undo(&scope, id).await.map_err(|e| e.to_status())?;
        Ok(Response::new(rows::undone(report)))
    }

    async fn gc(&self, request: Request<pb::GcRequest>) -> Answer<pb::GcResponse> {
        let scope = call::scope(&request)?;
        let request = request.into_inner();
        let request = orlop_image::GcRequest { full: request.full, trash: request.trash, dry_run: request.dry_run };
        let outcome = self.images().gc(&scope, request).await.map_err(|e| e.to_status())?;
        Ok(Response::new(rows::collected(outcome)))
    }

    async fn check(&self, request: Request<pb::CheckRequest>) -> Answer<Self::CheckStream> {
        let scope = call::scope(&request)?;
        Ok(Response::new(keep::check(self, scope, request.into_inner()).await?))
    }

    async fn repair(&self, request: Request<Streaming<pb::RepairRequest>>) -> Answer<Self::RepairStream> {
        let scope = call::scope(&request)?;
        Ok(Response::new(repair::repair(self, scope, request.into_inner()).await?))
    }

    async fn scrub(&self, request: Request<pb::ScrubRequest>) -> Answer<Self::ScrubStream> {
        call::scope(&request)?;
        Ok(Response::new(scrub::scrub(self, request.into_inner()).await?))
    }

    async fn verify(&self, request: Request<pb::VerifyRequest>) -> Answer<pb::VerifyResponse> {
        let scope = call::scope(&request)?;
        let request = request.into_inner();
        let client = request.registry.map(|registry| client(self, Some(registry)));
        let gate = request.policy.map(verify::gate).transpose()?;
        let wanted = orlop_image::VerifyRequest { name: request.name, gate };
        let verdicts = self.images().verify(&scope, &wanted, client.as_ref()).await.map_err(|e| e.to_status())?;
        Ok(Response::new(pb::VerifyResponse { verdicts: verdicts.into_iter().map(verify::verdict).collect() }))
    }

    async fn disk_usage(&self, request: Request<pb::DiskUsageRequest>) -> Answer<pb::DiskUsageResponse> {
        let scope = call::scope(&request)?;
        let images = !request.into_inner().without_images;
        let usage = self.images().disk_usage(&scope, images).await.map_err(|e| e.to_status())?;
        Ok(Response::new(rows::usage(usage)))
    }

    async fn surroundings(&self, request: Request<pb::SurroundingsRequest>) -> Answer<Self::SurroundingsStream> {
        let scope = call::scope(&request)?;
        Ok(Response::new(surroundings::surroundings(self, &scope, request.into_inner()).await?))
    }

    async fn peers(&self, request: Request<pb::PeersRequest>) -> Answer<pb::PeersResponse> {
        call::scope(&request)?;
        Ok(Response::new(peers::report(self.images())))
    }

    async fn sources(&self, request: Request<pb::SourcesRequest>) -> Answer<Self::SourcesStream> {
        let scope = call::scope(&request)?;
        Ok(Response::new(peers::sources(self, &scope, &request.into_inner().name).await?))
    }
}

/// A registry client as the caller wants it. The daemon's own settings are the caller's to send.
fn client(server: &Server, options: Option<pb::RegistryOptions>) -> Client {
    let options = options.unwrap_or_default();
    let hosts_dirs = match options.hosts_dir.as_str() {
        "" => Vec::new(),
        // CRI's config_path: several directories, first match wins.
        path => std::env::split_paths(path).collect(),
    };
    Client::new(ClientOptions {
        hosts_dirs,
        docker_config: (!options.docker_config.is_empty()).then(|| options.docker_config.into()),
        credentials: options.credentials.map(|c| (c.username, c.password)),
        plain_http: options.plain_http,
        trace: server.trace_headers(),
        rates: server.rates().clone(),
        ..ClientOptions::default()
    })
}
