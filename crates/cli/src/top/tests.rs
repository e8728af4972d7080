//! Keys and news in, effects and screens out: no terminal, no store, no clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use orlop_graph::model::{
    BlobRow, ContainerRow, Gap, Inventory, Labels, Model, RecordRow, SnapshotKind, SnapshotRow, Usage,
};
use orlop_oci::Digest;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::data::Data;
use super::draw::{Look, draw};
use super::remove::Removal;
use super::state::{Effect, Message, Mode, Pull, State, Tab};

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn labels(all: &[(&str, String)]) -> Labels {
    all.iter().map(|(key, value)| (*key, value.as_str())).collect()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// A store with images that share a layer, hash references, and a container.
pub(super) fn inventory() -> Inventory {
    let mut all = Inventory { taken: at("2026-03-01T12:00:00Z"), ..Inventory::default() };
    let (k8s, other) = (all.namespace("k8s.io"), all.namespace("default"));
    for (image, namespace, layers) in
        [("calico/cni", k8s, &["base", "cni"][..]), ("calico/node", k8s, &["base"]), ("busybox", other, &["box"])]
    {
        let config = digest(&format!("{image} config"));
        let mut refs = vec![("containerd.io/gc.ref.content.config".to_owned(), config.to_string())];
        for (number, layer) in layers.iter().enumerate() {
            refs.push((format!("containerd.io/gc.ref.content.l.{number}"), digest(layer).to_string()));
            let blob = BlobRow {
                namespace,
                digest: digest(layer),
                size: 3 << 20,
                labels: Labels::default(),
                created: None,
                updated: None,
            };
            if !all.blobs.contains(&blob) {
                all.blobs.push(blob);
            }
            let snapshot = SnapshotRow {
                namespace,
                snapshotter: "overlayfs".into(),
                key: digest(&layers[..=number].join(" ")).as_str().into(),
                kind: SnapshotKind::Committed,
                parent: (number > 0).then(|| digest(&layers[..number].join(" ")).as_str().into()),
                labels: Labels::default(),
                created: None,
                updated: None,
                usage: Some(Usage { bytes: 10 << 20, inodes: 9 }),
            };
            if !all.snapshots.contains(&snapshot) {
                all.snapshots.push(snapshot);
            }
        }
        let target = digest(image);
        let blob = |digest: &Digest, labels: Labels| BlobRow {
            namespace,
            digest: digest.clone(),
            size: 500,
            labels,
            created: None,
            updated: None,
        };
        all.blobs.push(blob(&target, refs.into_iter().collect()));
        let top = digest(&layers.join(" ")).to_string();
        all.blobs.push(blob(&config, labels(&[("containerd.io/gc.ref.snapshot.overlayfs", top)])));
        let repository = format!("docker.io/{image}");
        for name in [format!("{repository}:v3.25.1"), format!("{repository}@{target}"), config.to_string()] {
            all.records.push(RecordRow {
                namespace,
                name: name.into(),
                target: target.clone(),
                media_type: "application/vnd.oci.image.manifest.v1+json".into(),
                size: 500,
                labels: Labels::default(),
                created: Some(at("2026-02-26T12:00:00Z")),
                updated: None,
            });
        }
    }
    all.containers.push(ContainerRow {
        namespace: k8s,
        id: "c0ffee".into(),
        image: "docker.io/calico/node:v3.25.1".into(),
        snapshotter: "overlayfs".into(),
        snapshot_key: "c0ffee".into(),
        labels: Labels::default(),
        created: None,
    });
    all
}

/// A view with its time.
struct View {
    state: State,
    now: Instant,
}

impl View {
    fn empty() -> Self {
        let now = Instant::now();
        let store = "containerd 1.7.22 at /run/containerd/containerd.sock".to_owned();
        Self { state: State::new(store, "k8s.io".into(), false, now), now }
    }

    fn with(inventory: Inventory) -> Self {
        let mut view = Self::empty();
        view.tell(Message::Tick);
        view.tell(loaded(inventory));
        view
    }

    fn tell(&mut self, message: Message) -> Vec<Effect> {
        self.state.update(message, self.now)
    }

    fn after(&mut self, time: Duration) -> Vec<Effect> {
        self.now += time;
        self.tell(Message::Tick)
    }

    fn key(&mut self, code: KeyCode) -> Vec<Effect> {
        self.tell(Message::Key(KeyEvent::new(code, KeyModifiers::NONE)))
    }

    fn typed(&mut self, text: &str) -> Vec<Effect> {
        text.chars().flat_map(|c| self.key(KeyCode::Char(c))).collect()
    }

    fn screen(&self, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let clock = at("2026-03-01T12:00:00Z");
        terminal.draw(|frame| draw(frame, &self.state, Look { colour: false }, clock)).unwrap();
        let rows = terminal.backend().buffer().content().chunks(usize::from(width));
        rows.map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned() + "\n")
            .collect()
    }

    fn selected(&self) -> String {
        self.state.image().unwrap().name.clone()
    }
}

