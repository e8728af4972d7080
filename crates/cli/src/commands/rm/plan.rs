//! A removal's plan and what came of it: as documents, and in words.

use serde::Serialize;

use crate::client::pb;
use crate::commands::Context;
use crate::output::{count, short, size};
use crate::paint::plain;

/// A plan (contract: `--plan -o json`).
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct Plan {
    pub(in crate::commands) schema: &'static str,
    pub(in crate::commands) plan: String,
    pub(in crate::commands) freed_now: u64,
    pub(in crate::commands) freed_when_trash_empties: u64,
    /// Of that, what the next collection would have freed anyway; only of a store that is not Orlop's.
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::commands) garbage: u64,
    /// What goes and is not given back, since files outside the store have it too; only of Orlop's own.
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::commands) elsewhere: u64,
    pub(in crate::commands) records: Vec<String>,
    pub(in crate::commands) blobs: Vec<Blob>,
    pub(in crate::commands) snapshots: Vec<Snapshot>,
    pub(in crate::commands) returns: Vec<Reason>,
    pub(in crate::commands) unpullable: Vec<Reason>,
    pub(in crate::commands) in_use: Vec<Reason>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::commands) trash: String,
    /// Absent until it was executed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::commands) outcome: Option<Outcome>,
}

#[derive(Debug, Serialize)]
pub(in crate::commands) struct Blob {
    pub(in crate::commands) digest: String,
    pub(in crate::commands) size: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct Snapshot {
    pub(in crate::commands) chain_id: String,
    pub(in crate::commands) snapshotter: String,
    pub(in crate::commands) bytes: u64,
}

#[derive(Debug, Serialize)]
pub(in crate::commands) struct Reason {
    pub(in crate::commands) name: String,
    pub(in crate::commands) reason: String,
}

/// What came of a plan, beside what it said.
#[derive(Debug, Serialize)]
pub(in crate::commands) struct Outcome {
    /// Bytes that it said.
    pub(in crate::commands) planned: u64,
    /// Bytes that came: into the trash, else to the file system; none if that cannot be seen from here.
    pub(in crate::commands) freed: Option<u64>,
    /// What came out differently.
    pub(in crate::commands) differences: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's shape")]
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

impl From<pb::Plan> for Plan {
    fn from(plan: pb::Plan) -> Self {
        let reasons =
            |rows: Vec<pb::Reason>| rows.into_iter().map(|r| Reason { name: r.name, reason: r.reason }).collect();
        let snapshot =
            |s: pb::SnapshotRow| Snapshot { chain_id: s.chain_id, snapshotter: s.snapshotter, bytes: s.bytes };
        Self {
            schema: "orlop.rm/v1",
            plan: plan.plan,
            freed_now: plan.freed_now,
            freed_when_trash_empties: plan.freed_when_trash_empties,
            records: plan.records,
            blobs: plan.blobs.into_iter().map(|b| Blob { digest: b.digest, size: b.size }).collect(),
            snapshots: plan.snapshots.into_iter().map(snapshot).collect(),
            returns: reasons(plan.returns),
            unpullable: reasons(plan.unpullable),
            in_use: reasons(plan.in_use),
            elsewhere: plan.elsewhere,
            ..Self::default()
        }
    }
}

impl Plan {
    /// Says what people are told after a removal.
    pub(in crate::commands) fn say_outcome(&self, context: &Context) {
        for back in &self.returns {
            context.say(format!("{} is back already: {}", back.name, back.reason));
        }
        for kept in &self.in_use {
            context.say(format!("{} stays: {}", kept.name, kept.reason));
        }
        if self.trash.is_empty() {
            context.say(format!("{} freed", size(self.freed_now)));
        } else {
            let held = size(self.freed_when_trash_empties);
            let words = "brings it back, `orlop gc --trash` gives the space back";
            context.say(format!("{held} in the trash; `orlop undo {}` {words}", self.trash));
        }
        self.outcome.iter().flat_map(|outcome| &outcome.differences).for_each(|difference| context.say(difference));
    }

