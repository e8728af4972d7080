//! runtime.v1.RuntimeService, as far as a store of images can tell the truth.

use std::collections::BTreeMap;

use orlop_api::runtime::v1 as pb;
use orlop_api::runtime::v1::runtime_service_server::RuntimeService;
use orlop_metadata::Store;
use tonic::{Request, Response, Status};

use super::Cri;
use crate::{Answer, AnswerStream};

/// The version of kubelet's runtime API; kubelet takes no other.
const KUBELET_API: &str = "0.1.0";
/// The version of CRI.
const CRI_API: &str = "v1";
const NAME: &str = "orlop";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Why neither containers nor their network are there.
const REASON: &str = "ImageStoreOnly";
const MESSAGE: &str = "Orlop keeps the images of this node and runs no containers: use this socket as kubelet's image \
                       service (--image-service-endpoint), and a container runtime's socket as its runtime";

/// The answer to what only a container runtime can do.
fn unserved<T>(call: &str) -> Result<T, Status> {
    Err(Status::unimplemented(format!("{call}: {MESSAGE}")))
}

/// The calls that are not served, by name.
macro_rules! unserved {
    ($($method:ident $call:literal ($request:ident) -> $response:ident;)*) => {
        $(
            fn $method<'life, 'future>(
                &'life self,
                _: Request<pb::$request>,
            ) -> std::pin::Pin<Box<dyn Future<Output = Answer<pb::$response>> + Send + 'future>>
            where
                'life: 'future,
            {
                Box::pin(async { unserved($call) })
            }
        )*
    };
}

/// The same for calls that answer with a stream.
macro_rules! unserved_streams {
    ($($method:ident $call:literal ($request:ident) -> $stream:ident;)*) => {
        $(
            fn $method<'life, 'future>(
                &'life self,
                _: Request<pb::$request>,
            ) -> std::pin::Pin<Box<dyn Future<Output = Answer<Self::$stream>> + Send + 'future>>
            where
                'life: 'future,
            {
                Box::pin(async { unserved($call) })
            }
        )*
    };
}

#[tonic::async_trait]
impl RuntimeService for Cri {
    type StreamPodSandboxesStream = AnswerStream<pb::StreamPodSandboxesResponse>;
    type StreamContainersStream = AnswerStream<pb::StreamContainersResponse>;
    type StreamContainerStatsStream = AnswerStream<pb::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = AnswerStream<pb::StreamPodSandboxStatsResponse>;
    type GetContainerEventsStream = AnswerStream<pb::ContainerEventResponse>;
    type StreamPodSandboxMetricsStream = AnswerStream<pb::StreamPodSandboxMetricsResponse>;

    async fn version(&self, _: Request<pb::VersionRequest>) -> Answer<pb::VersionResponse> {
        Ok(Response::new(pb::VersionResponse {
            version: KUBELET_API.to_owned(),
            runtime_name: NAME.to_owned(),
            runtime_version: VERSION.to_owned(),
            runtime_api_version: CRI_API.to_owned(),
        }))
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Answer<pb::StatusResponse> {
        let condition = |kind: &str| pb::RuntimeCondition {
            r#type: kind.to_owned(),
            status: false,
            reason: REASON.to_owned(),
            message: MESSAGE.to_owned(),
        };
        let conditions = vec![condition("RuntimeReady"), condition("NetworkReady")];
        let verbose = request.into_inner().verbose;
        Ok(Response::new(pb::StatusResponse {
            status: Some(pb::RuntimeStatus { conditions }),
            info: if verbose { info(self.images().store()) } else { BTreeMap::new() },
            runtime_handlers: Vec::new(),
            features: Some(pb::RuntimeFeatures::default()),
        }))
    }

    unserved! {
        run_pod_sandbox "RunPodSandbox" (RunPodSandboxRequest) -> RunPodSandboxResponse;
        stop_pod_sandbox "StopPodSandbox" (StopPodSandboxRequest) -> StopPodSandboxResponse;
        remove_pod_sandbox "RemovePodSandbox" (RemovePodSandboxRequest) -> RemovePodSandboxResponse;
        pod_sandbox_status "PodSandboxStatus" (PodSandboxStatusRequest) -> PodSandboxStatusResponse;
        list_pod_sandbox "ListPodSandbox" (ListPodSandboxRequest) -> ListPodSandboxResponse;
        create_container "CreateContainer" (CreateContainerRequest) -> CreateContainerResponse;
        start_container "StartContainer" (StartContainerRequest) -> StartContainerResponse;
        stop_container "StopContainer" (StopContainerRequest) -> StopContainerResponse;
        remove_container "RemoveContainer" (RemoveContainerRequest) -> RemoveContainerResponse;
        list_containers "ListContainers" (ListContainersRequest) -> ListContainersResponse;
        container_status "ContainerStatus" (ContainerStatusRequest) -> ContainerStatusResponse;
        update_container_resources "UpdateContainerResources" (UpdateContainerResourcesRequest)
            -> UpdateContainerResourcesResponse;
        reopen_container_log "ReopenContainerLog" (ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        exec_sync "ExecSync" (ExecSyncRequest) -> ExecSyncResponse;
        exec "Exec" (ExecRequest) -> ExecResponse;
        attach "Attach" (AttachRequest) -> AttachResponse;
        port_forward "PortForward" (PortForwardRequest) -> PortForwardResponse;
        container_stats "ContainerStats" (ContainerStatsRequest) -> ContainerStatsResponse;
        list_container_stats "ListContainerStats" (ListContainerStatsRequest) -> ListContainerStatsResponse;
        pod_sandbox_stats "PodSandboxStats" (PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        list_pod_sandbox_stats "ListPodSandboxStats" (ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        update_runtime_config "UpdateRuntimeConfig" (UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        checkpoint_container "CheckpointContainer" (CheckpointContainerRequest) -> CheckpointContainerResponse;
        checkpoint_pod "CheckpointPod" (CheckpointPodRequest) -> CheckpointPodResponse;
        restore_pod "RestorePod" (RestorePodRequest) -> RestorePodResponse;
        list_metric_descriptors "ListMetricDescriptors" (ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics "ListPodSandboxMetrics" (ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        runtime_config "RuntimeConfig" (RuntimeConfigRequest) -> RuntimeConfigResponse;
        update_pod_sandbox_resources "UpdatePodSandboxResources" (UpdatePodSandboxResourcesRequest)
            -> UpdatePodSandboxResourcesResponse;
    }

    unserved_streams! {
        stream_pod_sandboxes "StreamPodSandboxes" (StreamPodSandboxesRequest) -> StreamPodSandboxesStream;
        stream_containers "StreamContainers" (StreamContainersRequest) -> StreamContainersStream;
        stream_container_stats "StreamContainerStats" (StreamContainerStatsRequest) -> StreamContainerStatsStream;
        stream_pod_sandbox_stats "StreamPodSandboxStats" (StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsStream;
        get_container_events "GetContainerEvents" (GetEventsRequest) -> GetContainerEventsStream;
        stream_pod_sandbox_metrics "StreamPodSandboxMetrics" (StreamPodSandboxMetricsRequest)
            -> StreamPodSandboxMetricsStream;
    }
}

/// What a verbose status tells besides: where the images are.
fn info(store: &Store) -> BTreeMap<String, String> {
    let snapshotters: Vec<&str> = store.drivers().iter().map(|driver| driver.name()).collect();
    let told = serde_json::json!({
        "version": VERSION,
        "root": store.root(),
        "snapshotters": snapshotters,
        "readOnly": store.read_only_reason(),
    });
    BTreeMap::from([("orlop".to_owned(), told.to_string())])
}