fn loaded(inventory: Inventory) -> Message {
    let data = Data::new(Model::new(inventory), Some("k8s.io"), Vec::new());
    Message::Loaded(Ok(Box::new(data)), Duration::from_millis(10))
}

fn load() -> Effect {
    Effect::Load { all_namespaces: false }
}

#[test]
fn every_page_fits_a_terminal_of_80_by_24() {
    let mut view = View::with(inventory());
    let mut screens = view.screen(80, 24);
    for key in ['2', '4'] {
        view.typed(&key.to_string());
        screens += &format!("\n==== {key}\n{}", view.screen(80, 24));
    }
    view.typed("1");
    view.key(KeyCode::Enter);
    screens += &format!("\n==== Enter\n{}", view.screen(80, 24));
    view.key(KeyCode::Esc);
    view.typed("2");
    view.key(KeyCode::Enter);
    screens += &format!("\n==== 2 Enter\n{}", view.screen(80, 24));
    view.key(KeyCode::Esc);
    view.typed("?");
    screens += &format!("\n==== ?\n{}", view.screen(80, 24));
    insta::assert_snapshot!("pages", screens);
}

#[test]
fn what_is_smaller_shows_less_and_never_fails() {
    let mut view = View::with(inventory());
    insta::assert_snapshot!(
        "small",
        format!("{}\n====\n{}\n====\n{}", view.screen(60, 12), view.screen(30, 7), view.screen(25, 3))
    );
    for mode in [" ", "2", "3", "4", "1e", "?", "/x"] {
        view.typed(mode);
        for width in (0..90).step_by(3) {
            for height in 0..26 {
                if width > 0 && height > 0 {
                    view.screen(width, height);
                }
            }
        }
        view.key(KeyCode::Esc);
    }
}

#[test]
fn names_with_commands_for_the_terminal_or_wide_signs_stay_in_their_column() {
    let mut all = inventory();
    all.records[0].name = "docker.io/evil\u{1b}[2J\u{7}:1".into();
    all.records[3].name = "docker.io/节点镜像节点镜像节点镜像节点镜像节点镜像节点镜像:1".into();
    let screen = View::with(all).screen(60, 12);
    assert!(screen.contains("docker.io/evil[2J:1") && screen.contains('节'), "{screen}");
    assert!(!screen.contains('\u{1b}'), "{screen}");
}

