//! Where damaged bytes are set aside: `ROOT/quarantine/<entry>/`.
//!
//! Nothing reads from there; the bytes are kept for whoever wants to know what happened, or has no other copy.
//!
//! # Invariants
//! - The row of `damage` that names an entry is written before anything is moved into it. Killed in between, the bytes are still
//!   in their place, and whoever looks again finds them damaged again, or sound.
//! - An entry that no row names belongs to something that is mended, or gone: it goes when it is old enough. Others stay.
//!
//! # Concurrency
//! Any number may set aside at the same time: what is moved is what was read ([`orlop_content::Quarantine`]). Entries are
//! removed under the collector's lock.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_content::{self as content, Flaw};
use orlop_oci::Digest;
use rand::RngExt;

use crate::damage::{self, Damage, Damaged};
use crate::db::from_nanos;
use crate::gc::{self, io_error};
use crate::{Result, Store};

/// The directory within the root.
const DIRECTORY: &str = "quarantine";

/// An entry younger than that stays, named or not: its row may be about to be written.
const SAFE_AGE: Duration = Duration::from_secs(3600);

impl Store {
    /// Reads a blob anew. One that is not what its name says is set aside, and what was found is remembered; nothing if it is
    /// sound, or no namespace has it. Blocks.
    ///
    /// # Durability
    /// When this returns damage, nobody is given those bytes any more, after a power cut too.
    pub fn quarantine_blob(&self, digest: &Digest) -> Result<Option<Damage>> {
        let Some((_, size, _)) = self.blob_rows(digest)?.into_iter().next() else { return Ok(None) };
        let raw = self.raw_content();
        let flaw = gc::block_on(content::examine(&**raw, digest, Some(size), &()))?;
        let (Some(flaw), Some(ability)) = (&flaw, raw.quarantine()) else { return self.noted(digest, flaw) };
        let (what, entry) = (Damaged::Blob(digest.clone()), self.new_entry());
        let before = self.damage_of(&what)?.and_then(|damage| damage.quarantine);
        // What is missing leaves nothing to set aside, and what was set aside before stays named.
        self.put_damage(&what, flaw, (*flaw != Flaw::Missing).then_some(entry.as_str()))?;
        gc::make_private(&self.root().join(DIRECTORY))?;
        let bin = self.quarantine_directory(&entry);
        if gc::block_on(ability.set_aside(digest, Some(size), &bin))?.is_none() {
            return self.noted(digest, None);
        }
        let aside = bin.join("blobs").join(digest.algorithm().as_str()).join(digest.hex());
        if *flaw != Flaw::Missing && aside.symlink_metadata().is_err() {
            // Another one was faster.
            self.lent_together("note damage", |tx| damage::place(tx, &what, before.as_deref()))?;
        }
        self.damage_of(&what)
    }

    /// Remembers what an examination found.
    fn noted(&self, digest: &Digest, flaw: Option<Flaw>) -> Result<Option<Damage>> {
        let what = Damaged::Blob(digest.clone());
        match flaw {
            Some(flaw) => self.put_damage(&what, &flaw, None)?,
            None if self.damage_of(&what)?.is_some() => self.forget_damage(&what)?,
            None => return Ok(None),
        }
        self.damage_of(&what)
    }

    /// The entries of the quarantine, oldest first.
    pub fn quarantined_entries(&self) -> Result<Vec<String>> {
        let directory = self.root().join(DIRECTORY);
        let entries = match std::fs::read_dir(&directory) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io_error("list", &directory))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry.map_err(io_error("list", &directory))?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    /// Removes entries whose damage is mended, or whose object is gone, if they are older than that. Returns how many went.
    pub fn empty_quarantine(&self, max_age: Duration) -> Result<usize> {
        self.forget_the_gone()?;
        let entries = self.quarantined_entries()?;
        if entries.is_empty() {
            return Ok(0);
        }
        let _lock = gc::lock(self)?;
        let named: HashSet<String> = self.damages()?.into_iter().filter_map(|damage| damage.quarantine).collect();
        let mut removed = 0;
        for entry in entries.into_iter().filter(|entry| !named.contains(entry)) {
            let path = self.quarantine_directory(&entry);
            if self.age(&path) >= max_age.max(SAFE_AGE) {
                orlop_snapshot::remove_tree(&path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Drops what is known of objects that are no more.
    fn forget_the_gone(&self) -> Result<()> {
        const GONE: &str = "FROM damage WHERE
              (kind = 'content' AND NOT EXISTS (SELECT 1 FROM blob WHERE digest = damage.name))
           OR (kind LIKE 'snapshots/%' AND NOT EXISTS (SELECT 1 FROM snapshot WHERE id = CAST(damage.name AS INTEGER)))";
        if !self.read(|conn| Ok(conn.prepare_cached(&format!("SELECT 1 {GONE}"))?.exists([])?))? {
            return Ok(());
        }
        self.lent_together("forget damage", |tx| {
            tx.execute(&format!("DELETE {GONE}"), [])?;
            Ok(())
        })
    }

    /// How long ago something was put into an entry.
    fn age(&self, path: &Path) -> Duration {
        let Ok(meta) = std::fs::symlink_metadata(path) else { return Duration::ZERO };
        let changed = meta.ctime().saturating_mul(1_000_000_000).saturating_add(meta.ctime_nsec());
        Duration::from_nanos(u64::try_from(self.now().saturating_sub(changed)).unwrap_or(0))
    }

    /// The name of a new entry: it sorts by time; the random part keeps apart what one clock tick brings.
    pub(crate) fn new_entry(&self) -> String {
        let now = from_nanos(self.now()).strftime("%Y%m%dT%H%M%SZ");
        format!("{now}-{:08x}", rand::rng().random::<u32>())
    }

    /// Where the bytes of an entry are.
    pub fn quarantine_directory(&self, entry: &str) -> PathBuf {
        self.root().join(DIRECTORY).join(entry)
    }
}
