//! Leases, namespaces, containers.

use super::server::NO_RUNTIME;
use crate::client::EVERY_CTR;
use crate::step::{Scene, step};

pub(crate) const SCENES: &[Scene] = &[
    Scene {
        namespace: "compat-leases",
        steps: &[
            step("nothing", "leases ls"),
            step("with an ID", "leases create --id one"),
            step("an ID that is there", "leases create --id one"),
            step("labelled", "leases create --id two a=b"),
            step("an ID with a slash", "leases create --id bad/id"),
            step("without end", "leases create --id three --expires 0s"),
            step("an ID of its own", "leases create"),
            step("all", "leases ls id==one id==two id==three"),
            step("IDs only", "leases ls -q id==one"),
            step("by label", "leases ls labels.a==b"),
            step("a bad filter", "leases ls bad^^").words(),
            step("a lease", "leases rm one"),
            step("what is not there", "leases rm none"),
            step("and collect", "leases rm --sync two"),
            step("", "leases ls -q id==one id==two id==three"),
        ],
    },
    Scene {
        namespace: "compat-namespaces",
        steps: &[
            step("labelled", "namespaces create compat-mine a=b"),
            step("a name that is there", "namespaces create compat-mine"),
            step("a bad name", "namespaces create bad/name").words(),
            step("no name", "namespaces create"),
            step("set", "namespaces label compat-mine c=d"),
            step("clear", "namespaces label compat-mine a="),
            step("what is not there", "namespaces label compat-none a=b"),
            step("all", "namespaces ls"),
            step("names only", "namespaces ls -q"),
            step("an empty one", "namespaces rm compat-mine"),
            step("what is not there", "namespaces rm compat-none"),
            step("", "images import %LOCAL --snapshotter overlayfs $FILES/app.tar"),
            step("one that has an image", "namespaces rm compat-namespaces").words(),
            step("", "namespaces ls"),
        ],
    },
    Scene {
        namespace: "compat-containers",
        steps: &[
            step("", "images import %LOCAL --snapshotter overlayfs $FILES/app.tar"),
            step("of an image", "containers create example.org/app:1 web"),
            step("a name that is there", "containers create example.org/app:1 web"),
            step("an image that is not there", "containers create example.org/none:1 other"),
            step(
                "labelled, with another snapshotter",
                "containers create --label k=v --snapshotter native example.org/app:1 two sh",
            ),
            step("all", "containers ls"),
            step("names only", "containers ls -q"),
            step("by label", "containers ls labels.k==v"),
            step("a bad filter", "containers ls bad^^").words(),
            step("a container", "containers info web"),
            step("its spec", "containers info --spec web"),
            step("what is not there", "containers info none").words(),
            step("set", "containers label web a=b"),
            step("what is not there", "containers label none a=b").words(),
            step("a container", "containers checkpoint web $REGISTRY/checkpoint:1").but(EVERY_CTR, &NO_RUNTIME),
            step("an image that is no checkpoint", "containers restore back example.org/app:1"),
            step("what is not there", "containers rm none").words(),
            step("several", "containers rm web two"),
            step("", "snapshots ls"),
            step("nothing", "containers rm"),
        ],
    },
    Scene { namespace: "bad/name", steps: &[step("in a namespace with a bad name", "images ls").words()] },
];
