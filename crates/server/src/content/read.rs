//! Reading: a range of a blob as a stream of pieces.

use std::sync::Arc;

use orlop_api::containerd::services::content::v1 as pb;
use orlop_content::{BlobReader, Provider};
use orlop_metadata::ScopedContent;
use tonic::Status;

use crate::AnswerStream;
use crate::convert::{digest, signed};
use crate::daemon::flow::piece_bytes;
use crate::status::ToStatus;

struct Position {
    reader: Arc<dyn BlobReader>,
    /// Where the answer starts in the blob: offsets in the answer count from here.
    start: u64,
    next: u64,
    end: u64,
}

/// A piece is read when the one before has been taken.
pub(super) async fn stream(
    content: &ScopedContent,
    request: &pb::ReadContentRequest,
) -> Result<AnswerStream<pb::ReadContentResponse>, Status> {
    let digest = digest(&request.digest)?;
    let reader = content.open(&digest).await.map_err(|e| e.to_status())?;
    let size = reader.size();
    // What is negative means nothing: from the start, to the end.
    let start = u64::try_from(request.offset).unwrap_or(0);
    if start > size {
        return Err(Status::out_of_range(format!("blob {digest} has {size} bytes: offset {start} is behind its end")));
    }
    let end = match u64::try_from(request.size) {
        Ok(length @ 1..) => start.saturating_add(length).min(size),
        _ => size,
    };
    let position = Position { reader, start, next: start, end };
    Ok(Box::pin(futures::stream::try_unfold(position, piece)))
}

async fn piece(mut at: Position) -> Result<Option<(pb::ReadContentResponse, Position)>, Status> {
    if at.next >= at.end {
        return Ok(None);
    }
    let length = (at.end - at.next).min(piece_bytes() as u64) as usize;
    let data = at.reader.read_at(at.next, length).await.map_err(|e| e.to_status())?;
    if data.is_empty() {
        return Err(Status::data_loss(format!("the blob ended at {} instead of {}", at.next, at.end)));
    }
    let offset = signed(at.next - at.start);
    at.next += data.len() as u64;
    Ok(Some((pb::ReadContentResponse { offset, data }, at)))
}
