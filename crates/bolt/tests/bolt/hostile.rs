//! Files that somebody made to harm, and ones that another kind of machine made.

use std::io;

use orlop_bolt::{Db, Error, MAX_RUN_BYTES, Source};

use crate::{Counted, SMALL, dump};

const PAGE: usize = 1024;

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(wide)
}

/// The pages in use whose flags are these.
fn pages(bytes: &[u8], flags: u64) -> Vec<usize> {
    let db = Db::open(&bytes).map(|db| db.meta().pages).unwrap();
    (2..db as usize).filter(|page| number::<2>(bytes, page * PAGE + 8) == flags).collect()
}

/// Where a branch page names its pages.
fn children(bytes: &[u8], page: usize) -> Vec<usize> {
    let count = number::<2>(bytes, page * PAGE + 10) as usize;
    (0..count).map(|index| page * PAGE + 16 + index * 16 + 8).collect()
}

#[test]
fn a_branch_that_names_any_other_page_is_noticed_and_ends() {
    let (mut tried, mut unnoticed) = (0, 0);
    for branch in pages(SMALL, 1) {
        for at in children(SMALL, branch) {
            let right = number::<8>(SMALL, at);
            for wrong in (0..40).chain([u64::MAX, u64::MAX / PAGE as u64]).filter(|wrong| *wrong != right) {
                let mut bytes = SMALL.to_vec();
                bytes[at..at + 8].copy_from_slice(&wrong.to_le_bytes());
                let source = Counted::new(&bytes);
                let Ok(db) = Db::open(&source) else { continue };
                // A page that fits, of a bucket that nothing else names any more, is as good as the right one.
                unnoticed += usize::from(dump(&db).is_ok());
                assert!(source.read.get() < 3 * bytes.len() as u64);
                tried += 1;
            }
        }
    }
    assert!(tried > 100 && unnoticed < tried / 50, "{unnoticed} of {tried} were not noticed");
}

#[test]
fn a_bucket_in_itself_is_noticed() {
    // The bucket `last` is in `below`, which is in `top`: its root is made each of theirs.
    let db = Db::open(&SMALL).unwrap();
    let top = db.root().bucket(b"top").unwrap().unwrap();
    let below = top.bucket(b"below").unwrap().unwrap();
    assert!(below.bucket(b"last").unwrap().is_some());
    let roots: Vec<usize> =
        (0..SMALL.len() - 4).filter(|at| &SMALL[*at..*at + 4] == b"last").map(|at| at + 4).collect();
    let mut tried = 0;
    for at in roots {
        for page in 2..db.meta().pages {
            let mut bytes = SMALL.to_vec();
            if number::<8>(SMALL, at) == page {
                continue;
            }
            bytes[at..at + 8].copy_from_slice(&page.to_le_bytes());
            let Err(errors) = dump(&Db::open(&bytes).unwrap()) else { continue };
            tried += 1;
            assert!(
                errors.iter().all(|e| {
                    matches!(
                        e,
                        Error::Shared { .. } | Error::PageKind { .. } | Error::PageId { .. } | Error::Outside { .. }
                    )
                }),
                "{errors:?}"
            );
        }
    }
    assert!(tried > 5, "{tried}");
}

#[test]
fn what_is_behind_a_damaged_page_is_still_read() {
    let sound = dump(&Db::open(&SMALL).unwrap()).unwrap().len();
    let leaves = pages(SMALL, 2);
    let mut rest = Vec::new();
    for leaf in leaves {
        let mut bytes = SMALL.to_vec();
        bytes[leaf * PAGE + 8] = 0x40;
        let db = Db::open(&bytes).unwrap();
        let (mut lines, mut errors) = (Vec::new(), Vec::new());
        crate::list(&db.root(), &mut lines, &mut errors);
        if let [error] = &errors[..] {
            assert!(error.to_string().contains(&format!("page {leaf} (at byte {})", leaf * PAGE)), "{error}");
            rest.push(sound - lines.len());
        }
    }
    // Each damaged leaf of a tree costs its own keys and no others.
    assert!(rest.len() > 5 && rest.iter().filter(|lost| **lost < sound / 2).count() > 4, "{rest:?} of {sound}");
}

