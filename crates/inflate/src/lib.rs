//! Unpacks gzip (RFC 1952, RFC 1951) as fast as decoders that have the whole stream in memory, in bounded memory.
//!
//! Inflating is what bounds a pull where layers have large files, and the decoders that are well kept either stream or are
//! fast: what a stream costs them is that any bit may be the last one at hand. Here that is asked once for hundreds of bytes.
//!
//! ```text
//! input    bytes as the reader gives them, in one buffer, and 64 bits of them at hand
//! codes    a block's Huffman codes as tables: one look tells what a symbol is, how long, and with what extra bits
//! block    the decoder; one loop for as long as input and room suffice for any symbol, one careful step at the edges
//! member   headers, trailers and checksums around the blocks: what `Read` gives
//! ```
//!
//! # Invariants
//! - What is given out is what any other decoder gives: the fuzz target `compressed` holds it to zlib's, in what is refused too.
//! - Memory is that of the buffers here, 120 KiB, whatever the stream says.
//! - There is no unsafe code but the call of the same loop compiled for newer processors.
//!
//! No I/O but the reader's.

mod block;
mod codes;
mod input;
mod member;

pub use member::Gunzip;
