//! A registry that serves what it is told, true or not: wrong bytes, short bodies, documents that no registry would take.
//! Asked as an HTTP proxy it answers for every host itself, and opens tunnels to one place.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use orlop_oci::Digest;

use crate::image::{Content, is_document};

/// What is served at one path.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The media type it says.
    pub media_type: String,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The connection is closed after so many bytes of the body, each time.
    pub cut: Option<usize>,
}

impl Answer {
    /// Bytes of a type.
    pub fn new(media_type: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { media_type: media_type.into(), bytes: bytes.into(), cut: None }
    }
}

/// What the threads share.
#[derive(Debug, Default)]
struct State {
    answers: BTreeMap<String, Answer>,
    /// What was asked for as of a proxy: `http://HOST` or `CONNECT HOST:PORT`.
    proxied: Vec<String>,
    /// `traceparent` of each request that has one.
    traces: Vec<String>,
    tunnel: Option<SocketAddr>,
    stopping: bool,
}

type Shared = Arc<Mutex<State>>;

fn lock(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running registry; it ends when it is dropped.
pub struct Liar {
    address: SocketAddr,
    state: Shared,
    acceptor: Option<JoinHandle<()>>,
}

impl Liar {
    /// Starts one on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// If no port is free.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let state = Shared::default();
        let shared = state.clone();
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if lock(&shared).stopping {
                    return;
                }
                let shared = shared.clone();
                // A client that hangs up is no failure.
                std::thread::spawn(move || drop(serve(stream, &shared)));
            }
        });
        Self { address, state, acceptor: Some(acceptor) }
    }

    /// `127.0.0.1:PORT`: the host part of references.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Serves an image truthfully, as `HOST/repository:tag`, which is returned.
    pub fn put(&self, repository: &str, tag: &str, content: &Content) -> String {
        for (digest, blob) in &content.blobs {
            let answer = Answer::new(&*blob.media_type, &*blob.bytes);
            if is_document(&blob.media_type) {
                self.manifest(repository, digest.as_str(), answer);
            } else {
                self.blob(repository, digest, answer);
            }
        }
        let root = &content.blobs[&content.root.digest];
        self.manifest(repository, tag, Answer::new(&*root.media_type, &*root.bytes));
        format!("{}/{repository}:{tag}", self.address)
    }

    /// Serves this as the manifest that a tag or digest names.
    pub fn manifest(&self, repository: &str, reference: &str, answer: Answer) {
        self.insert(format!("/v2/{repository}/manifests/{reference}"), answer);
    }

    /// Serves this as the blob of a digest.
    pub fn blob(&self, repository: &str, digest: &Digest, answer: Answer) {
        self.insert(format!("/v2/{repository}/blobs/{digest}"), answer);
    }

    /// Serves a blob no more.
    pub fn forget(&self, repository: &str, digest: &Digest) {
        let path = format!("/v2/{repository}/blobs/{digest}");
        lock(&self.state).answers.remove(&path);
    }

    /// Connects those who ask for a tunnel, wherever to, with this place.
    pub fn tunnel_to(&self, place: SocketAddr) {
        lock(&self.state).tunnel = Some(place);
    }

    /// What it was asked for as a proxy: `http://HOST`, or `CONNECT HOST:PORT`.
    pub fn proxied(&self) -> Vec<String> {
        lock(&self.state).proxied.clone()
    }

    /// The `traceparent` of each request that had one.
    pub fn traces(&self) -> Vec<String> {
        lock(&self.state).traces.clone()
    }

    /// Serves this at any path; returns the URL.
    pub fn anywhere(&self, path: &str, answer: Answer) -> String {
        self.insert(path.to_owned(), answer);
        format!("http://{}{path}", self.address)
    }

    fn insert(&self, path: String, answer: Answer) {
        lock(&self.state).answers.insert(path, answer);
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        lock(&self.state).stopping = true;
        // Wakes the acceptor; if that fails it has ended already.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// Answers one request, and closes.
fn serve(stream: TcpStream, state: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(&stream);
    let (mut request, mut start) = (String::new(), 0);
    reader.read_line(&mut request)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            start = range.split('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        }
        if let Some(trace) = line.strip_prefix("traceparent: ") {
            lock(state).traces.push(trace.trim().to_owned());
        }
    }
    let mut words = request.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut out = &stream;
    if method == "CONNECT" {
        lock(state).proxied.push(format!("CONNECT {target}"));
        let Some(place) = lock(state).tunnel else { return Ok(()) };
        let far = TcpStream::connect(place)?;
        write!(out, "HTTP/1.1 200 OK\r\n\r\n")?;
        return tunnel(&stream, &far);
    }
    let mut path = target.split('?').next().unwrap_or_default();
    if let Some(rest) = target.strip_prefix("http://") {
        let host = rest.split('/').next().unwrap_or_default();
        lock(state).proxied.push(format!("http://{host}"));
        path = &path["http://".len() + host.len()..];
    }
    let answer = lock(state).answers.get(path).cloned();
    let Some(answer) = answer else {
        return write!(out, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    };
    let all = answer.bytes.len();
    let body = &answer.bytes[start.min(all)..];
    match start {
        0 => write!(out, "HTTP/1.1 200 OK\r\n")?,
        _ => write!(out, "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {start}-{}/{all}\r\n", all.max(1) - 1)?,
    }
    write!(out, "content-length: {}\r\ncontent-type: {}\r\n", body.len(), answer.media_type)?;
    write!(out, "docker-content-digest: {}\r\nconnection: close\r\n\r\n", Digest::of(&answer.bytes))?;
    if method == "HEAD" {
        return Ok(());
    }
    out.write_all(&body[..answer.cut.unwrap_or(body.len()).min(body.len())])
}

/// Passes bytes both ways until both sides have ended.
fn tunnel(near: &TcpStream, far: &TcpStream) -> io::Result<()> {
    let pass = |mut from: &TcpStream, mut to: &TcpStream| {
        // Either side may hang up at any time.
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    near.set_read_timeout(None)?;
    std::thread::scope(|scope| {
        scope.spawn(|| pass(near, far));
        pass(far, near);
    });
    Ok(())
}
