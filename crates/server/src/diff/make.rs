//! What differs between two trees becomes a layer in the content store.

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use orlop_api::containerd::services::diff::v1 as pb;
use orlop_content::{IngestManager, IngestOptions, Writer};
use orlop_metadata::{Labels, Scope, ScopedContent, ScopedWriter, Store};
use orlop_oci::{Compression, Descriptor, MediaKind, media_type};
use orlop_snapshot::diff::{Made, diff};
use orlop_snapshot::{Mount, TempMount};
use tokio::runtime::Handle;
use tonic::Status;

use crate::blocking::blocking;
use crate::convert::mounts_from_wire;
use crate::status::ToStatus;

/// Bytes that are gathered before they are handed to the content store.
const PIECE_BYTES: usize = 1 << 20;

/// The label that says a layer's diff ID.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// Makes the layer and commits it.
pub(super) async fn make(store: &Store, scope: &Scope, request: pb::DiffRequest) -> Result<Descriptor, Status> {
    let (media_type, compression) = layer_type(request.media_type)?;
    let (left, right) = (mounts_from_wire(request.left)?, mounts_from_wire(request.right)?);
    let reference = if request.r#ref.is_empty() { own_ref() } else { request.r#ref };
    let content = store.content(scope);
    let options = IngestOptions { reference: reference.clone(), ..IngestOptions::default() };
    let mut writer = content.scoped_writer(options).await.map_err(|e| e.to_status())?;
    writer.truncate(0).await.map_err(|e| e.to_status())?;
    let (root, handle) = (store.root().to_owned(), Handle::current());
    let compared = blocking(move || {
        let output = Output { handle, writer, pending: BytesMut::with_capacity(PIECE_BYTES) };
        compare(&root, &left, &right, output, compression)
    });
    match compared.await {
        Ok((made, writer)) => {
            commit(&content, writer, &made, request.labels).await?;
            Ok(Descriptor::new(media_type, made.digest, made.bytes))
        }
        Err(status) => {
            // Half a layer is of no use to anybody; what failed first is what is told.
            let _ = content.abort(&reference).await;
            Err(status)
        }
    }
}

fn layer_type(asked: String) -> Result<(String, Compression), Status> {
    let asked = if asked.is_empty() { media_type::OCI_LAYER_GZIP.to_owned() } else { asked };
    match MediaKind::of(&asked) {
        MediaKind::Layer { compression, foreign: false } => Ok((asked, compression)),
        _ => Err(Status::unimplemented(format!("media type {asked:?}: layers as tar, gzip and zstd can be made"))),
    }
}

/// A ref that no other call of this process has; another process' write of the same name is locked or begun again.
fn own_ref() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("diff-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn compare(
    root: &Path,
    left: &[Mount],
    right: &[Mount],
    mut output: Output,
    compression: Compression,
) -> Result<(Made, ScopedWriter), Status> {
    let lower = if left.is_empty() { None } else { Some(mount(left, root)?) };
    let upper = mount(right, root)?;
    let made = diff(lower.as_ref().map(TempMount::path), upper.path(), &mut output, compression);
    let made = made.map_err(|e| e.to_status())?;
    output.hand_over().map_err(|e| orlop_snapshot::Error::Source { source: e }.to_status())?;
    Ok((made, output.writer))
}

fn mount(mounts: &[Mount], parent: &Path) -> Result<TempMount, Status> {
    let mounts: Vec<Mount> = mounts.iter().map(read_only).collect();
    TempMount::new(&mounts, parent).map_err(|e| e.to_status())
}

/// The same tree without a way to change it. An overlay's upper directory may be mounted elsewhere, where a second
/// writable mount would corrupt it: it becomes the uppermost of the lower ones.
fn read_only(mount: &Mount) -> Mount {
    let mut mount = mount.clone();
    let upper = mount.options.iter().find_map(|o| o.strip_prefix("upperdir=")).map(str::to_owned);
    mount.options.retain(|o| !o.starts_with("upperdir=") && !o.starts_with("workdir=") && o != "rw");
    if let Some(upper) = upper {
        for option in &mut mount.options {
            if let Some(lower) = option.strip_prefix("lowerdir=") {
                *option = format!("lowerdir={upper}:{lower}");
            }
        }
    }
    if mount.kind == "bind" && !mount.options.iter().any(|o| o == "ro") {
        mount.options.push("ro".into());
    }
    mount
}

async fn commit(
    content: &ScopedContent,
    mut writer: ScopedWriter,
    made: &Made,
    mut labels: Labels,
) -> Result<(), Status> {
    labels.insert(UNCOMPRESSED.to_owned(), made.diff_id.digest().to_string());
    writer.set_labels(labels.clone()).map_err(|e| e.to_status())?;
    match writer.commit(made.bytes, Some(&made.digest)).await {
        Ok(_) => {}
        Err(orlop_content::Error::AlreadyExists(digest)) => {
            let content = content.clone();
            blocking(move || content.label_all(&[(digest, labels)])).await?;
        }
        Err(error) => return Err(error.to_status()),
    }
    Ok(())
}

/// Takes the layer's bytes on a thread that may block.
struct Output {
    handle: Handle,
    writer: ScopedWriter,
    pending: BytesMut,
}

impl Output {
    fn hand_over(&mut self) -> io::Result<()> {
        let piece: Bytes = self.pending.split().freeze();
        if piece.is_empty() {
            return Ok(());
        }
        self.handle.block_on(self.writer.write(piece)).map_err(io::Error::other)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= PIECE_BYTES {
            self.hand_over()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hand_over()
    }
}
