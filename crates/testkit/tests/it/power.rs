//! The recorder, on programs that everybody has: what it follows is what is there, and a program that does not sync is found.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use orlop_testkit::power::{Amount, Recorder, Timeline, need_recorder};
use orlop_testkit::process::need;

const ALL: Amount = Amount { seed: 1, of_point: None };

/// Sizes that the file `name` may have in the states before the last command was answered, and after that; `None`: no file.
fn sizes(timeline: &Timeline, commands: usize) -> [BTreeSet<Option<u64>>; 2] {
    let mut sizes = [BTreeSet::new(), BTreeSet::new()];
    timeline.explore(ALL, &mut |state| {
        let laid = tempfile::tempdir().unwrap();
        state.disk.lay(laid.path()).unwrap();
        let size = laid.path().join("name").symlink_metadata().ok().map(|found| found.size());
        sizes[usize::from(state.marks == commands)].insert(size);
        true
    });
    sizes
}

#[test]
fn copies_are_safe_only_with_both_syncs() {
    if !need_recorder() || need("dd", "coreutils").is_none() {
        return;
    }
    for (file, directory, before, after) in [
        (true, true, vec![None, Some(3000)], vec![Some(3000)]),
        (true, false, vec![None, Some(3000)], vec![None, Some(3000)]),
        (false, true, vec![None, Some(0), Some(3000)], vec![Some(0), Some(3000)]),
    ] {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path().join("top");
        std::fs::create_dir(&top).unwrap();
        let mut recorder = Recorder::new(&top, &scratch.path().join("log")).unwrap();
        let mut run = |program: &str, args: &[&str]| recorder.run(Command::new(program).args(args)).ok();
        let (new, name) = (top.join("new").display().to_string(), top.join("name").display().to_string());
        let mut write = vec!["if=/dev/zero".to_owned(), format!("of={new}"), "bs=3000".into(), "count=1".into()];
        write.extend(file.then(|| "conv=fsync".to_owned()));
        run("dd", &write.iter().map(String::as_str).collect::<Vec<_>>());
        run("mv", &[&new, &name]);
        let mut commands = 2;
        if directory {
            run("sync", &[top.to_str().unwrap()]);
            commands += 1;
        }
        let timeline = recorder.finish();
        let expected = [before, after].map(|sizes| sizes.into_iter().collect::<BTreeSet<_>>());
        assert_eq!(sizes(&timeline, commands), expected, "file synced: {file}, directory: {directory}");
        assert_eq!(timeline.counts().2, commands);
    }
}

#[test]
fn what_is_followed_is_what_is_there() {
    if !need_recorder() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let top = scratch.path().join("top");
    std::fs::create_dir_all(top.join("old/below")).unwrap();
    std::fs::write(top.join("old/below/file"), "before").unwrap();
    std::fs::hard_link(top.join("old/below/file"), top.join("old/linked")).unwrap();
    let mut recorder = Recorder::new(&top, &scratch.path().join("log")).unwrap();
    let at = |name: &str| top.join(name).display().to_string();
    let commands: [(&str, Vec<String>); 10] = [
        ("cp", vec!["-dR".into(), "--preserve=links,timestamps".into(), at("old"), at("new")]),
        ("mkdir", vec![at("made"), at("made/deep"), at("made/deep/er")]),
        ("chmod", vec!["1750".into(), at("made/deep")]),
        ("ln", vec!["-s".into(), "target".into(), at("made/symlink")]),
        ("ln", vec![at("new/linked"), at("made/hard")]),
        ("touch", vec!["-d".into(), "2001-02-03 04:05:06".into(), at("made/hard")]),
        ("truncate", vec!["-s".into(), "100000".into(), at("old/linked")]),
        ("chmod", vec!["600".into(), at("old/below/file")]),
        ("mv", vec![at("new/below"), at("made/deep/moved")]),
        ("rm", vec!["-r".into(), at("new")]),
    ];
    for (program, args) in commands {
        recorder.run(Command::new(program).args(args)).ok();
    }
    let timeline = recorder.finish();
    let laid = tempfile::tempdir().unwrap();
    timeline.at_mark(10).lay(laid.path()).unwrap();
    assert_eq!(timeline.at_mark(10).differs(laid.path()).unwrap(), [] as [String; 0]);
    assert_eq!(std::fs::read(laid.path().join("made/deep/moved/file")).unwrap(), b"before");
    assert_eq!(laid.path().join("made/hard").metadata().unwrap().mtime(), 981_173_106);
    // Nothing was synced: at the end there may be as little as in the beginning.
    let mut least = usize::MAX;
    timeline.explore(Amount { seed: 1, of_point: Some(40) }, &mut |state| {
        let laid = tempfile::tempdir().unwrap();
        state.disk.lay(laid.path()).unwrap();
        least = least.min(laid.path().read_dir().unwrap().count());
        true
    });
    assert_eq!(least, 1);
}

#[test]
#[should_panic(expected = "was not recorded")]
fn what_nobody_followed_is_told() {
    if !need_recorder() {
        panic!("was not recorded: skipped");
    }
    let scratch = tempfile::tempdir().unwrap();
    let top = scratch.path().join("top");
    std::fs::create_dir(&top).unwrap();
    let recorder = Recorder::new(&top, &scratch.path().join("log")).unwrap();
    std::fs::write(top.join("behind its back"), "").unwrap();
    recorder.finish();
}
