//! A containerd's root becomes a store of Orlop's own.

use rustix::process::Signal;

use crate::place::{Ground, Place, generations, image, left, number};

const NAME: &str = "r.example/app:1";

#[test]
fn a_root_is_adopted_without_a_byte_copied_or_anything_changed() {
    for programs in generations() {
        let Some(content) = image(7) else { return };
        for ground in Ground::all() {
            adopted(&programs, ground, true, &content);
        }
        adopted(&programs, Ground::memory(), false, &content);
    }
}

fn adopted(
    programs: &orlop_testkit::containerd::Programs,
    ground: Ground,
    runs: bool,
    content: &orlop_testkit::image::Content,
) {
    let mut place = Place::start(programs, ground, &[(NAME, content)]);
    let what = format!("{}, running: {runs}, reflinks: {}", programs.version(), place.ground.reflinks());
    let theirs = place.mounted_there(NAME);
    place.containerd.ctr("k8s.io", &["images", "tag", NAME, "r.example/other:1"]).ok();
    // What it still has to collect it collects now.
    place.collect();
    if !runs {
        place.containerd.stop(Signal::TERM);
    }
    let before = place.fingerprint();

    let plan = place.json(&["adopt", "--plan", place.theirs().to_str().unwrap()]);
    assert!(!place.own().exists(), "{what}: a plan makes no store");
    assert_eq!((number(&plan, "/blobs/taken"), number(&plan, "/snapshots/taken")), (5, 3), "{what}: {plan:#}");
    assert_eq!(plan["running"], runs, "{what}");
    place.ok(&["leases", "create", "--id", "begin"]);
    place.ok(&["leases", "rm", "begin"]);
    let (used, size) = (place.ground.used(), content.size());

    let done = place.adopt();
    assert_eq!((number(&done, "/blobs/taken"), number(&done, "/blobs/hashedBytes")), (5, size), "{what}: {done:#}");
    assert_eq!((number(&done, "/snapshots/taken"), number(&done, "/snapshots/compared")), (3, 3), "{what}: {done:#}");
    assert_eq!(done["records"].as_array().unwrap().len(), 2, "{what}: {done:#}");
    let (reflinked, linked) = (number(&done, "/files/reflinked"), number(&done, "/files/hardLinked"));
    assert_eq!(place.ground.reflinks(), linked == 0, "{what}: {done:#}");
    assert!(reflinked + linked > 5, "{what}: {done:#}");
    assert_eq!(left(&done), [], "{what}");
    place.fingerprint().assert_same(&before, &what);
    content.layers().iter().for_each(|layer| place.is_shared(layer));
    if let (Some(before), Some(after)) = (used, place.ground.used()) {
        assert!(after.saturating_sub(before) < 1 << 20, "{what}: {} bytes were copied", after - before);
    }

    place.mounted(NAME).assert_same(&theirs, &what);
    place.is_sound();
    let records = place.ok(&["images", "--all", "-o", "name"]);
    assert!(records.lines().any(|name| name == NAME), "{what}: {records}");
    assert!(records.lines().any(|name| name.starts_with("sha256:")), "{what}: hash references follow: {records}");

    // Again: nothing is left to do.
    let again = place.adopt();
    assert_eq!((number(&again, "/blobs/taken"), number(&again, "/snapshots/taken")), (0, 0), "{what}: {again:#}");
    assert_eq!(number(&again, "/blobs/present"), 5, "{what}: {again:#}");

    frees_nothing_until_both_have_removed_it(&place, &what, size);
}

fn frees_nothing_until_both_have_removed_it(place: &Place, what: &str, size: u64) {
    let plan = |place: &Place| place.json(&["rm", "--plan", "--no-trash", NAME, "r.example/other:1"]);
    let planned = plan(place);
    assert!(number(&planned, "/elsewhere") > size, "{what}: {planned:#}");
    assert!(number(&planned, "/freedNow") < 100_000, "{what}: {planned:#}");
    let usage = place.json(&["df"]);
    assert!(number(&usage, "/elsewhere") > size, "{what}: {usage:#}");
    let running = std::fs::metadata(place.containerd.socket()).is_ok();
    if running && place.containerd.ctr("k8s.io", &["version"]).status.success() {
        for name in [NAME, "r.example/other:1"] {
            place.containerd.ctr("k8s.io", &["images", "rm", "--sync", name]).ok();
        }
        place.collect();
    } else {
        std::fs::remove_dir_all(place.theirs()).unwrap();
    }
    place.is_sound();
    let planned = plan(place);
    assert!(planned.get("elsewhere").is_none(), "{what}: {planned:#}");
    assert!(number(&planned, "/freedNow") > size, "{what}: {planned:#}");
    assert_eq!(number(&place.json(&["df"]), "/elsewhere"), 0, "{what}");
    let before = place.ground.used();
    place.ok(&["rm", "--no-trash", NAME, "r.example/other:1"]);
    if let (Some(before), Some(after)) = (before, place.ground.used()) {
        let freed = number(&planned, "/freedNow");
        assert!((before - after).abs_diff(freed) < 1 << 20, "{what}: {freed} were planned, {} came", before - after);
    }
}

