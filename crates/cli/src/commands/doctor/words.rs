//! What findings are called, what causes them, and the command that mends each.

use orlop_graph::model::{Class, Finding, Mend, Model, Node, NodeId, NodeKind};
use orlop_oci::Kind;

use super::Found;
use crate::commands::Context;
use crate::find::At;
use crate::find::places::Product;
use crate::look::words::{abbreviated, called, name};
use crate::output::count;

/// Where a system's containerd listens, and `ctr` looks.
const CTR_SOCKET: &str = "/run/containerd/containerd.sock";

/// What a class is.
pub(super) const fn title(class: Class) -> &'static str {
    match class {
        Class::Stranded => "images without a name: only hash references hold them, and no container uses them",
        Class::MissingDigest => {
            "tags without their hash reference NAME@DIGEST: a pod that asks by digest does not find the image"
        }
        Class::MissingId => "images without the record of their ID",
        Class::Unmanaged => "records that CRI should have taken in and has not",
        Class::Partial => "images of which a part is not here",
        Class::ForeignPlatform => {
            "records that CRI tries to take in for ever: nothing in them is an image for this platform"
        }
        Class::Lease => "leases without an end, older than a day",
        Class::Ingest => "writes in progress that have got no byte for a day",
        Class::OrphanSnapshot => "snapshots that only their own label containerd.io/gc.root keeps",
        Class::OrphanBlob => "blobs that only their own label containerd.io/gc.root keeps",
        Class::Garbage => "what nothing keeps, and no collection has taken within an hour",
        Class::Damaged => "blobs whose bytes are not those of their digest",
        Class::ZeroLength => "files that are empty in a snapshot and not in its layer",
        _ => "",
    }
}

/// What causes it.
pub(super) const fn cause(class: Class) -> &'static str {
    match class {
        Class::Stranded => {
            "the last tag was removed by a client that leaves hash references (ctr images rm), or a later pull moved it; an image that a pod pulled by digest looks the same"
        }
        Class::MissingDigest => {
            "ctr imported or tagged the image, or somebody deleted the record; only a pull through CRI writes it"
        }
        Class::MissingId => "somebody deleted the record, or CRI could not read the image when it saw it",
        Class::Unmanaged => {
            "CRI could not read the image when it saw the record, and hears nothing of a blob that came later; or it has not got to it yet"
        }
        Class::Partial => "a blob was deleted or lost, or a pull or import broke off",
        Class::ForeignPlatform => {
            "an image for another platform, or an artifact, was pulled or imported into the kubelet's namespace"
        }
        Class::Lease => "a client broke off, or never deletes the leases that it makes",
        Class::Ingest => "a download broke off and was not begun again",
        Class::OrphanSnapshot | Class::OrphanBlob => {
            "made by hand (ctr snapshots prepare sets the label) and forgotten"
        }
        Class::Garbage => {
            "a lease ran out, or something was removed, and nobody has waited for a collection since; containerd also collects after a hundred changes"
        }
        Class::Damaged => "the disk, or somebody who wrote to the file",
        Class::ZeroLength => "the power failed before the file's content was on disk",
        _ => "",
    }
}

/// Why `--fix` leaves it alone unless it is named; none if it does not.
pub(super) const fn caution(class: Class) -> Option<&'static str> {
    match class {
        Class::Stranded => Some("it may have been pulled by digest, and would have to be pulled again"),
        Class::Partial => Some("it needs the registry"),
        Class::Unmanaged => Some(
            "CRI takes the record in when it changes, which the command brings about, or when containerd starts again",
        ),
        Class::ForeignPlatform => Some("somebody has put it here"),
        Class::Lease => Some("its client may still want what it keeps"),
        Class::OrphanSnapshot => Some("what was written to it is nowhere else"),
        Class::OrphanBlob => Some("it may be nowhere else"),
        Class::Damaged => Some("it has to be fetched again then"),
        Class::ZeroLength => Some("the image has to be unpacked again then"),
        _ => None,
    }
}

