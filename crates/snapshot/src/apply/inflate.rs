//! The unpacking stage: unpacks the stream and hands over what comes out in buffers.

use std::io::{self, BufReader, Chain, Cursor, Read};
use std::sync::mpsc::{Receiver, SyncSender};

use orlop_inflate::Gunzip;

use super::Limits;
use super::frames::{self, Frames};
use crate::{Error, Result};

/// Bytes read from the source at a time.
const INPUT_BYTES: usize = 64 * 1024;
/// Bytes needed to tell how a stream is packed.
const MAGIC_BYTES: usize = 6;

/// What came out of the stream.
pub(super) struct Inflated {
    pub(super) tar_bytes: u64,
    pub(super) source_bytes: u64,
}

/// Unpacks `reader` into buffers from `empty`, sent by `full`; `None` if the other side hung up.
pub(super) fn run(
    reader: impl Read,
    limits: &Limits,
    empty: &Receiver<Vec<u8>>,
    full: &SyncSender<Vec<u8>>,
) -> Result<Option<Inflated>> {
    let mut stream = Stream::open(Counted { inner: reader, bytes: 0, failed: None }, limits)?;
    let mut tar_bytes = 0;
    loop {
        let Ok(mut chunk) = empty.recv() else { return Ok(None) };
        let filled = stream.fill(&mut chunk)?;
        tar_bytes += filled as u64;
        check_expansion(tar_bytes, stream.source().bytes, limits)?;
        if filled == 0 {
            return Ok(Some(Inflated { tar_bytes, source_bytes: stream.source().bytes }));
        }
        chunk.truncate(filled);
        if full.send(chunk).is_err() {
            return Ok(None);
        }
    }
}

fn check_expansion(tar_bytes: u64, source_bytes: u64, limits: &Limits) -> Result<()> {
    if tar_bytes > limits.layer_bytes {
        return Err(Error::Limit { what: "bytes uncompressed", key: "layer_bytes", limit: limits.layer_bytes });
    }
    if tar_bytes > Limits::RATIO_FREE_BYTES && tar_bytes / limits.layer_ratio.max(1) > source_bytes {
        let what = "bytes uncompressed for each compressed byte";
        return Err(Error::Limit { what, key: "layer_ratio", limit: limits.layer_ratio });
    }
    Ok(())
}

/// A reader that counts, and keeps its own failure apart from those of the decoders around it.
struct Counted<R> {
    inner: R,
    bytes: u64,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(read) => {
                self.bytes += read as u64;
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                self.failed = Some(error);
                Err(io::Error::other("the source failed"))
            }
        }
    }
}

type Whole<R> = Chain<Cursor<Vec<u8>>, Counted<R>>;
type Input<R> = BufReader<Whole<R>>;

/// A stream in one of the packings that layers have.
enum Stream<R: Read> {
    Plain(Input<R>),
    Gzip(Gunzip<Whole<R>>),
    Zstd(Frames<Input<R>>),
}

impl<R: Read> Stream<R> {
    fn open(mut source: Counted<R>, limits: &Limits) -> Result<Self> {
        let mut magic = Vec::with_capacity(MAGIC_BYTES);
        let read = source.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut magic);
        if let Err(error) = read {
            return Err(Error::Source { source: source.failed.take().unwrap_or(error) });
        }
        let whole = |magic| Cursor::new(magic).chain(source);
        let input = |whole| BufReader::with_capacity(INPUT_BYTES, whole);
        match magic.as_slice() {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip(Gunzip::new(whole(magic)))),
            start if frames::is_zstd(start) => {
                Ok(Self::Zstd(Frames::new(input(whole(magic)), limits.zstd_window_bytes).map_err(damaged)?))
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Err(unknown_packing("xz")),
            [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A'] => Err(unknown_packing("bzip2")),
            _ => Ok(Self::Plain(input(whole(magic)))),
        }
    }

    fn source(&self) -> &Counted<R> {
        match self {
            Self::Plain(reader) => reader.get_ref().get_ref().1,
            Self::Gzip(reader) => reader.get_ref().get_ref().1,
            Self::Zstd(reader) => reader.get_ref().get_ref().get_ref().1,
        }
    }

    fn take_failure(&mut self) -> Option<io::Error> {
        let chain = match self {
            Self::Plain(reader) => reader.get_mut(),
            Self::Gzip(reader) => reader.get_mut(),
            Self::Zstd(reader) => reader.get_mut().get_mut(),
        };
        chain.get_mut().1.failed.take()
    }

    /// Fills the buffer as far as the stream goes; less than full means the end.
    fn fill(&mut self, buffer: &mut Vec<u8>) -> Result<usize> {
        buffer.resize(buffer.capacity(), 0);
        let mut filled = 0;
        while filled < buffer.len() {
            let read = match self {
                Self::Plain(reader) => reader.read(&mut buffer[filled..]),
                Self::Gzip(reader) => reader.read(&mut buffer[filled..]),
                Self::Zstd(reader) => reader.read(&mut buffer[filled..]),
            };
            match read {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failure(error)),
            }
        }
        Ok(filled)
    }

    fn failure(&mut self, error: io::Error) -> Error {
        match self.take_failure() {
            Some(source) => Error::Source { source },
            None => damaged(error),
        }
    }
}

fn damaged(error: io::Error) -> Error {
    let reason = match error.kind() {
        io::ErrorKind::UnexpectedEof => "the compressed stream is cut short".to_owned(),
        _ => format!("the compressed stream cannot be read: {error}"),
    };
    Error::Damaged { reason }
}

fn unknown_packing(name: &str) -> Error {
    Error::Damaged { reason: format!("it is packed with {name}; layers are gzip, zstd or plain tar") }
}
