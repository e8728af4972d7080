//! Where a tar goes: hashed, compressed, hashed again, written.

use std::io::{self, Write};

use flate2::write::GzEncoder;
use orlop_oci::{Algorithm, Compression, DiffId, Digest, Digester};

use super::Made;

/// Gzip's level: the usual compromise, and what other tools' layers have.
const GZIP_LEVEL: u32 = 6;
/// zstd's default level.
const ZSTD_LEVEL: i32 = 3;

/// A writer that hashes and counts.
struct Hashed<W> {
    inner: W,
    digester: Digester,
    bytes: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, digester: Digester::new(Algorithm::Sha256), bytes: 0 }
    }

    fn end(self) -> (W, Digest, u64) {
        (self.inner, self.digester.finish(), self.bytes)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digester.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

enum Packer<W: Write> {
    None(W),
    Gzip(GzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Packer<W> {
    fn end(self) -> io::Result<W> {
        match self {
            Self::None(writer) => Ok(writer),
            Self::Gzip(writer) => writer.finish(),
            Self::Zstd(writer) => writer.finish(),
        }
    }
}

impl<W: Write> Write for Packer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(writer) => writer.write(bytes),
            Self::Gzip(writer) => writer.write(bytes),
            Self::Zstd(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(writer) => writer.flush(),
            Self::Gzip(writer) => writer.flush(),
            Self::Zstd(writer) => writer.flush(),
        }
    }
}

/// Where a tar goes.
pub(super) struct Sink<W: Write>(Hashed<Packer<Hashed<W>>>);

impl<W: Write> Sink<W> {
    pub(super) fn new(out: W, compression: Compression) -> io::Result<Self> {
        let out = Hashed::new(out);
        let packer = match compression {
            Compression::None => Packer::None(out),
            Compression::Gzip => Packer::Gzip(GzEncoder::new(out, flate2::Compression::new(GZIP_LEVEL))),
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                Packer::Zstd(encoder)
            }
        };
        Ok(Self(Hashed::new(packer)))
    }

    pub(super) fn end(self) -> io::Result<Made> {
        let (packer, diff_id, tar_bytes) = self.0.end();
        let mut out = packer.end()?;
        out.flush()?;
        let (_, digest, bytes) = out.end();
        Ok(Made { diff_id: DiffId::new(diff_id), tar_bytes, digest, bytes })
    }
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
