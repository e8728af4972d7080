//! Layers whose bytes are damaged.

use orlop_oci::Compression;

use super::{Case, Layer};
use crate::compress;
use crate::tar::{Entry, Header, SIZE, TarBuilder, tar};

/// Every broken case.
pub fn broken() -> Vec<Case> {
    [packings(), tars(), entries()].concat()
}

fn packed(name: &'static str, bytes: Vec<u8>, compression: Compression) -> Case {
    Case::refused(name).packed(Layer::broken(bytes, compression))
}

fn packings() -> Vec<Case> {
    // Incompressible, so that the cut falls into the middle of the tar.
    let noise: Vec<u8> = (0u64..40_000).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    let bytes = tar(&[Entry::file("a", noise), Entry::file("b", "after")]);
    let gzip = compress::gzip(&bytes);
    let zstd = compress::zstd(&bytes);
    let flipped = |packed: &[u8], at: usize| {
        let mut packed = packed.to_vec();
        packed[at] ^= 0x55;
        packed
    };
    vec![
        packed("gzip cut in the middle", gzip[..gzip.len() / 2].to_vec(), Compression::Gzip),
        packed("gzip without its trailer", gzip[..gzip.len() - 8].to_vec(), Compression::Gzip),
        packed("gzip with half a trailer", gzip[..gzip.len() - 3].to_vec(), Compression::Gzip),
        packed("gzip with a wrong checksum", flipped(&gzip, gzip.len() - 7), Compression::Gzip),
        packed("gzip with a wrong length", flipped(&gzip, gzip.len() - 2), Compression::Gzip),
        packed("gzip with garbage after it", [gzip.clone(), b"garbage".repeat(100)].concat(), Compression::Gzip),
        packed("gzip with half a second member", [gzip.clone(), gzip[..100].to_vec()].concat(), Compression::Gzip),
        packed("zstd cut in the middle", zstd[..zstd.len() / 2].to_vec(), Compression::Zstd),
        packed("zstd without its checksum", zstd[..zstd.len() - 4].to_vec(), Compression::Zstd),
        packed("zstd with a wrong checksum", flipped(&zstd, zstd.len() - 1), Compression::Zstd),
        packed("zstd with garbage after it", [zstd.clone(), b"garbage".repeat(100)].concat(), Compression::Zstd),
    ]
}

fn tars() -> Vec<Case> {
    let good = TarBuilder::new().push(&Entry::file("f", [b'x'; 5000])).unfinished();
    let mut checksum = good.clone();
    checksum[0] ^= 1;
    let sized = |size: &[u8]| {
        let mut out = TarBuilder::new();
        out.header(Header::new(b'0').name(b"f").set(SIZE, size)).data(b"some bytes");
        out.finish()
    };
    let mut huge = TarBuilder::new();
    huge.header(Header::new(b'0').name(b"f").base256(SIZE, i128::from(i64::MAX))).data(b"x");
    let mut negative = TarBuilder::new();
    negative.header(Header::new(b'0').name(b"f").base256(SIZE, -512)).data(b"x");
    vec![
        Case::refused("tar cut in a header").tar(&good[..300]),
        Case::refused("tar cut in a file").tar(&good[..2000]),
        Case::refused("tar with a wrong header checksum").tar(&checksum),
        Case::refused("noise instead of a tar").tar(&b"not a tar at all ".repeat(200)),
        Case::refused("a size that is no number").tar(&sized(b"12x45")),
        Case::refused("a size larger than the tar").tar(&sized(b"00007777777")),
        Case::refused("a size of eight exbibytes").tar(&huge.finish()),
        Case::refused("a negative size").tar(&negative.finish()),
    ]
}

fn entries() -> Vec<Case> {
    let pax = |body: &[u8]| {
        let mut out = TarBuilder::new();
        out.header(Header::new(b'x').name(b"pax").octal_or_zero(SIZE, body.len() as u64)).data(body);
        out.push(&Entry::file("f", "x")).finish()
    };
    let sparse = |map: &str, size: &str| {
        let mut data = map.as_bytes().to_vec();
        data.resize(512, 0);
        data.extend([b'x'; 512]);
        let entry = Entry::file("f", data).pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0");
        tar(&[entry.pax("GNU.sparse.name", "f").pax("GNU.sparse.realsize", size)])
    };
    vec![
        Case::refused("PAX record without a length").tar(&pax(b"path=x\n")),
        Case::refused("PAX record longer than its header").tar(&pax(b"999 path=x\n")),
        Case::refused("PAX record without a line feed").tar(&pax(b"9 path=xy")),
        Case::refused("PAX record without an equals sign").tar(&pax(b"8 pathx\n")),
        Case::refused("PAX record whose length overflows").tar(&pax(b"99999999999999999999999 path=x\n")),
        Case::refused("PAX size that is no number").layer(&[Entry::file("f", "x").pax("size", "many")]),
        Case::refused("PAX size that is negative").layer(&[Entry::file("f", "x").pax("size", "-1")]),
        Case::refused("PAX path with a NUL").layer(&[Entry::file("f", "x").pax("path", "a\0b")]),
        Case::refused("PAX linkpath with a NUL").layer(&[Entry::symlink("f", "x").pax("linkpath", "a\0b")]),
        Case::refused("a hard link to nothing").layer(&[Entry::hardlink("l", "no/such/file")]),
        Case::refused("a hard link to a later entry")
            .layer(&[Entry::hardlink("l", "later"), Entry::file("later", "x")]),
        Case::refused("a hard link to a directory").layer(&[Entry::dir("d"), Entry::hardlink("l", "d")]),
        Case::refused("a name of 256 bytes").layer(&[Entry::file("n".repeat(256), "x")]),
        Case::refused("sparse extents out of order").tar(&sparse("2\n4096\n10\n0\n10\n", "8192")),
        Case::refused("a sparse extent beyond the end").tar(&sparse("1\n8000\n512\n", "8192")),
        Case::refused("sparse extents that overflow").tar(&sparse("1\n18446744073709551615\n512\n", "8192")),
        Case::refused("a sparse map that promises a billion extents").tar(&sparse("1000000000\n0\n1\n", "8192")),
    ]
}
