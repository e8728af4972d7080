//! Credentials are nowhere but where they were given: not in logs at any level, on terminals, in events or the history, in
//! arguments or environments of the daemon, of commands and of the programs that they run, nor in any file of the store.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::{Done, Orlop, binary, import};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::registry::{Options, Registry};
use orlop_testkit::served::Served;
use orlop_testkit::tar::Entry;
use orlop_testkit::token::{self, TokenServer};

const USER: &str = "keeper";
const RIGHT: &str = "Kanarek-5d1c8e77f0";
const WRONG: &str = "Canary-9f3b71c2e8";
/// `keeper` and the right password, as registries know them: bcrypt at its lowest cost.
const HTPASSWD: &str = "keeper:$2y$04$1A8E4ySF3lzKxd5MEJvhhOaK/5sqNhKnTLs3PPXguC8toL2WZJ7Nu\n";

/// What may be nowhere: both passwords as they are, with their user in base64 as they travel, and the beginning of every token
/// (`{"alg":` in base64).
const SECRETS: [&str; 5] =
    [RIGHT, WRONG, "a2VlcGVyOkthbmFyZWstNWQxYzhlNzdmM", "a2VlcGVyOkNhbmFyeS05ZjNiNzFjMmU4", "eyJhbGciOi"];

/// Fails if a text has a credential in it.
#[track_caller]
fn look(what: &str, text: &[u8]) {
    for secret in SECRETS {
        let found = text.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{what} has {secret:?} in it");
    }
}

/// Looks into every file below a directory, and returns how many there are.
fn look_into(directory: &Path) -> usize {
    let mut files = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.symlink_metadata().unwrap().file_type();
        if kind.is_dir() {
            files += look_into(&path);
        } else if kind.is_file() {
            look(&path.display().to_string(), &std::fs::read(&path).unwrap());
            files += 1;
        }
    }
    files
}

/// A store, a registry that wants a password, and how credentials are given to commands and to a daemon.
struct Case {
    store: Orlop,
    name: String,
    host: String,
    daemon: Option<Served>,
}

impl Case {
    fn new(registry: &Registry, daemon: bool) -> Self {
        let store = Orlop::new();
        let config = store.path("config.toml");
        std::fs::write(&config, "[log]\nlevel = 'trace'\n").unwrap();
        let daemon = daemon.then(|| store.serve(&["--config", config.to_str().unwrap()]));
        import(&store, "docker.io/team/app:1", &image());
        let host = registry.host();
        Self { name: format!("{host}/team/app:1"), store, host, daemon }
    }

    /// A directory with Docker's config.json.
    fn docker(&self, name: &str, config: &serde_json::Value) -> PathBuf {
        let directory = self.store.path(name);
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
        directory
    }

    /// The same, which has a password for the registry.
    fn login(&self, name: &str, password: &str) -> PathBuf {
        self.docker(name, &serde_json::json!({"auths": {&self.host: {"username": USER, "password": password}}}))
    }

    /// Runs a command that says all it knows, looks at that, and gives the exit code.
    #[track_caller]
    fn ask(&self, docker: &Path, input: Option<&str>, args: &[&str]) -> i32 {
        let mut command = self.store.command(args);
        command.arg("-vvv").env("DOCKER_CONFIG", docker);
        let done = fed(&mut command, input.unwrap_or_default());
        look(&format!("what {args:?} printed"), format!("{}{}", done.out, done.err).as_bytes());
        assert!(done.err.contains("DEBUG") || self.daemon.is_some(), "{args:?} says little: {}", done.err);
        done.code
    }

    /// Looks at all that is left.
    fn look_everywhere(&mut self) {
        let told = self.store.ok(["log", &self.name, "-o", "json"]);
        assert!(told.contains(&self.host), "{told}");
        look("the history", told.as_bytes());
        if let Some(daemon) = &mut self.daemon {
            assert!(daemon.log().contains("TRACE"), "the log is quiet: {}", daemon.log());
            look("the daemon's log", daemon.log().as_bytes());
            let pid = daemon.process().id();
            for what in ["cmdline", "environ"] {
                look(what, &std::fs::read(format!("/proc/{pid}/{what}")).unwrap());
            }
        }
        assert!(look_into(&self.store.root()) > 5);
    }
}

fn image() -> Content {
    Content::image(&Image::host().layer(Layer::new([Entry::file("file", "content")])))
}

fn fed(command: &mut Command, input: &str) -> Done {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Who does not read its input has ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    Done::of(&child.wait_with_output().unwrap())
}

/// Pushes and pulls, with right passwords and wrong ones, in each way that they can be given.
fn go_through(registry: &Registry, daemon: bool) {
    let mut case = Case::new(registry, daemon);
    let (right, wrong) = (case.login("right", RIGHT), case.login("wrong", WRONG));
    let none = case.docker("none", &serde_json::json!({}));
    let name = case.name.clone();
    let (push, pull) = (["push", "team/app:1", &name], ["pull", "--no-unpack", &name]);
    assert_eq!(case.ask(&wrong, None, &push), 7, "the registry takes any password");
    assert_eq!(case.ask(&right, None, &push), 0);
    assert_eq!(case.ask(&wrong, None, &pull), 7);
    assert_eq!(case.ask(&right, None, &pull), 0);
    assert_eq!(case.ask(&right, None, &["pull", "--no-unpack", &format!("{}/team/missing:1", case.host)]), 3);
    for (password, code) in [(WRONG, 7), (RIGHT, 0)] {
        let user = format!("{USER}:{password}");
        assert_eq!(case.ask(&none, None, &[&pull[..], &["--user", &user]].concat()), code);
        let by_stdin = [&pull[..], &["--user", USER, "--password-stdin"]].concat();
        assert_eq!(case.ask(&none, Some(&format!("{password}\n")), &by_stdin), code);
    }
    case.look_everywhere();
}

