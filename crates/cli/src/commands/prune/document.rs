//! What `prune` tells: what the policy takes and leaves, why, the plan and what came of it.

use orlop_graph::model::{ImageNames, Model, NodeId, Selection, Sign, Spare, Use};
use serde::Serialize;

use super::{Args, read};
use crate::commands::Context;
use crate::commands::rm::Plan;
use crate::look::words::{abbreviated, called, name};
use crate::output::short;
use crate::paint::plain;

/// How many containers are named before the rest is counted.
const NAMED: usize = 3;

/// `orlop.prune/v1` (docs/lens.md).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pruned {
    #[serde(flatten)]
    pub(super) plan: Plan,
    pub(super) namespace: String,
    pub(super) policy: Policy,
    /// What goes, least recently used first.
    pub(super) chosen: Vec<Chosen>,
    /// What stays.
    pub(super) kept: Vec<Kept>,
}

/// The policy, as it was said.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Policy {
    unused_since_seconds: Option<i64>,
    keep_last: Option<u32>,
    untagged: bool,
    labels: Vec<String>,
    repositories: Vec<String>,
    last_copies: bool,
    /// Bytes that are to be given back.
    pub(super) free: Option<u64>,
}

/// An image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Image {
    image_id: Option<String>,
    names: Vec<String>,
    hash_references: Vec<String>,
}

/// An image that goes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Chosen {
    #[serde(flatten)]
    pub(super) image: Image,
    /// Absent if nothing tells.
    pub(super) last_use: Option<LastUse>,
    /// Bytes that go with it when those before it have gone.
    pub(super) frees: u64,
}

/// When an image was last used.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LastUse {
    pub(super) at: String,
    /// `record`, `snapshot` or `label`.
    sign: &'static str,
    /// Whether it is concluded; a label says it.
    inferred: bool,
}

/// An image that stays.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Kept {
    #[serde(flatten)]
    pub(super) image: Image,
    /// One of [`REASONS`].
    pub(super) reason: &'static str,
    /// The same of this image, in words.
    detail: String,
}

/// Why images stay: the word in JSON, and for people.
pub(super) const REASONS: [(&str, &str); 14] = [
    ("in-use", "used by a container"),
    ("pinned", "pinned"),
    ("held", "held by a lease, or a snapshot that stands on it"),
    ("last-copy", "no registry is known to have it; --last-copies takes it too"),
    ("recently-used", "used lately"),
    ("use-unknown", "nothing tells when it was used"),
    ("among-last", "among the newest names of its repository"),
    ("frees-nothing", "others keep all that it has"),
    ("enough", "not needed: what was chosen gives back enough"),
    ("tagged", "has a tag"),
    ("label", "by its labels"),
    ("labels-unknown", "its labels cannot be read"),
    ("other-repository", "of another repository"),
    ("no-repository", "without a repository"),
];

impl Pruned {
    pub(super) fn of(
        context: &Context,
        args: &Args,
        model: &Model,
        selection: &Selection,
        wanted: Option<u64>,
    ) -> Self {
        let chosen = selection.chosen.iter().map(|chosen| Chosen {
            image: Image::of(model, &chosen.image),
            last_use: chosen.last_use.map(LastUse::from),
            frees: chosen.frees,
        });
        let kept = selection.kept.iter().map(|spared| Kept {
            image: Image::of(model, &spared.image),
            reason: reason(&spared.why),
            detail: detail(args, model, &spared.why),
        });
        Self {
            namespace: context.store.namespace.clone(),
            policy: Policy {
                unused_since_seconds: args.unused_since.as_ref().map(|age| age.duration.as_secs()),
                keep_last: args.keep_last,
                untagged: args.untagged,
                labels: args.labels.iter().map(read::written).collect(),
                repositories: args.repositories.iter().map(|p| p.as_str().to_owned()).collect(),
                last_copies: args.last_copies,
                free: wanted,
            },
            chosen: chosen.collect(),
            kept: kept.collect(),
            plan: Plan::default(),
        }
    }
}

