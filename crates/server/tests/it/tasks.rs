//! The Tasks service: nothing runs, call by call as a containerd says it in which nothing was started.

use crate::common::{Node, request};
use orlop_api::containerd::services::containers::v1::containers_client::ContainersClient;
use orlop_api::containerd::services::containers::v1::{Container, CreateContainerRequest, container::Runtime};
use orlop_api::containerd::services::tasks::v1 as pb;
use orlop_api::containerd::services::tasks::v1::tasks_client::TasksClient;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::process::need_root;
use prost_types::Any;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A container in which nothing runs.
async fn container(channel: &Channel) {
    let runtime = Some(Runtime { name: "io.containerd.runc.v2".into(), options: None });
    let spec = Some(Any { type_url: "types.containerd.io/test".into(), value: b"{}".to_vec() });
    let container = Some(Container { id: "idle".into(), runtime, spec, ..Default::default() });
    let wanted = request(CreateContainerRequest { container });
    ContainersClient::new(channel.clone()).create(wanted).await.unwrap();
}

/// What each call that needs a task is answered for a container.
#[allow(clippy::needless_update, reason = "some requests name the container alone")]
async fn asked(channel: &Channel, id: &str) -> Vec<(&'static str, Status)> {
    let mut client = TasksClient::new(channel.clone());
    let mut told = Vec::new();
    macro_rules! ask {
        ($($call:ident: $request:ident),* $(,)?) => {
            $({
                let wanted = request(pb::$request { container_id: id.into(), ..Default::default() });
                told.push((stringify!($call), client.$call(wanted).await.map(drop).unwrap_err()));
            })*
        };
    }
    ask!(
        start: StartRequest,
        delete: DeleteTaskRequest,
        delete_process: DeleteProcessRequest,
        get: GetRequest,
        kill: KillRequest,
        resize_pty: ResizePtyRequest,
        close_io: CloseIoRequest,
        pause: PauseTaskRequest,
        resume: ResumeTaskRequest,
        list_pids: ListPidsRequest,
        checkpoint: CheckpointTaskRequest,
        update: UpdateTaskRequest,
        wait: WaitRequest,
    );
    let process = |exec_id: &str| {
        let (container_id, exec_id) = (id.into(), exec_id.into());
        request(pb::ExecProcessRequest { container_id, exec_id, ..Default::default() })
    };
    told.push(("exec", client.exec(process("more")).await.map(drop).unwrap_err()));
    told
}

async fn nothing_runs(channel: &Channel) {
    let mut client = TasksClient::new(channel.clone());
    let listed = client.list(request(pb::ListTasksRequest::default())).await.unwrap().into_inner();
    assert!(listed.tasks.is_empty());
    let measured = client.metrics(request(pb::MetricsRequest::default())).await.unwrap().into_inner();
    assert!(measured.metrics.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_runs_in_any_container_and_every_call_says_so() {
    let node = Node::new();
    container(&node.channel).await;
    nothing_runs(&node.channel).await;
    for id in ["idle", "none", ""] {
        for (call, status) in asked(&node.channel, id).await {
            assert_eq!(status.code(), Code::NotFound, "{call} {id:?}: {status:?}");
            assert!(status.message().contains(if id == "idle" { "runs nothing" } else { "container" }), "{status:?}");
        }
    }
    let mut client = TasksClient::new(node.channel.clone());
    let nameless = request(pb::ExecProcessRequest { container_id: "idle".into(), ..Default::default() });
    assert_eq!(client.exec(nameless).await.unwrap_err().code(), Code::InvalidArgument);
    let create = |id: &str| request(pb::CreateTaskRequest { container_id: id.into(), ..Default::default() });
    let status = client.create(create("idle")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    assert!(status.message().contains("runs nothing"), "{status:?}");
    assert_eq!(client.create(create("none")).await.unwrap_err().code(), Code::NotFound);
    nothing_runs(&node.channel).await;
    assert_eq!(
        client.list(tonic::Request::new(pb::ListTasksRequest::default())).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_has_containerds_code() {
    if !need_root() {
        return;
    }
    let node = Node::new();
    container(&node.channel).await;
    for programs in [Programs::debian(), Programs::current()].into_iter().flatten() {
        let containerd = Containerd::start(&programs, &Options::default());
        let channel = orlop_api::channel::unix(&containerd.socket()).await.unwrap();
        container(&channel).await;
        nothing_runs(&channel).await;
        for id in ["idle", "none", ""] {
            let codes = |told: Vec<(&'static str, Status)>| -> Vec<_> {
                told.into_iter().map(|(call, status)| (call, status.code())).collect()
            };
            let (ours, theirs) = (asked(&node.channel, id).await, asked(&channel, id).await);
            assert_eq!(codes(ours), codes(theirs), "{} {id:?}", programs.version());
        }
    }
}
