//! What comes out, beside zlib's decoder: of streams of every make, however they are read, whole, cut and damaged.

use std::io::{self, Cursor, Read, Write as _};

use flate2::{Compression, GzBuilder, write::DeflateEncoder};
use orlop_inflate::Gunzip;
use orlop_testkit::dripping::Dripping;
use proptest::prelude::*;

/// Reads to the end with a room of `room` bytes.
fn gunzip(reader: impl Read, room: usize) -> io::Result<Vec<u8>> {
    let (mut reader, mut out, mut buffer) = (Gunzip::new(reader), Vec::new(), vec![0; room]);
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(out),
            count => out.extend_from_slice(&buffer[..count]),
        }
    }
}

fn zlib(stream: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    flate2::bufread::MultiGzDecoder::new(stream).read_to_end(&mut out).ok().map(|_| out)
}

/// Both decoders say the same, whatever the room and however the bytes come.
fn compare(stream: &[u8]) {
    let expected = zlib(stream);
    for room in [300_000, 32_768, 1_000, 277, 3, 1] {
        let found = gunzip(stream, room);
        if expected.as_ref().is_some_and(|bytes| bytes.len() > 200_000) && room < 200 {
            continue;
        }
        assert_eq!(found.as_ref().ok(), expected.as_ref(), "with room for {room}: {:?}", found.as_ref().err());
    }
    assert_eq!(gunzip(Dripping(stream), 4_096).ok(), expected);
}

/// A member around a deflate stream.
fn member(deflated: &[u8], bytes: &[u8]) -> Vec<u8> {
    let trailer = [crc32fast::hash(bytes), bytes.len() as u32].map(u32::to_le_bytes).concat();
    [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255][..], deflated, &trailer].concat()
}

fn packed(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).unwrap();
    member(&encoder.finish().unwrap(), bytes)
}

/// Bytes that look like something: words of a few kinds, repeated from far and near, and noise.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..2_000),
        (any::<u8>(), 0..3_000_usize).prop_map(|(byte, count)| vec![byte; count]),
        ("[a-e ]{0,40}", 1..200_usize).prop_map(|(text, count)| text.repeat(count).into_bytes()),
        (1..60_u8, 1..1_500_usize).prop_map(|(period, count)| (0..count).map(|at| at as u8 % period).collect()),
    ];
    (prop::collection::vec(piece, 0..12), prop::collection::vec(any::<prop::sample::Index>(), 0..24)).prop_map(
        |(pieces, order)| match pieces.is_empty() {
            true => Vec::new(),
            false => order.iter().flat_map(|at| pieces[at.index(pieces.len())].clone()).collect(),
        },
    )
}

/// So many, or as many as `PROPTEST_CASES` says.
fn cases(few: u32) -> ProptestConfig {
    let cases = orlop_testkit::tier::amount("PROPTEST_CASES", few);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn what_was_packed_comes_out(bytes in content(), level in 0..10_u32) {
        let stream = packed(&bytes, level);
        prop_assert_eq!(gunzip(&stream[..], 256 << 10).unwrap(), bytes);
        compare(&stream);
    }

    #[test]
    fn several_members_are_one_stream(members in prop::collection::vec((content(), 0..10_u32), 1..4)) {
        let stream: Vec<u8> = members.iter().flat_map(|(bytes, level)| packed(bytes, *level)).collect();
        compare(&stream);
        // What follows that is no member is refused; so does zlib.
        compare(&[&stream[..], b"\0\0\0\0"].concat());
        compare(&[&stream[..], b"\x1f"].concat());
    }

    #[test]
    fn what_is_damaged_is_refused_where_zlib_refuses_it(
        bytes in content(),
        level in 0..10_u32,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut stream = packed(&bytes, level);
        for (at, byte) in edits {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        compare(&stream);
    }

    #[test]
    fn bits_without_a_meaning_are_read_as_zlib_reads_them(noise in prop::collection::vec(any::<u8>(), 0..400), kind in 0..3_u8) {
        // As if the checksums were right: the deflate stream alone decides. They are not, so what is compared is how far it gets.
        let mut deflated = noise;
        if let Some(first) = deflated.first_mut() {
            *first = *first & !7 | 1 | kind << 1;
        }
        let mut inflate = flate2::Decompress::new(false);
        let mut out = Vec::with_capacity(1 << 20);
        let status = inflate.decompress_vec(&deflated, &mut out, flate2::FlushDecompress::Finish);
        let used = inflate.total_in() as usize;
        let found = gunzip(&member(&deflated[..used.min(deflated.len())], &out)[..], 4_096);
        match status {
            Ok(flate2::Status::StreamEnd) => prop_assert_eq!(found.unwrap(), out),
            _ => prop_assert!(found.is_err(), "{:?}, {:?}", status, found),
        }
    }
}

#[test]
fn a_cut_anywhere_is_told_as_one() {
    let bytes: Vec<u8> = (0..3_000_u32).flat_map(|number| (number * number).to_le_bytes()).collect();
    for level in [0, 1, 9] {
        let stream = packed(&bytes, level);
        for end in 0..stream.len() {
            let error = gunzip(&stream[..end], 256 << 10).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "level {level}, cut at {end}: {error}");
        }
    }
}

#[test]
fn every_bit_of_a_stream_counts() {
    let bytes = b"a stream of which every bit counts, every single bit".repeat(3);
    for level in [0, 1, 9] {
        let stream = packed(&bytes, level);
        for bit in 0..stream.len() * 8 {
            let mut changed = stream.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            // Of the header flags, time, and system say nothing about what comes out.
            compare(&changed);
        }
    }
}