#[test]
fn keys_move_sort_and_filter() {
    let mut view = View::with(inventory());
    assert_eq!(view.selected(), "docker.io/calico/cni:v3.25.1");
    view.key(KeyCode::Down);
    view.key(KeyCode::Down);
    assert_eq!(view.selected(), "docker.io/calico/node:v3.25.1");
    view.key(KeyCode::Home);
    view.typed("s");
    assert!(view.screen(80, 24).contains("SIZE↓"));
    assert_eq!(view.selected(), "docker.io/calico/cni:v3.25.1", "two layers are more than one");
    view.typed("r");
    assert_eq!(view.selected(), "docker.io/calico/node:v3.25.1");
    view.typed("/CNI");
    assert_eq!((view.state.images.len(), view.state.layers.len()), (1, 2));
    view.key(KeyCode::Backspace);
    view.key(KeyCode::Enter);
    assert_eq!(view.state.mode, Mode::List);
    view.key(KeyCode::Esc);
    assert_eq!(view.state.images.len(), 2);
    // A hash reference is found by its digits.
    let id = digest("calico/node config").to_string();
    view.typed(&format!("/{}", &id[7..19]));
    assert_eq!(view.state.images.len(), 1);
    view.key(KeyCode::Esc);
    assert_eq!(view.typed("q"), [Effect::Quit]);
    let interrupt = Message::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
    assert_eq!(view.tell(interrupt), [Effect::Interrupt]);
}

#[test]
fn a_page_explains_what_each_name_is_and_what_keeps_it() {
    let mut view = View::with(inventory());
    view.key(KeyCode::Down);
    view.typed("e");
    let Mode::Page { lines, .. } = &view.state.mode else { panic!("{:?}", view.state.mode) };
    let text = lines.join("\n");
    assert!(text.contains("a hash reference: the same by the digest of its config, the image ID"), "{text}");
    assert!(text.contains("container c0ffee (k8s.io) stands on it"), "{text}");
    assert!(text.contains("of it 13.0 MiB shared with other images"), "{text}");
}

