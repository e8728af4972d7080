//! A daemon that is cut while clients are at work: what each was answered is there, whatever the others were about.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use orlop_testkit::image::Content;

use crate::common;
use crate::verdict::crowd::Crowd;
use crate::verdict::images::{above, image_of};
use crate::verdict::{self, Seen};
use crate::workload::{Workload, explored};

const CLIENTS: usize = 4;

/// How many states are tried at each point in the short tier.
const SHORT: usize = 2;

/// What a client did: the records that this leaves, and when it knew.
struct Act {
    client: usize,
    args: Vec<String>,
    records: Told,
    answered: SystemTime,
}

/// Imports two images, moves a name, removes one.
fn acts(client: usize, socket: &Path, archives: &[(String, Content)]) -> Vec<Act> {
    let name = |number: usize| format!("docker.io/library/client{client}:{number}");
    let known = |image: &Content| {
        let target = Some(image.root.digest.to_string());
        let digest = format!("k8s.io/docker.io/library/client{client}@{}", image.root.digest);
        let id = format!("k8s.io/{}", image.image_id().expect("an image"));
        BTreeMap::from([(digest, target.clone()), (id, target)])
    };
    let named = |number: usize, image: &Content| {
        BTreeMap::from([(format!("k8s.io/{}", name(number)), Some(image.root.digest.to_string()))])
    };
    let [first, second] = archives else { panic!("two archives") };
    let mut all = Vec::new();
    let mut act = |args: &[&str], records: Told| {
        let mut command: Command = common::binary();
        command.arg("--address").arg(socket).args(["--namespace", "k8s.io", "-q"]).args(args);
        let done = command.output().expect("orlop starts");
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        all.push(Act { client, args, records, answered: SystemTime::now() });
    };
    act(&["import", &first.0], named(1, &first.1).into_iter().chain(known(&first.1)).collect());
    act(&["import", &second.0], named(2, &second.1).into_iter().chain(known(&second.1)).collect());
    act(&["tag", &name(1), &name(3)], named(3, &first.1));
    act(&["tag", "--force", &name(2), &name(3)], named(3, &second.1));
    act(&["rm", &name(2)], BTreeMap::from([(format!("k8s.io/{}", name(2)), None)]));
    all
}

/// What keys lead to; `None`: to nothing.
pub(crate) type Told = BTreeMap<String, Option<String>>;

/// What may be found: of each key what was answered last, or what somebody was about.
pub(crate) fn may<'a>(
    answered: impl Iterator<Item = &'a Told>,
    open: impl Iterator<Item = &'a Told>,
) -> BTreeMap<&'a String, Vec<Option<&'a String>>> {
    let mut may: BTreeMap<&String, Vec<Option<&String>>> = BTreeMap::new();
    for (key, target) in answered.flatten() {
        may.insert(key, vec![target.as_ref()]);
    }
    for (key, target) in open.flatten() {
        may.entry(key).or_insert_with(|| vec![None]).push(target.as_ref());
    }
    may
}

/// Whether records are what they may be, and no others.
pub(crate) fn compare(
    found: &BTreeMap<String, String>,
    may: &BTreeMap<&String, Vec<Option<&String>>>,
) -> Result<(), String> {
    for (record, targets) in may {
        let found = found.get(*record);
        if !targets.contains(&found) {
            return Err(format!("record {record} is {found:?}, and may be {targets:?}"));
        }
    }
    match found.keys().find(|record| !may.contains_key(record)) {
        Some(record) => Err(format!("record {record} is there, and nobody made it")),
        None => Ok(()),
    }
}

fn judge(found: &Seen, acts: &[Act], known: usize, last: &Seen) -> Result<(), String> {
    let open = (0..CLIENTS).filter_map(|client| acts[known..].iter().find(|act| act.client == client));
    compare(found.records(), &may(acts[..known].iter().map(|act| &act.records), open.map(|act| &act.records)))?;
    found.has_trees_of(last)
}

#[test]
fn a_daemon_with_clients() {
    let Some(work) = Workload::new() else { return };
    let archives: Vec<Vec<(String, Content)>> = (0..CLIENTS)
        .map(|client| {
            let image = |word: &str| {
                let content = image_of(above(&format!("{word} {client}")));
                (work.archive(&format!("docker.io/library/client{client}:{word}"), &content), content)
            };
            vec![image("1"), image("2")]
        })
        .collect();
    let socket = work.path("s");
    let daemon = work.start(&["serve", "--socket", socket.to_str().expect("a plain path")]);
    let deadline = Instant::now() + Duration::from_secs(60);
    while UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < deadline, "the daemon does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    let connected = Crowd::of(&socket);
    let mut acts: Vec<Act> = std::thread::scope(|scope| {
        let socket = socket.as_path();
        let clients: Vec<_> = archives
            .iter()
            .enumerate()
            .map(|(client, archives)| scope.spawn(move || acts(client, socket, archives)))
            .collect();
        clients.into_iter().flat_map(|client| client.join().expect("a client ends")).collect()
    });
    connected.is_served().expect("who is connected is served");
    acts.sort_by_key(|act| act.answered);
    let answered: Vec<SystemTime> = acts.iter().map(|act| act.answered).collect();
    let (timeline, scratch) = work.stop(daemon, &answered);
    let last =
        verdict::look(&scratch.lay(|top| timeline.at_mark(acts.len()).lay(top))).expect("the last state is sound");
    explored(&timeline, &scratch, SHORT, &mut |root, state| {
        let found = verdict::collected(root)?;
        let told = |found| {
            format!("{found}\nanswered: {:?}", acts[..state.marks].iter().map(|act| &act.args).collect::<Vec<_>>())
        };
        judge(&found, &acts, state.marks, &last).map_err(told)
    });
}
