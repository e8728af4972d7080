//! The extended attributes that the inodes of an image share: each name with each value once.

use std::collections::HashMap;

use super::format::{MOST_XATTR_BYTES, broken, encode_xattr, take, xattr_name, xattr_prefix};
use crate::{Error, Result};

/// Bytes of all different attributes of one image, which are held in memory until it is complete. Real layers have some hundred.
const MOST_BYTES: usize = 64 << 20;

/// The table, as it is written.
#[derive(Debug, Default)]
pub(super) struct Table {
    bytes: Vec<u8>,
    places: HashMap<Vec<u8>, u32>,
}

impl Table {
    /// The place of an attribute; `None` if an image can have none of this name.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the value, or all values together, are too long.
    pub(super) fn place(&mut self, name: &[u8], value: &[u8]) -> Result<Option<u32>> {
        let Some((index, rest)) = xattr_prefix(name) else { return Ok(None) };
        let too_long = |reason: String| Error::Unsupported { what: "giving a file this extended attribute", reason };
        if value.len() > MOST_XATTR_BYTES || rest.len() > usize::from(u8::MAX) {
            return Err(too_long(format!("it has {} bytes; EROFS holds {MOST_XATTR_BYTES} at most", value.len())));
        }
        let entry = encode_xattr(index, rest, value);
        if let Some(place) = self.places.get(&entry) {
            return Ok(Some(*place));
        }
        if self.bytes.len() + entry.len() > MOST_BYTES {
            return Err(too_long(format!("the layer has more than {MOST_BYTES} bytes of different ones")));
        }
        let place = (self.bytes.len() / 4) as u32;
        self.bytes.extend_from_slice(&entry);
        self.places.insert(entry, place);
        Ok(Some(place))
    }

    /// What is written.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The name and the value at a place.
    pub(super) fn get(&self, place: u32) -> Result<(Vec<u8>, Vec<u8>)> {
        let (name, value, _) = parse(&self.bytes, place as usize * 4)?;
        Ok((name, value.to_vec()))
    }

    /// Takes over what another image's table has, so that places stay what they are.
    pub(super) fn load(mut bytes: Vec<u8>) -> Result<Self> {
        let (mut at, mut places) = (0, HashMap::new());
        // Behind the last one are zeros; no attribute has the number 0.
        while bytes.get(at + 1).is_some_and(|index| *index != 0) {
            let (_, _, end) = parse(&bytes, at)?;
            places.insert(bytes[at..end].to_vec(), (at / 4) as u32);
            at = end;
        }
        bytes.truncate(at);
        Ok(Self { bytes, places })
    }
}

/// The attribute at a place in bytes, and where it ends.
pub(super) fn parse(bytes: &[u8], at: usize) -> Result<(Vec<u8>, &[u8], usize)> {
    let wrong = || broken("an extended attribute");
    let head = bytes.get(at..at + 4).ok_or_else(wrong)?;
    let (name_length, value_length) = (usize::from(head[0]), usize::from(u16::from_le_bytes(take(head, 2))));
    let rest = bytes.get(at + 4..at + 4 + name_length).ok_or_else(wrong)?;
    let value = bytes.get(at + 4 + name_length..at + 4 + name_length + value_length).ok_or_else(wrong)?;
    let name = xattr_name(head[1], rest).ok_or_else(wrong)?;
    let end = at + length(head);
    if end > bytes.len() { Err(wrong()) } else { Ok((name, value, end)) }
}

/// Bytes of the attribute that begins with these four.
pub(super) fn length(head: &[u8]) -> usize {
    (4 + usize::from(head[0]) + usize::from(u16::from_le_bytes(take(head, 2)))).next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attribute_is_there_once_and_at_its_place_again() {
        let mut table = Table::default();
        let first = table.place(b"user.a", b"1").unwrap().unwrap();
        let second = table.place(b"security.capability", &[7; 20]).unwrap().unwrap();
        assert_eq!(table.place(b"user.a", b"1").unwrap(), Some(first));
        assert_ne!(table.place(b"user.a", b"2").unwrap(), Some(first));
        assert_eq!(table.place(b"odd.a", b"1").unwrap(), None);
        assert!(table.place(b"user.a", &[0; 65536]).is_err());
        let mut written = table.bytes().to_vec();
        written.resize(8192, 0);
        let mut again = Table::load(written).unwrap();
        assert_eq!(again.bytes(), table.bytes());
        assert_eq!(again.get(second).unwrap(), (b"security.capability".to_vec(), vec![7; 20]));
        assert_eq!(again.place(b"user.a", b"1").unwrap(), Some(first));
    }
}
