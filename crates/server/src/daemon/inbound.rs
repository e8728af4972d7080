//! The body of a request: bounds what clients may begin and not finish.
//!
//! A message is decoded when all of it is there. A client may begin one of 16 MiB on each of thousands of streams and
//! stall; so what has come of unfinished messages is counted over all connections.
//!
//! # Invariants
//! - What is held of unfinished messages stays below [`UNFINISHED_BYTES`], and a frame for each stream.
//! - A message that says it is too large is refused before any of it is kept.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use orlop_api::MAX_MESSAGE_BYTES;
use prometheus_client::metrics::gauge::Gauge;
use tonic::Status;

/// What all clients together may have begun: 32 messages of the largest size.
const UNFINISHED_BYTES: i64 = 512 << 20;

/// Flag and length before each message.
const PREFIX: usize = 5;

/// A request as it comes in.
pub(super) struct Inbound {
    body: Incoming,
    framing: Framing,
    held: Held,
}

impl Inbound {
    /// Counts into `all`, which all requests share.
    pub(super) fn new(body: Incoming, all: Gauge) -> Self {
        Self { body, framing: Framing::default(), held: Held { all, bytes: 0 } }
    }
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(Status::from_error(Box::new(error))))),
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        if let Some(bytes) = frame.data_ref() {
            let counted = self.framing.take(bytes).and_then(|unfinished| self.held.hold(unfinished));
            if let Err(status) = counted {
                self.held.release();
                return Poll::Ready(Some(Err(status)));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Where in the sequence of messages a stream is.
#[derive(Debug, Default)]
struct Framing {
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that are there.
    have: usize,
    /// Bytes of the message that are there and that it has; none before the prefix is complete.
    message: (usize, usize),
}

impl Framing {
    /// Goes on by some bytes; returns how much of a message is there that is not complete.
    fn take(&mut self, mut bytes: &[u8]) -> Result<usize, Status> {
        while !bytes.is_empty() {
            if self.have < PREFIX {
                let n = bytes.len().min(PREFIX - self.have);
                self.prefix[self.have..self.have + n].copy_from_slice(&bytes[..n]);
                self.have += n;
                bytes = &bytes[n..];
                if self.have == PREFIX {
                    self.message = (0, length(&self.prefix)?);
                }
            } else {
                let n = bytes.len().min(self.message.1 - self.message.0);
                self.message.0 += n;
                bytes = &bytes[n..];
            }
            if self.have == PREFIX && self.message.0 == self.message.1 {
                *self = Self::default();
            }
        }
        Ok(self.message.0)
    }
}

fn length(prefix: &[u8; PREFIX]) -> Result<usize, Status> {
    let [_, length @ ..] = *prefix;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_MESSAGE_BYTES {
        return Err(Status::resource_exhausted(format!(
            "a message of {length} bytes: at most {MAX_MESSAGE_BYTES} are taken"
        )));
    }
    Ok(length)
}

/// What one request holds, given back when it ends.
struct Held {
    all: Gauge,
    bytes: i64,
}

impl Held {
    fn hold(&mut self, unfinished: usize) -> Result<(), Status> {
        let unfinished = i64::try_from(unfinished).unwrap_or(i64::MAX);
        let all = self.all.inc_by(unfinished - self.bytes) + unfinished - self.bytes;
        let more = unfinished > self.bytes;
        self.bytes = unfinished;
        if more && all > UNFINISHED_BYTES {
            return Err(Status::resource_exhausted("too many large messages have begun at once: try again"));
        }
        Ok(())
    }

    fn release(&mut self) {
        self.all.dec_by(self.bytes);
        self.bytes = 0;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn however_it_is_cut_only_the_last_message_is_unfinished(
            messages in prop::collection::vec(0..600_usize, 1..6),
            missing in 0..700_usize,
            cuts in prop::collection::vec(1..300_usize, 1..50),
        ) {
            let mut stream = Vec::new();
            for length in &messages {
                stream.push(0);
                stream.extend_from_slice(&u32::try_from(*length).unwrap().to_be_bytes());
                stream.extend(std::iter::repeat_n(7, *length));
            }
            let last = messages[messages.len() - 1];
            let missing = missing.min(last);
            stream.truncate(stream.len() - missing);
            let mut framing = Framing::default();
            let (mut rest, mut unfinished, mut cuts) = (&stream[..], 0, cuts.into_iter().cycle());
            while !rest.is_empty() {
                let n = cuts.next().unwrap().min(rest.len());
                unfinished = framing.take(&rest[..n]).unwrap();
                rest = &rest[n..];
            }
            prop_assert_eq!(unfinished, if missing == 0 { 0 } else { last - missing });
        }
    }

    #[test]
    fn too_much_is_refused_and_what_was_held_is_given_back() {
        let all = Gauge::default();
        let held: Vec<Held> = (0..32)
            .map(|_| {
                let mut held = Held { all: all.clone(), bytes: 0 };
                held.hold(16 << 20).unwrap();
                held
            })
            .collect();
        let mut more = Held { all: all.clone(), bytes: 0 };
        assert_eq!(more.hold(1).unwrap_err().code(), tonic::Code::ResourceExhausted);
        drop((more, held));
        assert_eq!(all.get(), 0);
        assert!(Framing::default().take(&[0, 1, 0, 0, 1]).is_err(), "16 MiB and a byte");
    }
}
