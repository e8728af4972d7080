//! What has to change, against design §7 said another way.

use proptest::prelude::*;

use super::*;

const REPOSITORIES: [&str; 2] = ["example.com/a", "docker.io/library/b"];

fn digest(n: u8) -> Digest {
    Digest::of(&[n])
}

/// Targets 0 to 4: 0 and 1 are manifest and index of one image, 2 and 3 images of their own, 4 no complete image.
fn image_of(target: &Digest) -> Option<ImageId> {
    let id = |n: u8| Some(ImageId::new(digest(n)));
    match (0..5).find(|n| digest(*n) == *target) {
        Some(0 | 1) => id(100),
        Some(n @ (2 | 3)) => id(100 + n),
        _ => None,
    }
}

/// An edit as any client may make it.
#[derive(Debug, Clone)]
enum Edit {
    Put { name: usize, target: u8, managed: bool, pinned: bool },
    Delete { name: usize },
    Time(i64),
}

fn names() -> Vec<String> {
    let mut names: Vec<String> = vec!["odd".to_owned()];
    for repository in REPOSITORIES {
        names.extend(["x", "y"].iter().map(|tag| format!("{repository}:{tag}")));
        names.extend((0..5).map(|n| format!("{repository}@{}", digest(n))));
    }
    names.extend([100, 102, 103].iter().map(|n| digest(*n).to_string()));
    names
}

fn edit() -> impl Strategy<Value = Edit> {
    let name = 0..names().len();
    prop_oneof![
        5 => (name.clone(), 0..5u8, any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(name, target, managed, pinned)| Edit::Put { name, target, managed, pinned }),
        3 => name.prop_map(|name| Edit::Delete { name }),
        1 => (0..200_000i64).prop_map(Edit::Time),
    ]
}

type Records = BTreeMap<String, Image>;

fn apply(records: &mut Records, change: ImageChange, now: Timestamp) {
    match change {
        ImageChange::Delete { name } => drop(records.remove(&name)),
        ImageChange::Upsert { name, target, labels } => {
            let fresh = Image {
                name: name.clone(),
                target: target.clone(),
                labels: Labels::new(),
                created_at: now,
                updated_at: now,
            };
            let record = records.entry(name).or_insert(fresh);
            (record.target, record.updated_at) = (target, now);
            record.labels.extend(labels);
            record.labels.retain(|_, value| !value.is_empty());
        }
    }
}

/// A digest reference names what it points at, so its target is not free.
fn target_of(name: &str, target: u8) -> Descriptor {
    let digest = match name.parse::<Reference>() {
        Ok(Reference::Digest { digest, .. }) => digest,
        _ => digest(target),
    };
    Descriptor::new("application/vnd.oci.image.index.v1+json", digest, 7)
}

fn reconcile(records: &mut Records, now: Timestamp) -> Vec<ImageChange> {
    let list: Vec<Image> = records.values().cloned().collect();
    let facts =
        Facts { image: &image_of, deleted: &|_| false, used: &|_| false, pins: &[], now, grace_seconds: 86_400 };
    let wanted = changes(&list, &facts);
    assert_eq!(sorted(wanted.clone()), sorted(by_groups(&list, &facts)), "groups are closed");
    wanted.iter().cloned().for_each(|change| apply(records, change, now));
    wanted
}

fn sorted(mut changes: Vec<ImageChange>) -> Vec<ImageChange> {
    changes.sort_by(|a, b| format!("{a:?}").cmp(&format!("{b:?}")));
    changes
}

/// What has to change, found group by group.
fn by_groups(list: &[Image], facts: &Facts<'_>) -> Vec<ImageChange> {
    let mut groups = groups::Groups::default();
    list.iter().for_each(|record| groups.add(&record.name, &record.target.digest));
    for record in list {
        if let Some(id) = image_of(&record.target.digest) {
            groups.same_image(&record.target.digest, id.digest());
        }
    }
    let group = |group: Vec<usize>| group.into_iter().map(|at| list[at].clone()).collect::<Vec<_>>();
    groups.of(None).into_iter().map(group).flat_map(|records| changes(&records, facts)).collect()
}

