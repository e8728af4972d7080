//! `orlop import`.

use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncReadExt};

use super::Context;
use super::pull::{Done, follow};
use crate::client::pb;
use crate::error::{Class, CliError, Result};
use pb::import_request::Step;

/// Bytes a message; well under the 16 MiB bound.
const CHUNK_BYTES: usize = 1 << 20;
/// Messages in flight.
pub(super) const CHUNKS_AHEAD: usize = 4;

/// Options of `import`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Reads an OCI layout or a docker-archive in a tar (plain, gzip or zstd), or an OCI layout directory.
An archive that lacks something is refused before anything becomes visible.

Examples:
  orlop import images.tar
  docker save app:1.0 | orlop import -")]
pub(crate) struct Args {
    /// The archive; - or nothing is standard input
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// Only this platform; may be given several times [default: all that are in the archive]
    #[arg(long, value_name = "P")]
    platform: Vec<String>,
    /// Refuse an archive that lacks a platform its index names
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
    /// Keep the content, but make no snapshots
    #[arg(long)]
    no_unpack: bool,
    /// overlayfs, erofs or native
    #[arg(long, value_name = "S")]
    snapshotter: Option<String>,
    /// Repository for images that the archive names by a tag alone
    #[arg(long, value_name = "NAME")]
    base_name: Option<String>,
}

/// Runs `import`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    let options = pb::ImportOptions {
        platforms: args.platform.clone(),
        all_platforms: args.all_platforms,
        no_unpack: args.no_unpack,
        snapshotter: args
            .snapshotter
            .clone()
            .or_else(|| context.settings.config.snapshotter.clone())
            .unwrap_or_default(),
        base_name: args.base_name.clone().unwrap_or_default(),
    };
    let (send, receive) = tokio::sync::mpsc::channel(CHUNKS_AHEAD);
    let archive = (open(&args.file).await?, args.file.clone());
    let message = |step| pb::ImportRequest { step: Some(step) };
    let reader = tokio::spawn(feed(
        message(Step::Options(options)),
        Some(archive),
        move |data: Vec<u8>| message(Step::Data(data.into())),
        send,
    ));
    let requests = tokio_stream::wrappers::ReceiverStream::new(receive);
    let result = async {
        let stream = context.clients.orlop().import(requests).await?.into_inner();
        follow(context, stream).await
    }
    .await;
    let done = match result {
        Ok(done) => done,
        // A broken input explains the refusal better than the refusal itself.
        Err(refused) => return Err(read_error(reader).await.unwrap_or(refused)),
    };
    Done::new("orlop.import/v1", done).print(context, "imported")
}

/// Why the archive could not be read, if that is what ended it.
pub(super) async fn read_error(reader: tokio::task::JoinHandle<Result<()>>) -> Option<CliError> {
    if !reader.is_finished() {
        reader.abort();
    }
    reader.await.ok().and_then(Result::err)
}

/// Opens a tar, standard input, or a layout directory.
pub(super) async fn open(file: &Path) -> Result<Box<dyn AsyncRead + Send + Unpin>> {
    if file.as_os_str() == "-" {
        return Ok(Box::new(tokio::io::stdin()));
    }
    if file.is_dir() {
        return Ok(Box::new(directory(file)?));
    }
    Ok(Box::new(tokio::fs::File::open(file).await.map_err(CliError::at("open", file))?))
}

/// A layout directory travels as the tar it would be.
fn directory(path: &Path) -> Result<impl AsyncRead + Send + Unpin + use<>> {
    if !path.join("oci-layout").exists() {
        return Err(CliError::new(
            Class::Usage,
            format!("{} is not an OCI layout: expected a file oci-layout in it", path.display()),
        ));
    }
    let (near, far) = tokio::io::duplex(CHUNK_BYTES);
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut writer = tokio_util::io::SyncIoBridge::new(near);
        // The other end sees a cut archive and refuses it by name; nothing else can be said from here.
        if let Err(error) = orlop_snapshot::diff::diff(None, &path, &mut writer, orlop_oci::Compression::None) {
            tracing::warn!(%error, "reading the layout stopped");
        }
    });
    Ok(far)
}

/// Sends the options, and then an archive if there is one.
pub(super) async fn feed<T>(
    options: T,
    archive: Option<(Box<dyn AsyncRead + Send + Unpin>, PathBuf)>,
    data: impl Fn(Vec<u8>) -> T,
    send: tokio::sync::mpsc::Sender<T>,
) -> Result<()> {
    // A closed channel means that the server answered; the caller hears what.
    if send.send(options).await.is_err() {
        return Ok(());
    }
    let Some((mut source, path)) = archive else { return Ok(()) };
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let limit = CHUNK_BYTES as u64;
        let n = (&mut source).take(limit).read_to_end(&mut chunk).await.map_err(CliError::at("read", &path))?;
        if n == 0 || send.send(data(chunk)).await.is_err() {
            return Ok(());
        }
    }
}
