//! Registries that want a password: kubelet's secret goes to Orlop with a pull that containerd makes, and programs are asked as
//! kubelet asks them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use orlop_testkit::containerd::Programs;
use orlop_testkit::process::output;
use orlop_testkit::registry::{Options, Registry};
use orlop_testkit::token::{self, TokenServer};

use crate::common::{Done, Orlop, import};
use crate::stack::{By, Of, Stack, generations, image, text};

const USER: &str = "keeper";
const PASSWORD: &str = "Kanarek-5d1c8e77f0";
/// `keeper` and that password, as registries know them: bcrypt at its lowest cost.
const HTPASSWD: &str = "keeper:$2y$04$1A8E4ySF3lzKxd5MEJvhhOaK/5sqNhKnTLs3PPXguC8toL2WZJ7Nu\n";
/// What may be nowhere: the password as it is and as it travels, and the beginning of tokens.
const SECRETS: [&str; 3] = [PASSWORD, "a2VlcGVyOkthbmFyZWstNWQxYzhlNzdmM", "eyJhbGciOi"];

/// A registry that wants the password, and has the image.
fn secured(options: &Options) -> Option<Registry> {
    let registry = Registry::start(options)?;
    let store = Orlop::new();
    import(&store, "docker.io/library/app:1", &image()?);
    let login = format!("{USER}:{PASSWORD}");
    store.ok(["push", "--user", &login, "app:1", &format!("{}/app:1", registry.host())]);
    Some(registry)
}

fn basic() -> Option<Registry> {
    secured(&Options::new().htpasswd(HTPASSWD))
}

/// Fails if the secret is in what the daemon wrote, or in how it and its children were started.
#[track_caller]
fn nowhere(stack: &mut Stack) {
    look("Orlop's log", stack.served.log().as_bytes());
    assert!(stack.served.log().contains("TRACE"), "the log is quiet");
    let pid = stack.served.process().id();
    for what in ["cmdline", "environ"] {
        look(what, &std::fs::read(format!("/proc/{pid}/{what}")).unwrap());
    }
    assert!(look_into(&stack.store.root()) > 3);
}

#[track_caller]
fn look(what: &str, bytes: &[u8]) {
    for secret in SECRETS {
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{what} has {secret:?} in it");
    }
}

#[track_caller]
fn look_into(directory: &Path) -> usize {
    let mut files = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        // What is being removed at this moment says nothing.
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.is_dir() {
            files += look_into(&path);
        } else if metadata.is_file() {
            look(&path.display().to_string(), &std::fs::read(&path).unwrap_or_default());
            files += 1;
        }
    }
    files
}

/// kubelet's secret, as crictl sends it.
fn creds() -> String {
    format!("{USER}:{PASSWORD}")
}

const PASS: &str = "[log]\nlevel = \"trace\"\n[containerd]\nsocket = \"STORE/containerd\"\nimages = \"pass\"\n";

fn passing(programs: &Programs, registry: Registry) -> Option<Stack> {
    Stack::start_on(programs, Of::Snapshotter, By::Cri, registry, PASS)
}

#[test]
fn a_secret_that_kubelet_brings_lets_orlop_bring_the_layers_and_is_forgotten() {
    for programs in generations() {
        let version = programs.version();
        let server = TokenServer::start(token::Options {
            users: [(USER.to_owned(), PASSWORD.to_owned())].into(),
            ..token::Options::default()
        });
        for registry in [basic(), secured(&Options::new().token(&server))] {
            let Some(mut stack) = registry.and_then(|registry| passing(&programs, registry)) else { return };
            let name = stack.name();
            let refused = output(&mut stack.through(&["pull", &name]));
            assert!(!refused.status.success(), "{version}: the registry takes anybody");
            output(&mut stack.through(&["pull", "--creds", &creds(), &name])).ok();
            assert_eq!(stack.fallbacks(), [""; 0], "{version}");
            assert_eq!(stack.layers_in_containerd(), [""; 0], "{version}: containerd fetched layers");
            // It was for that pull alone.
            stack.remove();
            stack.is_emptied();
            let refused = output(&mut stack.through(&["pull", &name]));
            assert!(!refused.status.success(), "{version}: the secret is remembered");
            nowhere(&mut stack);
        }
    }
}

#[test]
fn a_wrong_secret_is_refused_as_containerd_refuses_it() {
    for programs in generations() {
        let Some(stack) = basic().and_then(|registry| passing(&programs, registry)) else { return };
        let wrong = output(&mut stack.through(&["pull", "--creds", "keeper:wrong", &stack.name()]));
        assert!(!wrong.status.success(), "{wrong:?}");
        output(&mut stack.through(&["pull", "--creds", &creds(), &stack.name()])).ok();
        assert_eq!(stack.fallbacks(), [""; 0]);
    }
}

/// A program as kubelet's plugins are, which counts how often it is asked.
struct Plugin<'a> {
    directory: &'a Path,
}