/// What one finding is about, in words.
pub(super) fn detail(model: &Model, found: &Found) -> String {
    let Finding { class, subject, things, mend, .. } = &found.finding;
    if let Some(detail) = &found.detail {
        return detail.clone();
    }
    let with_all = |what: &str| match things.len() as u64 {
        0 | 1 => String::new(),
        more => format!("{what} {}", count(more - 1, "snapshot")),
    };
    match (class, mend) {
        (Class::Stranded, _) => format!("{} and no name", count(things.len() as u64, "hash reference")),
        (_, Mend::Write { name, .. }) => format!("{} is not here", abbreviated(name)),
        (Class::Unmanaged, _) => format!("it lacks the label {}=managed", orlop_graph::model::MANAGED),
        (Class::Partial, _) => {
            let first = things.first().map(|node| part(model, *node)).unwrap_or_default();
            let more = things.len().saturating_sub(1);
            if more == 0 { first } else { format!("{first}, and {more} more") }
        }
        (Class::ForeignPlatform, _) => format!("{} of it", count(things.len() as u64, "record")),
        (Class::Lease, _) => {
            let made = created(model, *subject).map(|at| format!("made {at}, ")).unwrap_or_default();
            format!("{made}it lists {}", count(model.references(*subject).len() as u64, "thing"))
        }
        (Class::Ingest, _) => created(model, *subject).map(|at| format!("begun {at}")).unwrap_or_default(),
        (Class::OrphanSnapshot, _) => with_all("and on it"),
        (Class::Garbage, _) => {
            let blobs = things.iter().filter(|node| model.kind(**node) == NodeKind::Blob).count() as u64;
            let snapshots = things.len() as u64 - blobs;
            format!("{}, {}", count(blobs, "blob"), count(snapshots, "snapshot"))
        }
        _ => String::new(),
    }
}

/// A part that is not here, with what it is for.
fn part(model: &Model, node: NodeId) -> String {
    let role = model.referrers(node).next().map(|edge| crate::look::words::reason(edge.why));
    let role = role.and_then(|reason| reason.strip_prefix("has as ").map(|role| format!("{role}, ")));
    format!("{}{}", role.unwrap_or_default(), called(model, node))
}

fn created(model: &Model, node: NodeId) -> Option<String> {
    crate::look::facts::times(model, node).0
}

/// What findings are told by: the store's own namespace has none of these in it.
pub(super) fn subject(model: &Model, found: &Found) -> String {
    match found.finding.class {
        Class::Garbage => format!("namespace {}", model.namespace(model.node(found.finding.subject).namespace())),
        _ => name(model, found.finding.subject),
    }
}

/// The command that mends one finding.
pub(super) fn command(context: &Context, model: &Model, found: &Found) -> String {
    let Finding { class, subject, things, mend, .. } = &found.finding;
    let namespace = model.namespace(model.node(*subject).namespace());
    let orlop = orlop(context, namespace);
    let names = |nodes: &[NodeId]| arguments(nodes.iter().map(|node| name(model, *node)));
    match (class, mend) {
        (Class::Stranded | Class::ForeignPlatform, _) => format!("{orlop} rm {}", names(things)),
        (Class::MissingDigest, Mend::Write { name: new, like }) => {
            format!("{} images tag {} {}", ctr(context, namespace), quoted(&name(model, *like)), quoted(new))
        }
        (Class::Unmanaged, _) => format!(
            "{} images label {} {}=managed",
            ctr(context, namespace),
            names(&[*subject]),
            orlop_graph::model::MANAGED
        ),
        (Class::Partial, _) => fetch(context, model, *subject),
        (Class::Lease, _) => format!("{orlop} leases rm {}", names(things)),
        (Class::Ingest, _) => format!("{orlop} content abort {}", names(things)),
        (Class::OrphanBlob, _) => format!("{orlop} content rm {}", names(things)),
        (Class::OrphanSnapshot, _) => removal(model, &orlop, things),
        (Class::Damaged, _) => {
            let again = fetch_of(context, model, *subject).map(|fetch| format!("; {fetch}")).unwrap_or_default();
            format!("{orlop} doctor --deep --fix --class damaged{again}")
        }
        (Class::ZeroLength, _) => {
            let again = found.target.as_ref().map(|target| {
                format!("; {} snapshots{} unpack {target}", ctr(context, namespace), driver(model, *subject))
            });
            format!("{}{}", removal(model, &orlop, things), again.unwrap_or_default())
        }
        _ => format!("{orlop} doctor --fix --class {}", class.as_str()),
    }
}

