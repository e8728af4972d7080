//! Offsets, sizes and digests that are none, on writes and reads.

use orlop_api::containerd::services::content::v1 as content;
use orlop_oci::Digest;
use std::collections::BTreeMap;

use crate::deviations::OFFSETS;
use crate::sides::{Answers, Calls, Ours, Peer, compare};
use crate::values::{kept, write};

/// Two bytes.
const BLOB: &[u8] = b"..";

async fn writes(calls: &mut Calls) {
    for offset in [-1, 1, i64::MAX, i64::MIN] {
        for (name, action) in [("commit", content::WriteAction::Commit), ("write", content::WriteAction::Write)] {
            let reference = format!("{name} at {offset}");
            let wanted = content::WriteContentRequest {
                offset,
                action: action.into(),
                ..write(&reference, reference.as_bytes(), BTreeMap::new())
            };
            calls.call(&reference, "content.v1.Content/Write", &wanted).await;
            abort(calls, &reference).await;
        }
    }
    for total in [-1, 1, 3, i64::MAX, i64::MIN] {
        let reference = format!("total {total}");
        let wanted = content::WriteContentRequest { total, ..write(&reference, b"yy", BTreeMap::new()) };
        calls.call(&reference, "content.v1.Content/Write", &wanted).await;
        abort(calls, &reference).await;
    }
    for (name, action) in [("an action that is none", 3), ("a negative action", -1)] {
        let wanted = content::WriteContentRequest { action, ..write(name, b"z", BTreeMap::new()) };
        calls.call(name, "content.v1.Content/Write", &wanted).await;
        abort(calls, name).await;
    }
    calls.call("no ref", "content.v1.Content/Write", &write("", b"z", BTreeMap::new())).await;
    calls.bytes("no message", "content.v1.Content/Write", Vec::new()).await;
    let long = "r".repeat(1 << 16);
    calls.call("a long ref", "content.v1.Content/Write", &write(&long, b"long", BTreeMap::new())).await;
}

async fn abort(calls: &mut Calls, reference: &str) {
    let abort = content::AbortRequest { r#ref: reference.into() };
    calls.call(&format!("{reference}: abort"), "content.v1.Content/Abort", &abort).await;
}

async fn reads(calls: &mut Calls) {
    for (offset, size) in [
        (-1, 0),
        (2, 0),
        (3, 0),
        (i64::MAX, 0),
        (0, -1),
        (0, i64::MAX),
        (1, i64::MAX),
        (i64::MAX, i64::MAX),
        (i64::MIN, 1),
        (1, i64::MIN),
    ] {
        let wanted = content::ReadContentRequest { digest: Digest::of(BLOB).to_string(), offset, size };
        calls.call(&format!("read {size} at {offset}"), "content.v1.Content/Read", &wanted).await;
    }
}

async fn digests(calls: &mut Calls) {
    let (short, upper, long) = ("a".repeat(63), "A".repeat(64), "a".repeat(4096));
    for (name, digest) in [
        ("", String::new()),
        ("word", "sha256".into()),
        ("nothing", "sha256:".into()),
        ("no hex", format!("sha256:{}", "z".repeat(64))),
        ("short", format!("sha256:{short}")),
        ("upper", format!("sha256:{upper}")),
        ("long", format!("sha256:{long}")),
        ("md5", "md5:d41d8cd98f00b204e9800998ecf8427e".into()),
        ("path", "sha256:../../../etc/passwd".into()),
    ] {
        let wanted = content::ReadContentRequest { digest: digest.clone(), ..Default::default() };
        calls.call(&format!("read of digest {name:?}"), "content.v1.Content/Read", &wanted).await;
        let wanted = content::InfoRequest { digest: digest.clone() };
        calls.call(&format!("info of digest {name:?}"), "content.v1.Content/Info", &wanted).await;
        let wanted = content::DeleteContentRequest { digest: digest.clone() };
        calls.call(&format!("delete of digest {name:?}"), "content.v1.Content/Delete", &wanted).await;
        let info = Some(content::Info { digest: digest.clone(), ..Default::default() });
        let wanted = content::UpdateRequest { info, update_mask: None };
        calls.call(&format!("update of digest {name:?}"), "content.v1.Content/Update", &wanted).await;
        let reference = format!("expected {name:?}");
        let wanted =
            content::WriteContentRequest { expected: digest, ..write(&reference, name.as_bytes(), BTreeMap::new()) };
        calls.call(&reference, "content.v1.Content/Write", &wanted).await;
        abort(calls, &reference).await;
    }
}

async fn offsets(peer: Peer) -> Answers {
    let mut calls = Calls::new(peer).await;
    calls.call("blob", "content.v1.Content/Write", &write("blob", BLOB, kept())).await;
    writes(&mut calls).await;
    reads(&mut calls).await;
    digests(&mut calls).await;
    calls.answers
}

#[test]
fn offsets_sizes_and_digests_that_are_none_get_containerds_codes() {
    let mut ours = Ours::start();
    let answers = ours.ask(offsets);
    ours.holds_only(0, 0);
    compare(&answers, OFFSETS, offsets);
}
