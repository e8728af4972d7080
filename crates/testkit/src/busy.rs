//! Stands before an HTTP server and, while it is told to, answers requests with 503 instead of passing them on; each so many of
//! those it passes on lose their answer, so that the client does not know what became of them.
//!
//! Works on HTTP/1.1 request heads and knows bodies by `Content-Length` and `chunked` alone, which is what S3 clients send.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// What `503 Slow Down` looks like in S3's protocol.
const BUSY: &[u8] =
    b"HTTP/1.1 503 Slow Down\r\ncontent-type: application/xml\r\ncontent-length: 59\r\nconnection: close\r\n\r\n\
    <Error><Code>SlowDown</Code><Message>busy</Message></Error>";

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    busy: AtomicBool,
    /// One of so many requests loses its answer; 0: none.
    lose: AtomicU64,
    requests: AtomicU64,
    refused: AtomicU64,
    lost: AtomicU64,
}

/// The proxy; it ends when it is dropped.
pub struct Busy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Busy {
    /// Stands before the server at `target`.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn before(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let state = shared.clone();
        let acceptor = std::thread::spawn(move || accept(&listener, target, &state));
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on requests are refused, or no more.
    pub fn set_busy(&self, busy: bool) {
        self.shared.busy.store(busy, Ordering::SeqCst);
    }

    /// From now on one of so many requests that are passed on loses its answer; 0: none.
    pub fn lose_one_of(&self, many: u64) {
        self.shared.lose.store(many, Ordering::SeqCst);
    }

    /// Requests that were refused, and those whose answer was lost.
    pub fn counts(&self) -> (u64, u64) {
        (self.shared.refused.load(Ordering::SeqCst), self.shared.lost.load(Ordering::SeqCst))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor; if that fails it has ended already.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        let shared = shared.clone();
        // Each ends with its client's connection.
        std::thread::spawn(move || serve(client, target, &shared));
    }
}

/// One request after the other.
fn serve(client: TcpStream, target: SocketAddr, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    let server = TcpStream::connect(target)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut from_server) = (BufReader::new(client.try_clone()?), BufReader::new(server.try_clone()?));
    let (mut to_client, mut to_server) = (client, server);
    while let Some(head) = head(&mut from_client)? {
        let number = shared.requests.fetch_add(1, Ordering::SeqCst) + 1;
        if shared.busy.load(Ordering::SeqCst) {
            shared.refused.fetch_add(1, Ordering::SeqCst);
            to_client.write_all(BUSY)?;
            // Reads what was sent, so that the answer is not lost with the connection.
            let _ = body(&head, false, &mut from_client, &mut io::sink());
            return to_client.shutdown(Shutdown::Both);
        }
        to_server.write_all(head.as_bytes())?;
        if value(&head, "expect").is_some() {
            to_client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        body(&head, false, &mut from_client, &mut to_server)?;
        let answer = loop {
            let answer = self::head(&mut from_server)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if !answer.starts_with("HTTP/1.1 100") {
                break answer;
            }
        };
        let lose = shared.lose.load(Ordering::SeqCst);
        if lose != 0 && number.is_multiple_of(lose) {
            shared.lost.fetch_add(1, Ordering::SeqCst);
            return to_client.shutdown(Shutdown::Both);
        }
        to_client.write_all(answer.as_bytes())?;
        let is_empty =
            head.starts_with("HEAD ") || answer.starts_with("HTTP/1.1 204") || answer.starts_with("HTTP/1.1 304");
        if !is_empty {
            body(&answer, true, &mut from_server, &mut to_client)?;
        }
    }
    to_server.shutdown(Shutdown::Both)
}

/// Lines up to the empty one; `None` at the end of the connection.
fn head(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut head = String::new();
    loop {
        let start = head.len();
        if from.read_line(&mut head)? == 0 {
            return if start == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        if head[start..].trim_end().is_empty() && start > 0 {
            return Ok(Some(head));
        }
    }
}

fn value<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, v)| v.trim())
}

/// Passes a body on. An answer that does not say how long it is ends with its connection.
fn body(head: &str, is_answer: bool, from: &mut impl BufRead, to: &mut impl Write) -> io::Result<()> {
    if value(head, "transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        return chunks(from, to);
    }
    match value(head, "content-length").and_then(|length| length.parse::<u64>().ok()) {
        Some(length) => {
            let copied = io::copy(&mut from.take(length), to)?;
            if copied == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        }
        None if is_answer => io::copy(from, to).map(drop),
        None => Ok(()),
    }
}

fn chunks(from: &mut impl BufRead, to: &mut impl Write) -> io::Result<()> {
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        to.write_all(line.as_bytes())?;
        let size = u64::from_str_radix(line.trim().split(';').next().unwrap_or_default(), 16);
        let size = size.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        // The bytes and the end of their line; after the last chunk, the empty line alone.
        io::copy(&mut from.take(size + 2), to)?;
        if size == 0 {
            return Ok(());
        }
    }
}