fn removal(model: &Model, orlop: &str, snapshots: &[NodeId]) -> String {
    let keys = arguments(snapshots.iter().map(|node| name(model, *node)));
    let driver = snapshots.first().map(|node| driver(model, *node)).unwrap_or_default();
    format!("{orlop} snapshots rm{driver} {keys}")
}

/// The option that names a snapshot's driver, where it is not the usual one.
fn driver(model: &Model, snapshot: NodeId) -> String {
    match model.node(snapshot) {
        Node::Snapshot(row) if *row.snapshotter != *"overlayfs" => format!(" --snapshotter {}", row.snapshotter),
        _ => String::new(),
    }
}

/// Fetches what a record names and is not here.
fn fetch(context: &Context, model: &Model, record: NodeId) -> String {
    let namespace = model.namespace(model.node(record).namespace());
    let name = name(model, record);
    match model.record_kind(record) {
        Kind::Tag | Kind::Digest if context.store.is_own() => format!("{} pull {name}", orlop(context, namespace)),
        Kind::Tag | Kind::Digest => format!("{} content fetch {}", ctr(context, namespace), quoted(&name)),
        // No registry knows it by this name.
        Kind::Id | Kind::Other => format!("{} rm {}", orlop(context, namespace), quoted(&name)),
    }
}

/// Fetches a blob by a name that keeps it.
fn fetch_of(context: &Context, model: &Model, blob: NodeId) -> Option<String> {
    let mut records = model.keepers(blob);
    records.retain(|keeper| {
        model.kind(*keeper) == NodeKind::Record && matches!(model.record_kind(*keeper), Kind::Tag | Kind::Digest)
    });
    records.sort_by_key(|record| model.record_kind(*record).is_hash_reference());
    records.first().map(|record| fetch(context, model, *record))
}

/// This program on this store.
fn orlop(context: &Context, namespace: &str) -> String {
    let place = match &context.store.at {
        At::Directory(root) => format!("--root {}", quoted(&root.display().to_string())),
        At::Socket(socket) => format!("--address {}", quoted(&socket.display().to_string())),
    };
    format!("orlop {place} -n {namespace}")
}

/// The `ctr` of this store.
fn ctr(context: &Context, namespace: &str) -> String {
    let program = match (&context.store.product, &context.store.at) {
        (Product::MicroK8s, _) => "microk8s ctr".to_owned(),
        (Product::K3s, _) => "k3s ctr".to_owned(),
        (Product::K0s, _) => "k0s ctr".to_owned(),
        (_, At::Socket(socket)) if socket.as_os_str() != CTR_SOCKET => {
            format!("ctr -a {}", quoted(&socket.display().to_string()))
        }
        _ => "ctr".to_owned(),
    };
    format!("{program} -n {namespace}")
}

/// A word as a shell takes it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:@=+,".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else if word.chars().any(char::is_control) {
        // No other way is the same in all shells.
        format!("\"$(printf '{}')\"", word.chars().map(escaped).collect::<String>())
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A character in a text for `printf` in single quotes.
fn escaped(c: char) -> String {
    match c {
        '\'' => r"\047".to_owned(),
        '\\' | '%' => format!("{c}{c}"),
        c if c.is_control() => c.encode_utf8(&mut [0; 4]).bytes().map(|byte| format!("\\{byte:03o}")).collect(),
        c => c.to_string(),
    }
}

/// Words behind a command; none of them is taken for an option.
fn arguments(words: impl Iterator<Item = String>) -> String {
    let words: Vec<String> = words.collect();
    let end_of_options = if words.iter().any(|word| word.starts_with('-')) { "-- " } else { "" };
    format!("{end_of_options}{}", words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "))
}
