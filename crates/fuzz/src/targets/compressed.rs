//! Packed streams. The first byte says what the rest is: a stream as it is, or a recipe for one that is right but oddly made
//! (members and frames of any size, skippable frames, extra fields), and where it is damaged.
//!
//! What is taken has the digest and the length that a second reader finds: for gzip one that reads members itself and has
//! nothing but the inflate function in common, for zstd the library's own. What was damaged and is taken all the same is
//! what that reader takes. It makes no difference how many bytes come at a time.

use std::cell::Cell;
use std::io::{self, Read};

use flate2::{Decompress, FlushDecompress, Status};
use orlop_oci::Digest;
use orlop_snapshot::apply::{Applied, Limits, Options, apply};
use orlop_snapshot::{Driver, NativeDriver, SnapshotId};
use orlop_testkit::compress;
use orlop_testkit::dripping::Dripping;
use orlop_testkit::tar::{Entry, tar};
use tempfile::TempDir;

use super::Target;
use crate::scratch;

/// See the module.
pub const TARGET: Target = Target {
    name: "compressed",
    run,
    seeds,
    words: &[
        b"\x1f\x8b\x08",
        b"\x28\xb5\x2f\xfd",
        b"\x50\x2a\x4d\x18",
        b"\x5f\x2a\x4d\x18\xff\xff\xff\xff",
        b"\xfd7zXZ\0",
        b"BZh91AY",
    ],
    limit: 16 << 10,
    isolated: false,
};

/// Bytes unpacked at most.
const MOST: u64 = 2 << 20;
/// Members or frames of a recipe at most.
const MOST_PIECES: usize = 16;
/// What the first byte says, by its remainder.
const KINDS: u8 = 3;

struct Rig {
    driver: NativeDriver,
    next: Cell<u64>,
    _directory: TempDir,
}

thread_local! {
    static RIG: Rig = {
        let directory = scratch::directory();
        let driver = NativeDriver::open(directory.path().join("native")).expect("a driver");
        Rig { driver, next: Cell::new(1), _directory: directory }
    };
}

impl Rig {
    fn apply(&self, reader: impl Read + Send) -> Result<Applied, String> {
        let id = SnapshotId(self.next.replace(self.next.get() + 1));
        let meta = super::tar_apply::meta();
        self.driver.create(id, &[], &meta).expect("a snapshot");
        let limits = Limits { layer_bytes: MOST, zstd_window_bytes: 1 << 20, ..Limits::default() };
        let squash_owners = !rustix::process::geteuid().is_root();
        let applied =
            apply(reader, &self.driver.apply_target(id), &Options { limits, squash_owners, ..Options::default() });
        self.driver.remove(id, None).expect("any tree can be removed");
        applied.map_err(|error| error.to_string())
    }
}

fn run(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let (stream, whole) = match kind % KINDS {
        0 => (rest.to_vec(), None),
        1 => recipe(rest, member),
        _ => recipe(rest, frame),
    };
    let (at_once, by_bytes) = RIG.with(|rig| (rig.apply(&stream[..]), rig.apply(Dripping(&stream))));
    assert_eq!(at_once, by_bytes, "how many bytes come at a time makes a difference");
    let second = match stream.first() {
        Some(0x1f) => members(&stream),
        Some(0x28 | 0x50..=0x5f) => frames(&stream),
        _ => Some(stream.clone()),
    };
    match (at_once, second, whole) {
        (Ok(applied), Some(second), _) => {
            assert_eq!(applied.diff_id.digest(), &Digest::of(&second));
            assert_eq!((applied.tar_bytes, applied.source_bytes), (second.len() as u64, stream.len() as u64));
        }
        (Ok(applied), None, _) => panic!("{applied:?}, but a second reader refuses it"),
        (Err(error), _, Some(_)) => panic!("a right stream is refused: {error}"),
        (Err(_), _, None) => {}
    }
}

/// Pieces of a small tar, each packed as its byte of the recipe says; bytes after a zero say what is damaged. The tar if
/// nothing is.
fn recipe(recipe: &[u8], pack: fn(&[u8], u8) -> Vec<u8>) -> (Vec<u8>, Option<Vec<u8>>) {
    let payload = tar(&[Entry::dir("d"), Entry::file("d/f", vec![b'x'; 3000]), Entry::symlink("l", "d/f")]);
    let (pieces, damage) = match recipe.iter().position(|byte| *byte == 0) {
        Some(at) => (&recipe[..at.min(MOST_PIECES)], &recipe[at + 1..]),
        None => (&recipe[..recipe.len().min(MOST_PIECES)], &[][..]),
    };
    let (mut stream, mut rest) = (Vec::new(), &payload[..]);
    for style in pieces {
        let count = rest.len().min(usize::from(*style) * 7);
        stream.extend(pack(&rest[..count], *style));
        rest = &rest[count..];
    }
    stream.extend(pack(rest, 1));
    let mut damaged = false;
    for edit in damage.as_chunks::<3>().0 {
        let at = usize::from(u16::from_be_bytes([edit[0], edit[1]])) % stream.len();
        damaged |= edit[2] != 0;
        stream[at] ^= edit[2];
    }
    (stream, (!damaged).then_some(payload))
}