#[test]
fn what_runs_stays_and_what_nothing_keeps_is_left() {
    for programs in generations() {
        let Some(content) = image(3) else { return };
        let place = Place::start(&programs, Ground::memory(), &[(NAME, &content)]);
        place.containerd.ctr("k8s.io", &["snapshots", "prepare", "writable", &chain(&place)]).ok();
        place.containerd.ctr("k8s.io", &["leases", "create", "--id", "lasting"]).ok();
        let done = place.adopt();
        let left = left(&done);
        assert!(left.iter().any(|(what, why)| what.contains("not committed") && why.contains("stay")), "{left:?}");
        let leases = place.ok(&["leases", "ls", "-o", "name"]);
        // What ctr makes without an end has one all the same, of a day: that is an operation's.
        assert_eq!(leases.contains("lasting"), number(&done, "/leases") == 1, "{leases}");
        let keys = place.ok(&["snapshots", "ls", "-o", "name"]);
        assert!(!keys.contains("writable"), "{keys}");
        assert_eq!(keys.lines().count(), 3, "{keys}");
        place.is_sound();
    }
}

#[test]
fn one_namespace_may_be_adopted_and_another_later_which_has_the_same_bytes() {
    for programs in generations() {
        let Some(content) = image(9) else { return };
        let place = Place::start(&programs, Ground::memory(), &[(NAME, &content)]);
        place.containerd.ctr("default", &["namespaces", "create", "team"]).ok();
        place.import_into("default", "r.example/second:1", &content);
        let theirs = place.theirs();
        let done = place.json(&["--namespace", "k8s.io", "adopt", theirs.to_str().unwrap()]);
        assert_eq!(done["namespaces"], serde_json::json!(["k8s.io"]), "{done:#}");
        let done = place.adopt();
        let bytes = (number(&done, "/blobs/taken"), number(&done, "/blobs/hashedBytes"));
        assert_eq!(bytes, (0, 0), "they are here, for another namespace: {done:#}");
        // Each namespace has snapshots of its own.
        assert_eq!((number(&done, "/snapshots/taken"), number(&done, "/snapshots/present")), (3, 3), "{done:#}");
        let names = place.ok(&["images", "-A", "-o", "name"]);
        assert!(names.contains(NAME) && names.contains("r.example/second:1"), "{names}");
        let none = place.json(&["--namespace", "nowhere", "adopt", theirs.to_str().unwrap()]);
        assert_eq!(left(&none), [("nowhere".to_owned(), "there is no such namespace".to_owned())]);
        place.is_sound();
    }
}

#[test]
fn what_policy_refuses_does_not_come_in_by_this_way() {
    let Some(programs) = generations().pop() else { return };
    let Some(content) = image(13) else { return };
    let place = Place::start(&programs, Ground::memory(), &[(NAME, &content)]);
    let (policy, config) = (place.ground.path().join("policy.toml"), place.ground.path().join("config.toml"));
    std::fs::write(&policy, "[default]\nrequire = \"reject\"\n").unwrap();
    std::fs::write(&config, format!("[verify]\npolicy = {:?}\n", policy.display().to_string())).unwrap();
    let theirs = place.theirs();
    for more in [&[][..], &["--owner", "containerd"]] {
        let args = [&["--config", config.to_str().unwrap(), "adopt"], more, &[theirs.to_str().unwrap()]].concat();
        let done = place.json(&args);
        assert!(left(&done).iter().any(|(name, why)| name == NAME && why.contains("policy")), "{done:#}");
        assert_eq!((number(&done, "/snapshots/taken"), done["records"].as_array().unwrap().len()), (0, 0), "{done:#}");
    }
    assert_eq!(place.ok(&["images", "--all", "-A", "-o", "name"]), "");
}

/// The uppermost snapshot.
fn chain(place: &Place) -> String {
    let listed = place.containerd.ctr("k8s.io", &["snapshots", "ls"]).ok().stdout;
    let rows: Vec<Vec<&str>> = listed.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    let is_parent = |key: &str| rows.iter().any(|row| row.len() == 3 && row[1] == key);
    rows.iter().map(|row| row[0]).find(|key| !is_parent(key)).expect("a snapshot").to_owned()
}

#[test]
fn another_file_system_is_refused_before_anything_is_done() {
    let Some(programs) = generations().pop() else { return };
    let Some(content) = image(5) else { return };
    let place = Place::start(&programs, Ground::memory(), &[(NAME, &content)]);
    let elsewhere = tempfile::tempdir().unwrap();
    if orlop_snapshot::linked::reach(&place.theirs(), elsewhere.path()).is_ok() {
        return eprintln!("skipped: there is one file system here");
    }
    let own = elsewhere.path().join("orlop");
    for more in [&["--plan"][..], &[]] {
        let mut command = crate::common::binary();
        command.arg("--root").arg(&own).arg("adopt").args(more).arg(place.theirs());
        let done = crate::common::Done::of(&command.output().unwrap());
        assert_eq!(done.code, 2, "{}{}", done.out, done.err);
        assert!(done.err.contains("without copying") && done.err.contains("--root DIR"), "{}", done.err);
        assert!(!own.exists());
    }
    let own_store = crate::common::Orlop::new();
    own_store.ok(["images"]);
    let done = own_store.run(["adopt", own_store.root().to_str().unwrap()]);
    assert_eq!(done.code, 2, "{}", done.err);
    assert!(done.err.contains("store of Orlop's"), "{}", done.err);
}
