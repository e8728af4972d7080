//! Who is at the other end of a connection, as the kernel says (SO_PEERCRED).

use tokio::net::UnixStream;

/// The process that connected. It may have handed the connection on since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Counts up.
    pub(crate) connection: u64,
    /// 0 where the kernel does not tell.
    pub(crate) pid: i32,
    /// Its user.
    pub(crate) uid: u32,
    /// Its group.
    pub(crate) gid: u32,
    /// Its name, in printable ASCII; empty if it is not to be had.
    pub(crate) program: String,
}

impl Peer {
    /// Asks the kernel.
    pub(super) fn of(stream: &UnixStream, connection: u64) -> Self {
        let unknown = Self { connection, pid: 0, uid: u32::MAX, gid: u32::MAX, program: String::new() };
        let Ok(credentials) = stream.peer_cred() else { return unknown };
        let pid = credentials.pid().unwrap_or_default();
        Self { pid, uid: credentials.uid(), gid: credentials.gid(), program: program(pid), ..unknown }
    }

    /// What the history calls it if it does not say itself: `ctr (uid 0)`.
    pub(crate) fn actor(&self) -> String {
        let program = if self.program.is_empty() { "grpc" } else { &self.program };
        match self.uid {
            u32::MAX => program.to_owned(),
            uid => format!("{program} (uid {uid})"),
        }
    }
}

/// A process chooses its name freely: nothing of it may reach a log or a header but plain characters.
fn program(pid: i32) -> String {
    let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let plain = |byte: &u8| byte.is_ascii_graphic();
    name.trim_ascii_end().iter().map(|b| if plain(b) { char::from(*b) } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_is_known_by_the_kernels_word() {
        let (near, _far) = UnixStream::pair().unwrap();
        let peer = Peer::of(&near, 7);
        assert_eq!(peer.pid, std::process::id() as i32);
        assert_eq!(peer.uid, rustix::process::getuid().as_raw());
        assert!(peer.actor().ends_with(&format!("(uid {})", peer.uid)) && peer.actor().len() < 40, "{}", peer.actor());
        assert!(!peer.program.is_empty());
    }
}
