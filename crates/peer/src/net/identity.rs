//! The key that makes a node the same peer after a restart.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use libp2p_identity::Keypair;

use crate::StartError;

/// Longer files are no keys.
const MAX_BYTES: u64 = 4096;

/// Reads the key at `path`, or makes one there that only the owner may read.
///
/// # Errors
/// If the file is something else, or others may read it: whoever has the key can take the node's place.
pub(crate) fn identity(path: &Path) -> Result<Keypair, StartError> {
    match read(path) {
        Ok(Some(bytes)) => Keypair::from_protobuf_encoding(&bytes).map_err(|_| StartError::Identity {
            path: path.to_owned(),
            reason: "it is no key: remove it, and a new one is made".into(),
        }),
        Ok(None) => make(path).map_err(|source| StartError::Io { what: format!("make {}", path.display()), source }),
        Err(reason) => Err(StartError::Identity { path: path.to_owned(), reason }),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mode = file.metadata().map_err(|e| e.to_string())?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!("its mode is {mode:04o}: expected 0600, so that nobody else can take this node's place"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    Ok(Some(bytes))
}

/// Durable before it is used: data, fsync, rename, fsync of the directory.
fn make(path: &Path) -> io::Result<Keypair> {
    let key = Keypair::generate_ed25519();
    let bytes = key.to_protobuf_encoding().map_err(io::Error::other)?;
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_key_lasts_and_is_the_owner_s_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peer.key");
        let first = identity(&path).unwrap().public().to_peer_id();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(identity(&path).unwrap().public().to_peer_id(), first);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(identity(&path).unwrap_err().to_string().contains("0640"));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&path, "something else").unwrap();
        assert!(identity(&path).unwrap_err().to_string().contains("it is no key"));
    }
}