    /// The plan in words; `brief` counts what goes. `command` is what executes it.
    pub(in crate::commands) fn text(&self, has_trash: bool, brief: bool, command: &str) -> String {
        let records = if brief { format!(": {}", self.records.len()) } else { String::new() };
        let mut lines = vec![format!("Records that go{records}")];
        lines.extend(self.records.iter().map(|r| format!("  {}", plain(r))).filter(|_| !brief));
        let bytes: u64 = self.blobs.iter().map(|blob| blob.size).sum();
        lines.push(format!("Content that goes: {}{}", count(self.blobs.len() as u64, "blob"), sum(brief, bytes)));
        let blobs = self.blobs.iter().map(|b| format!("  {}  {:>10}", short(&b.digest), size(b.size)));
        lines.extend(blobs.filter(|_| !brief));
        let bytes: u64 = self.snapshots.iter().map(|snapshot| snapshot.bytes).sum();
        lines.push(format!("Snapshots that go: {}{}", self.snapshots.len(), sum(brief, bytes)));
        let snapshot = |s: &Snapshot| format!("  {}  {:>10}  {}", short(&s.chain_id), size(s.bytes), s.snapshotter);
        lines.extend(self.snapshots.iter().map(snapshot).filter(|_| !brief));
        section(&mut lines, "Comes back at once", &self.returns);
        section(&mut lines, "No registry is known to have", &self.unpullable);
        section(&mut lines, "Stays, in use", &self.in_use);
        lines.push(String::new());
        let (now, later) = (size(self.freed_now), size(self.freed_when_trash_empties));
        lines.push(if has_trash {
            format!("Freed now {now}, when the trash empties {later}")
        } else {
            format!("Freed {now}, in whole blocks of the file system")
        });
        if self.garbage > 0 {
            let garbage = size(self.garbage);
            lines.push(format!("Of that, {garbage} are garbage already: the next collection takes them anyway"));
        }
        if self.elsewhere > 0 {
            let elsewhere = size(self.elsewhere);
            lines.push(format!(
                "Beside that, {elsewhere} go and free nothing: files elsewhere have them too (adopted, or given)"
            ));
        }
        lines.push(format!("Nothing was changed. To do exactly this: {command}"));
        lines.push(String::new());
        lines.join("\n")
    }
}

fn sum(brief: bool, bytes: u64) -> String {
    if brief { format!(", {}", size(bytes)) } else { String::new() }
}

fn section(lines: &mut Vec<String>, title: &str, reasons: &[Reason]) {
    if !reasons.is_empty() {
        lines.push(title.to_owned());
        lines.extend(reasons.iter().map(|r| format!("  {}: {}", plain(&r.name), plain(&r.reason))));
    }
}

impl Outcome {
    /// Compares what a plan said with the free space before and after. Others write to the same file system: what came back
    /// is told always, and that it was less only if it is less by more than they may have taken, `noise`.
    pub(in crate::commands) fn measured(planned: u64, freed: Option<u64>, noise: u64) -> Self {
        let slack = (planned / 100).max(1 << 20).saturating_add(noise);
        let short = freed.filter(|freed| planned.saturating_sub(*freed) > slack);
        let words = |freed| {
            let (planned, freed) = (size(planned), size(freed));
            format!(
                "planned were {planned}, the file system has got back {freed}: others may have written to it meanwhile"
            )
        };
        Self { planned, freed, differences: short.map(words).into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::Outcome;

    #[test]
    fn only_less_than_was_planned_and_than_others_may_have_taken_is_said() {
        const MIB: u64 = 1 << 20;
        let said = |planned, freed, noise| !Outcome::measured(planned, freed, noise).differences.is_empty();
        assert!(!said(10 * MIB, Some(9 * MIB), 0) && said(10 * MIB, Some(9 * MIB - 1), 0), "one mebibyte");
        assert!(!said(1_000 * MIB, Some(990 * MIB), 0) && said(1_000 * MIB, Some(990 * MIB - 1), 0), "one per cent");
        assert!(!said(10 * MIB, Some(MIB), 8 * MIB) && said(10 * MIB, Some(MIB - 1), 8 * MIB), "what others write");
        assert!(!said(10 * MIB, Some(500 * MIB), 0) && !said(10 * MIB, None, 0), "more, and unknown");
        let outcome = Outcome::measured(10 * MIB, Some(3 * MIB), 0);
        assert_eq!((outcome.planned, outcome.freed), (10 * MIB, Some(3 * MIB)));
    }
}
