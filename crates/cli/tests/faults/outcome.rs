//! Whether a command that met a fault ended as it may.

use orlop_testkit::faults::Fault;
use orlop_testkit::process::Output;

/// The exit codes that are documented for what this error comes to.
fn codes(fault: Fault) -> &'static [i32] {
    match fault {
        Fault::NoSpace | Fault::Quota => &[6],
        // Where it is met in the metadata, no more is written.
        Fault::ReadOnly => &[7, 8],
        // Where it is met in reading, what was to be verified is not.
        Fault::Io => &[1, 5, 8],
        Fault::TooManyFiles => &[8],
    }
}

/// What is wrong with how a command ended while it met a fault.
pub(crate) fn wrong(done: &Output, fault: Fault) -> Result<(), String> {
    let told = |what: &str| Err(format!("{what}: {}: {}\n{}", done.status, done.command, done.stderr));
    let said = done.stderr.to_lowercase();
    if said.contains("panicked") || said.contains("internal") || said.contains("please report") {
        return told("it says what no user can act on");
    }
    if done.status.success() {
        return Ok(());
    }
    let Some(code) = done.status.code() else { return told("it was killed") };
    // A check that finds something says so, whatever else happens.
    let found = code == 5 && done.command.contains("\"check\"");
    // Of some failures SQLite does not tell the cause.
    let untold = code == 1 && done.stderr.contains("unable to open database file");
    if !found && !untold && !codes(fault).contains(&code) {
        return told(&format!("{fault} may end with {:?}, and ended with {code}", codes(fault)));
    }
    if !done.stderr.contains("orlop: ") {
        return told("it does not say what is wrong");
    }
    // A check that finds something has said what to do beside each finding.
    if code != 5 && !done.stderr.contains("  hint: ") && !said.contains("try again") {
        return told("it does not say what to do");
    }
    Ok(())
}
