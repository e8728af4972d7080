//! Deflate streams and gzip's members around them, without anything else of a layer. The first byte says which of the two the rest is,
//! and how much room there is for what comes out at a time.
//!
//! What comes out is what zlib's decoder gives; where that refuses a stream it is refused. It makes no difference how many bytes come
//! at a time.

use std::io::{self, Read, Write as _};

use flate2::write::DeflateEncoder;
use flate2::{Compression, Decompress, FlushDecompress, Status};
use orlop_inflate::Gunzip;
use orlop_testkit::compress;
use orlop_testkit::dripping::Dripping;

use super::Target;

/// See the module.
pub const TARGET: Target = Target {
    name: "deflate",
    run,
    seeds,
    words: &[b"\x1f\x8b\x08", b"\0\0\0\xff\xff", b"\x01\0\0\xff\xff", b"\x03\0"],
    limit: 8 << 10,
    isolated: false,
};

/// Bytes unpacked at most.
const MOST: usize = 1 << 20;
const ROOMS: [usize; 4] = [256 << 10, 1_000, 289, 7];

fn run(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let room = ROOMS[usize::from(kind >> 1) % ROOMS.len()];
    let (stream, expected) = if kind & 1 == 0 { (rest.to_vec(), gzip(rest)) } else { around(rest) };
    let Some(expected) = expected else { return };
    let at_once = gunzip(&stream[..], room);
    assert_eq!(at_once.as_ref().ok(), expected.as_ref(), "{:?}", at_once.as_ref().err());
    assert_eq!(gunzip(Dripping(&stream), room).ok(), expected);
}

/// What zlib gives of a gzip stream: `None` if that is too much, `Some(None)` if it refuses it.
fn gzip(stream: &[u8]) -> Option<Option<Vec<u8>>> {
    let mut out = Vec::new();
    let read = flate2::bufread::MultiGzDecoder::new(stream).take(MOST as u64).read_to_end(&mut out);
    if out.len() == MOST { None } else { Some(read.ok().map(|_| out)) }
}

/// A member around a deflate stream, with the right checksums if zlib comes to its end, and what it gives then.
fn around(deflated: &[u8]) -> (Vec<u8>, Option<Option<Vec<u8>>>) {
    let (mut inflate, mut out) = (Decompress::new(false), Vec::with_capacity(MOST));
    let status = inflate.decompress_vec(deflated, &mut out, FlushDecompress::Finish);
    let (used, whole) = match status {
        Ok(Status::StreamEnd) => (inflate.total_in() as usize, true),
        _ => (deflated.len(), false),
    };
    let trailer = [crc32fast::hash(&out), out.len() as u32].map(u32::to_le_bytes).concat();
    let header = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let stream = [&header[..], &deflated[..used], if whole { &trailer } else { &[] }].concat();
    let too_much = out.len() == MOST;
    (stream, (!too_much).then(|| whole.then_some(out)))
}

/// Unpacks; what is more than the most is of no interest.
fn gunzip(reader: impl Read, room: usize) -> io::Result<Vec<u8>> {
    let (mut reader, mut out, mut buffer) = (Gunzip::new(reader), Vec::new(), vec![0; room]);
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(out),
            _ if out.len() > MOST => return Ok(out),
            count => out.extend_from_slice(&buffer[..count]),
        }
    }
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let text: Vec<u8> =
        (0..300_u32).flat_map(|number| format!("line {number}, {}\n", number * number).into_bytes()).collect();
    let deflated = |bytes: &[u8], level| {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(level));
        encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory takes it")
    };
    let named = |name: &str, kind: u8, rest: &[u8]| (name.to_owned(), [&[kind], rest].concat());
    let stored = deflated(&text[..700], 0);
    vec![
        named("stored", 1, &stored),
        named("fixed", 3, &deflated(b"aaaaaaaaaabbbbbbbbbbaaaaaaaaaa", 9)),
        named("fast", 5, &deflated(&text, 1)),
        named("best", 7, &deflated(&text, 9)),
        named("runs", 1, &deflated(&[0; 40_000], 6)),
        named("gzip", 0, &compress::gzip(&text)),
        named("members", 2, &[compress::gzip(&text[..99]), compress::gzip(b""), compress::gzip(&text[99..])].concat()),
    ]
}
