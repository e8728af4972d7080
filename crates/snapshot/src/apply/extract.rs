//! The writing third: parses the tar and lets every entry take effect on the tree.

use tar_core::parse::{Limits as TarLimits, ParseError, ParseEvent, Parser};
use tar_core::{PaxExtensions, SparseEntry};

use super::attributes::Owner;
use super::entry::{Entry, Kind};
use super::image::ImageTree;
use super::source::Source;
use super::tree::Tree;
use super::{Limits, Options};
use crate::{ApplyTarget, Error, Result};

/// Blocks of a tar.
const BLOCK: usize = 512;
/// A chain of headers beyond its extension data: blocks, and the text of a sparse map.
const HEADER_SLACK: usize = 512 << 10;

/// Applies the tar that `source` gives to `target` and returns the number of entries.
pub(super) fn run(mut source: Source, target: &ApplyTarget, options: &Options, owner: Owner) -> Result<u64> {
    let mut tree = Target::open(target, options, owner)?;
    let mut parser = parser(&options.limits);
    let mut budget = Budget { limits: &options.limits, entries: 0, logical_bytes: 0 };
    while let Some(entry) = next_entry(&mut parser, &mut source, &options.limits)? {
        budget.take(&entry)?;
        let padded = entry.size.div_ceil(BLOCK as u64).saturating_mul(BLOCK as u64);
        let left = tree.write(&entry, &mut source)?;
        source.skip(left)?;
        source.skip_padding(padded - entry.size);
    }
    tree.finish()?;
    source.drain();
    Ok(budget.entries)
}

/// What a layer becomes.
enum Target<'a> {
    Files(Box<Tree<'a>>),
    Image(Box<ImageTree<'a>>),
}

impl<'a> Target<'a> {
    fn open(target: &'a ApplyTarget, options: &Options, owner: Owner) -> Result<Self> {
        Ok(match &target.image {
            None => Self::Files(Box::new(Tree::open(target, options, owner)?)),
            Some(image) => Self::Image(Box::new(ImageTree::open(target, image, options, owner)?)),
        })
    }

    fn write(&mut self, entry: &Entry, source: &mut Source) -> Result<u64> {
        match self {
            Self::Files(tree) => tree.write(entry, source),
            Self::Image(tree) => tree.write(entry, source),
        }
    }

    fn finish(self) -> Result<()> {
        match self {
            Self::Files(tree) => tree.finish(),
            Self::Image(tree) => tree.finish(),
        }
    }
}

/// Tells of every entry: its path, and the length of a file with content of its own.
pub(super) fn list(mut source: Source, limits: &Limits, mut each: impl FnMut(&[u8], Option<u64>)) -> Result<()> {
    let mut parser = parser(limits);
    let mut budget = Budget { limits, entries: 0, logical_bytes: 0 };
    while let Some(entry) = next_entry(&mut parser, &mut source, limits)? {
        budget.take(&entry)?;
        let length = entry.sparse.as_ref().map_or(entry.size, |(size, _)| *size);
        each(&entry.path, (entry.kind == Kind::File).then_some(length));
        let padded = entry.size.div_ceil(BLOCK as u64).saturating_mul(BLOCK as u64);
        source.skip(entry.size)?;
        source.skip_padding(padded - entry.size);
    }
    source.drain();
    Ok(())
}

fn parser(limits: &Limits) -> Parser {
    let mut parser = Parser::new(TarLimits {
        max_metadata_size: limits.header_bytes,
        max_path_len: Some(limits.path_bytes),
        max_sparse_entries: limits.sparse_regions,
        ..TarLimits::default()
    });
    // Negative PAX times are refused by the parser but occur; times are read by `entry` itself.
    parser.set_ignore_pax_errors(true);
    parser
}

/// Counts what an archive may not have too much of.
struct Budget<'a> {
    limits: &'a Limits,
    entries: u64,
    logical_bytes: u64,
}

impl Budget<'_> {
    fn take(&mut self, entry: &Entry) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.layer_entries {
            return Err(Error::Limit { what: "entries", key: "layer_entries", limit: self.limits.layer_entries });
        }
        let logical = entry.sparse.as_ref().map_or(entry.size, |(size, _)| *size);
        self.logical_bytes = self.logical_bytes.saturating_add(logical);
        if self.logical_bytes > self.limits.layer_bytes {
            return Err(Error::Limit { what: "bytes in files", key: "layer_bytes", limit: self.limits.layer_bytes });
        }
        Ok(())
    }
}

