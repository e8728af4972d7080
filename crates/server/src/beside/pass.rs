//! CRI on Orlop's socket where a containerd is beside: which calls are answered here, and how all others reach it.
//!
//! A call that is passed on is an HTTP/2 request that is sent again, with its headers and its body as they come, and its answer
//! likewise, trailers and all; streams in both directions are nothing special.

use std::convert::Infallible;
use std::future::poll_fn;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use orlop_api::runtime::v1 as pb;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;

use super::secrets::Hold;
use super::{Beside, BesideMode, frame};
use crate::Server;
use crate::cri::auth;

/// kubelet's image service.
#[derive(Clone)]
pub(crate) struct ImageCalls {
    server: Server,
    beside: Beside,
}

/// The runtime service, all of which is that containerd's.
#[derive(Clone)]
pub(crate) struct RuntimeCalls {
    beside: Beside,
}

impl ImageCalls {
    pub(crate) fn new(server: &Server, beside: &Beside) -> Cri<Self> {
        Cri(Self { server: server.clone(), beside: beside.clone() })
    }
}

impl Answers for ImageCalls {
    const SERVICE: &'static str = "runtime.v1.ImageService";

    async fn answer(self, request: Request<Body>) -> Response<Body> {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let Self { server, beside } = self;
        match (beside.inner.settings.mode, method.as_str()) {
            (BesideMode::Pass, "PullImage") => beside.pass_pull(request).await,
            (BesideMode::Share, "PullImage") => {
                let pull = async |asked: pb::PullImageRequest| beside.pull(&server, asked).await;
                frame::answer(unary(request, pull).await)
            }
            (BesideMode::Share, "RemoveImage") => {
                let remove = async |asked: pb::RemoveImageRequest| beside.remove(&server, asked).await;
                frame::answer(unary(request, remove).await)
            }
            // Older containerds take a directory of their own for the one of a snapshotter that is not theirs.
            (_, "ImageFsInfo") if beside.driver().is_some() => {
                let usage = async |_: pb::ImageFsInfoRequest| beside.inner.filesystems.usage(server.store()).await;
                frame::answer(unary(request, usage).await)
            }
            _ => beside.pass(request).await,
        }
    }
}

/// Answers one message by one.
async fn unary<Q, A, F>(request: Request<Body>, call: F) -> Result<A, Status>
where
    Q: prost::Message + Default,
    F: AsyncFnOnce(Q) -> Result<A, Status>,
{
    let body = frame::collect(request.into_body()).await?;
    call(frame::message(&body)?).await
}

impl RuntimeCalls {
    pub(crate) fn new(beside: &Beside) -> Cri<Self> {
        Cri(Self { beside: beside.clone() })
    }
}

impl Answers for RuntimeCalls {
    const SERVICE: &'static str = "runtime.v1.RuntimeService";

    async fn answer(self, request: Request<Body>) -> Response<Body> {
        self.beside.pass(request).await
    }
}

/// Who answers all calls of a service, whatever they are.
pub(crate) trait Answers: Clone + Send + Sync + 'static {
    /// The service's full name.
    const SERVICE: &'static str;

    fn answer(self, request: Request<Body>) -> impl Future<Output = Response<Body>> + Send;
}

/// A service whose calls are answered so.
#[derive(Clone)]
pub(crate) struct Cri<A>(A);

impl<A: Answers> NamedService for Cri<A> {
    const NAME: &'static str = A::SERVICE;
}

impl<A: Answers> Service<Request<Body>> for Cri<A> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let calls = self.0.clone();
        Box::pin(async move { Ok(calls.answer(request).await) })
    }
}

impl Beside {
    /// Passes a call on, and its answer back.
    pub(super) async fn pass(&self, request: Request<Body>) -> Response<Body> {
        let mut channel = self.inner.channel.clone();
        let sent = match poll_fn(|cx| channel.poll_ready(cx)).await {
            Ok(()) => channel.call(request).await,
            Err(error) => Err(error),
        };
        match sent {
            Ok(response) => match self.lacks_cri(response.headers()) {
                Some(status) => status.into_http(),
                None => response,
            },
            Err(error) => self.away(&error).into_http(),
        }
    }

    /// The same for a pull, whose secret is remembered until it is answered: that is when the pull has ended, for an answer's head
    /// comes with the answer.
    async fn pass_pull(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = match frame::collect(body).await {
            Ok(body) => body,
            Err(status) => return status.into_http(),
        };
        let _held = self.learn(&body);
        self.pass(Request::from_parts(head, frame::body(body))).await
    }

    /// What is no message, or has no secret, is that containerd's to judge.
    fn learn(&self, body: &bytes::Bytes) -> Option<Hold> {
        let asked: pb::PullImageRequest = frame::message(body).ok()?;
        let login = auth::login(asked.auth.as_ref()).ok()??;
        self.inner.secrets.hold(&asked.image?.image, login)
    }

    /// What a containerd without CRI v1 answers to all of it.
    fn lacks_cri(&self, headers: &HeaderMap) -> Option<Status> {
        let status = Status::from_header_map(headers).filter(|status| status.code() == Code::Unimplemented)?;
        self.explained(&status)
    }

    /// That a service is missing, and not only a call of it.
    pub(super) fn explained(&self, status: &Status) -> Option<Status> {
        if status.code() != Code::Unimplemented || !status.message().contains("unknown service") {
            return None;
        }
        let (socket, what) = (self.inner.settings.socket.display(), status.message());
        Some(Status::unimplemented(format!(
            "containerd at {socket} does not speak CRI v1 ({what}): expected containerd 1.6 or later, with its CRI plugin enabled"
        )))
    }
}
