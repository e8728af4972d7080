//! A TCP proxy that breaks connections when it is told to, and counts what passes.
//!
//! What happens to a connection is decided when it is accepted: the next fault of the queue, else the default. So a
//! test knows which connection breaks and after how many bytes.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What happens to a connection. Bytes are those from the server to the client, headers included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Closed, in both directions, after so many bytes.
    CutAfter(u64),
    /// After so many bytes nothing comes any more, until [`Proxy::release`].
    StallAfter(u64),
    /// The byte at this offset is another one.
    CorruptAt(u64),
    /// Closed as soon as it is accepted.
    Refuse,
}

/// What has passed so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections accepted.
    pub connections: u64,
    /// Connections that had a fault which took effect.
    pub faults: u64,
    /// Bytes from clients to the server.
    pub up: u64,
    /// Bytes from the server to clients.
    pub down: u64,
}

#[derive(Default)]
struct Plan {
    next: VecDeque<Fault>,
    default: Fault,
    open: Vec<TcpStream>,
    released: bool,
}

#[derive(Default)]
struct Shared {
    plan: Mutex<Plan>,
    changed: Condvar,
    stopping: AtomicBool,
    connections: AtomicU64,
    faults: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    /// Bytes a second to all clients together; 0: no limit.
    rate: AtomicU64,
    /// When the bytes that have passed under the limit are paid for.
    paid: Mutex<Option<Instant>>,
}

/// A running proxy; it and its connections end when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts one in front of `target`, on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// If no port is free.
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared::default());
        let state = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || accept(&listener, target, &state));
        Self { address, shared, acceptor: Some(acceptor) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `127.0.0.1:PORT`: the host part of references.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The connections to come get these faults, one each, in order.
    pub fn next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.plan().next.extend(faults);
    }

    /// Connections that [`Proxy::next`] says nothing of get this fault.
    pub fn set_default(&self, fault: Fault) {
        self.shared.plan().default = fault;
    }

    /// Lets stalled connections, and those to come, go on.
    pub fn release(&self) {
        self.shared.plan().released = true;
        self.shared.changed.notify_all();
    }

    /// No more than so many bytes a second go to all clients together; 0: no limit.
    pub fn limit(&self, rate: u64) {
        self.shared.rate.store(rate, Ordering::SeqCst);
    }

    /// Closes every connection that is open now.
    pub fn cut_all(&self) {
        self.shared.cut_all();
    }

    /// What has passed so far.
    pub fn counts(&self) -> Counts {
        let get = |n: &AtomicU64| n.load(Ordering::SeqCst);
        let s = &self.shared;
        Counts { connections: get(&s.connections), faults: get(&s.faults), up: get(&s.up), down: get(&s.down) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.release();
        // Wakes the acceptor; if that fails it has ended already.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.cut_all();
    }
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut_all(&self) {
        for stream in self.plan().open.drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Waits until so many bytes may go to clients.
    fn pace(&self, bytes: usize) {
        let rate = self.rate.load(Ordering::SeqCst);
        if rate == 0 {
            return;
        }
        let until = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            let from = paid.unwrap_or_else(Instant::now).max(Instant::now());
            *paid.insert(from + Duration::from_secs_f64(bytes as f64 / rate as f64))
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }

    fn stall(&self) {
        let mut plan = self.plan();
        while !plan.released {
            plan = self.changed.wait(plan).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let fault = {
            let mut plan = shared.plan();
            plan.next.pop_front().unwrap_or(plan.default)
        };
        if fault == Fault::Refuse {
            shared.faults.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let Ok(server) = TcpStream::connect(target) else { continue };
        // A connection that breaks while it is set up is just a broken connection.
        let _ = connect(client, server, fault, shared);
    }
}

fn connect(client: TcpStream, server: TcpStream, fault: Fault, shared: &Arc<Shared>) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    shared.plan().open.extend([client.try_clone()?, server.try_clone()?]);
    let (up, down) = ((client.try_clone()?, server.try_clone()?), (server, client));
    let state = Arc::clone(shared);
    std::thread::spawn(move || pump(up.0, up.1, &state, &state.up, Fault::None));
    let state = Arc::clone(shared);
    std::thread::spawn(move || pump(down.0, down.1, &state, &state.down, fault));
    Ok(())
}

/// Copies until one side ends; then the other is told.
fn pump(mut from: TcpStream, mut to: TcpStream, shared: &Shared, count: &AtomicU64, fault: Fault) {
    let mut buffer = vec![0; 1 << 16];
    let mut passed = 0u64;
    let mut pending = fault;
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut bytes = &mut buffer[..length];
        if let Fault::CutAfter(limit) | Fault::StallAfter(limit) = pending {
            let left = usize::try_from(limit - passed).unwrap_or(usize::MAX);
            if left < bytes.len() {
                let (head, tail) = bytes.split_at_mut(left);
                shared.faults.fetch_add(1, Ordering::SeqCst);
                let sent = to.write_all(head);
                count.fetch_add(left as u64, Ordering::SeqCst);
                passed += left as u64;
                if sent.is_err() || matches!(pending, Fault::CutAfter(_)) {
                    break;
                }
                pending = Fault::None;
                shared.stall();
                bytes = tail;
            }
        }
        if let Fault::CorruptAt(at) = pending
            && (passed..passed + bytes.len() as u64).contains(&at)
        {
            bytes[(at - passed) as usize] ^= 0xff;
            shared.faults.fetch_add(1, Ordering::SeqCst);
            pending = Fault::None;
        }
        if std::ptr::eq(count, &raw const shared.down) {
            shared.pace(bytes.len());
        }
        if to.write_all(bytes).is_err() {
            break;
        }
        passed += bytes.len() as u64;
        count.fetch_add(bytes.len() as u64, Ordering::SeqCst);
    }
    let cut = matches!(fault, Fault::CutAfter(_));
    // Each may be closed already. A cut closes both directions; an ordinary end only the one.
    let _ = to.shutdown(if cut { Shutdown::Both } else { Shutdown::Write });
    if cut {
        let _ = from.shutdown(Shutdown::Both);
    }
}
