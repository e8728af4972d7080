//! Snapshots, their mounts and differences.

use crate::step::{Look, Scene, step};

pub(crate) const SCENES: &[Scene] = &[
    Scene {
        namespace: "compat-snapshots",
        steps: &[
            step("", "images import %LOCAL --snapshotter overlayfs $FILES/app.tar"),
            // `ctr` holds no lease: the image holds what is made here, or it might be collected at any time.
            step(
                "",
                "content label $MANIFEST containerd.io/gc.ref.snapshot.overlayfs/1=one \
                 containerd.io/gc.ref.snapshot.overlayfs/2=done containerd.io/gc.ref.snapshot.overlayfs/3=three \
                 containerd.io/gc.ref.snapshot.overlayfs/4=four containerd.io/gc.ref.snapshot.overlayfs/5=five \
                 containerd.io/gc.ref.snapshot.overlayfs/6=six",
            ),
            step("an image's", "snapshots ls"),
            step("an image's", "snapshots tree"),
            step("a layer", "snapshots info $TOP"),
            step("what is not there", "snapshots info none").words(),
            step("all", "snapshots usage"),
            step("in bytes", "snapshots usage -b"),
            step("one", "snapshots usage $TOP"),
            step("what is not there", "snapshots usage none").words(),
            step("on a layer", "snapshots prepare one $TOP"),
            step("a key that is there", "snapshots prepare one $TOP"),
            step("a parent that is not there", "snapshots prepare two none").words(),
            step("with mounts", "snapshots prepare --target /there three $TOP"),
            step("on nothing, with mounts", "snapshots prepare --mounts four"),
            step("an active one", "snapshots mounts /there one"),
            step("what is not there", "snapshots mounts /there none").words(),
            step("of a layer", "snapshots view five $TOP"),
            step("a key that is there", "snapshots view five $TOP"),
            step("a parent that is not there", "snapshots view six none").words(),
            step("with mounts", "snapshots view --target /there six $TOP"),
            step("a view", "snapshots mounts /there five"),
            step("an active one", "snapshots commit done one"),
            step("a key that is there", "snapshots commit done three"),
            step("what is not there", "snapshots commit x none").words(),
            step("a committed one", "snapshots commit y done").words(),
            step("set", "snapshots label done a=b"),
            step("with a label", "snapshots info done"),
            step("clear", "snapshots label done a="),
            step("what is not there", "snapshots label none a=b").words(),
            step("of each kind", "snapshots ls"),
            step("of each kind", "snapshots tree"),
            step("a parent", "snapshots rm $LOWER").words(),
            step("what is not there", "snapshots rm none").words(),
            step("several", "snapshots rm five six four three done"),
            step("", "snapshots ls"),
            step("no such snapshotter", "snapshots --snapshotter none ls").words(),
            step("no such snapshotter", "snapshots --snapshotter none info x").words(),
        ],
    },
    Scene {
        namespace: "compat-diff",
        steps: &[
            step("", "images import %LOCAL --snapshotter overlayfs $FILES/app.tar"),
            step("a layer", "snapshots diff $TOP").look(Look::Layer),
            step("uncompressed", "snapshots diff --media-type application/vnd.oci.image.layer.v1.tar $TOP")
                .look(Look::Layer),
            step("kept", "snapshots diff --keep $TOP").look(Look::Layer),
            step("two snapshots", "snapshots diff $LOWER $TOP").look(Look::Layer),
            step("what is not there", "snapshots diff none").words(),
            step("", "leases ls"),
            step("an image", "snapshots unpack $MANIFEST"),
            step("with another snapshotter", "snapshots --snapshotter native unpack $MANIFEST"),
            step("with another snapshotter", "snapshots --snapshotter native ls"),
            step("what is not there", "snapshots unpack $ABSENT"),
            step("no digest", "snapshots unpack bad"),
        ],
    },
];
