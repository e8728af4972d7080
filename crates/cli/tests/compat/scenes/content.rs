//! Blobs and ingests.

use crate::step::{Look, Scene, step};

pub(crate) const SCENES: &[Scene] = &[Scene {
    namespace: "compat-content",
    steps: &[
        // `ctr` holds no lease: an image holds the blob, or it might be collected at any time.
        step("", "images import %LOCAL --snapshotter overlayfs $FILES/app.tar"),
        step("", "leases create --id collect"),
        step("", "leases rm --sync collect"),
        step("", "content label $MANIFEST containerd.io/gc.ref.content.hello=$HELLO"),
        step("a blob", "content ingest one").input("hello"),
        step("what is there already", "content ingest --expected-size 5 --expected-digest $HELLO two").input("hello"),
        step("another size", "content ingest --expected-size 7 three").input("hello"),
        step("another digest", "content ingest --expected-digest $ABSENT four").input("hello").words(),
        step("no digest", "content ingest --expected-digest bad five").input("hello"),
        step("what was left", "content active").look(Look::Sorted),
        step("by name", "content active four"),
        step("by a name that is not there", "content active none"),
        step("a blob", "content ls"),
        step("digests only", "content ls -q"),
        step("a blob", "content get $HELLO"),
        step("what is not there", "content get $ABSENT").words(),
        step("no digest", "content get bad"),
        step("set", "content label $HELLO a=b"),
        step("by label", "content ls labels.a==b"),
        step("clear", "content label $HELLO a="),
        step("by a label that is gone", "content ls labels.a==b"),
        step("a bad filter", "content ls bad^^").words(),
        step("what is not there", "content label $ABSENT a=b").words(),
        step("no digest", "content label bad a=b"),
        step("nothing", "content label"),
        step("nothing changed", "content edit --editor true $HELLO").words(),
        step("what is not there", "content edit --editor true $ABSENT").words(),
        step("what is not there", "content rm $ABSENT"),
        step("no digest", "content rm bad"),
        step("a blob", "content rm $HELLO"),
        step("", "content ls"),
    ],
}];
