//! `k8s.io`: the deviations of "Hash references" in docs/compatibility.md, and no others.

use crate::answer::Answer;
use crate::client::EVERY_CTR;
use crate::deviation::{Deviation, How};
use crate::step::{Scene, step};

pub(crate) static DIGEST_RECORD: Deviation = Deviation {
    name: "a record by digest",
    reason: "\"`ctr` tags or imports a name\": Orlop writes `name@digest` beside the image's ID, containerd the ID alone",
    how: How::Same(without_digest_records),
};

pub(crate) static COMES_BACK: Deviation = Deviation {
    name: "a deleted ID comes back",
    reason: "\"an id record is deleted while the image still has a name\": Orlop writes it again, containerd does not",
    how: How::Same(without_ids),
};

pub(crate) static LAST_NAME: Deviation = Deviation {
    name: "hash references go with the last name",
    reason: "\"the last name of an image is deleted\": Orlop deletes its ID and digest records with it, containerd keeps them",
    how: How::Same(without_ids),
};

fn without_digest_records(mut answer: Answer) -> Answer {
    answer.out.retain(|line| !line.split(' ').next().unwrap_or_default().contains("@sha256:"));
    answer
}

fn without_ids(mut answer: Answer) -> Answer {
    answer.out.retain(|line| !line.starts_with("sha256:"));
    answer
}

pub(crate) const SCENES: &[Scene] = &[Scene {
    namespace: "k8s.io",
    steps: &[
        step("", "images import %LOCAL --snapshotter overlayfs $FILES/app.tar"),
        step("k8s.io: an image imported", "images ls").settles().but(EVERY_CTR, &DIGEST_RECORD),
        step("k8s.io: an image", "images tag %LOCAL example.org/app:1 example.org/other:1"),
        step("k8s.io: an image tagged", "images ls").settles().but(EVERY_CTR, &DIGEST_RECORD),
        step("", "leases create --id collect"),
        step("", "leases rm --sync collect"),
        step("", "content ls"),
        step("", "snapshots ls"),
        step("k8s.io: an ID", "images rm $CONFIG"),
        step("k8s.io: its ID deleted", "images ls")
            .settles()
            .but(EVERY_CTR, &DIGEST_RECORD)
            .but(EVERY_CTR, &COMES_BACK),
        step("k8s.io: one of two names", "images rm example.org/other:1"),
        step("k8s.io: one name deleted", "images ls -q name~=example").but(EVERY_CTR, &DIGEST_RECORD),
        step("k8s.io: the last name", "images rm --sync example.org/app:1"),
        step("", "images ls -q name~=example"),
        // Again, for the ID is gone in containerd.
        step("", "images import %LOCAL --snapshotter overlayfs $FILES/app.tar"),
        step("k8s.io: an image imported", "images ls").settles().but(EVERY_CTR, &DIGEST_RECORD),
        step("", "images rm --sync example.org/app:1"),
        step("k8s.io: the last name deleted", "images ls").settles().but(EVERY_CTR, &LAST_NAME),
    ],
}];