/// A gzip member (RFC 1952), with the optional fields that the bits of `style` ask for.
fn member(piece: &[u8], style: u8) -> Vec<u8> {
    let plain = compress::gzip(piece);
    let mut out = vec![0x1f, 0x8b, 8, style & 0b1_1111, 0, 0, 0, 0, 0, 255];
    if style & 4 != 0 {
        out.extend([3, 0, 1, 2, 3]);
    }
    for bit in [8, 16] {
        if style & bit != 0 {
            out.extend(b"name\0");
        }
    }
    if style & 2 != 0 {
        let sum = crc32fast::hash(&out) as u16;
        out.extend(sum.to_le_bytes());
    }
    out.extend(&plain[10..]);
    out
}

/// A zstd frame (RFC 8878), perhaps after one that is to be skipped, perhaps with a checksum.
fn frame(piece: &[u8], style: u8) -> Vec<u8> {
    let mut out = Vec::new();
    if style & 0x80 != 0 {
        out.extend([0x50 | (style & 0xf), 0x2a, 0x4d, 0x18, style & 7, 0, 0, 0]);
        out.extend(vec![style; usize::from(style & 7)]);
    }
    let mut encoder = zstd::stream::raw::Encoder::new(i32::from(style % 4)).expect("an encoder");
    encoder.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(style & 1 == 1)).expect("a flag");
    encoder.set_parameter(zstd::zstd_safe::CParameter::WindowLog(10 + u32::from(style & 7))).expect("a window");
    let mut writer = zstd::stream::zio::Writer::new(&mut out, encoder);
    io::Write::write_all(&mut writer, piece).and_then(|()| writer.finish()).expect("memory takes it");
    out
}

/// What gzip's members hold, read step by step as RFC 1952 has them; `None` if they are not right.
fn members(mut stream: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    while !stream.is_empty() {
        let start = stream;
        let [0x1f, 0x8b, 8, flags, ..] = *stream else { return None };
        stream = stream.get(10..)?;
        if flags & 4 != 0 {
            let length = usize::from(u16::from_le_bytes([*stream.first()?, *stream.get(1)?]));
            stream = stream.get(2 + length..)?;
        }
        for bit in [8, 16] {
            if flags & bit != 0 {
                stream = stream.get(stream.iter().position(|byte| *byte == 0)? + 1..)?;
            }
        }
        if flags & 2 != 0 {
            let header = &start[..start.len() - stream.len()];
            let sum = u16::from_le_bytes([*stream.first()?, *stream.get(1)?]);
            if sum != crc32fast::hash(header) as u16 {
                return None;
            }
            stream = stream.get(2..)?;
        }
        let (body, used) = inflated(stream, MOST as usize + 1 - out.len())?;
        let trailer = stream.get(used..used + 8)?;
        let sums = [crc32fast::hash(&body), body.len() as u32].map(u32::to_le_bytes);
        if trailer != sums.concat() {
            return None;
        }
        stream = &stream[used + 8..];
        out.extend(body);
    }
    Some(out)
}

/// One deflate stream of at most `most` bytes, and how many it took.
fn inflated(stream: &[u8], most: usize) -> Option<(Vec<u8>, usize)> {
    let mut inflate = Decompress::new(false);
    let mut out = Vec::with_capacity(most);
    match inflate.decompress_vec(stream, &mut out, FlushDecompress::Finish) {
        Ok(Status::StreamEnd) => Some((out, inflate.total_in() as usize)),
        _ => None,
    }
}

fn frames(stream: &[u8]) -> Option<Vec<u8>> {
    let mut decoder = zstd::Decoder::new(stream).ok()?;
    decoder.window_log_max(20).ok()?;
    let mut out = Vec::new();
    decoder.take(MOST + 1).read_to_end(&mut out).ok()?;
    Some(out)
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let plain = tar(&[Entry::dir("d"), Entry::file("d/f", "content")]);
    let named = |name: &str, kind: u8, rest: &[u8]| (name.to_owned(), [&[kind], rest].concat());
    vec![
        named("plain", 0, &plain),
        named("gzip", 0, &compress::gzip(&plain)),
        named("zstd", 0, &compress::zstd(&plain)),
        named("twice", 0, &compress::gzip(&compress::zstd(&plain))),
        named("empty", 0, b""),
        named("members", 1, &[2, 4, 8, 16, 30, 255]),
        named("damaged-members", 1, &[10, 0, 0, 3, 1, 0, 30, 0x40]),
        named("frames", 2, &[3, 0x83, 9, 200, 1]),
        named("damaged-frames", 2, &[7, 0, 0, 5, 0x10]),
    ]
}