impl Image {
    fn of(model: &Model, image: &ImageNames) -> Self {
        let (hashes, names): (Vec<NodeId>, Vec<NodeId>) =
            image.records.iter().partition(|record| model.record_kind(**record).is_hash_reference());
        let called = |records: Vec<NodeId>| records.into_iter().map(|record| name(model, record)).collect();
        let image_id = image.image_id.as_ref().map(ToString::to_string);
        Self { image_id, names: called(names), hash_references: called(hashes) }
    }

    /// What people call it: a tag, else by digest.
    pub(super) fn called(&self) -> String {
        match (self.names.first(), self.hash_references.iter().find(|name| name.contains('@'))) {
            (Some(name), _) => plain(name).into_owned(),
            (None, Some(name)) => abbreviated(&plain(name)),
            (None, None) => self.hash_references.first().map_or("<none>", |id| short(id)).to_owned(),
        }
    }
}

impl From<Use> for LastUse {
    fn from(last: Use) -> Self {
        let sign = match last.sign {
            Sign::Record => "record",
            Sign::Snapshot => "snapshot",
            Sign::Label => "label",
        };
        let at = jiff::Timestamp::from_second(last.at.as_second()).unwrap_or(last.at).to_string();
        Self { at, sign, inferred: last.sign != Sign::Label }
    }
}

impl LastUse {
    /// What tells so, in words.
    pub(super) fn told(&self) -> &'static str {
        match self.sign {
            "record" => "its record was written then",
            "snapshot" => "it was unpacked then",
            _ => "a label says so",
        }
    }
}

fn reason(why: &Spare) -> &'static str {
    match why {
        Spare::InUse(_) => "in-use",
        Spare::Pinned(_) => "pinned",
        Spare::Held(_) => "held",
        Spare::LastCopy(_) => "last-copy",
        Spare::Recent(_) => "recently-used",
        Spare::UseUnknown => "use-unknown",
        Spare::AmongLast(_) => "among-last",
        Spare::FreesNothing => "frees-nothing",
        Spare::Enough => "enough",
        Spare::Tagged(_) => "tagged",
        Spare::Label(_) => "label",
        Spare::LabelsUnknown => "labels-unknown",
        Spare::OtherRepository(_) => "other-repository",
        _ => "no-repository",
    }
}

fn detail(args: &Args, model: &Model, why: &Spare) -> String {
    match why {
        Spare::InUse(users) => {
            let mut names: Vec<String> = users.iter().take(NAMED).map(|user| called(model, *user)).collect();
            if users.len() > NAMED {
                names.push(format!("{} more", users.len() - NAMED));
            }
            format!("used by {}", names.join(", "))
        }
        Spare::Pinned(record) => format!("{} is pinned", called(model, *record)),
        Spare::Held(holder) => format!("{} holds it", called(model, *holder)),
        Spare::LastCopy(blob) => format!("no registry is known to have {}", called(model, *blob)),
        Spare::Recent(last) => {
            let last = LastUse::from(*last);
            format!("last used {}: {}", last.at, last.told())
        }
        Spare::UseUnknown => "nothing tells when it was last used".into(),
        Spare::AmongLast(record) => {
            let last = args.keep_last.unwrap_or_default();
            format!("{} is among the newest {last} of its repository", called(model, *record))
        }
        Spare::FreesNothing => "others that stay keep all that it has".into(),
        Spare::Enough => "what was chosen before it gives back enough".into(),
        Spare::Tagged(record) => format!("{} is a tag of it", called(model, *record)),
        Spare::Label(at) => {
            let rule = args.labels.get(*at).map(read::written).unwrap_or_default();
            format!("its labels do not fulfil {rule}")
        }
        Spare::LabelsUnknown => "its config, which has its labels, cannot be read".into(),
        Spare::OtherRepository(record) => format!("{} is of no repository that was asked for", called(model, *record)),
        _ => "it has a name of no repository, or none at all".into(),
    }
}