fn basic() -> Option<Registry> {
    Registry::start(&Options::new().htpasswd(HTPASSWD))
}

#[test]
fn passwords_are_in_no_log_message_file_or_listing_of_a_daemon() {
    let Some(registry) = basic() else { return };
    go_through(&registry, true);
}

#[test]
fn passwords_are_in_no_log_message_or_file_of_a_command() {
    let Some(registry) = basic() else { return };
    go_through(&registry, false);
}

#[test]
fn neither_are_passwords_and_tokens_of_token_servers() {
    for (daemon, post_status) in [(true, None), (false, Some(405))] {
        let users = [(USER.to_owned(), RIGHT.to_owned())].into();
        let server = TokenServer::start(token::Options { users, post_status, ..token::Options::default() });
        let Some(registry) = Registry::start(&Options::new().token(&server)) else { return };
        go_through(&registry, daemon);
        let given = server.asked().into_iter().filter(|asked| asked.status == 200).count();
        assert!(given > 3, "{given} tokens were given");
    }
}

/// A credential helper writes down how it and its parent were started, while they run.
#[test]
fn a_credential_helper_finds_no_password_in_arguments_and_environments() {
    let Some(registry) = basic() else { return };
    for daemon in [true, false] {
        let programs = tempfile::tempdir().unwrap();
        let (helper, seen) = (programs.path().join("docker-credential-seen"), programs.path().join("seen"));
        let answer = serde_json::json!({"ServerURL": registry.host(), "Username": USER, "Secret": RIGHT});
        let answers = programs.path().join("answer");
        std::fs::write(&answers, answer.to_string()).unwrap();
        let look_at = "for p in $$ $PPID; do cat /proc/$p/cmdline /proc/$p/environ; echo; done";
        let script = format!(
            "#!/bin/sh\nread server\n( {look_at}; echo \"asked for $server\" ) >> {}\ncat {}\n",
            seen.display(),
            answers.display()
        );
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap());
        let store = Orlop::new();
        let mut orlop = binary();
        orlop.env("PATH", &path);
        let _served = daemon.then(|| Served::start(orlop, &store.root(), &["-vvv"]));
        import(&store, "docker.io/team/app:1", &image());
        let docker = store.path("docker");
        std::fs::create_dir(&docker).unwrap();
        let config = serde_json::json!({"credHelpers": {registry.host(): "seen"}});
        std::fs::write(docker.join("config.json"), config.to_string()).unwrap();
        let name = format!("{}/team/app:1", registry.host());
        let mut push = store.command(["push", "team/app:1", &name]);
        let done = Done::of(&push.env("DOCKER_CONFIG", &docker).env("PATH", &path).output().unwrap());
        assert_eq!(done.code, 0, "{}", done.err);
        let seen = std::fs::read(&seen).unwrap();
        assert!(String::from_utf8_lossy(&seen).contains(&registry.host()), "the helper was not asked");
        look("what a credential helper sees", &seen);
    }
}

#[test]
fn a_password_is_read_from_standard_input_to_its_end() {
    let Some(registry) = basic() else { return };
    let store = Orlop::new();
    import(&store, "docker.io/team/app:1", &image());
    let name = format!("{}/team/app:1", registry.host());
    let push = ["push", "team/app:1", &name, "--user", USER, "--password-stdin"];
    for line in [RIGHT.to_owned(), format!("{RIGHT}\n"), format!("{RIGHT}\r\n")] {
        let done = fed(&mut store.command(push), &line);
        assert_eq!(done.code, 0, "{line:?}: {}", done.err);
    }
    // Two names, one password.
    let other = Orlop::new();
    let pull = ["pull", "--no-unpack", &name, &name, "--user", USER, "--password-stdin"];
    let done = fed(&mut other.command(pull), RIGHT);
    assert_eq!(done.code, 0, "{}", done.err);
    let (both, long) = (format!("{USER}:{RIGHT}"), "x".repeat(70_000));
    for (user, input, says) in [
        (Some(USER), "", "found nothing"),
        (Some(USER), "\n", "found nothing"),
        (Some(USER), &long, "at most 64 KiB"),
        (Some(&both), RIGHT, "found a colon"),
        (None, RIGHT, "--user"),
    ] {
        let user = user.map(|user| ["--user", user]);
        let mut command = store.command(["pull", &name, "--password-stdin"]);
        let done = fed(command.args(user.iter().flatten()), input);
        assert_eq!(done.code, 2, "{}", done.err);
        assert!(done.err.contains(says), "expected {says:?}: {}", done.err);
        look("a refusal", done.err.as_bytes());
    }
}
