//! Where the bytes of a blob are that is given, and who takes one to give it on.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use orlop_content::BlobReader;
use orlop_oci::Digest;
use tokio::sync::watch;

use crate::relay::{Coming, Relays, Stage, Stand};
use crate::shelf::Shelf;

/// The bytes of a blob.
pub(super) enum Bytestream {
    /// All of them are here.
    Whole(Arc<dyn BlobReader>),
    /// They are coming.
    Coming {
        /// What of them is here.
        coming: Arc<Coming>,
        /// Tells when there are more.
        follows: watch::Receiver<Stage>,
    },
}

impl Bytestream {
    /// A blob for who has the first `known` bytes, if it can be had; else how it stands to him. That nothing is known of it is as if less
    /// were here.
    pub(super) async fn find(
        (shelf, relays): (&Shelf, &Relays),
        digest: &Digest,
        known: u64,
        gives_on: bool,
    ) -> Result<Self, Stand> {
        let coming = relays.get(digest);
        let is_whole = coming.as_ref().is_none_or(|coming| coming.stage().is_right == Some(true));
        if is_whole && let Some(reader) = shelf.open(digest).await {
            return Ok(Self::Whole(reader));
        }
        let coming = coming.ok_or(Stand::Behind)?;
        match coming.stands(known) {
            Stand::Gives => {}
            // Who gives nothing on closes no circle.
            Stand::Follows if !gives_on => {}
            _ if !gives_on => return Err(Stand::Behind),
            stand => return Err(stand),
        }
        let follows = coming.follow();
        Ok(Self::Coming { coming, follows })
    }

    /// Bytes in all.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Whole(reader) => reader.size(),
            Self::Coming { coming, .. } => coming.size,
        }
    }

    /// How much is here, if not all of it.
    pub(super) fn has(&self) -> Option<u64> {
        match self {
            Self::Whole(_) => None,
            Self::Coming { coming, .. } => {
                let Stage { has, is_right, .. } = coming.stage();
                (is_right != Some(true)).then_some(has)
            }
        }
    }

    /// Up to `length` bytes from `start` on, when there are any. The last one of a blob that comes waits until all are hashed.
    ///
    /// # Errors
    /// If there will be none. The connection is to break then, which is how the peer learns of it.
    pub(super) async fn read(&mut self, start: u64, length: u64) -> io::Result<Bytes> {
        let (reader, length) = match self {
            Self::Whole(reader) => (Arc::clone(reader), length),
            Self::Coming { coming, follows } => {
                let last = coming.size.saturating_sub(1);
                let is_there = |stage: &Stage| stage.is_right.is_some() || stage.has.min(last) > start;
                let stage = follows.wait_for(is_there).await.map(|stage| *stage);
                let end = match stage.map(|stage| (stage.is_right, stage.has)) {
                    Ok((Some(true), _)) => coming.size,
                    Ok((None, has)) => has.min(last),
                    Ok((Some(false), _)) | Err(_) => return Err(io::Error::other("the blob does not come to its end")),
                };
                (Arc::clone(&coming.bytes), length.min(end.saturating_sub(start)))
            }
        };
        let piece = reader.read_at(start, usize::try_from(length).unwrap_or(usize::MAX)).await;
        let piece = piece.map_err(io::Error::other)?;
        if piece.is_empty() { Err(io::Error::other("the blob is shorter than it was")) } else { Ok(piece) }
    }
}

/// Where those are who take a blob and give it on. Cheap to clone.
#[derive(Clone)]
pub(super) struct Takers {
    of: Arc<Mutex<HashMap<Digest, Vec<IpAddr>>>>,
    /// So many for each blob.
    most: usize,
}

impl Takers {
    pub(super) fn new(most: usize) -> Self {
        Self { of: Arc::default(), most: most.max(1) }
    }

    /// One more who takes a blob; or where those are who have all places.
    pub(super) fn take(&self, digest: &Digest, from: IpAddr) -> Result<Taker, Vec<IpAddr>> {
        let mut all = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let takers = all.entry(digest.clone()).or_default();
        if takers.len() >= self.most {
            return Err(takers.clone());
        }
        takers.push(from);
        Ok(Taker { takers: self.clone(), digest: digest.clone(), from })
    }
}

/// One who takes a blob and gives it on, as long as this lives.
pub(super) struct Taker {
    takers: Takers,
    digest: Digest,
    from: IpAddr,
}

impl Drop for Taker {
    fn drop(&mut self) {
        let mut all = self.takers.of.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(takers) = all.get_mut(&self.digest) else { return };
        if let Some(at) = takers.iter().position(|taker| *taker == self.from) {
            takers.swap_remove(at);
        }
        if takers.is_empty() {
            all.remove(&self.digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use futures::FutureExt;
    use orlop_image::Source;

    use super::*;

    struct All(Bytes);

    #[async_trait]
    impl BlobReader for All {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        async fn read_at(&self, offset: u64, length: usize) -> orlop_content::Result<Bytes> {
            let start = usize::try_from(offset).unwrap();
            Ok(self.0.slice(start..self.0.len().min(start + length)))
        }
    }

    fn coming() -> (Arc<Coming>, Bytestream) {
        let coming = Arc::new(Coming::at(Stage { has: 0, fed: None, is_right: None }, Arc::new(All("abcdef".into()))));
        (Arc::clone(&coming), Bytestream::Coming { follows: coming.follow(), coming })
    }

    fn stage(has: u64, is_right: Option<bool>) -> Stage {
        Stage { has, fed: Some(Source::Registry), is_right }
    }

    #[tokio::test]
    async fn the_last_byte_is_given_when_all_are_right_and_never_if_they_are_not() {
        for is_right in [true, false] {
            let (coming, mut given) = coming();
            assert!(given.read(0, 9).now_or_never().is_none(), "nothing is here");
            coming.tell(stage(4, None));
            assert_eq!(given.read(1, 9).await.unwrap(), "bcd");
            coming.tell(stage(6, None));
            assert_eq!(given.read(4, 9).await.unwrap(), "e");
            assert!(given.read(5, 9).now_or_never().is_none(), "it is not known whether they are right");
            assert_eq!(given.has(), Some(6));
            coming.tell(stage(6, Some(is_right)));
            assert_eq!(given.read(5, 9).await.ok(), is_right.then(|| Bytes::from("f")));
            assert_eq!(given.has().is_none(), is_right);
        }
    }

    #[test]
    fn places_are_free_again_and_those_who_have_them_are_told_of() {
        let (takers, digest) = (Takers::new(2), Digest::of(b"x"));
        let at = |last| IpAddr::from([10, 0, 0, last]);
        let held: Vec<Taker> = [1, 2].map(|last| takers.take(&digest, at(last)).ok().unwrap()).into();
        assert_eq!(takers.take(&digest, at(3)).err().unwrap(), [at(1), at(2)]);
        drop(takers.take(&Digest::of(b"y"), at(3)).ok().unwrap());
        drop(held);
        assert!(takers.of.lock().unwrap().is_empty());
    }
}
