//! Random histories of a root against a model of it.
//!
//! The model is written from containerd's rules alone: it knows objects and labels, but neither suspects nor edges. After
//! every collection the root must have exactly what the model keeps, by either way of marking; the disk exactly what the
//! rows name; and a second collection nothing to do. Processes die in the middle of operations, and disks change blobs, which
//! a scrub sets aside: what is kept goes on to be there, and what is damaged is given to nobody until somebody writes it again.
//!
//! `ORLOP_TEST_SCHEDULES` sets the number of histories.

#![allow(unreachable_pub, reason = "the modules of one test program")]

mod fuse;
mod mishaps;
mod model;
mod ops;
#[path = "../rig/mod.rs"]
mod rig;
mod world;

use ops::*;
use proptest::prelude::*;
use world::World;

/// At most two labels; `expires` weighs how often one of them is an expiry.
fn some_labels(expires: u32) -> impl Strategy<Value = Vec<Label>> {
    let label = prop_oneof![
        1 => Just(Label::Root),
        1 + expires => (0..120u8).prop_map(Label::Expire),
        5 => (0..3u8, 0..BLOBS).prop_map(|(way, blob)| Label::RefContent(way, blob)),
        2 => (0..NAMES).prop_map(Label::RefImage),
        3 => (0..NAMES, any::<bool>()).prop_map(|(name, extra)| Label::RefSnapshot(name, extra)),
        3 => (0..BLOBS, any::<bool>()).prop_map(|(blob, named)| Label::BackContent(blob, named)),
        3 => (0..NAMES).prop_map(Label::BackImage),
        2 => (0..NAMES).prop_map(Label::BackSnapshot),
        2 => (0..NAMES).prop_map(Label::BackContainer),
        1 => (0..3u8, 0..BLOBS).prop_map(|(way, blob)| Label::Other(way, blob)),
        3 => (0..5u8, any::<bool>(), 0..60u8, 0..NAMES)
            .prop_map(|(way, newer, minutes, name)| Label::Condition { way, newer, minutes, name }),
        3 => (any::<bool>(), 0..120i64).prop_map(|(more, minutes)| Label::Used { more, minutes }),
    ];
    prop::collection::vec(label, 0..3)
}

/// What does something to bytes and rows, so that a process can die in between.
fn interrupted() -> impl Strategy<Value = Op> {
    let parent = || prop::option::of(0..NAMES);
    let op = prop_oneof![
        4 => Just(Op::Collect),
        2 => Just(Op::CollectFull),
        4 => (0..NAMES, prop::option::of(0..NAMES)).prop_map(|(name, other)| Op::Remove { name, other }),
        3 => Just(Op::Undo),
        2 => any::<bool>().prop_map(|all| Op::EmptyTrash { all }),
        4 => (0..BLOBS, prop::option::of(0..LEASES), any::<bool>())
            .prop_map(|(blob, lease, expected)| Op::Commit { blob, lease, expected }),
        2 => (0..NAMES).prop_map(|reference| Op::Abort { reference }),
        3 => (0..NAMES, parent(), prop::option::of(0..LEASES), some_labels(0))
            .prop_map(|(key, parent, lease, labels)| Op::Prepare { key, parent, lease, view: false, labels }),
        3 => (0..NAMES, 0..NAMES, parent(), prop::option::of(0..LEASES)).prop_map(|(key, name, parent, lease)| {
            Op::CommitSnapshot { key, name, parent, labels: Vec::new(), lease }
        }),
        2 => (0..NAMES).prop_map(|name| Op::RemoveSnapshot { name }),
        2 => (0..BLOBS, 0..3u8).prop_map(|(blob, way)| Op::Rot { blob, way }),
    ];
    // Most operations have few steps; collections and removals have two for each thing that they take.
    (prop_oneof![0..4u8, 0..16u8], op).prop_map(|(steps, op)| Op::Crash { steps, op: Box::new(op) })
}