/// Design §7, said another way than the code says it.
fn check_invariant(records: &Records, now: Timestamp) {
    for name in records.values().filter(|r| is_name(r)) {
        let Some(id) = image_of(&name.target.digest) else { continue };
        assert!(is_managed(&name.labels), "{} is not looked after", name.name);
        let mut hashes = vec![id.to_string()];
        if let Some((repository, _)) = name.name.rsplit_once(':').filter(|_| classify(&name.name) == Kind::Tag) {
            hashes.push(format!("{repository}@{}", name.target.digest));
        }
        for hash in hashes {
            let record = records.get(&hash).unwrap_or_else(|| panic!("{} lacks {hash}", name.name));
            assert!(is_managed(&record.labels), "{hash}");
            assert_eq!(image_of(&record.target.digest), Some(id.clone()), "{hash}");
            assert!(!record.labels.contains_key(labels::STRANDED), "{hash}");
            assert!(!is_pinned(&name.labels) || is_pinned(&record.labels), "{hash} is not pinned");
        }
    }
    for record in records.values() {
        if let Some(since) = record.labels.get(labels::STRANDED) {
            let since: Timestamp = since.parse().unwrap();
            assert!(now.as_second() - since.as_second() < 86_400, "{} is overdue", record.name);
        }
    }
}

fn record(name: &str, target: &Digest) -> Image {
    let target = Descriptor::new("application/vnd.oci.image.index.v1+json", target.clone(), 7);
    let (name, at) = (name.to_owned(), Timestamp::UNIX_EPOCH);
    Image { name, target, labels: Labels::new(), created_at: at, updated_at: at }
}

fn entry(name: &str, old: Option<Digest>, new: Option<Digest>) -> HistoryEntry {
    let (actor, namespace, name) = (String::new(), String::new(), name.to_owned());
    let (host, labels) = (None, Labels::new());
    HistoryEntry {
        seq: 1,
        at: Timestamp::UNIX_EPOCH,
        actor,
        action: HistoryAction::Update,
        namespace,
        name,
        old,
        new,
        host,
        labels,
    }
}

#[test]
fn what_happens_to_the_same_image_outdates_a_change_and_nothing_else_does() {
    let records = [record("a:1", &digest(0)), record("id", &digest(0)), record("b:1", &digest(2))];
    let make = relabel(&records[1], record_labels(true, false)).unwrap();
    let take = ImageChange::Delete { name: "id".to_owned() };
    let since = Since { records: &records, image: &image_of, unread: &|target| *target == digest(77) };
    let outdated = |change: &ImageChange, entry| since.outdates(change, &entry);
    for change in [&make, &take] {
        assert!(outdated(change, entry("id", None, Some(digest(2)))), "the record itself");
        assert!(outdated(change, entry("a:1", Some(digest(0)), None)), "the last name goes");
        assert!(outdated(change, entry("c:1", None, Some(digest(1)))), "a name of the same image by its index");
        assert!(!outdated(change, entry("b:1", Some(digest(2)), None)), "another image");
    }
    // A target that nobody has looked at: it may be one of this image.
    assert!(outdated(&take, entry("c:1", None, Some(digest(77)))));
    assert!(!outdated(&make, entry("c:1", None, Some(digest(77)))));
    assert!(!outdated(&take, entry("c:1", None, Some(digest(4)))), "no complete image needs nothing");
}

proptest! {
    #[test]
    fn whatever_is_edited_one_pass_restores_the_invariant_and_a_second_changes_nothing(
        edits in prop::collection::vec(edit(), 1..40)
    ) {
        let (mut records, names, mut now) = (Records::new(), names(), Timestamp::UNIX_EPOCH);
        for edit in edits {
            match edit {
                Edit::Put { name, target, managed, pinned } => {
                    let (name, labels) = (names[name].clone(), record_labels(managed, pinned));
                    let target = target_of(&name, target);
                    apply(&mut records, ImageChange::Upsert { name, target, labels }, now);
                }
                Edit::Delete { name } => drop(records.remove(&names[name])),
                Edit::Time(seconds) => now += jiff::SignedDuration::from_secs(seconds),
            }
            reconcile(&mut records, now);
            check_invariant(&records, now);
            let second = reconcile(&mut records, now);
            prop_assert!(second.is_empty(), "{second:?}");
        }
    }
}
