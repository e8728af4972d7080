//! The channel to a store: a daemon's socket, or the same services in this process.

use std::path::Path;
use std::sync::Arc;

use orlop_content::LocalStore;
use orlop_image::Images;
use orlop_metadata::{OpenOptions, Store};
use orlop_server::Server;
use orlop_snapshot::{Driver, NativeDriver, OverlayDriver};
use tonic::transport::Channel;

use crate::error::{Class, CliError, Result};
use crate::settings::Settings;

/// Connects to where the settings point.
pub(crate) async fn connect(settings: &Settings) -> Result<Channel> {
    match &settings.address {
        Some(socket) => orlop_api::channel::unix(socket).await.map_err(|source| {
            CliError::new(Class::Unavailable, format!("no server answers on {}: {source}", socket.display()))
                .hint("is the daemon running? Without --address the store at --root is used")
        }),
        None => open(&settings.root).await,
    }
}

/// Opens the store at `root` and serves it in this process.
pub(crate) async fn open(root: &Path) -> Result<Channel> {
    Ok(Server::new(images(root).await?).in_process())
}

/// Opens the store at `root`.
pub(crate) async fn images(root: &Path) -> Result<Images> {
    let root = root.to_owned();
    let store = tokio::task::spawn_blocking(move || open_store(&root))
        .await
        .map_err(|e| CliError::new(Class::Failed, format!("open the store: {e}")))??;
    Ok(Images::new(store, orlop_image::Settings::default()))
}

fn open_store(root: &Path) -> Result<Store> {
    let content = LocalStore::open(root.join("content")).map_err(|e| classify(root, &e))?;
    let snapshots = root.join("snapshots");
    let drivers: Vec<Arc<dyn Driver>> = vec![
        Arc::new(OverlayDriver::open(snapshots.join("overlayfs")).map_err(|e| classify(root, &e))?),
        Arc::new(NativeDriver::open(snapshots.join("native")).map_err(|e| classify(root, &e))?),
    ];
    let options = OpenOptions { content: Arc::new(content), drivers, read_only: false };
    Store::open(root, options).map_err(|e| classify(root, &e))
}

/// The class follows the system error beneath, wherever it is.
fn classify(root: &Path, error: &(dyn std::error::Error + 'static)) -> CliError {
    let mut class = Class::Failed;
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            class = crate::error::class_of_io(io);
        }
        cause = e.source();
    }
    let failed = CliError::new(class, format!("open the store at {}: {error}", root.display()));
    match class {
        Class::NotPermitted => failed.hint("run as root, or give --root DIR that you may write"),
        _ => failed,
    }
}
