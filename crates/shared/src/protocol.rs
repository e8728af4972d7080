//! How blobs come and go, so that none is lost: reserve, publish, collect.
//!
//! Bytes are in the bucket, which orders nothing: a request may arrive late, or twice, long after whoever sent it gave up.
//! What is true is in PostgreSQL. Each blob has a row for each *generation*, a number that is drawn anew at random for
//! each upload, never used again, and part of the object's key:
//!
//! ```text
//! (absent) ──reserve──► reserved ──publish──► live ──collect──► deleting ──object deleted──► (absent)
//!                           └───────── lease ended, or another was faster ───────┘
//! ```
//!
//! At most one generation of a digest is live. A row is *held* until a time (its lease); every push that finds or makes it
//! moves that time on.
//!
//! # Who writes
//! 1. *Find*: if a generation is live, hold it, in one statement. The bytes need not be sent.
//! 2. *Reserve*: else insert a row `reserved`, held, with a new generation. No object has this key, and none had.
//! 3. *Upload* under that key, and verify: the bytes that were sent hash to the digest, and the object has their size.
//! 4. *Publish*: in a transaction, if the row is still `reserved`: make it `live`, or, if another generation is live, hold
//!    that one and move the own row to `deleting`. If the row is not `reserved` any more the upload has failed.
//! 5. *Commit of a manifest*: in the transaction that inserts it, lock the rows of its blobs (`FOR SHARE`) and look once
//!    more that all are `live`, each in the generation that the repository has; else refuse, and the client pushes again.
//!    From here on the manifest's row refers to them: a foreign key.
//!
//! # Who collects
//! 1. Lock rows (`FOR UPDATE`) that are live or reserved, whose lease has ended; then, in a second statement, which sees
//!    what was committed before the locks were had, move those to `deleting` that nothing refers to. Links of repositories
//!    to them go in the same transaction.
//! 2. After [`DELETE_AFTER`], delete the object. Deletions may be repeated.
//! 3. When the bucket has said that it is deleted, drop the row.
//!
//! Never is a row made live again: who pushes such a digest reserves a new generation.
//!
//! # Why this loses nothing
//! A late or repeated deletion names a generation that nobody will ever use again. A commit and a collection of one row wait
//! for each other: either the collector sees the reference, or the commit sees that the row is not live. A lease only
//! keeps pushes from being refused; nothing depends on clocks or on anybody being alive.
//!
//! `tests/it/protocol.rs` goes through every state of this for one digest, two pushers and a
//! collector, with delayed and repeated deletions, uploads of the dead, and leases that end at any moment. It also does so
//! without each of the rules, and finds how a blob is lost then.
//!
//! # What is left behind
//! A dead gateway's upload may arrive when its row is gone. *The sweep* lists the bucket and deletes keys that no row names
//! and that are older than [`ORPHAN_AGE`]; since generations are never used again, no row will ever name them.

use std::time::Duration;

/// For how long a push that was seen keeps what it needs, unless its operator says otherwise. A manifest that comes later is
/// refused if the collector was there, and its client pushes again.
pub const LEASE: Duration = Duration::from_secs(24 * 3600);

/// For how long an object stays when its row is `deleting`. Readers that are under way finish, URLs that were given away
/// work until they end, and a database that is restored to a time within it misses nothing.
pub const DELETE_AFTER: Duration = Duration::from_secs(24 * 3600);

/// How old an object must be that no row names to be swept.
pub const ORPHAN_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// After how long without a byte an upload is dropped.
pub const UPLOAD_AGE: Duration = Duration::from_secs(24 * 3600);
