//! The history of image records, in the database and in `history.log`.

use std::fs;
use std::io::Write;

use crate::support::{Root, digest, image, labels, scope, target};
use orlop_metadata::{Error, HistoryAction, ImageChange, LogLine, MetadataProblem, Scope, Store, parse_log};
use orlop_oci::Digest;
use proptest::prelude::*;

fn put(store: &Store, name: &str, text: &str) {
    let change = ImageChange::Upsert { name: name.to_owned(), target: target(text), labels: labels([]) };
    store.write_images(&scope(), &[change]).unwrap();
}

fn earlier(store: &Store, name: &str, back: usize) -> Option<Digest> {
    match store.earlier_target("test", name, back) {
        Ok(target) => Some(target.digest),
        Err(Error::NotFound { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn every_change_is_told_newest_first() {
    let root = Root::new();
    let store = &root.store;
    store.create_image(&scope(), image("a", "1")).unwrap();
    put(store, "b", "1");
    put(store, "a", "2");
    store.delete_image(&Scope::new("test", "someone"), "a", None).unwrap();
    store.create_image(&Scope::new("other", "tests"), image("a", "9")).unwrap();
    let told: Vec<_> = store
        .history("test", Some("a"), 10)
        .unwrap()
        .into_iter()
        .map(|e| (e.seq, e.actor, e.action, e.old, e.new))
        .collect();
    let (tests, someone) = ("tests".to_owned(), "someone".to_owned());
    assert_eq!(
        told,
        [
            (4, someone, HistoryAction::Delete, Some(digest("2")), None),
            (3, tests.clone(), HistoryAction::Update, Some(digest("1")), Some(digest("2"))),
            (1, tests, HistoryAction::Create, None, Some(digest("1"))),
        ]
    );
    assert_eq!(store.history("test", None, 10).unwrap().len(), 4);
    assert_eq!(store.history("test", None, 1).unwrap()[0].seq, 4);
}

#[test]
fn a_tag_remembers_what_it_pointed_at() {
    let root = Root::new();
    let store = &root.store;
    assert_eq!(earlier(store, "a", 0), None);
    for text in ["1", "2", "3"] {
        put(store, "a", text);
    }
    store.update_image(&scope(), image("a", "3"), &["labels".to_owned()]).unwrap();
    let of = |back| earlier(store, "a", back);
    assert_eq!([of(0), of(1), of(2), of(3)], [Some(digest("3")), Some(digest("2")), Some(digest("1")), None]);
    assert_eq!(store.earlier_target("test", "a", 1).unwrap(), target("2"), "with media type and size");
    store.delete_image(&scope(), "a", None).unwrap();
    assert_eq!([of(0), of(1), of(2), of(3)], [None, Some(digest("3")), Some(digest("2")), Some(digest("1"))]);
    put(store, "a", "3");
    assert_eq!([of(0), of(1)], [Some(digest("3")), Some(digest("2"))], "deleted and made again is no change");
}

#[test]
fn the_log_tells_the_same_as_the_database() {
    let root = Root::new();
    let store = &root.store;
    let mut given = image("name \n\0 \"", "1");
    given.labels = labels([("k", "v\n")]);
    given.target.annotations = labels([("x", "y")]);
    store.create_image(&scope(), given).unwrap();
    put(store, "b", "2");
    store.delete_image(&scope(), "b", None).unwrap();
    let log = store.read_log().unwrap();
    assert_eq!((log.lines.len(), log.voided, log.damaged.len()), (3, 0, 0));
    let first = &log.lines[0];
    assert_eq!((first.seq, first.action, first.name.as_str()), (1, HistoryAction::Create, "name \n\0 \""));
    assert_eq!(first.state.labels, labels([("k", "v\n")]));
    assert_eq!((first.state.media_type.as_str(), first.state.size), (target("1").media_type.as_str(), 1));
    let logged: Vec<_> = log.lines.iter().rev().map(|l| (l.seq, l.at, &l.old, &l.new)).collect();
    let history = store.history("test", None, 10).unwrap();
    assert_eq!(logged, history.iter().map(|e| (e.seq, e.at, &e.old, &e.new)).collect::<Vec<_>>());
    assert_eq!(store.check_metadata().unwrap(), []);
}

/// Should `meta.db` be lost, the log alone gives the names back, as they were.
#[test]
fn the_records_can_be_told_from_the_log() {
    let root = Root::new();
    let store = &root.store;
    for step in 0..40_u32 {
        let name = format!("n{}", step % 7);
        let change = if step % 5 == 3 {
            ImageChange::Delete { name }
        } else {
            let mut target = target(&format!("{}", step / 3));
            target.annotations = labels([("step", &step.to_string())]);
            ImageChange::Upsert { name, target, labels: labels([("k", &step.to_string())]) }
        };
        let namespace = if step % 2 == 0 { "even" } else { "odd" };
        store.write_images(&Scope::new(namespace, "tests"), &[change]).unwrap();
    }
    let images = |namespace: &str| {
        let all = store.images(namespace, &[]).unwrap();
        all.into_iter().map(|image| (namespace.to_owned(), image)).collect::<Vec<_>>()
    };
    assert!(images("odd").len() < 7, "some are deleted");
    assert_eq!(store.read_log().unwrap().records(), [images("even"), images("odd")].concat());
}

#[test]
fn a_failed_change_leaves_no_line() {
    let root = Root::new();
    put(&root.store, "a", "1");
    let before = fs::read(root.path().join("history.log")).unwrap();
    let change = |name: &str| ImageChange::Upsert { name: name.to_owned(), target: target("2"), labels: labels([]) };
    root.store.write_images(&scope(), &[change("a"), change("")]).unwrap_err();
    assert_eq!(fs::read(root.path().join("history.log")).unwrap(), before);
}

/// The log cannot be written: the record does not change either.
#[test]
fn no_change_without_its_line() {
    let root = Root::new();
    fs::create_dir(root.path().join("history.log")).unwrap();
    let error = root.store.create_image(&scope(), image("a", "1")).unwrap_err();
    assert!(matches!(&error, Error::Io { operation: "append to", .. }), "{error:?}");
    assert!(root.store.images("test", &[]).unwrap().is_empty());
    fs::remove_dir(root.path().join("history.log")).unwrap();
    root.store.create_image(&scope(), image("a", "1")).unwrap();
    assert_eq!(root.store.check_metadata().unwrap(), []);
}

/// A crash may cut the last line short, at any byte, and leave lines that never committed.
#[test]
fn the_log_goes_on_after_a_crash() {
    let root = Root::new();
    put(&root.store, "a", "1");
    let path = root.path().join("history.log");
    let whole = fs::read(&path).unwrap();
    put(&root.store, "a", "lost");
    let both = fs::read(&path).unwrap();
    for cut in whole.len()..both.len() {
        let log = parse_log(&both[..cut]);
        let seen = (log.lines.len(), log.damaged.len(), log.torn);
        assert_eq!(seen, (1, 0, cut > whole.len()), "what is cut short does not count: {cut}");
    }
    for cut in [whole.len() + 1, whole.len() + 20, both.len() - 1] {
        let root = Root::new();
        put(&root.store, "a", "1");
        fs::write(root.path().join("history.log"), &both[..cut]).unwrap();
        put(&root.store, "a", "2");
        let log = root.store.read_log().unwrap();
        assert_eq!((log.lines.len(), log.damaged.len(), log.torn), (2, 0, false), "cut at {cut}");
        assert_eq!(log.lines[1].new, Some(digest("2")));
    }
    let root = Root::new();
    put(&root.store, "a", "1");
    fs::write(root.path().join("history.log"), &both).unwrap();
    put(&root.store, "a", "2");
    let log = root.store.read_log().unwrap();
    assert_eq!((log.lines.len(), log.voided), (2, 1), "the line with the same number is void");
    assert_eq!(log.lines[1].new, Some(digest("2")));
}

/// A power cut may leave the end of lines that were being written, and zeros in front of it: a check called that damage.
#[test]
fn what_was_torn_in_front_before_it_was_committed_is_no_damage() {
    for zeros in [1, 20, 100] {
        let root = Root::new();
        put(&root.store, "a", "1");
        let path = root.path().join("history.log");
        let mut torn = fs::read(&path).unwrap();
        let whole = torn.len();
        torn.extend_from_within(..);
        torn[whole..whole + zeros].fill(0);
        fs::write(&path, torn).unwrap();
        assert_eq!(root.store.check_metadata().unwrap(), [], "{zeros}");
        put(&root.store, "a", "2");
        assert_eq!(root.store.check_metadata().unwrap(), [], "{zeros}");
        assert_eq!(root.store.read_log().unwrap().lines.len(), 2, "{zeros}");
    }
}

#[test]
fn damage_is_found() {
    let root = Root::new();
    for text in ["1", "2", "3"] {
        put(&root.store, "a", text);
    }
    let path = root.path().join("history.log");
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    fs::write(&path, format!("{}\n{}\n{}\n", lines[0], lines[1].replace("tests", "tasts"), lines[2])).unwrap();
    let found = root.store.check_metadata().unwrap();
    assert_eq!(found, [MetadataProblem::LogLine { line: 2 }, MetadataProblem::LogMissing { seq: 2 }]);
    fs::File::create(&path).unwrap().write_all(format!("{}\n", lines[0]).as_bytes()).unwrap();
    assert_eq!(root.store.check_metadata().unwrap().len(), 2);
}

fn line(seq: i64) -> LogLine {
    LogLine {
        seq,
        at: jiff::Timestamp::UNIX_EPOCH,
        actor: "a".to_owned(),
        action: HistoryAction::Update,
        namespace: "n".to_owned(),
        name: format!("name {seq}"),
        old: None,
        new: Some(digest("x")),
        state: Default::default(),
    }
}

fn written(lines: &[LogLine]) -> Vec<u8> {
    let text = |line: &LogLine| {
        let json = serde_json::to_string(line).unwrap();
        format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
    };
    lines.iter().map(text).collect::<String>().into_bytes()
}

proptest! {
    #[test]
    fn later_lines_void_earlier_ones(seqs in prop::collection::vec(1_i64..12, 0..30)) {
        let mut kept: Vec<i64> = Vec::new();
        for &seq in &seqs {
            kept.retain(|&k| k < seq);
            kept.push(seq);
        }
        let lines: Vec<LogLine> = seqs.iter().copied().map(line).collect();
        let log = parse_log(&written(&lines));
        prop_assert_eq!(log.lines.iter().map(|l| l.seq).collect::<Vec<_>>(), &kept[..]);
        prop_assert_eq!(log.voided, seqs.len() - kept.len());
    }

    #[test]
    fn any_bytes_parse(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_log(&bytes);
    }

    #[test]
    fn one_wrong_bit_is_found(at in 0_usize..1000, bit in 0_u32..8) {
        let mut bytes = written(&[line(1), line(2), line(3)]);
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let log = parse_log(&bytes);
        prop_assert!(!log.damaged.is_empty() || log.torn);
    }
}