impl Plugin<'_> {
    /// One in a directory of its own.
    fn new(directory: &Path) -> Plugin<'_> {
        let program = directory.join("plugin");
        let seen = directory.join("seen");
        let script = format!(
            "#!/bin/sh\nread -r request\necho \"$request\" >> {0}\n\
             for p in $$ $PPID; do tr '\\0' ' ' < /proc/$p/cmdline; echo; done >> {0}.processes\n. {1}/says\n",
            seen.display(),
            directory.display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let plugin = Plugin { directory };
        plugin.says("exit 1");
        plugin
    }

    /// Answers with a line of shell.
    fn says(&self, answer: &str) {
        std::fs::write(self.directory.join("says"), format!("{answer}\n")).unwrap();
    }

    fn answers(&self, host: &str, more: &str) {
        let answer = serde_json::json!({
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "kind": "CredentialProviderResponse",
            "cacheKeyType": "Registry",
            "auth": {host: {"username": USER, "password": PASSWORD}},
        });
        let mut text = answer.to_string();
        text.insert_str(1, more);
        let file = self.directory.join("answer");
        std::fs::write(&file, text).unwrap();
        self.says(&format!("cat {}", file.display()));
    }

    fn asked(&self) -> usize {
        let seen = std::fs::read_to_string(self.directory.join("seen")).unwrap_or_default();
        seen.lines().filter(|line| line.contains("CredentialProviderRequest")).count()
    }
}

/// A daemon's configuration with the plugin for the images of a pattern.
fn configure(directory: &Path, pattern: &str) -> String {
    let config = serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1",
        "kind": "CredentialProviderConfig",
        "providers": [{
            "name": "plugin",
            "matchImages": [pattern],
            "defaultCacheDuration": "1h",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        }],
    });
    let file = directory.join("providers.yaml");
    std::fs::write(&file, config.to_string()).unwrap();
    format!(
        "[log]\nlevel = \"trace\"\n[credentials]\nprovider_config = \"{}\"\nprovider_bin_dir = \"{}\"\nprovider_seconds = 2\n",
        file.display(),
        directory.display()
    )
}

#[test]
fn a_credential_provider_is_asked_as_kubelet_asks_it_and_orlop_brings_the_layers() {
    let Some(registry) = basic() else { return };
    if generations().is_empty() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let plugin = Plugin::new(directory.path());
    let store = Orlop::new();
    let host = registry.host();
    let config = configure(directory.path(), &format!("127.0.0.*:{}", registry.address().port()));
    std::fs::write(store.path("config.toml"), config).unwrap();
    let mut served = store.serve(&["--config", text(&store.path("config.toml"))]);
    let name = format!("{host}/app:1");
    let socket = served.socket();
    let pull = || Done::of(&crate::stack::crictl(&socket, &["pull", &name]).output().unwrap());
    let remove = || Done::of(&crate::stack::crictl(&socket, &["rmi", &name]).output().unwrap());

    // Whatever a program does, the registry's own answer is told, and the log says what was wrong with the program.
    for (says, told) in [
        ("exit 1", "it ended with exit status: 1"),
        ("echo garbage; echo why >&2", "its answer is no CredentialProviderResponse"),
        ("head -c 3000000 /dev/zero", "it said more than"),
        ("sleep 1000", "it took more than 2s"),
    ] {
        plugin.says(says);
        let before = plugin.asked();
        let done = pull();
        assert!(done.code != 0 && done.err.contains("UNAUTHORIZED"), "{says}: {}", done.err);
        assert_eq!(plugin.asked(), before + 1, "{says}: asked more than once for a pull");
        assert!(served.log().contains(told), "{says}: {}", served.log());
    }
    plugin.answers("other.example", "");
    assert_ne!(pull().code, 0, "what is for another host was sent here");
    // That answer counts for an hour, for this registry: as kubelet, nothing is asked again before.
    plugin.answers(&host, "");
    let before = plugin.asked();
    assert_ne!(pull().code, 0);
    assert_eq!(plugin.asked(), before);
    // A reload forgets it.
    served.process().signal(rustix::process::Signal::HUP);
    served.process().wait_for(|daemon| daemon.log().contains("read anew").then_some(()));
    for _ in 0..2 {
        let done = pull();
        assert_eq!(done.code, 0, "{}", done.err);
        assert_eq!(plugin.asked(), before + 1, "the answer is not remembered");
        assert_eq!(remove().code, 0);
    }
    // What does not count beyond its pull is asked for at each.
    plugin.answers(&host, "\"cacheDuration\":\"0s\",");
    served.process().signal(rustix::process::Signal::HUP);
    served.process().wait_for(|daemon| (daemon.log().matches("read anew").count() == 2).then_some(()));
    for time in 2..=3 {
        assert_eq!(pull().code, 0);
        assert_eq!(plugin.asked(), before + time);
        assert_eq!(remove().code, 0);
    }
    look("Orlop's log", served.log().as_bytes());
    look("how processes were started", &std::fs::read(directory.path().join("seen.processes")).unwrap());
    look_into(&store.root());
}

#[test]
fn the_snapshotter_brings_layers_by_the_nodes_own_credentials() {
    for programs in generations() {
        let directory = tempfile::tempdir().unwrap();
        let plugin = Plugin::new(directory.path());
        let config = configure(directory.path(), "not.yet.known");
        let Some(registry) = basic() else { return };
        let Some(mut stack) = Stack::start_on(&programs, Of::Snapshotter, By::Cri, registry, &config) else { return };
        let host = stack.proxy.host();
        configure(directory.path(), &host);
        stack.served.process().signal(rustix::process::Signal::HUP);
        stack.served.process().wait_for(|daemon| daemon.log().contains("read anew").then_some(()));
        plugin.answers(&host, "");
        // kubelet's own secret goes to containerd alone: nobody passes it on.
        let name = stack.name();
        let at = stack.containerd.socket();
        output(&mut crate::stack::crictl(&at, &["pull", "--creds", &creds(), &name])).ok();
        assert_eq!(stack.fallbacks(), [""; 0], "{}", programs.version());
        assert_eq!(stack.layers_in_containerd(), [""; 0]);
        assert_eq!(plugin.asked(), 1);
        nowhere(&mut stack);
    }
}
