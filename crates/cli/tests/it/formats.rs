//! Every command in every format: `-o name` prints names alone, `-o json` and `-o yaml` a document whose schema docs/output.md
//! has; what a command has not is refused with its reason, and it does nothing then.
//!
//! The commands are those of the man pages, which come from the one definition of the command line: a new one fails here until
//! it has a row.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common;
use crate::common::{Done, Orlop, binary};
use orlop_oci::Compression;
use orlop_testkit::archive;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::registry::Registry;
use orlop_testkit::tar::Entry;
use serde_json::Value;

/// What a command prints with `-o name`.
enum Names {
    /// Exactly these lines; words in braces stand for what the store has ([`Filled::word`]).
    Are(&'static [&'static str]),
    /// As many lines, whose names are made up.
    Some(usize),
    /// It has none.
    Refused,
}

use Names::{Are, Refused};

/// One command. Each run of it has a store of its own with one image, `app:1`.
struct Row {
    /// Its words; the first ones are the command's name.
    words: &'static str,
    /// Before it: commands of orlop, with `?` such as fail, with `!` commands of the system.
    before: &'static [&'static str],
    names: Names,
    /// Of its documents; none if it refuses to print one.
    schema: Option<&'static str>,
    code: i32,
    after: &'static [&'static str],
}

const fn row(words: &'static str, names: Names, schema: &'static str) -> Row {
    Row { words, before: &[], names, schema: Some(schema), code: 0, after: &[] }
}

const fn refused(words: &'static str) -> Row {
    Row { words, before: &[], names: Refused, schema: None, code: 0, after: &[] }
}

impl Row {
    const fn before(self, before: &'static [&'static str]) -> Self {
        Self { before, ..self }
    }

    const fn after(self, after: &'static [&'static str]) -> Self {
        Self { after, ..self }
    }

    const fn ends(self, code: i32) -> Self {
        Self { code, ..self }
    }
}

const ALL: &[&str] = &["{app}", "{byDigest}", "{id}"];
const DAMAGE: &[&str] = &["!chmod u+w {layerFile}", "!truncate -s 3 {layerFile}"];
const LOSS: &[&str] = &["!rm -f {layerFile}"];
/// What was refused can be gone on with.
const BEGUN: &[&str] =
    &["?content ingest mine --expected-digest sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"];
/// The root of a containerd that has nothing.
const ANOTHER: &[&str] = &["!mkdir {dir}/io.containerd.content.v1.content"];
const PREPARED: &[&str] = &["snapshots prepare mine"];

