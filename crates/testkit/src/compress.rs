//! Packing layers, always to the same bytes.

use std::io::Write as _;

use flate2::GzBuilder;
use orlop_oci::Compression;

/// Packs `bytes`; [`Compression::None`] returns them as they are.
pub fn pack(bytes: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => bytes.to_vec(),
        Compression::Gzip => gzip(bytes),
        Compression::Zstd => zstd(bytes),
    }
}

/// One gzip member without name and time.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}

/// One zstd frame with a checksum.
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).expect("level 3 exists");
    encoder.include_checksum(true).expect("before the first byte");
    encoder.write_all(bytes).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}

/// `bytes` in several members or frames, one for each `part` bytes: what pigz, stargz and zstd:chunked write.
pub fn pack_in_parts(bytes: &[u8], compression: Compression, part: usize) -> Vec<u8> {
    bytes.chunks(part.max(1)).flat_map(|chunk| pack(chunk, compression)).collect()
}
