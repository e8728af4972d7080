//! A tar writer that can also write what no sane program would.
//!
//! It is not the writer (nor the reader) that Orlop uses, so that a mistake in one is not hidden by the same mistake in
//! the other. Names that do not fit a ustar header become PAX records, or GNU long-name entries with [`Style::Gnu`].

/// The size of a tar block, in bytes.
pub const BLOCK: usize = 512;

/// How things that a ustar header has no room for are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Style {
    /// PAX records: paths, links, sizes, owners, sub-second times, xattrs.
    #[default]
    Pax,
    /// GNU: `././@LongLink` entries and base-256 numbers. No xattrs, no sub-second times.
    Gnu,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file with its content.
    File(Vec<u8>),
    /// A regular file of holes and extents `(offset, bytes)`, `size` bytes long.
    Sparse {
        /// The length that the file appears to have.
        size: u64,
        /// What is not a hole, ascending, not overlapping.
        extents: Vec<(u64, Vec<u8>)>,
    },
    /// A directory.
    Dir,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A hard link and the path it links to.
    Hardlink(Vec<u8>),
    /// A character device, major and minor.
    Char(u32, u32),
    /// A block device, major and minor.
    Block(u32, u32),
    /// A fifo.
    Fifo,
    /// Any other type flag, with data.
    Other(u8, Vec<u8>),
}

/// One entry of a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path as it is to stand in the tar; directories get a slash appended.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, set-user-ID and so on.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, written as `SCHILY.xattr.` records.
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// Further PAX records, written as they are.
    pub pax: Vec<(String, Vec<u8>)>,
}

impl Entry {
    /// An entry of any kind with mode 0644, owner 0:0 and a fixed time.
    pub fn new(path: impl AsRef<[u8]>, kind: Kind) -> Self {
        let path = path.as_ref().to_vec();
        Self { path, kind, mode: 0o644, uid: 0, gid: 0, mtime: (1_700_000_000, 0), xattrs: Vec::new(), pax: Vec::new() }
    }

    /// A regular file.
    pub fn file(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::File(content.as_ref().to_vec()))
    }

    /// A directory of mode 0755.
    pub fn dir(path: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::Dir).mode(0o755)
    }

    /// A symbolic link of mode 0777.
    pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::Symlink(target.as_ref().to_vec())).mode(0o777)
    }

    /// A hard link.
    pub fn hardlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::Hardlink(target.as_ref().to_vec()))
    }

    /// The file that says `path` of a lower layer is gone.
    pub fn whiteout(path: &str) -> Self {
        let (parent, name) = path.rsplit_once('/').map_or(("", path), |(p, n)| (p, n));
        let slash = if parent.is_empty() { "" } else { "/" };
        Self::file(format!("{parent}{slash}.wh.{name}"), "")
    }

    /// The file that says nothing of lower layers is left in the directory `path`.
    pub fn opaque(path: &str) -> Self {
        Self::file(format!("{path}/.wh..wh..opq"), "")
    }

    /// Sets the permission bits.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Sets owner and group.
    #[must_use]
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Sets the modification time.
    #[must_use]
    pub fn mtime(mut self, seconds: i64, nanoseconds: u32) -> Self {
        self.mtime = (seconds, nanoseconds);
        self
    }

    /// Adds an extended attribute.
    #[must_use]
    pub fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.xattrs.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// Adds a PAX record.
    #[must_use]
    pub fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.to_owned(), value.as_ref().to_vec()));
        self
    }
}

/// Writes entries, one after another, into memory.
#[derive(Debug, Clone, Default)]
pub struct TarBuilder {
    out: Vec<u8>,
    style: Style,
}

impl TarBuilder {
    /// Starts an empty tar in PAX style.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts an empty tar in another style.
    pub fn with_style(style: Style) -> Self {
        Self { out: Vec::new(), style }
    }

    /// Adds an entry.
    pub fn push(&mut self, entry: &Entry) -> &mut Self {
        let (flag, link, data, size, devices) = parts(entry);
        let mut path = entry.path.clone();
        if entry.kind == Kind::Dir && !path.ends_with(b"/") {
            path.push(b'/');
        }
        match self.style {
            Style::Pax => self.pax_records(entry, &path, &link, size),
            Style::Gnu => self.gnu_long_names(&path, &link),
        }
        let mut header = Header::new(flag);
        header.name(&path).link(&link).mode(entry.mode).devices(devices);
        if self.style == Style::Pax {
            header.octal_or_zero(UID, entry.uid).octal_or_zero(GID, entry.gid);
            header.octal_or_zero(SIZE, size).octal_or_zero(MTIME, u64::try_from(entry.mtime.0).unwrap_or(0));
        } else {
            header.number(UID, i128::from(entry.uid)).number(GID, i128::from(entry.gid));
            header.number(SIZE, i128::from(size)).number(MTIME, i128::from(entry.mtime.0));
            header.gnu();
        }
        self.header(&mut header).data(&data)
    }

