//! Archives as streams: the client's pieces become a reader, the writer's bytes become pieces.

use std::io;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use orlop_api::orlop::v1 as pb;
use orlop_image::{ArchiveFormat, ExportRequest, Images, ImportRequest};
use orlop_metadata::Scope;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio_util::io::{ReaderStream, StreamReader};
use tonic::{Status, Streaming};
use tracing::Instrument;

use super::progress;
use crate::AnswerStream;
use crate::convert::platforms;
use crate::status::ToStatus;

/// Bytes in one message of an export, and bytes that wait for the client.
const PIECE_BYTES: usize = 1 << 20;

/// Reads the options and hands the rest to the importer.
pub(super) fn import(
    images: Images,
    scope: Scope,
    messages: Streaming<pb::ImportRequest>,
) -> AnswerStream<pb::Progress> {
    // Progress can only start once the options are here; waiting for them is part of the stream, so that the client
    // gets its headers at once.
    Box::pin(futures::stream::once(start(images, scope, messages)).flat_map(|started| match started {
        Ok(stream) => stream,
        Err(status) => Box::pin(futures::stream::iter([Err(status)])),
    }))
}

async fn start(
    images: Images,
    scope: Scope,
    mut messages: Streaming<pb::ImportRequest>,
) -> Result<AnswerStream<pb::Progress>, Status> {
    use pb::import_request::Step;
    let Some(Step::Options(options)) = messages.message().await?.and_then(|m| m.step) else {
        return Err(Status::invalid_argument("the first message must be the options"));
    };
    let request = ImportRequest {
        platforms: platforms(&options.platforms)?,
        all_platforms: options.all_platforms,
        no_unpack: options.no_unpack,
        snapshotter: options.snapshotter,
        base_name: options.base_name,
    };
    let data = |message: pb::ImportRequest| match message.step {
        Some(Step::Data(data)) => Some(data),
        _ => None,
    };
    Ok(progress::stream(move |events| async move {
        let mut reader = StreamReader::new(Box::pin(pieces(messages, data)));
        images.import(&scope, &mut reader, &request, &|event| events.push(event)).await
    }))
}

/// The bytes of an archive; `data` says which messages have some.
pub(super) fn pieces<T: Send + 'static>(
    messages: Streaming<T>,
    data: fn(T) -> Option<Bytes>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    messages.map(move |message| match message.map(data) {
        Ok(Some(data)) => Ok(data),
        Ok(None) => Err(io::Error::new(io::ErrorKind::InvalidInput, "options may only come first")),
        Err(status) => Err(io::Error::other(status)),
    })
}

/// Streams an archive as it is made.
pub(super) fn export(
    images: Images,
    scope: Scope,
    request: pb::ExportRequest,
) -> Result<AnswerStream<pb::ExportResponse>, Status> {
    let format = match request.format.as_str() {
        "" | "oci" => ArchiveFormat::Oci,
        "docker" => ArchiveFormat::Docker,
        other => return Err(Status::invalid_argument(format!("format {other:?}: expected oci or docker"))),
    };
    let request = ExportRequest {
        names: request.names,
        platforms: platforms(&request.platforms)?,
        all_platforms: request.all_platforms,
        format,
        ..ExportRequest::default()
    };
    let (mut writer, reader) = tokio::io::duplex(PIECE_BYTES);
    let work = async move {
        images.export(&scope, &request, &mut writer).await?;
        // A reader that is gone is told by the write that fails.
        let _ = writer.shutdown().await;
        Ok(())
    };
    let work = tokio::spawn(work.in_current_span());
    let export = Export { reader: ReaderStream::with_capacity(reader, PIECE_BYTES), work: Work(work) };
    Ok(Box::pin(futures::stream::unfold(Some(export), |export| async { export?.next().await })))
}

struct Export {
    reader: ReaderStream<DuplexStream>,
    work: Work,
}

/// Stops the work when the client is gone.
struct Work(JoinHandle<orlop_image::Result<()>>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Export {
    async fn next(mut self) -> Option<(Result<pb::ExportResponse, Status>, Option<Self>)> {
        match self.reader.next().await {
            Some(Ok(data)) => Some((Ok(pb::ExportResponse { data }), Some(self))),
            Some(Err(error)) => Some((Err(Status::internal(format!("export: {error}"))), None)),
            None => match (&mut self.work.0).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some((Err(error.to_status()), None)),
                Err(stopped) => Some((Err(Status::internal(format!("export: {stopped}"))), None)),
            },
        }
    }
}