const ROWS: &[Row] = &[
    refused("demo"),
    refused("serve"),
    refused("registry --database postgres://none --bucket s3://none --listen 127.0.0.1:0"),
    refused("top"),
    refused("completions bash"),
    refused("man {path}"),
    refused("config default"),
    row("config dump", Refused, "orlop.config.dump/v1"),
    row("config check {config}", Are(&["{config}"]), "orlop.config.check/v1"),
    row("pull --no-unpack {registry}/app:1", Are(&["{registry}/app:1"]), "orlop.pull/v1"),
    row("push app:1 {registry}/other:1", Are(&["{registry}/other:1"]), "orlop.push/v1"),
    row("import --no-unpack {archive}", Are(&["{app}"]), "orlop.import/v1"),
    refused("export app:1"),
    row("export app:1 -O {path}", Are(&["app:1"]), "orlop.export/v1"),
    row("images", Are(&["{app}"]), "orlop.images/v1"),
    row("images --all", Are(ALL), "orlop.images/v1"),
    row("inspect app:1", Are(ALL), "orlop.inspect/v1"),
    row("explain app:1", Are(&["{app}"]), "orlop.explain/v1"),
    row("explain {id}", Are(&["{id}"]), "orlop.explain/v1"),
    row("why {layer}", Are(ALL), "orlop.why/v1"),
    row("resolve {layer}", Are(ALL), "orlop.resolve/v1"),
    row("tree", Are(&["{app}"]), "orlop.tree/v1"),
    row("history app:1", Are(&["{layer}"]), "orlop.history/v1"),
    row("log app:1", Are(&["{app}"]), "orlop.log/v1"),
    row("tag app:1 app:2 app:3", Are(&["{app2}", "{app3}", "{byDigest}", "{id}"]), "orlop.tag/v1"),
    row("rm app:1", Are(ALL), "orlop.rm/v1"),
    row("rm --plan app:1", Are(ALL), "orlop.rm/v1"),
    row("prune --unused --last-copies", Are(ALL), "orlop.prune/v1"),
    row("undo", Are(ALL), "orlop.undo/v1").before(&["rm app:1"]),
    row("undo --list", Names::Some(1), "orlop.undo/v1").before(&["rm app:1"]),
    row("pin app:1", Are(ALL), "orlop.pin/v1"),
    row("unpin app:1", Are(ALL), "orlop.unpin/v1").before(&["pin app:1"]),
    row("mount app:1 {dir}", Are(&["{dir}"]), "orlop.mount/v1").after(&["umount {dir}"]),
    row("umount {dir}", Are(&["{dir}"]), "orlop.umount/v1").before(&["mount app:1 {dir}"]),
    row("check", Are(&["{layer}"]), "orlop.check/v1").before(LOSS).ends(5),
    row("check", Are(&[]), "orlop.check/v1"),
    row("scrub", Are(&["{layer}"]), "orlop.scrub/v1").before(DAMAGE).ends(5),
    row("repair --plan", Are(&["{layer}"]), "orlop.repair/v1").before(DAMAGE).ends(5),
    row("repair --rebuild-metadata --plan", Refused, "orlop.rebuild/v1"),
    row("verify --offline app:1", Are(&["{app}"]), "orlop.verify/v1"),
    row("verify --offline app:1", Are(&[]), "orlop.verify/v1").before(DAMAGE).ends(5),
    row("doctor", Are(&["{layer}"]), "orlop.doctor/v1").before(LOSS).ends(5),
    row("doctor --fix", Are(&[]), "orlop.doctor/v1"),
    row("peers", Are(&[]), "orlop.peers/v1"),
    row("df", Refused, "orlop.df/v1"),
    row("df --by image", Are(&["{app}"]), "orlop.df.images/v1"),
    row("df --by namespace", Are(&["k8s.io"]), "orlop.df.parts/v1"),
    row("df --by repository", Are(&["docker.io/library/app"]), "orlop.df.parts/v1"),
    row("df --by layer", Are(&["{layer}"]), "orlop.df.layers/v1"),
    row("gc", Refused, "orlop.gc/v1"),
    row("content ls digest=={layer}", Are(&["{layer}"]), "orlop.content/v1"),
    refused("content get {layer}"),
    row("content ingest mine", Are(&["{inputDigest}"]), "orlop.content.ingest/v1"),
    row("content rm {layer}", Are(&["{layer}"]), "orlop.content.rm/v1"),
    row("content label {layer} colour=blue", Are(&["{layer}"]), "orlop.content.label/v1"),
    row("content active", Are(&["mine"]), "orlop.content/v1").before(BEGUN),
    row("content abort mine", Are(&["mine"]), "orlop.content.abort/v1").before(BEGUN),
    row("snapshots ls name==mine", Are(&["mine"]), "orlop.snapshots/v1").before(PREPARED),
    row("snapshots tree", Are(&["{chain}", "under"]), "orlop.snapshots/v1")
        .before(&["snapshots prepare under {chain}"]),
    row("snapshots usage mine", Are(&["mine"]), "orlop.snapshots.usage/v1").before(PREPARED),
    row("snapshots info mine", Are(&["mine"]), "orlop.snapshots/v1").before(PREPARED),
    row("snapshots mounts mine", Refused, "orlop.snapshots.mounts/v1").before(PREPARED),
    row("snapshots prepare mine", Are(&["mine"]), "orlop.snapshots.prepare/v1"),
    row("snapshots view mine {chain}", Are(&["mine"]), "orlop.snapshots.view/v1"),
    row("snapshots commit done mine", Are(&["done"]), "orlop.snapshots.commit/v1").before(PREPARED),
    row("snapshots rm mine", Are(&["mine"]), "orlop.snapshots.rm/v1").before(PREPARED),
    row("snapshots label mine colour=blue", Are(&["mine"]), "orlop.snapshots.label/v1").before(PREPARED),
    row("leases ls", Are(&["mine"]), "orlop.leases/v1").before(&["leases create --id mine"]),
    row("leases create --id mine", Are(&["mine"]), "orlop.leases.create/v1"),
    row("leases rm mine", Are(&["mine"]), "orlop.leases.rm/v1").before(&["leases create --id mine"]),
    row("leases resources orlop-mount{dir}", Are(&["orlop-mount{dir}"]), "orlop.leases.resources/v1")
        .before(&["mount app:1 {dir}"])
        .after(&["umount {dir}"]),
    row("namespaces ls", Are(&["k8s.io", "team"]), "orlop.namespaces/v1").before(&["namespaces create team"]),
    row("namespaces create team", Are(&["team"]), "orlop.namespaces.create/v1"),
    row("namespaces label team a=b", Are(&["team"]), "orlop.namespaces.label/v1").before(&["namespaces create team"]),
    row("namespaces rm team", Are(&["team"]), "orlop.namespaces.rm/v1").before(&["namespaces create team"]),
    // What they print of more than nothing is told in tests/adopting.
    row("adopt --plan {dir}", Are(&[]), "orlop.adopt/v1").before(ANOTHER),
    row("give-back {dir}", Are(&[]), "orlop.give-back/v1").before(ANOTHER),
    row("stores --host {dir}", Are(&["{root}"]), "orlop.stores/v1"),
    // Where nothing was installed. What an installation tells is told in tests/beneath.
    row("install --revert --containerd-config {config}", Are(&[]), "orlop.install/v1"),
    // What it tells is told in tests/watch.rs.
    row("watch --for 0s", Are(&[]), "orlop.watch/v1"),
];