/// A file of many terabytes that holds nothing: only what the small one says.
struct Sparse(Vec<u8>);

impl Source for Sparse {
    fn size(&self) -> io::Result<u64> {
        Ok(1 << 50)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        assert!(buffer.len() as u64 <= MAX_RUN_BYTES, "{} bytes at once", buffer.len());
        buffer.fill(0);
        let rest = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..)).unwrap_or_default();
        let both = rest.len().min(buffer.len());
        buffer[..both].copy_from_slice(&rest[..both]);
        Ok(())
    }
}

#[test]
fn a_page_that_says_it_runs_on_without_end_takes_no_memory() {
    let mut bytes = SMALL.to_vec();
    let db = Db::open(&SMALL).unwrap();
    let (meta, root) = (*db.meta(), db.meta().root as usize);
    bytes[root * PAGE + 12..root * PAGE + 16].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = dump(&Db::open(&bytes).unwrap()).unwrap_err().remove(0);
    assert!(matches!(error, Error::Outside { overflow: u32::MAX, .. }), "{error}");
    // And if the file says that there are as many pages.
    let at = usize::from(meta.page) * PAGE + 16;
    bytes[at + 40..at + 48].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    sum(&mut bytes[at..]);
    let sparse = Sparse(bytes);
    let error = dump(&Db::open(&sparse).unwrap()).unwrap_err().remove(0);
    assert!(matches!(error, Error::LongRun { limit: MAX_RUN_BYTES, .. }), "{error}");
}

