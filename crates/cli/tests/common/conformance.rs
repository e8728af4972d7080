//! The OCI distribution specification's own conformance suite, run against any registry.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use orlop_testkit::go::Module;
use orlop_testkit::process::output;

/// Runs it against a registry over plain HTTP, as each version of the specification that it knows has it.
///
/// # Panics
/// With all that it says, if it finds anything.
pub(crate) fn run(host: &str) {
    let Some(module) = Module::find("distribution") else { return };
    let dir = tempfile::tempdir().unwrap();
    let package = "github.com/opencontainers/distribution-spec/conformance";
    let Some(suite) = module.tool(package, dir.path()) else { return };
    for version in ["1.1", "dev"] {
        let results = dir.path().join(version);
        let mut command = Command::new(&suite);
        command.current_dir(dir.path()).env("OCI_REGISTRY", host).env("OCI_TLS", "disabled");
        command.env("OCI_VERSION", version).env("OCI_RESULTS_DIR", &results);
        let done = output(&mut command);
        let said = format!("{}\n{}", done.stdout, done.stderr);
        assert!(done.status.success(), "{version}: {said}");
        let counts = counts(&results);
        let count = |status: &str| counts.get(status).copied().unwrap_or_default();
        assert_eq!((count("failure"), count("error")), (0, 0), "{version}: {counts:?}\n{said}");
        assert!(count("passed") >= 680, "{version}: only {counts:?}");
        eprintln!("distribution-spec {version}: {counts:?}");
    }
}

/// How many cases of the suite's report have which status.
fn counts(results: &Path) -> BTreeMap<String, usize> {
    let report = std::fs::read_to_string(results.join("junit.xml")).unwrap();
    let mut counts = BTreeMap::new();
    for case in report.split("<testcase ").skip(1) {
        let status = case.split("status=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("none");
        *counts.entry(status.to_owned()).or_default() += 1;
    }
    counts
}