/// A store with one image, from which each run gets a copy.
struct Filled {
    first: Orlop,
    content: Content,
    registry: Option<Registry>,
}

impl Filled {
    fn new() -> Self {
        let layer = Layer::new([Entry::file("file", noise())]).packed(Compression::Gzip);
        let content = Content::image(&Image::host().layer(layer));
        let first = Orlop::new();
        let archive = first.path("image.tar");
        std::fs::write(&archive, archive::oci_archive(&[("docker.io/library/app:1", &content)])).unwrap();
        first.ok(["import", archive.to_str().unwrap()]);
        std::fs::write(first.path("input"), b"some bytes").unwrap();
        std::fs::write(first.path("config.toml"), "").unwrap();
        let registry = common::registry_with(&content);
        Self { first, content, registry }
    }

    /// The rows that can be run here: without a registry some cannot.
    fn rows(&self) -> impl Iterator<Item = &'static Row> {
        ROWS.iter().filter(|row| self.registry.is_some() || !row.words.contains("{registry}"))
    }

    /// The same again.
    fn copy(&self) -> Orlop {
        let copy = Orlop::new();
        system(&["cp", "-a", self.first.root().to_str().unwrap(), copy.root().to_str().unwrap()]);
        std::fs::create_dir(copy.path("dir")).unwrap();
        copy
    }

    /// Bytes for who reads some.
    fn input(&self) -> PathBuf {
        self.first.path("input")
    }

    /// Fills in what stands in braces.
    fn word(&self, store: &Orlop, text: &str) -> String {
        let shown = |path: &Path| path.display().to_string();
        let layer = &self.content.layers()[0];
        let chain = self.first.ok(["snapshots", "ls", "-o", "name"]);
        let target = self.content.root.digest.to_string();
        let words = [
            ("{app}", "docker.io/library/app:1".to_owned()),
            ("{app2}", "docker.io/library/app:2".to_owned()),
            ("{app3}", "docker.io/library/app:3".to_owned()),
            ("{byDigest}", format!("docker.io/library/app@{target}")),
            ("{id}", self.content.image_id().unwrap().to_string()),
            ("{layer}", layer.to_string()),
            ("{layerFile}", shown(&store.blob(layer))),
            ("{chain}", chain.trim().to_owned()),
            ("{inputDigest}", orlop_oci::Digest::of(b"some bytes").to_string()),
            ("{archive}", shown(&self.first.path("image.tar"))),
            ("{config}", shown(&self.first.path("config.toml"))),
            ("{path}", shown(&store.path("made"))),
            ("{dir}", shown(&store.path("dir"))),
            ("{root}", shown(&store.root())),
            ("{registry}", self.registry.as_ref().map(Registry::host).unwrap_or_default()),
        ];
        words.iter().fold(text.to_owned(), |text, (word, stands_for)| text.replace(word, stands_for))
    }

    fn words(&self, store: &Orlop, text: &str) -> Vec<String> {
        text.split_whitespace().map(|word| self.word(store, word)).collect()
    }

    /// Runs a row's command in a format, on a store of its own.
    fn run(&self, row: &Row, format: &str) -> (Done, Vec<String>) {
        let store = self.copy();
        for command in row.before {
            self.around(&store, command);
        }
        let args = [self.words(&store, row.words), vec!["-o".into(), format.into()]].concat();
        let done = store.fed(&args.iter().map(String::as_str).collect::<Vec<_>>(), &self.input());
        let expected = match row.names {
            Are(names) => names.iter().map(|name| self.word(&store, name)).collect(),
            _ => Vec::new(),
        };
        // What was refused was not done.
        if done.code != 2 {
            row.after.iter().for_each(|command| self.around(&store, command));
        }
        (done, expected)
    }

    fn around(&self, store: &Orlop, command: &str) {
        let words = self.words(store, command.trim_start_matches(['!', '?']));
        match &command[..1] {
            "!" => system(&words.iter().map(String::as_str).collect::<Vec<_>>()),
            "?" => assert_ne!(store.fed(&words.iter().map(String::as_str).collect::<Vec<_>>(), &self.input()).code, 0),
            _ => drop(store.ok(words)),
        }
    }
}