    /// Adds several entries.
    pub fn extend<'a>(&mut self, entries: impl IntoIterator<Item = &'a Entry>) -> &mut Self {
        for entry in entries {
            self.push(entry);
        }
        self
    }

    /// Adds a header block as it is, its checksum computed.
    pub fn header(&mut self, header: &mut Header) -> &mut Self {
        self.raw(&header.checksummed())
    }

    /// Adds data, padded to whole blocks.
    pub fn data(&mut self, data: &[u8]) -> &mut Self {
        self.raw(data);
        let padding = data.len().next_multiple_of(BLOCK) - data.len();
        self.raw(&vec![0; padding])
    }

    /// Adds bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    /// The tar with its two zero blocks.
    pub fn finish(&self) -> Vec<u8> {
        let mut out = self.out.clone();
        out.resize(out.len() + 2 * BLOCK, 0);
        out
    }

    /// The tar without the zero blocks.
    pub fn unfinished(&self) -> Vec<u8> {
        self.out.clone()
    }

    fn pax_records(&mut self, entry: &Entry, path: &[u8], link: &[u8], size: u64) {
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        let mut add = |key: &str, value: Vec<u8>| records.push((key.to_owned(), value));
        if path.len() > NAME.1 {
            add("path", path.to_vec());
        }
        if link.len() > LINK.1 {
            add("linkpath", link.to_vec());
        }
        for (key, value, field) in [("uid", entry.uid, UID), ("gid", entry.gid, GID), ("size", size, SIZE)] {
            if value > field.largest() {
                add(key, value.to_string().into_bytes());
            }
        }
        if entry.mtime.1 != 0 || entry.mtime.0 < 0 {
            add("mtime", pax_time(entry.mtime).into_bytes());
        }
        if let Kind::Sparse { size, .. } = &entry.kind {
            add("GNU.sparse.major", b"1".to_vec());
            add("GNU.sparse.minor", b"0".to_vec());
            add("GNU.sparse.name", path.to_vec());
            add("GNU.sparse.realsize", size.to_string().into_bytes());
        }
        for (name, value) in &entry.xattrs {
            add(&format!("SCHILY.xattr.{name}"), value.clone());
        }
        records.extend(entry.pax.iter().cloned());
        if !records.is_empty() {
            self.pax_header(b'x', &records);
        }
    }

    /// Adds a PAX header: `x` for the next entry, `g` for all that follow.
    pub fn pax_header(&mut self, flag: u8, records: &[(String, Vec<u8>)]) -> &mut Self {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        let mut header = Header::new(flag);
        header
            .name(if flag == b'g' { b"pax_global_header" } else { b"PaxHeaders/entry" })
            .mode(0o644)
            .octal_or_zero(SIZE, body.len() as u64);
        self.header(&mut header).data(&body)
    }

    fn gnu_long_names(&mut self, path: &[u8], link: &[u8]) {
        for (flag, text, field) in [(b'L', path, NAME), (b'K', link, LINK)] {
            if text.len() > field.1 {
                let mut body = text.to_vec();
                body.push(0);
                let mut header = Header::new(flag);
                header.name(b"././@LongLink").octal_or_zero(SIZE, body.len() as u64).gnu();
                self.header(&mut header).data(&body);
            }
        }
    }
}

/// `length key=value\n`, the length counting itself.
pub fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

fn pax_time((seconds, nanoseconds): (i64, u32)) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let (sign, total) = if total < 0 { ("-", -total) } else { ("", total) };
    format!("{sign}{}.{:09}", total / 1_000_000_000, total % 1_000_000_000)
}

type Parts = (u8, Vec<u8>, Vec<u8>, u64, Option<(u32, u32)>);

fn parts(entry: &Entry) -> Parts {
    let none = Vec::new;
    match &entry.kind {
        Kind::File(content) => (b'0', none(), content.clone(), content.len() as u64, None),
        Kind::Sparse { size, extents } => {
            let data = sparse_data(*size, extents);
            let length = data.len() as u64;
            (b'0', none(), data, length, None)
        }
        Kind::Dir => (b'5', none(), none(), 0, None),
        Kind::Symlink(target) => (b'2', target.clone(), none(), 0, None),
        Kind::Hardlink(target) => (b'1', target.clone(), none(), 0, None),
        Kind::Char(major, minor) => (b'3', none(), none(), 0, Some((*major, *minor))),
        Kind::Block(major, minor) => (b'4', none(), none(), 0, Some((*major, *minor))),
        Kind::Fifo => (b'6', none(), none(), 0, None),
        Kind::Other(flag, data) => (*flag, none(), data.clone(), data.len() as u64, None),
    }
}

