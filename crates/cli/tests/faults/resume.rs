//! A pull whose layer cannot be written to its end: what came is kept, and the next pull goes on there.

use orlop_testkit::faults::{Act, Fault, Faults, Rule};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::liar::Liar;
use orlop_testkit::served::Served;

use crate::common::{self, Orlop};

/// Bytes of the layer: several pieces as they come from the network.
const BYTES: usize = 8 << 20;

fn pulled(metrics: &str) -> u64 {
    let page = common::get(metrics, "/metrics");
    let value = page.lines().find_map(|line| line.strip_prefix("orlop_pulled_bytes_total ")?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no such metric in {page}"))
}

#[test]
fn what_came_before_a_fault_is_kept_and_a_pull_goes_on_there() {
    if !Faults::available() {
        return;
    }
    let content = Content::image(&Image::host().layer(Layer::noise("data", 1, BYTES)));
    let registry = Liar::start();
    let name = registry.put("app", "1", &content);
    for fault in [Fault::NoSpace, Fault::Quota, Fault::Io] {
        let store = Orlop::new();
        let mut binary = common::binary();
        let faults = Faults::over(&mut binary, &store.root()).expect("the daemon can be watched");
        let mut served = Served::start(binary, &store.root(), &["--metrics", "127.0.0.1:0"]);
        let metrics = common::metrics_address(&mut served);
        let data = |site: &orlop_testkit::faults::Site| {
            site.path.starts_with("content/ingest") && site.path.ends_with("data") && site.changes()
        };
        // Without a fault: how many writes there are.
        faults.record();
        store.ok(["pull", "--plain-http", "--no-unpack", &name]);
        let writes = faults.recorded().iter().filter(|site| data(site) && site.may(fault)).count();
        store.ok(["rm", "--no-trash", &name]);
        store.ok(["gc", "--trash"]);
        let before = pulled(&metrics);
        faults.set(Rule { which: Box::new(data), from: writes / 2, lasting: true, act: Act::Fail(fault) });
        let done = store.run(["pull", "--plain-http", "--no-unpack", &name]);
        assert!(!faults.clear().is_empty(), "{fault} at {} of {writes}", writes / 2);
        assert_eq!(done.code, if fault == Fault::Io { 1 } else { 6 }, "{fault}: {}", done.err);
        assert!(done.err.contains("  hint: "), "{fault}: {}", done.err);
        let amid = pulled(&metrics);
        let kept = store.json(["content", "active"]);
        let offsets: Vec<u64> =
            kept["ingests"].as_array().expect("a list").iter().filter_map(|ingest| ingest["offset"].as_u64()).collect();
        assert!(offsets.iter().any(|offset| *offset > 0), "{fault}: {kept}");
        store.ok(["pull", "--plain-http", "--no-unpack", &name]);
        let again = pulled(&metrics) - amid;
        assert!(again < BYTES as u64, "{fault}: {again} bytes came again, of {BYTES}; {} before", amid - before);
        store.ok(["verify", "-q", &name]);
        store.is_sound();
    }
}
