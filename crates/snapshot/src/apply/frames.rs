//! Unpacks zstd, frame by frame, in bounded memory (RFC 8878, 3.1).
//!
//! A frame's header says how much history its decoder must keep: the window. Up to [`COMMON_WINDOW`] every layer may have
//! its own; that is what all levels up to 19 and the builders of images use. Larger ones, up to [`Limits::zstd_window_bytes`],
//! are unpacked one layer at a time in the whole process, so that the memory of a pull stays bounded however many layers
//! come at once. Still larger ones are refused.
//!
//! [`Limits::zstd_window_bytes`]: super::Limits::zstd_window_bytes

use std::io::{self, BufRead, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};

use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};
use zstd::zstd_safe::DParameter;

/// What every decoder should support (RFC 8878, 3.1.1.1.2), and any number of layers may use at once.
pub(super) const COMMON_WINDOW: u64 = 8 << 20;

/// Held by the one layer that is unpacked with a larger window.
static LARGE_WINDOW: Mutex<()> = Mutex::new(());

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Whether a stream that begins so is zstd: a frame, or one of the sixteen kinds of skippable frames.
pub(super) fn is_zstd(start: &[u8]) -> bool {
    start.starts_with(&MAGIC) || is_skippable(start)
}

fn is_skippable(start: &[u8]) -> bool {
    matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// The bytes that frames hold.
pub(super) struct Frames<R> {
    input: R,
    decoder: Decoder<'static>,
    /// Bytes of the current frame's header that the decoder has not been given yet.
    header: Vec<u8>,
    /// Between two frames.
    between: bool,
    limit: u64,
    large: Option<MutexGuard<'static, ()>>,
}

impl<R: BufRead> Frames<R> {
    /// `limit` is the largest window allowed, in bytes.
    pub(super) fn new(input: R, limit: u64) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        // The decoder knows powers of two alone; what is between is compared with the limit itself (`begin`).
        decoder.set_parameter(DParameter::WindowLogMax(limit.max(1 << 10).next_power_of_two().ilog2()))?;
        Ok(Self { input, decoder, header: Vec::new(), between: true, limit, large: None })
    }

    pub(super) const fn get_ref(&self) -> &R {
        &self.input
    }

    pub(super) const fn get_mut(&mut self) -> &mut R {
        &mut self.input
    }

    /// Reads the next frame's header; false at the end of the stream.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            self.header.clear();
            if self.input.fill_buf()?.is_empty() {
                return Ok(false);
            }
            self.take(4)?;
            if self.header == MAGIC {
                break;
            }
            if !is_skippable(&self.header) {
                return Err(invalid("what follows a frame is no zstd frame".to_owned()));
            }
            self.take(4)?;
            self.skip()?;
        }
        let window = self.window()?;
        if window > self.limit {
            let (asked, limit) = (window.div_ceil(1 << 20), self.limit >> 20);
            return Err(invalid(format!(
                "its zstd frame needs {asked} MiB of memory (its window), at most {limit} MiB are allowed \
                 (limits.zstd_window_bytes in the configuration): compress the layer without --long and --ultra"
            )));
        }
        if window > COMMON_WINDOW && self.large.is_none() {
            self.large = Some(LARGE_WINDOW.lock().unwrap_or_else(PoisonError::into_inner));
        }
        self.between = false;
        Ok(true)
    }

    /// Reads so many more bytes of the header.
    fn take(&mut self, bytes: usize) -> io::Result<()> {
        let start = self.header.len();
        self.header.resize(start + bytes, 0);
        self.input.read_exact(&mut self.header[start..])
    }

    /// Reads the header beyond its magic number; what the window is in bytes.
    fn window(&mut self) -> io::Result<u64> {
        self.take(1)?;
        let descriptor = self.header[4];
        let is_single_segment = descriptor & 0x20 != 0;
        if !is_single_segment {
            self.take(1)?;
            let (exponent, mantissa) = (self.header[5] >> 3, u64::from(self.header[5] & 7));
            let base = 1u64 << (10 + exponent);
            return Ok(base + base / 8 * mantissa);
        }
        // Then the whole content is the window.
        self.take([0, 1, 2, 4][usize::from(descriptor & 3)])?;
        let start = self.header.len();
        self.take([1, 2, 4, 8][usize::from(descriptor >> 6)])?;
        let mut bytes = [0; 8];
        bytes[..self.header.len() - start].copy_from_slice(&self.header[start..]);
        let offset = if descriptor >> 6 == 1 { 256 } else { 0 };
        Ok(u64::from_le_bytes(bytes).saturating_add(offset))
    }

    /// Passes over the content of a skippable frame.
    fn skip(&mut self) -> io::Result<()> {
        let size = u32::from_le_bytes([self.header[4], self.header[5], self.header[6], self.header[7]]);
        let skipped = io::copy(&mut self.input.by_ref().take(u64::from(size)), &mut io::sink())?;
        if skipped < u64::from(size) { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.between && !self.begin()? {
                return Ok(0);
            }
            let from_header = !self.header.is_empty();
            let bytes = if from_header { self.header.as_slice() } else { self.input.fill_buf()? };
            let is_end = bytes.is_empty();
            let (mut input, mut output) = (InBuffer::around(bytes), OutBuffer::around(&mut *buffer));
            let left = self.decoder.run(&mut input, &mut output)?;
            let (read, written) = (input.pos(), output.pos());
            if from_header {
                self.header.drain(..read);
            } else {
                self.input.consume(read);
            }
            self.between = left == 0;
            if written > 0 {
                return Ok(written);
            }
            if is_end && !self.between {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use zstd::zstd_safe::CParameter;

    use super::*;

    fn packed(bytes: &[u8], set: impl Fn(&mut zstd::Encoder<'_, Vec<u8>>)) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        set(&mut encoder);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(bytes: &[u8], limit: u64) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        // A buffer of a few bytes, so that every boundary falls somewhere.
        let input = io::BufReader::with_capacity(7, bytes);
        Frames::new(input, limit)?.read_to_end(&mut out).map(|_| out)
    }

    #[test]
    fn frames_follow_each_other_with_skippable_ones_between() {
        let skippable = [&[0x53, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"12345"].concat();
        let one = packed(&[7; 100_000], |_| {});
        let known_size = packed(b"two", |e| e.set_pledged_src_size(Some(3)).unwrap());
        let checked = packed(b"three", |e| e.include_checksum(true).unwrap());
        let all = [&skippable[..], &one, &known_size, &skippable, &checked, &skippable].concat();
        let expected = [&[7; 100_000][..], b"two", b"three"].concat();
        assert_eq!(unpacked(&all, 1 << 25).unwrap(), expected);
        assert_eq!(unpacked(&[], 1 << 25).unwrap(), b"");
    }

    #[test]
    fn a_cut_anywhere_is_an_error() {
        let whole = packed(&(0..=255).collect::<Vec<u8>>(), |e| e.include_checksum(true).unwrap());
        for end in 1..whole.len() {
            let error = unpacked(&whole[..end], 1 << 25).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{end}: {error}");
        }
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 5, 0, 0, 0, 1, 2];
        assert_eq!(unpacked(&skippable, 1 << 25).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_window_above_the_limit_is_refused_and_one_below_it_taken() {
        let window = |log| packed(&[1; 1000], move |e| e.set_parameter(CParameter::WindowLog(log)).unwrap());
        assert_eq!(unpacked(&window(25), 1 << 25).unwrap(), [1; 1000]);
        let error = unpacked(&window(26), 1 << 25).unwrap_err().to_string();
        assert!(error.contains("needs 64 MiB") && error.contains("at most 32 MiB"), "{error}");
        // A later frame counts as the first does.
        let both = [window(20), window(27)].concat();
        assert!(unpacked(&both, 1 << 25).is_err());
    }

    /// A limit that is no power of two was rounded down, and what was refused for it did not name it.
    #[test]
    fn a_limit_between_two_powers_of_two_is_exact() {
        // Where a frame says its size, and a window would be larger, its whole content is the window.
        let whole = packed(&[1; 1_300_000], |e| {
            e.set_pledged_src_size(Some(1_300_000)).unwrap();
            e.set_parameter(CParameter::WindowLog(21)).unwrap();
        });
        let length = |limit| unpacked(&whole, limit).map(|bytes| bytes.len());
        assert_eq!(length(1_300_000).unwrap(), 1_300_000);
        let error = length(1_299_999).unwrap_err().to_string();
        assert!(error.contains("limits.zstd_window_bytes"), "{error}");
    }
}
