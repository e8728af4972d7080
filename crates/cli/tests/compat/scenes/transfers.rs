//! Images from and to registries and archives.

use super::WORDS;
use crate::answer::Answer;
use crate::client::{BY_CLIENT, BY_SERVER, NEW};
use crate::deviation::{Deviation, How};
use crate::step::{Look, Scene, step};

pub(crate) static ANY_SNAPSHOTTER: Deviation = Deviation {
    name: "unpacking with any snapshotter",
    reason: "containerd's transfer service unpacks only with what `unpack_config` lists and refuses others; Orlop unpacks \
             with each driver it has",
    how: How::Refused("no unpack platforms defined"),
};

pub(crate) static NOTES_SOURCES: Deviation = Deviation {
    name: "where a blob came from",
    reason: "`containerd.io/distribution.source` of a blob that is there already: Orlop adds the repository of each pull, \
             containerd only of what it looks at",
    how: How::Same(without_sources),
};

pub(crate) static ARCHIVE_ORDER: Deviation = Deviation {
    name: "the order and modes of an archive's entries",
    reason: "Orlop writes documents before layers, so that an archive can be read as it comes, and with mode 0644; \
             containerd sorts by name, with mode 0444",
    how: How::Same(without_order),
};

fn without_sources(mut answer: Answer) -> Answer {
    for line in &mut answer.out {
        let Some((row, labels)) = line.rsplit_once(' ') else { continue };
        // The rest of a list of repositories has no key.
        let kept = labels.split(',').filter(|label| label.contains('=') && !label.contains("distribution.source"));
        *line = format!("{row} {}", kept.collect::<Vec<_>>().join(","));
    }
    answer
}

fn without_order(mut answer: Answer) -> Answer {
    for line in &mut answer.out {
        *line = line.split_once(' ').map_or_else(String::new, |(_, rest)| rest.to_owned());
    }
    answer.out.sort();
    answer
}

