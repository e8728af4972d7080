//! Records in groups of those that have to do with each other: the same target, the same image, or one's name has the
//! other's digest.
//!
//! # Invariants
//! - What [`changes`](super::changes) makes of all records it makes of each group by itself: no name needs a hash
//!   reference of another group.

use orlop_oci::{Digest, DigestNumber, DigestTable};

use super::digest_of;

/// Records by what they have to do with: digests that are joined when one record, or one image, has both.
#[derive(Debug, Default)]
pub(super) struct Groups {
    digests: DigestTable,
    /// By number: a digest of the same group, at the end of such steps its first one.
    joined: Vec<DigestNumber>,
    /// By record: a digest of its group.
    records: Vec<DigestNumber>,
}

impl Groups {
    /// Adds a record; they count from 0.
    pub(super) fn add(&mut self, name: &str, target: &Digest) {
        let target = self.number(target);
        if let Some(named) = digest_of(name) {
            let named = self.number(&named);
            self.join(named, target);
        }
        self.records.push(target);
    }

    /// A target is one of this image.
    pub(super) fn same_image(&mut self, target: &Digest, image: &Digest) {
        let (target, image) = (self.number(target), self.number(image));
        self.join(target, image);
    }

    /// The records of each group that has to do with any of these digests; without them, of all.
    pub(super) fn of(&self, digests: Option<&[Digest]>) -> Vec<Vec<usize>> {
        let mut wanted = vec![digests.is_none(); self.joined.len()];
        for number in digests.unwrap_or_default().iter().filter_map(|digest| self.digests.get(digest)) {
            wanted[self.first(number) as usize] = true;
        }
        let mut records: Vec<(DigestNumber, usize)> = Vec::new();
        for (at, number) in self.records.iter().enumerate() {
            let first = self.first(*number);
            if wanted[first as usize] {
                records.push((first, at));
            }
        }
        records.sort_unstable();
        records.chunk_by(|a, b| a.0 == b.0).map(|group| group.iter().map(|(_, at)| *at).collect()).collect()
    }

    fn number(&mut self, digest: &Digest) -> DigestNumber {
        let number = self.digests.add(digest);
        if number as usize == self.joined.len() {
            self.joined.push(number);
        }
        number
    }

    fn join(&mut self, a: DigestNumber, b: DigestNumber) {
        let (a, b) = (self.first(a), self.first(b));
        self.joined[a.max(b) as usize] = a.min(b);
    }

    /// Few steps: a group is a handful of digests.
    fn first(&self, mut number: DigestNumber) -> DigestNumber {
        while self.joined[number as usize] != number {
            number = self.joined[number as usize];
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::of(&[n])
    }

    #[test]
    fn records_are_together_by_target_image_and_name() {
        let mut groups = Groups::default();
        groups.add("a:1", &digest(1));
        groups.add("b:1", &digest(2));
        groups.add(&format!("a@{}", digest(1)), &digest(3));
        groups.add(&digest(9).to_string(), &digest(4));
        groups.add("c:1", &digest(4));
        groups.add("d:1", &digest(5));
        groups.same_image(&digest(2), &digest(9));
        assert_eq!(groups.of(None), [vec![0, 2], vec![1, 3, 4], vec![5]]);
        assert_eq!(groups.of(Some(&[digest(3), digest(5), digest(77)])), [vec![0, 2], vec![5]]);
        assert_eq!(groups.of(Some(&[digest(9)])), [vec![1, 3, 4]]);
        assert!(groups.of(Some(&[])).is_empty());
    }
}
