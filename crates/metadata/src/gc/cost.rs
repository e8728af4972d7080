//! What all records of a kind cost, whatever number of them there is.
//!
//! Most of them make no difference to what is garbage, for the reason that [`narrow`](super::narrow) has: a record that stays
//! has the same target. Here that is seen while the records are counted, in one pass over their rows; only for the few
//! that are left it is found out what would go with them.

use std::collections::HashSet;
use std::sync::Arc;

use orlop_oci::{DigestNumber, DigestTable};
use rusqlite::Connection;

use super::narrow::{self, Records};
use crate::db::unreadable;
use crate::images::size_from_column;
use crate::listing::Repeated;
use crate::{Labels, Result, Store};

/// What is written of each record besides texts: its size and two times.
const NUMBER_BYTES: u64 = 3 * 8;

/// What records of a kind cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordsCost {
    /// How many there are, in all namespaces.
    pub records: u64,
    /// The bytes of their columns, texts as they are.
    pub row_bytes: u64,
    /// How many bytes more a collection would give back if all of them were deleted first.
    pub kept_bytes: u64,
}

/// A record that is counted.
struct Counted {
    namespace: Arc<str>,
    name: String,
    target: DigestNumber,
    expired: bool,
}

/// What was seen of all records.
#[derive(Default)]
struct Seen {
    cost: RecordsCost,
    counted: Vec<Counted>,
    /// Targets of unexpired records that are not counted.
    staying: HashSet<(Arc<str>, DigestNumber)>,
}

impl Store {
    /// What the records cost of which `is_counted` says so, by name and labels.
    pub fn cost_of_records(&self, is_counted: impl Fn(&str, &Labels) -> bool) -> Result<RecordsCost> {
        let now = self.now();
        let (cost, planned) = self.read(|conn| {
            let seen = see(conn, now, is_counted)?;
            let cost = seen.cost;
            Ok((cost, super::with_and_without(conn, now, &seen.telling(conn)?)?))
        })?;
        Ok(RecordsCost { kept_bytes: self.bytes_between(planned), ..cost })
    }
}

impl Seen {
    /// Counted records that can make a difference.
    fn telling(self, conn: &Connection) -> Result<Records> {
        let mut stating: Option<(Arc<str>, HashSet<String>)> = None;
        let mut telling = Records::new();
        for Counted { namespace, name, target, expired } in self.counted {
            // They come by namespace.
            if stating.as_ref().is_none_or(|(of, _)| *of != namespace) {
                stating = Some((namespace.clone(), narrow::stating(conn, &namespace)?));
            }
            let states = stating.as_ref().is_some_and(|(_, names)| names.contains(&name));
            if expired || states || !self.staying.contains(&(namespace.clone(), target)) {
                telling.insert((namespace.to_string(), name));
            }
        }
        Ok(telling)
    }
}

fn see(conn: &Connection, now: i64, is_counted: impl Fn(&str, &Labels) -> bool) -> Result<Seen> {
    let mut query = conn.prepare_cached(
        "SELECT namespace, name, digest, labels, octet_length(namespace) + octet_length(name) + octet_length(digest)
             + octet_length(media_type), coalesce(expires < ?1, 0) FROM image ORDER BY namespace, name",
    )?;
    let mut rows = query.query([now])?;
    let (mut seen, mut digests) = (Seen::default(), DigestTable::default());
    let (mut labels, mut namespace) = (Repeated::default(), Arc::<str>::default());
    while let Some(row) = rows.next()? {
        let text = |index| row.get_ref(index)?.as_str().map_err(rusqlite::Error::from);
        if text(0)? != &*namespace {
            namespace = text(0)?.into();
        }
        let (name, labels, expired) = (text(1)?, labels.of(row, 3)?, row.get(5)?);
        let target = digests.add_text(text(2)?).map_err(|e| unreadable(2, e))?;
        if is_counted(name, &labels) {
            let of_labels: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
            seen.cost.records += 1;
            seen.cost.row_bytes += size_from_column(row.get(4)?) + of_labels as u64 + NUMBER_BYTES;
            seen.counted.push(Counted { namespace: namespace.clone(), name: name.to_owned(), target, expired });
        } else if !expired {
            seen.staying.insert((namespace.clone(), target));
        }
    }
    Ok(seen)
}