fn sum(meta: &mut [u8]) {
    let sum = meta[..56]
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    meta[56..64].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn values_that_lie_over_each_other_are_no_way_to_much_memory() {
    let mut tried = 0;
    for leaf in pages(SMALL, 2) {
        let mut bytes = SMALL.to_vec();
        let count = number::<2>(SMALL, leaf * PAGE + 10) as usize;
        for element in (0..count).map(|index| leaf * PAGE + 16 + index * 16) {
            // Each value reaches to the end of its page.
            let key = element + (number::<4>(SMALL, element + 4) + number::<4>(SMALL, element + 8)) as usize;
            let value = ((leaf + 1) * PAGE).saturating_sub(key) as u32;
            bytes[element + 12..element + 16].copy_from_slice(&value.to_le_bytes());
        }
        let Err(errors) = dump(&Db::open(&bytes).unwrap()) else { continue };
        tried += usize::from(errors.iter().any(|error| matches!(error, Error::Element { .. })));
    }
    assert!(tried > 3, "{tried}");
}

#[test]
fn buckets_in_values_of_buckets_end_too() {
    // A value that is a bucket with one bucket in it, and so on, for as long as there is room: bbolt makes none in another.
    let mut page = Vec::new();
    for _ in 0..400 {
        let value = [vec![0; 16], page].concat();
        let element = [1, 16, 1, value.len() as u32].map(u32::to_le_bytes).concat();
        page = [&header(0, 2, 1)[..], &element, b"b", if value.len() > 16 { &value } else { &[] }].concat();
        if value.len() == 16 {
            page = header(0, 2, 0).to_vec();
        }
    }
    let value = [vec![0; 16], page].concat();
    let element = [1, 16, 1, value.len() as u32].map(u32::to_le_bytes).concat();
    let mut bytes = SMALL.to_vec();
    let root = Db::open(&SMALL).unwrap().meta().root as usize * PAGE;
    let run = (root + PAGE + value.len()).div_ceil(PAGE) - root / PAGE;
    bytes.resize((root + run * PAGE).max(bytes.len()), 0);
    let mut head = header((root / PAGE) as u64, 2, 1);
    head[12..16].copy_from_slice(&(run as u32 - 1).to_le_bytes());
    let whole = [&head[..], &element, b"b", &value].concat();
    bytes[root..root + whole.len()].copy_from_slice(&whole);
    let at = usize::from(Db::open(&bytes).unwrap().meta().page) * PAGE + 16;
    let pages = (bytes.len() / PAGE) as u64;
    bytes[at + 40..at + 48].copy_from_slice(&pages.to_le_bytes());
    sum(&mut bytes[at..]);
    let db = Db::open(&bytes).unwrap();
    let (mut bucket, mut depth) = (db.root(), 0);
    let error = loop {
        match bucket.bucket(b"b") {
            Ok(Some(below)) => bucket = below,
            Ok(None) => panic!("it ended by itself at {depth}"),
            Err(error) => break error,
        }
        depth += 1;
    };
    assert_eq!(depth, orlop_bolt::MAX_NESTING);
    assert!(matches!(error, Error::TooDeep { what: "buckets", .. }), "{error}");
}

fn header(id: u64, flags: u16, count: u16) -> [u8; 16] {
    let mut header = [0; 16];
    header[..8].copy_from_slice(&id.to_le_bytes());
    header[8..10].copy_from_slice(&flags.to_le_bytes());
    header[10..12].copy_from_slice(&count.to_le_bytes());
    header
}

#[test]
fn a_file_of_a_machine_with_the_other_order_of_bytes_reads_the_same() {
    let mut bytes = SMALL.to_vec();
    for meta in [16, PAGE + 16] {
        for at in (0..16).step_by(4) {
            bytes[meta + at..meta + at + 4].reverse();
        }
        for at in (16..64).step_by(8) {
            bytes[meta + at..meta + at + 8].reverse();
        }
        let sum = bytes[meta..meta + 56]
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        bytes[meta + 56..meta + 64].copy_from_slice(&sum.to_be_bytes());
    }
    let db = Db::open(&SMALL).unwrap();
    // Pages that run on are no pages of their own.
    let mut next = 2;
    while next < db.meta().pages as usize {
        let at = next * PAGE;
        next += 1 + number::<4>(SMALL, at + 12) as usize;
        if matches!(number::<2>(SMALL, at + 8), 1 | 2) {
            swap(&mut bytes, at, true);
        }
    }
    assert_eq!(dump(&Db::open(&bytes).unwrap()).unwrap(), dump(&db).unwrap());
}

/// Turns the numbers of a page round, and those of the buckets in its values.
fn swap(bytes: &mut [u8], at: usize, outer: bool) {
    let (flags, count) = (number::<2>(bytes, at + 8), number::<2>(bytes, at + 10) as usize);
    for element in (0..count).map(|index| at + 16 + index * 16) {
        if flags == 1 {
            turn::<4>(bytes, [element, element + 4]);
            bytes[element + 8..element + 16].reverse();
            continue;
        }
        if number::<4>(bytes, element) == 1 && outer {
            let value = element + (number::<4>(bytes, element + 4) + number::<4>(bytes, element + 8)) as usize;
            if number::<8>(bytes, value) == 0 {
                swap(bytes, value + 16, false);
            }
            turn::<8>(bytes, [value, value + 8]);
        }
        turn::<4>(bytes, [0, 4, 8, 12].map(|at| element + at));
    }
    bytes[at..at + 8].reverse();
    turn::<2>(bytes, [at + 8, at + 10]);
    bytes[at + 12..at + 16].reverse();
}

fn turn<const N: usize>(bytes: &mut [u8], at: impl IntoIterator<Item = usize>) {
    at.into_iter().for_each(|at| bytes[at..at + N].reverse());
}

#[test]
fn a_source_that_fails_is_an_error_with_the_place() {
    struct Failing;
    impl Source for Failing {
        fn size(&self) -> io::Result<u64> {
            Ok(SMALL.len() as u64)
        }

        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            if offset >= 2 * PAGE as u64 {
                Err(io::Error::other("bad sector"))
            } else {
                SMALL.read_exact_at(buffer, offset)
            }
        }
    }
    let db = Db::open(&Failing).unwrap();
    let errors = dump(&db).unwrap_err();
    assert!(errors[0].to_string().contains("bad sector") && matches!(errors[0], Error::Io { .. }), "{errors:?}");
    assert!(matches!(db.root().entry(b"top"), Err(Error::Io { .. })));
}
