//! Image records, and what is mounted and made of images.

use super::WORDS;
use crate::client::{NEW, OLD};
use crate::deviation::{Deviation, How};
use crate::step::{Look, Scene, step};

pub(crate) static REUSED_MOUNT_POINT: Deviation = Deviation {
    name: "a mount point used again",
    reason: "containerd 2.4 keeps the name of an image's mount after `unmount` without `--rm` and refuses the next one \
             there; Orlop keeps none, and the image is mounted",
    how: How::Other { containerd: "already exists", orlop: "$DIRECTORY" },
};

const IMPORT: crate::step::Step = step("", "images import %LOCAL --snapshotter overlayfs $FILES/app.tar");

pub(crate) const SCENES: &[Scene] = &[
    Scene {
        namespace: "compat-list",
        steps: &[
            step("nothing", "images ls"),
            step("nothing, names only", "images ls -q"),
            IMPORT,
            step("an image", "images ls"),
            step("names only", "images ls -q"),
            step("by name", "images ls name==example.org/app:1"),
            step("by a name that is not there", "images ls name==none"),
            step("by a pattern", "images ls -q name~=app"),
            step("by digest", "images ls -q target.digest~=sha256"),
            step("a bad filter", "images ls bad^^").words(),
            step("set", "images label example.org/app:1 a=b c=d"),
            step("clear", "images label example.org/app:1 a="),
            step("by label", "images ls -q labels.c==d"),
            step("replace all", "images label --replace-all example.org/app:1 e=f"),
            step("labels", "images ls"),
            step("an image that is not there", "images label example.org/none:1 a=b"),
            step("no label", "images label example.org/app:1").words(),
        ],
    },
    Scene {
        namespace: "compat-remove",
        steps: &[
            IMPORT,
            step("an image that is not there", "images rm example.org/none:1"),
            step("one of two", "images rm example.org/app:1 example.org/none:1"),
            step("", "images ls"),
            IMPORT,
            step("with all it has", "images rm --sync example.org/app:1"),
            step("", "images ls"),
            step("", "content ls"),
            step("", "snapshots ls"),
            step("no image", "images rm"),
            IMPORT,
            step("nothing asked for", "images prune").only(NEW),
            step("all", "images prune --all").only(NEW),
            step("", "images ls").only(NEW),
        ],
    },
    Scene {
        namespace: "compat-check",
        steps: &[
            IMPORT,
            step("", "images import %LOCAL --no-unpack $FILES/docker.tar").only(OLD),
            step("", "images import --local --no-unpack $FILES/docker.tar").only(NEW),
            step("complete", "images check"),
            step("names only", "images check -q"),
            step("by name", "images check name==example.org/app:1"),
            step("a bad filter", "images check bad^^").words(),
            step("another snapshotter", "images check --snapshotter native"),
            step("no such snapshotter", "images check --snapshotter none").words(),
            step("", "content rm $LAYER"),
            step("a layer is missing", "images check"),
            step("an image", "images inspect example.org/app:1").only(NEW).look(Look::Sorted),
            step("its documents", "images inspect --content example.org/app:1").only(NEW).look(Look::Sorted),
            step("an image that is not there", "images inspect example.org/none:1").only(NEW),
            step("an image", "images usage example.org/app:1").only(NEW),
            step("not unpacked so", "images usage --snapshotter native example.org/app:1").only(NEW),
            step("no such snapshotter", "images usage --snapshotter none example.org/app:1").only(NEW).but(NEW, &WORDS),
            step("an image that is not there", "images usage example.org/none:1").only(NEW),
        ],
    },
    Scene {
        namespace: "compat-mount",
        steps: &[
            IMPORT,
            step("to look", "images mount example.org/app:1 $DIRECTORY/one"),
            step("", "leases ls"),
            step("", "snapshots ls"),
            step("and keep the snapshot", "images unmount $DIRECTORY/one"),
            step("to write", "images mount --rw example.org/app:1 $DIRECTORY/two"),
            step("and remove the snapshot", "images unmount --rm $DIRECTORY/two"),
            step("", "snapshots ls"),
            step("the same place again", "images mount --rw example.org/app:1 $DIRECTORY/one")
                .but(NEW, &REUSED_MOUNT_POINT),
            step("an image that is not there", "images mount example.org/none:1 $DIRECTORY/three"),
            step("a platform that it lacks", "images mount --platform linux/s390x example.org/app:1 $DIRECTORY/four"),
            step("what is not mounted", "images unmount $DIRECTORY/four"),
            step("no place", "images mount"),
        ],
    },
    Scene {
        namespace: "compat-convert",
        steps: &[
            step("", "images import %LOCAL --snapshotter overlayfs $FILES/docker.tar").only(OLD),
            step("", "images import --local --snapshotter overlayfs $FILES/docker.tar").only(NEW),
            step("to OCI", "images convert --oci example.org/docker:1 example.org/oci:1"),
            step("uncompressed", "images convert --uncompress --oci example.org/docker:1 example.org/plain:1"),
            step("another platform", "images convert --oci --platform $OTHER example.org/docker:1 example.org/other:1"),
            step("an image that is not there", "images convert --oci example.org/none:1 example.org/x:1"),
            step("", "images ls"),
            step("", "leases create --id collect"),
            step("", "leases rm --sync collect"),
            step("", "content ls"),
            step("an image", "images build-erofs-cache example.org/docker:1 $DIRECTORY/cache").only(NEW),
            step("an image that is not there", "images build-erofs-cache example.org/none:1 $DIRECTORY/cache")
                .only(NEW),
        ],
    },
];
