//! The Orlop that is to lie beneath a containerd: what answers at its raw socket, and what it has for that containerd.

use std::path::{Path, PathBuf};

use orlop_api::containerd::services::content::v1::InfoRequest;
use orlop_api::containerd::services::namespaces::v1::ListNamespacesRequest;
use orlop_lens::offline::places;
use orlop_oci::{Algorithm, Digest};
use orlop_server::Owner;
use tonic::Code;

use crate::client::Clients;
use crate::error::{Class, CliError, Result};
use crate::find::places::{KUBERNETES, Place, Product, at_host};
use crate::find::probe::{self, Server, State};

/// Orlop's daemon, by a raw socket.
#[derive(Debug, Clone)]
pub(super) struct Daemon {
    clients: Clients,
    /// Of its store, if it says so.
    pub(super) root: Option<PathBuf>,
}

impl Daemon {
    /// Asks who serves a socket.
    ///
    /// # Errors
    /// [`Class::Unavailable`] if nobody does, [`Class::Conflict`] if that is not Orlop, not of this version, or no raw socket.
    pub(super) async fn find(raw: &Path, owner: &Owner, host: Option<&Path>) -> Result<Self> {
        let place = Place { product: Product::Orlop, socket: at_host(host, raw), root: None };
        let start = format!(
            "start it: systemctl start orlop (packaging/systemd), or orlop serve with serve.raw_sockets.{owner} = {:?}",
            raw.display().to_string()
        );
        let conflict = |expected: String, found: String, hint: &str| {
            let message = format!("{}: expected {expected}, found {found}", raw.display());
            Err(CliError::new(Class::Conflict, message).hint(hint))
        };
        let wrong = |found: String| {
            let hint = "it is serve.raw_sockets.OWNER in the configuration of orlop serve, or its --raw-socket";
            conflict("a raw socket of Orlop's".to_owned(), found, hint)
        };
        match probe::look(place, None).await.state {
            State::Running(server) if server.is_orlop() => {
                let clients = Clients::new(server.channel, KUBERNETES, "orlop install")?;
                match clients.namespaces().list(ListNamespacesRequest::default()).await {
                    Err(status) if status.code() == Code::Unimplemented => Ok(Self { clients, root: server.root }),
                    _ => wrong("the socket for commands and clients".to_owned()),
                }
            }
            State::Running(Server { version: Some(version), .. }) => wrong(format!("a server of version {version}")),
            State::Running(_) => conflict(
                format!("orlop serve {} or later", env!("CARGO_PKG_VERSION")),
                "a server that does not say its version".to_owned(),
                "an older orlop serves there: start it again with this version's program",
            ),
            State::NotPermitted(why) => Err(CliError::new(Class::NotPermitted, why).hint("run it as root (sudo)")),
            State::NoAnswer(why) => {
                Err(CliError::new(Class::Unavailable, format!("Orlop does not answer: {why}")).hint(start))
            }
            State::Files | State::Absent => {
                Err(CliError::new(Class::Unavailable, format!("Orlop does not serve {}", raw.display())).hint(start))
            }
        }
    }

    /// Whether its owner has a blob.
    async fn has(&self, digest: &Digest) -> Result<bool> {
        match self.clients.content().info(InfoRequest { digest: digest.to_string() }).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(status.into()),
        }
    }
}

/// Refuses to take the place of a containerd's own content store if it has blobs that Orlop does not have for it: it would lose sight
/// of them. `orlop adopt --owner` gives it all.
///
/// # Errors
/// [`Class::Conflict`] with how many there are. Where Orlop does not answer that is all of them.
pub(super) async fn refuse_content(name: &str, root: &Path, owner: &Owner, daemon: Option<&Daemon>) -> Result<()> {
    let blobs = places::blobs(root);
    let mut lacking = 0;
    for digest in digests(&blobs)? {
        let has = match daemon {
            Some(daemon) => daemon.has(&digest).await?,
            None => false,
        };
        lacking += u64::from(!has);
    }
    if lacking == 0 {
        return Ok(());
    }
    let count = crate::output::count(lacking, "blob");
    let message = format!("{name} has blobs of its own in {}, of which it would lose sight: {count}", blobs.display());
    Err(CliError::new(Class::Conflict, message).hint(format!(
        "adopt them first: orlop adopt --owner {owner} {}; or install without --content-store",
        root.display()
    )))
}

/// The digests of all blobs below a directory; none if it is not there. What has no digest's name containerd does not list either.
fn digests(blobs: &Path) -> Result<Vec<Digest>> {
    let names = |directory: &Path| match std::fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<Vec<String>>>()
            .map_err(CliError::at("list", directory)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(CliError::io("list", Some(directory), error)),
    };
    let mut found = Vec::new();
    for algorithm in names(blobs)?.iter().filter_map(|name| Algorithm::from_name(name)) {
        let hexes = names(&blobs.join(algorithm.as_str()))?;
        found.extend(hexes.iter().filter_map(|hex| format!("{}:{hex}", algorithm.as_str()).parse().ok()));
    }
    Ok(found)
}