/// The map and the extents of PAX sparse format 1.0. A file that ends in a hole has an empty extent at its end.
fn sparse_data(size: u64, extents: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut list: Vec<(u64, &[u8])> = extents.iter().map(|(offset, bytes)| (*offset, bytes.as_slice())).collect();
    if list.last().is_none_or(|(offset, bytes)| offset + (bytes.len() as u64) < size) {
        list.push((size, &[]));
    }
    let mut map = format!("{}\n", list.len());
    for (offset, bytes) in &list {
        map.push_str(&format!("{offset}\n{}\n", bytes.len()));
    }
    let mut data = map.into_bytes();
    data.resize(data.len().next_multiple_of(BLOCK), 0);
    data.extend(list.iter().flat_map(|(_, bytes)| bytes.iter()));
    data
}

/// A field of a header: offset and length in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Field(pub usize, pub usize);

/// The name, 100 bytes.
pub const NAME: Field = Field(0, 100);
/// The mode.
pub const MODE: Field = Field(100, 8);
/// The owner.
pub const UID: Field = Field(108, 8);
/// The group.
pub const GID: Field = Field(116, 8);
/// The size.
pub const SIZE: Field = Field(124, 12);
/// The modification time.
pub const MTIME: Field = Field(136, 12);
/// The link target, 100 bytes.
pub const LINK: Field = Field(157, 100);
/// The device's major number.
pub const DEV_MAJOR: Field = Field(329, 8);
/// The device's minor number.
pub const DEV_MINOR: Field = Field(337, 8);
const CHECKSUM: Field = Field(148, 8);

impl Field {
    /// The largest number that fits as octal digits and a NUL.
    const fn largest(self) -> u64 {
        (1 << (3 * (self.1 - 1))) - 1
    }
}

/// A header block under construction.
#[derive(Debug, Clone)]
pub struct Header([u8; BLOCK]);

impl Header {
    /// A ustar header with a type flag and nothing else.
    pub fn new(flag: u8) -> Self {
        let mut block = [0; BLOCK];
        block[156] = flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        let mut header = Self(block);
        for field in [MODE, UID, GID, SIZE, MTIME] {
            header.octal_or_zero(field, 0);
        }
        header
    }

    /// Marks it as GNU tar's own format.
    pub fn gnu(&mut self) -> &mut Self {
        self.0[257..265].copy_from_slice(b"ustar  \0");
        self
    }

    /// Sets the name; what does not fit is cut off.
    pub fn name(&mut self, name: &[u8]) -> &mut Self {
        self.set(NAME, name)
    }

    /// Sets the link target; what does not fit is cut off.
    pub fn link(&mut self, target: &[u8]) -> &mut Self {
        self.set(LINK, target)
    }

    /// Sets the mode.
    pub fn mode(&mut self, mode: u32) -> &mut Self {
        self.octal_or_zero(MODE, u64::from(mode))
    }

    fn devices(&mut self, devices: Option<(u32, u32)>) -> &mut Self {
        if let Some((major, minor)) = devices {
            self.octal_or_zero(DEV_MAJOR, u64::from(major)).octal_or_zero(DEV_MINOR, u64::from(minor));
        }
        self
    }

    /// Sets a field to bytes as they are; what does not fit is cut off.
    pub fn set(&mut self, field: Field, bytes: &[u8]) -> &mut Self {
        let length = bytes.len().min(field.1);
        self.0[field.0..field.0 + field.1].fill(0);
        self.0[field.0..field.0 + length].copy_from_slice(&bytes[..length]);
        self
    }

    /// Sets a number in octal, or 0 if it does not fit (a PAX record then has it).
    pub fn octal_or_zero(&mut self, field: Field, value: u64) -> &mut Self {
        let value = if value > field.largest() { 0 } else { value };
        self.set(field, format!("{value:0width$o}", width = field.1 - 1).as_bytes())
    }

    /// Sets a number in octal, or in base 256 if it is negative or does not fit.
    pub fn number(&mut self, field: Field, value: i128) -> &mut Self {
        match u64::try_from(value) {
            Ok(small) if small <= field.largest() => self.octal_or_zero(field, small),
            _ => self.base256(field, value),
        }
    }

    /// Sets a number in base 256.
    pub fn base256(&mut self, field: Field, value: i128) -> &mut Self {
        let bytes = value.to_be_bytes();
        let mut field_bytes = bytes[bytes.len() - field.1..].to_vec();
        field_bytes[0] |= 0x80;
        self.set(field, &field_bytes)
    }

    /// The block with its checksum.
    pub fn checksummed(&mut self) -> [u8; BLOCK] {
        self.set(CHECKSUM, b"        ");
        let sum: u32 = self.0.iter().map(|b| u32::from(*b)).sum();
        self.set(CHECKSUM, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

/// A tar of these entries.
pub fn tar<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Vec<u8> {
    TarBuilder::new().extend(entries).finish()
}