#[test]
fn the_fields_of_a_header_are_passed_over_and_its_checksum_is_not() {
    let header = || GzBuilder::new().extra([7; 300]).filename("f").comment("c").mtime(1 << 31);
    let mut encoder = header().write(Vec::new(), Compression::fast());
    encoder.write_all(b"content").unwrap();
    let mut stream = encoder.finish().unwrap();
    assert_eq!(gunzip(&stream[..], 100).unwrap(), b"content");
    // With a checksum of the header: flag and two bytes, before the deflate stream.
    let end = stream.windows(2).position(|two| two == b"c\0").unwrap() + 2;
    stream[3] |= 2;
    let sum = crc32fast::hash(&stream[..end]) as u16;
    stream.splice(end..end, sum.to_le_bytes());
    assert_eq!(gunzip(&stream[..], 100).unwrap(), b"content");
    compare(&stream);
    stream[end] ^= 1;
    assert!(gunzip(&stream[..], 100).unwrap_err().to_string().contains("header"));
    compare(&stream);
}

/// Bits, from the lowest of a byte on; codes from their highest bit on.
#[derive(Default)]
struct Bits(Vec<bool>);

impl Bits {
    fn number(mut self, value: u32, count: u32) -> Self {
        self.0.extend((0..count).map(|bit| value >> bit & 1 == 1));
        self
    }

    fn code(mut self, code: u32, count: u32) -> Self {
        self.0.extend((0..count).rev().map(|bit| code >> bit & 1 == 1));
        self
    }

    fn bytes(self) -> Vec<u8> {
        let byte = |bits: &[bool]| bits.iter().enumerate().map(|(at, bit)| u8::from(*bit) << at).sum();
        self.0.chunks(8).map(byte).collect()
    }
}

/// The last block, with the fixed code; literals up to 143 have eight bits from 0x30 on, lengths seven.
fn fixed() -> Bits {
    Bits::default().number(1, 1).number(1, 2).code(0x30 + u32::from(b'a'), 8)
}

#[test]
fn a_match_reaches_as_far_as_there_is_something_and_no_further() {
    // Three bytes from one byte back; then from two back, where only one is.
    let one = fixed().code(1, 7).code(0, 5).code(0, 7).bytes();
    assert_eq!(gunzip(&member(&one, b"aaaa")[..], 100).unwrap(), b"aaaa");
    let two = fixed().code(1, 7).code(1, 5).code(0, 7).bytes();
    for room in [100, 1_000] {
        let error = gunzip(&member(&two, b"aaaa")[..], room).unwrap_err();
        assert!(error.to_string().contains("before the beginning"), "{error}");
    }
    // In the next member nothing is left of the one before.
    let second = [packed(&b"aaaa".repeat(9_000), 6), member(&two, b"aaaa")].concat();
    assert!(gunzip(&second[..], 300_000).is_err() && zlib(&second).is_none());
}

#[test]
fn symbols_that_there_are_not_are_refused() {
    // 286 as a length, 30 as a distance.
    for wrong in [fixed().code(0b1100_0110, 8).code(0, 5), fixed().code(1, 7).code(30, 5)] {
        let stream = member(&wrong.code(0, 7).number(0, 32).number(0, 32).bytes(), b"aaaa");
        let error = gunzip(&stream[..], 1_000).unwrap_err();
        assert!(error.to_string().contains("no code"), "{error}");
        compare(&stream);
    }
    // A kind of block that there is not, and more symbols than there are.
    for wrong in [Bits::default().number(1, 1).number(3, 2), Bits::default().number(1, 1).number(2, 2).number(30, 5)] {
        let stream = member(&wrong.number(0, 32).number(0, 32).bytes(), b"");
        let error = gunzip(&stream[..], 1_000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        compare(&stream);
    }
}

/// The longest match from the farthest back, over the edge of what was given out before.
#[test]
fn the_window_is_as_long_as_it_may_be() {
    let mut noise = vec![0_u8; 32 << 10];
    let mut seed = 1_u32;
    noise.fill_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    });
    let bytes = noise.repeat(3);
    for level in [6, 9] {
        compare(&packed(&bytes, level));
    }
    // 32,768 back is the farthest code that there is: after that many stored bytes, 258 of them again.
    let stored: Vec<u8> = noise
        .chunks(32 << 10)
        .flat_map(|chunk| {
            let length = chunk.len() as u16;
            [&[0][..], &length.to_le_bytes(), &(!length).to_le_bytes(), chunk].concat()
        })
        .collect();
    let far =
        Bits::default().number(1, 1).number(1, 2).code(0b1100_0101, 8).code(29, 5).number((1 << 13) - 1, 13).code(0, 7);
    let stream = member(&[stored, far.bytes()].concat(), &[&noise[..], &noise[..258]].concat());
    assert_eq!(gunzip(&stream[..], 300_000).unwrap().len(), noise.len() + 258);
    compare(&stream);
}

#[test]
fn the_readers_own_error_comes_as_it_is() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::new(io::ErrorKind::ConnectionReset, "the network"))
        }
    }
    let stream = packed(&[7; 100_000], 1);
    let error = gunzip(Cursor::new(&stream[..20]).chain(Failing), 1_000).unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (io::ErrorKind::ConnectionReset, "the network"));
}