#[test]
fn a_plan_is_executed_by_y_alone_and_given_up_by_anything_else() {
    let mut view = View::with(inventory());
    let effects = view.typed("d");
    let [Effect::Plan { namespace, names }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((namespace.as_str(), names.len()), ("k8s.io", 3), "hash references too");
    let removal = Removal {
        hash: "sha256:1".into(),
        namespace: namespace.clone(),
        names: names.clone(),
        lines: vec!["Records that go".into()],
    };
    view.tell(Message::Planned(Ok(removal.clone())));
    for key in [KeyCode::Enter, KeyCode::Char('d'), KeyCode::Char('Y'), KeyCode::Down] {
        assert_eq!(view.key(key), []);
        assert!(matches!(view.state.mode, Mode::Plan { .. }));
    }
    assert!(view.screen(80, 24).contains("y delete exactly this"));
    assert_eq!(view.typed("n"), []);
    assert!(view.state.mode == Mode::List && view.state.said() == ("nothing was changed", false));
    // One that comes when it was given up is not shown.
    view.typed("d");
    view.key(KeyCode::Esc);
    view.tell(Message::Planned(Ok(removal.clone())));
    assert_eq!(view.state.mode, Mode::List);
    view.typed("d");
    view.tell(Message::Planned(Ok(removal.clone())));
    assert_eq!(view.typed("y"), [Effect::Remove(removal)]);
    assert_eq!(view.typed("yq"), [], "it is under way");
    view.tell(Message::Removed(Err("the store has changed".into())));
    // What happens meanwhile does not hide what came of it; the next key does.
    view.tell(Message::Happened("k8s.io: image updated x".into()));
    assert!(view.state.mode == Mode::List && view.state.said() == ("the store has changed", true));
    assert_eq!(view.after(Duration::from_secs(1)), [load()]);
    view.key(KeyCode::Down);
    assert_eq!(view.state.said(), ("k8s.io: image updated x", false));
}

#[test]
fn an_escape_that_comes_with_the_next_key_is_both() {
    let mut view = View::with(inventory());
    view.typed("?");
    let both = Message::Key(KeyEvent::new(KeyCode::Char('q'), KeyModifiers::ALT));
    assert_eq!(view.tell(both), [Effect::Quit]);
}

#[test]
fn the_store_is_read_when_something_happened_and_not_else() {
    let mut view = View::empty();
    assert_eq!(view.tell(Message::Tick), [load(), Effect::LookAtPulls { all_namespaces: false }]);
    view.tell(Message::Pulls(Ok(Vec::new())));
    view.tell(loaded(inventory()));
    assert_eq!(view.after(Duration::from_secs(3)), []);
    // A burst is over when it has settled.
    for _ in 0..5 {
        view.now += Duration::from_millis(100);
        assert_eq!(view.tell(Message::Happened("k8s.io: image created x".into())), []);
    }
    assert_eq!(view.after(Duration::from_millis(400)), [load()]);
    assert_eq!(view.tell(Message::Happened("more".into())), [], "one at a time");
    view.tell(loaded(inventory()));
    assert_eq!(view.after(Duration::from_millis(400)), [load()], "what came meanwhile is read too");
    view.tell(loaded(inventory()));
    // Without events it is read from time to time, and that is said.
    view.tell(Message::Deaf("Unimplemented".into()));
    assert!(view.state.said().0.contains("no events"));
    let effects: Vec<Effect> = (0..11).flat_map(|_| view.after(Duration::from_secs(1))).collect();
    assert_eq!(effects.iter().filter(|effect| **effect == load()).count(), 1, "{effects:?}");
}

#[test]
fn what_is_selected_stays_selected_when_the_store_changes() {
    let mut view = View::with(inventory());
    view.key(KeyCode::End);
    let selected = view.selected();
    let mut more = inventory();
    let mut record = more.records[0].clone();
    (record.name, record.target) = ("docker.io/a/first:1".into(), digest("nowhere"));
    more.records.push(record);
    view.tell(loaded(more));
    assert_eq!((view.state.images.len(), view.selected()), (3, selected));
    let mut less = inventory();
    less.records.truncate(3);
    view.tell(loaded(less));
    assert_eq!(view.selected(), "docker.io/calico/cni:v3.25.1");
    view.tell(Message::Loaded(Err("gone".into()), Duration::ZERO));
    assert!(view.state.said().1 && view.state.images.len() == 1, "what is known stays on the screen");
}

#[test]
fn what_could_not_be_read_is_said() {
    let mut all = inventory();
    all.gaps.push(Gap { what: "leases of namespace k8s.io".into(), why: "leases.List: no".into() });
    let screen = View::with(all).screen(80, 24);
    assert!(screen.contains("not read: leases of namespace k8s.io: leases.List: no"), "{screen}");
}

#[test]
fn writes_in_progress_have_a_bar_and_a_rate() {
    let mut view = View::with(inventory());
    let pull = |offset: u64| Pull {
        namespace: "k8s.io".into(),
        reference: "layer-sha256:aa".into(),
        offset,
        total: 100 << 20,
        rate: None,
    };
    view.tell(Message::Pulls(Ok(vec![pull(10 << 20)])));
    view.typed("3");
    assert_eq!(view.after(Duration::from_secs(2)), [Effect::LookAtPulls { all_namespaces: false }]);
    view.tell(Message::Pulls(Ok(vec![pull(50 << 20)])));
    let screen = view.screen(80, 24);
    assert!(screen.contains("[#####     ]") && screen.contains("20.0 MiB"), "{screen}");
    assert_eq!(view.state.tab, Tab::Pulls);
}

#[test]
fn a_long_list_scrolls_with_what_is_selected() {
    let mut all = inventory();
    let record = all.records[0].clone();
    for number in 0..100 {
        let mut more = record.clone();
        (more.name, more.target) = (format!("docker.io/a/many:{number:03}").into(), digest(&format!("{number}")));
        all.records.push(more);
    }
    let mut view = View::with(all);
    view.key(KeyCode::End);
    let screen = view.screen(80, 24);
    assert!(screen.contains("calico/node") && !screen.contains("many:000"), "{screen}");
    view.key(KeyCode::PageUp);
    assert!(view.screen(80, 24).contains("calico/node"), "it moves no more than it must");
    view.key(KeyCode::Home);
    assert!(view.screen(80, 24).contains("many:000"));
    assert!(Arc::strong_count(view.state.data.as_ref().unwrap()) == 1);
}