fn op() -> impl Strategy<Value = Op> {
    let lease = || prop::option::weighted(0.3, 0..LEASES);
    let images = prop_oneof![
        3 => (0..NAMES, 0..BLOBS, some_labels(8), lease())
            .prop_map(|(name, blob, labels, lease)| Op::CreateImage { name, blob, labels, lease }),
        1 => (0..NAMES, 0..BLOBS).prop_map(|(name, blob)| Op::Retarget { name, blob }),
        1 => (0..NAMES, some_labels(8)).prop_map(|(name, labels)| Op::LabelImage { name, labels }),
        3 => (0..NAMES).prop_map(|name| Op::DeleteImage { name }),
    ];
    let blobs = prop_oneof![
        6 => (0..BLOBS, lease(), any::<bool>())
            .prop_map(|(blob, lease, expected)| Op::Commit { blob, lease, expected }),
        8 => (0..BLOBS, some_labels(0)).prop_map(|(blob, labels)| Op::LabelBlob { blob, labels }),
        1 => (0..BLOBS).prop_map(|blob| Op::Forget { blob }),
        3 => (0..NAMES, prop::option::weighted(0.8, 0..BLOBS), lease())
            .prop_map(|(reference, expected, lease)| Op::OpenWrite { reference, expected, lease }),
        1 => (0..NAMES).prop_map(|reference| Op::Abort { reference }),
    ];
    let leases = prop_oneof![
        3 => (0..LEASES, prop::option::of(0..90u8), prop::bool::weighted(0.6))
            .prop_map(|(lease, minutes, flat)| Op::CreateLease { lease, minutes, flat }),
        2 => (0..LEASES).prop_map(|lease| Op::DeleteLease { lease }),
        4 => (0..LEASES, 0..4u8, 0..NAMES).prop_map(|(lease, kind, name)| Op::AddResource { lease, kind, name }),
        1 => (0..LEASES, 0..4u8, 0..NAMES).prop_map(|(lease, kind, name)| Op::DropResource { lease, kind, name }),
    ];
    let parent = || prop::option::of(0..NAMES);
    let snapshots = prop_oneof![
        4 => (0..NAMES, parent(), lease(), prop::bool::weighted(0.2), some_labels(0))
            .prop_map(|(key, parent, lease, view, labels)| Op::Prepare { key, parent, lease, view, labels }),
        4 => (0..NAMES, 0..NAMES, parent(), some_labels(0), lease())
            .prop_map(|(key, name, parent, labels, lease)| Op::CommitSnapshot { key, name, parent, labels, lease }),
        1 => (0..NAMES).prop_map(|name| Op::RemoveSnapshot { name }),
        2 => (0..NAMES, some_labels(0)).prop_map(|(name, labels)| Op::LabelSnapshot { name, labels }),
    ];
    let containers = prop_oneof![
        3 => (0..NAMES, prop::option::of(0..NAMES), some_labels(0))
            .prop_map(|(id, snapshot, labels)| Op::CreateContainer { id, snapshot, labels }),
        1 => (0..NAMES, some_labels(0)).prop_map(|(id, labels)| Op::LabelContainer { id, labels }),
        2 => (0..NAMES).prop_map(|id| Op::DeleteContainer { id }),
    ];
    prop_oneof![
        10 => images,
        16 => blobs,
        10 => leases,
        10 => snapshots,
        6 => containers,
        4 => (0..BLOBS).prop_map(|image| Op::Pull { image }),
        4 => (0..NAMES, 0..40i64, prop::bool::weighted(0.7), 0..60u8)
            .prop_map(|(name, ago, newer, minutes)| Op::Use { name, ago, newer, minutes }),
        4 => (1..50i16).prop_map(|minutes| Op::Advance { minutes }),
        1 => Just(Op::Advance { minutes: 25 * 60 }),
        1 => (1..50i16).prop_map(|minutes| Op::Advance { minutes: -minutes }),
        6 => Just(Op::Collect),
        1 => Just(Op::CollectFull),
        4 => (0..NAMES, prop::option::of(0..NAMES)).prop_map(|(name, other)| Op::Remove { name, other }),
        8 => (1..1u8 << NAMES).prop_map(|names| Op::PlanWithout { names }),
        3 => Just(Op::Undo),
        1 => any::<bool>().prop_map(|all| Op::EmptyTrash { all }),
        1 => Just(Op::Reopen),
        3 => interrupted(),
        2 => (0..BLOBS, 0..3u8).prop_map(|(blob, way)| Op::Rot { blob, way }),
    ]
}

fn schedules() -> u32 {
    std::env::var("ORLOP_TEST_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: schedules(), max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn collections_keep_what_the_model_keeps(
        // Mostly one namespace, so that things meet; the other shows that it is another.
        history in prop::collection::vec((prop::bool::weighted(0.1).prop_map(usize::from), op()), 1..120),
    ) {
        let mut world = World::new();
        for (space, op) in &history {
            world.apply(*space, op);
        }
        world.collect();
    }
}
