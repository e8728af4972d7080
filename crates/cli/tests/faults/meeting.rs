//! Two processes that meet at one write: what one is about to open, the other has finished meanwhile.

use orlop_testkit::faults::{Act, Faults, Rule};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::liar::Liar;
use orlop_testkit::process::output;

use crate::common::Orlop;
use crate::verdict::command;

/// Regression: it had a new write of a document that was there by then, and left that behind.
#[test]
fn a_pull_that_meets_another_one_leaves_no_write_behind() {
    if !Faults::available() {
        return;
    }
    let registry = Liar::start();
    let content = Content::index(&[Content::image(&Image::host().layer(Layer::noise("data", 1, 10_000)))]);
    let name = registry.put("app", "1", &content);
    let store = Orlop::new();
    store.ok(["gc"]);
    let pull = ["pull", "--plain-http", "--no-unpack", &name];
    let mut first = command(&store.root(), &pull);
    let faults = Faults::over(&mut first, &store.root()).expect("the command can be watched");
    let mut second = command(&store.root(), &pull);
    faults.set(Rule {
        which: Box::new(|site| site.call.starts_with("mkdir") && site.path.starts_with("content/ingest")),
        from: 0,
        lasting: false,
        act: Act::Before(Box::new(move || drop(output(&mut second).ok()))),
    });
    output(&mut first).ok();
    assert_eq!(faults.clear().len(), 1, "the two have met");
    let left: Vec<_> = std::fs::read_dir(store.root().join("content/ingest")).expect("a directory").collect();
    assert!(left.is_empty(), "{left:?}");
    store.is_sound();
}