/// Bytes that do not get smaller.
fn noise() -> Vec<u8> {
    orlop_testkit::image::noise(7, 20_000)
}

#[track_caller]
fn system(words: &[&str]) {
    let done = Done::of(&Command::new(words[0]).args(&words[1..]).output().unwrap());
    assert_eq!(done.code, 0, "{words:?}: {}", done.err);
}

/// The commands that do something, as their man pages are called.
fn commands() -> BTreeSet<String> {
    let dir = tempfile::tempdir().unwrap();
    assert!(binary().arg("man").arg(dir.path()).status().unwrap().success());
    let pages = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names = pages.filter_map(|page| Some(page.strip_prefix("orlop-")?.strip_suffix(".1")?.replace('-', " ")));
    // The one whose name is two words.
    let names = names.map(|name| name.replace("give back", "give-back"));
    let all: BTreeSet<String> = names.collect();
    let has_subcommands = |name: &String| all.iter().any(|other| other.starts_with(&format!("{name} ")));
    all.iter().filter(|name| !has_subcommands(name)).cloned().collect()
}

fn is_of(row: &Row, command: &str) -> bool {
    row.words == command || row.words.starts_with(&format!("{command} "))
}

#[test]
fn every_command_has_a_row_here() {
    let commands = commands();
    assert!(commands.len() > 50, "{commands:?}");
    let without: Vec<&String> = commands.iter().filter(|c| !ROWS.iter().any(|row| is_of(row, c))).collect();
    assert_eq!(without, [""; 0], "what do these print with -o name, and which schema have their documents?");
    let unknown = ROWS.iter().map(|row| row.words).filter(|w| !commands.iter().any(|c| w.starts_with(c.as_str())));
    assert_eq!(unknown.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn names_are_bare_or_refused() {
    if !common::is_root("names_are_bare_or_refused") {
        return;
    }
    let filled = Filled::new();
    let mut wrong = Vec::new();
    for row in filled.rows() {
        let (done, expected) = filled.run(row, "name");
        let lines: Vec<&str> = done.out.lines().collect();
        let is_right = match row.names {
            Are(_) => (done.code, lines) == (row.code, expected.iter().map(String::as_str).collect()),
            Names::Some(many) => {
                let bare = lines.iter().all(|line| !line.contains(char::is_whitespace));
                bare && (done.code, lines.len()) == (row.code, many)
            }
            Refused => is_refused(&done, "name"),
        };
        if !is_right {
            let (words, code, Done { out, err, .. }) = (row.words, done.code, &done);
            wrong.push(format!("{words} -o name: {code}\n{out}{err}expected {expected:#?}\n"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn is_refused(done: &Done, format: &str) -> bool {
    let said = format!("orlop: this command has no -o {format}: ");
    (done.code, &*done.out) == (2, "") && done.err.contains(&said) && done.err.contains("hint: ")
}

/// What is wrong with what a command printed in a format of documents.
fn fault(row: &Row, format: &str, done: &Done, page: &str) -> Option<String> {
    let Some(schema) = row.schema else {
        return (!is_refused(done, format)).then(|| "it is not refused".to_owned());
    };
    if !page.contains(&format!("`{schema}`")) {
        return Some(format!("docs/output.md lacks {schema}"));
    }
    if done.code != row.code {
        return Some(format!("it ends with {} and not with {}", done.code, row.code));
    }
    // Without an event there is no document.
    if row.words.starts_with("watch") && done.out.is_empty() {
        return None;
    }
    let document: Result<Value, String> = match format {
        "json" => serde_json::from_str(&done.out).map_err(|error| error.to_string()),
        _ => serde_norway::from_str(&done.out).map_err(|error| error.to_string()),
    };
    match document {
        Ok(document) if document["schema"] == schema => None,
        Ok(document) => Some(format!("its schema is {} and not {schema}", document["schema"])),
        Err(error) => Some(error),
    }
}

#[test]
fn documents_have_a_schema_that_is_documented() {
    if !common::is_root("documents_have_a_schema_that_is_documented") {
        return;
    }
    let filled = Filled::new();
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/output.md")).unwrap();
    let mut wrong = Vec::new();
    for row in filled.rows() {
        for format in ["json", "yaml"] {
            let (done, _) = filled.run(row, format);
            if let Some(fault) = fault(row, format, &done, &page) {
                wrong.push(format!("{} -o {format}: {fault}\n{}{}", row.words, done.out, done.err));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