pub(crate) const SCENES: &[Scene] = &[
    Scene {
        namespace: "compat-pull",
        steps: &[
            step("an index", "images pull %LOCAL --plain-http $REGISTRY/multi:1"),
            step("", "images ls"),
            step("", "images check"),
            step("", "content ls"),
            step("", "snapshots ls"),
            step("", "leases ls"),
            step("again", "images pull %LOCAL --plain-http $REGISTRY/multi:1"),
            step("by digest", "images pull %LOCAL --plain-http $REGISTRY/multi@$INDEX"),
            step("a manifest", "images pull %LOCAL --plain-http $REGISTRY/app:1"),
            step("over TLS that is not there", "images pull %LOCAL $REGISTRY/app:1"),
            step("all platforms", "images pull %LOCAL --plain-http --all-platforms $REGISTRY/multi:1"),
            step("another platform", "images pull %LOCAL --plain-http --platform $OTHER $REGISTRY/multi:1"),
            step(
                "a platform that it lacks",
                "images pull %LOCAL --plain-http --platform linux/s390x $REGISTRY/multi:1",
            ),
            step("labelled", "images pull %LOCAL --plain-http --label a=b $REGISTRY/docker:1"),
            step("", "images ls"),
            step("", "leases create --id collect"),
            step("", "leases rm --sync collect"),
            step("after pulls", "content ls").but(BY_SERVER, &NOTES_SOURCES),
            step("", "snapshots ls"),
            step("a tag that is not there", "images pull %LOCAL --plain-http $REGISTRY/multi:none")
                .but(BY_SERVER, &WORDS),
            step("a repository that is not there", "images pull %LOCAL --plain-http $REGISTRY/none:1")
                .but(BY_SERVER, &WORDS),
            step("a registry that is not there", "images pull %LOCAL --plain-http 127.0.0.1:1/x:1")
                .but(BY_SERVER, &WORDS),
            step("a bad reference", "images pull %LOCAL --plain-http bad..ref").but(BY_SERVER, &WORDS),
            step("no reference", "images pull %LOCAL"),
        ],
    },
    Scene {
        namespace: "compat-pull-driver",
        steps: &[
            step("with its chain ID", "images pull %LOCAL --plain-http --print-chainid $REGISTRY/app:1")
                .only(BY_CLIENT),
            step("with another snapshotter", "images pull %LOCAL --plain-http --snapshotter native $REGISTRY/app:1")
                .but(BY_SERVER, &ANY_SNAPSHOTTER),
            step("", "snapshots --snapshotter native ls").only(BY_CLIENT),
            step("with no such snapshotter", "images pull %LOCAL --plain-http --snapshotter none $REGISTRY/app:1")
                .words(),
        ],
    },
    Scene {
        namespace: "compat-pull-terminal",
        steps: &[
            step("on a terminal", "images pull %LOCAL --plain-http $REGISTRY/multi:1").look(Look::Terminal),
            step("a manifest", "images pull %LOCAL --plain-http $REGISTRY/app:1"),
            step("on a terminal", "images push %LOCAL --plain-http $REGISTRY/terminal:1 $REGISTRY/app:1")
                .look(Look::Terminal),
        ],
    },
    Scene {
        namespace: "compat-import",
        steps: &[
            step("an image", "images import %LOCAL $FILES/app.tar"),
            step("", "images ls"),
            step("", "snapshots ls"),
            step("again", "images import %LOCAL $FILES/app.tar"),
            step("under another name", "images import %LOCAL --base-name example.net/other $FILES/app.tar"),
            step("with digests", "images import %LOCAL --base-name example.org/app --digests $FILES/app.tar"),
            step("digests without a base", "images import %LOCAL --digests $FILES/app.tar"),
            step("with its index", "images import %LOCAL --index-name example.org/index:1 $FILES/app.tar"),
            step("Docker's media types", "images import %LOCAL --no-unpack $FILES/docker.tar"),
            step("all platforms", "images import %LOCAL --all-platforms $FILES/multi.tar"),
            step("another platform", "images import %LOCAL --platform $OTHER $FILES/multi.tar"),
            step("no file", "images import %LOCAL $FILES/none"),
            step("no archive", "images import %LOCAL $FILES/text").but(BY_SERVER, &WORDS),
            step("", "images ls"),
            step("", "leases create --id collect"),
            step("", "leases rm --sync collect"),
            step("", "content ls"),
            step("", "snapshots ls"),
            step("", "leases ls"),
        ],
    },
    Scene {
        namespace: "compat-export",
        steps: &[
            step("", "images import %LOCAL $FILES/app.tar"),
            step("an image", "images export %LOCAL $DIRECTORY/app.tar example.org/app:1"),
            step("", "images import %LOCAL --base-name example.org/app $DIRECTORY/app.tar"),
            step(
                "without Docker's manifest",
                "images export %LOCAL --skip-manifest-json $DIRECTORY/oci.tar example.org/app:1",
            ),
            step("all platforms", "images export %LOCAL --all-platforms $DIRECTORY/all.tar example.org/app:1"),
            step("another platform", "images export %LOCAL --platform $OTHER $DIRECTORY/other.tar example.org/app:1"),
            step("to standard output", "images export %LOCAL - example.org/app:1")
                .look(Look::Layer)
                .but(BY_SERVER, &ARCHIVE_ORDER),
            step("an image that is not there", "images export %LOCAL $DIRECTORY/none.tar example.org/none:1"),
            step("no image", "images export %LOCAL $DIRECTORY/none.tar"),
            step("a directory that is not there", "images export %LOCAL $DIRECTORY/none/a.tar example.org/app:1"),
        ],
    },
    Scene {
        namespace: "compat-push",
        steps: &[
            step("", "images import %LOCAL $FILES/app.tar"),
            step("", "images import %LOCAL --all-platforms $FILES/multi.tar"),
            step("a manifest", "images push %LOCAL --plain-http $REGISTRY/pushed:1 example.org/app:1"),
            step("again", "images push %LOCAL --plain-http $REGISTRY/pushed:1 example.org/app:1"),
            step("an index", "images push %LOCAL --plain-http $REGISTRY/pushed-multi:1 example.org/multi:1"),
            step("", "images pull %LOCAL --plain-http --all-platforms $REGISTRY/pushed-multi:1"),
            step(
                "a manifest for another platform",
                "images push %LOCAL --plain-http --platform $OTHER $REGISTRY/pushed:2 example.org/app:1",
            ),
            step("by digest", "images push %LOCAL --plain-http --manifest $MANIFEST $REGISTRY/pushed:3").only(NEW),
            step("an image that is not there", "images push %LOCAL --plain-http $REGISTRY/pushed:4 example.org/none:1"),
            step("a name that is not there", "images push %LOCAL --plain-http $REGISTRY/none:1"),
            step("a registry that is not there", "images push %LOCAL --plain-http 127.0.0.1:1/x:1 example.org/app:1")
                .but(BY_SERVER, &WORDS),
            step("no reference", "images push %LOCAL"),
            step("", "images ls"),
        ],
    },
    Scene {
        namespace: "compat-tag",
        steps: &[
            step("", "images import %LOCAL $FILES/app.tar"),
            step("", "images label example.org/app:1 a=b"),
            step("a new name", "images tag %LOCAL example.org/app:1 example.org/app:2"),
            step("a name that is there", "images tag %LOCAL example.org/app:1 example.org/app:2"),
            step("by force", "images tag %LOCAL --force example.org/app:1 example.org/app:2"),
            step("several names", "images tag %LOCAL example.org/app:1 example.org/app:3 example.org/app:4"),
            step("an image that is not there", "images tag %LOCAL example.org/none:1 example.org/app:5"),
            step("a bad reference", "images tag %LOCAL example.org/app:1 bad..ref"),
            step("one name", "images tag %LOCAL example.org/app:1"),
            step("", "images ls"),
        ],
    },
    Scene {
        namespace: "compat-fetch",
        steps: &[
            step("an index", "content fetch --plain-http $REGISTRY/multi:1"),
            step("all platforms", "content fetch --plain-http --all-platforms $REGISTRY/multi:1"),
            step("metadata only", "content fetch --plain-http --metadata-only $REGISTRY/docker:1"),
            step("a tag that is not there", "content fetch --plain-http $REGISTRY/multi:none"),
            step("a registry that is not there", "content fetch --plain-http 127.0.0.1:1/x:1"),
            step("", "images ls"),
            step("", "content ls"),
            step("a config", "content fetch-object --plain-http $REGISTRY/app:1 $CONFIG"),
            step("a tag", "content fetch-object --plain-http $REGISTRY/app:1"),
            step("a config", "content fetch-blob --plain-http $REGISTRY/app:1 $CONFIG").only(NEW),
            step("no digest", "content fetch-blob --plain-http $REGISTRY/app:1 bad").only(NEW),
            step("", "images import %LOCAL $FILES/app.tar"),
            step(
                "a config",
                "content push-object --plain-http $REGISTRY/object:1 $CONFIG application/vnd.oci.image.config.v1+json",
            ),
            step("no digest", "content push-object --plain-http $REGISTRY/object:1 bad x"),
            step(
                "what is not there",
                "content push-object --plain-http $REGISTRY/object:1 $ABSENT application/vnd.oci.image.config.v1+json",
            )
            .words(),
            step("try only", "content prune references --dry").look(Look::Sorted),
            step("layers", "content prune references").look(Look::Sorted),
            step("", "content ls"),
        ],
    },
];