/// The next entry; `None` at the tar's end, be it marked or not.
fn next_entry(parser: &mut Parser, source: &mut Source, limits: &Limits) -> Result<Option<Entry>> {
    let most = limits.header_bytes as usize + HEADER_SLACK;
    let mut wanted = BLOCK;
    loop {
        let complete = source.join(wanted);
        let input = source.peek();
        let have = input.len();
        let ended = !complete && at_end(input);
        match parser.parse(input).map_err(|error| parse_error(error, limits))? {
            ParseEvent::NeedData { .. } if ended => return Ok(None),
            ParseEvent::NeedData { .. } if !complete => {
                return Err(Error::Damaged { reason: "the tar ends within a header".into() });
            }
            ParseEvent::NeedData { min_bytes } => {
                // Growing by half keeps reparsing of long sparse maps linear.
                wanted = min_bytes.max(have + BLOCK).max(wanted + wanted / 2);
                if min_bytes > most || have > most {
                    return Err(Error::Limit {
                        what: "bytes in an entry's headers",
                        key: "header_bytes",
                        limit: most as u64,
                    });
                }
            }
            ParseEvent::Entry { consumed, entry } => {
                let entry = Entry::new(&entry, None, limits)?;
                source.consume(consumed);
                return Ok(Some(entry));
            }
            ParseEvent::SparseEntry { consumed, entry: parsed, sparse_map, real_size } => {
                let map_bytes = sparse_map_bytes(&parsed, consumed)?;
                let mut entry = Entry::new(&parsed, Some((real_size, sparse_map)), limits)?;
                entry.size = entry.size.checked_sub(map_bytes).ok_or_else(|| entry.hostile(BAD_MAP))?;
                check_sparse(&entry)?;
                source.consume(consumed);
                return Ok(Some(entry));
            }
            ParseEvent::GlobalExtensions { consumed, .. } => {
                // containerd applies nothing of global headers; neither may the tree depend on them here.
                source.consume(consumed);
                wanted = BLOCK;
            }
            ParseEvent::End { consumed } => {
                source.consume(consumed);
                return Ok(None);
            }
        }
    }
}

/// A tar may end without its two zero blocks, or after one of them.
fn at_end(rest: &[u8]) -> bool {
    rest.is_empty() || (rest.len() == BLOCK && rest.iter().all(|&b| b == 0))
}

const BAD_MAP: &str = "its sparse map does not fit its content";

/// How much of the entry's size is its sparse map and has been consumed as such, where the parser has not said so.
///
/// The parser subtracts the map of PAX format 1.0 from the header's size, but a PAX `size` record, which files from
/// 8 GiB on have, then overrides the difference.
fn sparse_map_bytes(parsed: &tar_core::parse::ParsedEntry<'_>, consumed: usize) -> Result<u64> {
    let pax = PaxExtensions::new(parsed.pax.unwrap_or_default());
    let is_v1 = pax.get("GNU.sparse.major") == Some("1") && pax.get("GNU.sparse.minor") == Some("0");
    if !is_v1 || pax.get_u64("size").is_none() {
        return Ok(0);
    }
    // Before the map come the PAX block with its data and the entry's own block.
    let pax_blocks = parsed.pax.unwrap_or_default().len().div_ceil(BLOCK) * BLOCK;
    let headers = pax_blocks + 2 * BLOCK;
    consumed.checked_sub(headers).map(|map| map as u64).ok_or(Error::Damaged { reason: BAD_MAP.into() })
}

fn check_sparse(entry: &Entry) -> Result<()> {
    let Some((size, regions)) = &entry.sparse else { return Ok(()) };
    let mut end = 0;
    let mut content: u64 = 0;
    for SparseEntry { offset, length } in regions {
        let region_end = offset.checked_add(*length).filter(|region_end| *offset >= end && region_end <= size);
        end = region_end.ok_or_else(|| entry.hostile(BAD_MAP))?;
        content += length;
    }
    if content > entry.size { Err(entry.hostile(BAD_MAP)) } else { Ok(()) }
}

fn parse_error(error: ParseError, limits: &Limits) -> Error {
    match error {
        ParseError::PathTooLong { .. } => {
            Error::Limit { what: "bytes in a path", key: "path_bytes", limit: limits.path_bytes.into() }
        }
        ParseError::MetadataTooLarge { .. } => {
            Error::Limit { what: "bytes in an entry's headers", key: "header_bytes", limit: limits.header_bytes.into() }
        }
        ParseError::TooManySparseEntries { .. } => {
            let limit = limits.sparse_regions as u64;
            Error::Limit { what: "regions in a sparse file", key: "sparse_regions", limit }
        }
        other => Error::Damaged { reason: format!("the tar cannot be read: {other}") },
    }
}
