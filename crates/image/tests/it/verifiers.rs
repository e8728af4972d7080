//! containerd's protocol for verifiers, with real programs.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Made, Node, Shelf, layers};
use orlop_image::{Cause, Error, ErrorKind, Gate, ImportRequest, Objection, Settings, VerifierProblem, Verifiers};
use orlop_oci::Descriptor;

/// A program of the directory. It is written by another process: this one forks for other tests at the same time, and
/// what is open for writing anywhere cannot be executed.
fn program(directory: &Path, name: &str, script: &str) {
    let mut writer = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(directory.join(name))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = writer.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
    drop(stdin);
    assert!(writer.wait().unwrap().success());
}

struct World {
    programs: tempfile::TempDir,
    _shelf: Shelf,
    image: Descriptor,
    name: String,
}

impl World {
    async fn new() -> Self {
        let (shelf, mut made) = (Shelf::start().await, Made::default());
        let image = made.image("amd64", &layers()[..1]);
        shelf.push(&made, "team/app:v1", &image).await;
        let name = shelf.name("team/app:v1");
        Self { programs: tempfile::tempdir().unwrap(), _shelf: shelf, image, name }
    }

    fn program(&self, name: &str, script: &str) {
        program(self.programs.path(), name, script);
    }

    fn verifiers(&self) -> Verifiers {
        // Longer than any machine is busy: where the time is not the matter it must not decide.
        Verifiers { timeout: Duration::from_secs(120), ..Verifiers::new(self.programs.path()) }
    }

    fn node(&self, verifiers: Verifiers) -> Node {
        let gate = Gate { policy: None, verifiers: Some(verifiers) };
        Node::with(Settings { gate, ..Settings::default() })
    }

    /// Pulls with these verifiers; what they said.
    async fn pull(&self, verifiers: Verifiers) -> Result<Vec<String>, Objection> {
        let node = self.node(verifiers);
        match node.pull(&self.name).await {
            Ok(outcome) => Ok(outcome.verified_by),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Verification, "{error}");
                assert!(node.names().is_empty(), "nothing shows");
                let Error::Refused(refusal) = error else { panic!("{error}") };
                match refusal.cause {
                    Cause::Verifier(objection) => Err(objection),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.shelf_file(name)).unwrap()
    }

    /// A file beside the directory of programs.
    fn shelf_file(&self, name: &str) -> std::path::PathBuf {
        let own = self.programs.path().file_name().unwrap().to_string_lossy().into_owned();
        std::env::temp_dir().join(format!("{own}-{name}"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in ["args", "stdin", "order", "pid"] {
            let _ = std::fs::remove_file(self.shelf_file(name));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verifier_gets_name_digest_type_and_descriptor_and_its_reason_is_kept() {
    let world = World::new().await;
    let (args, stdin) = (world.shelf_file("args"), world.shelf_file("stdin"));
    let script = format!("echo \"$@\" > {}; cat > {}; echo ' looks good '", args.display(), stdin.display());
    world.program("10-check", &script);
    assert_eq!(world.pull(world.verifiers()).await.unwrap(), ["verifier 10-check: looks good"]);
    let expected = format!(
        "-name {} -digest {} -stdin-media-type application/vnd.oci.descriptor.v1+json\n",
        world.name, world.image.digest
    );
    assert_eq!(world.file("args"), expected);
    let descriptor: Descriptor = serde_json::from_str(&world.file("stdin")).unwrap();
    assert_eq!(descriptor, world.image);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_missing_or_empty_has_no_objection() {
    let world = World::new().await;
    assert!(world.pull(world.verifiers()).await.unwrap().is_empty());
    let missing = Verifiers { directory: world.programs.path().join("missing"), ..world.verifiers() };
    assert!(world.pull(missing).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_must_agree_and_the_first_that_does_not_ends_it() {
    let world = World::new().await;
    let order = world.shelf_file("order");
    for (name, code) in [("30-c", 0), ("10-a", 0), ("20-b", 3)] {
        world.program(name, &format!("echo {name} >> {}; printf 'I am\\033[31m {name}'; exit {code}", order.display()));
    }
    match world.pull(world.verifiers()).await.unwrap_err() {
        Objection::Refused { program, code, reason } => {
            assert_eq!((program.file_name().unwrap().to_str(), code), (Some("20-b"), 3));
            assert_eq!(reason, "I am [31m 20-b", "nothing that a terminal obeys");
        }
        other => panic!("{other}"),
    }
    assert_eq!(world.file("order"), "10-a\n20-b\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_the_first_few_are_called() {
    let world = World::new().await;
    world.program("10-yes", "exit 0");
    world.program("20-no", "exit 1");
    world.pull(Verifiers { max: Some(1), ..world.verifiers() }).await.unwrap();
    world.pull(Verifiers { max: Some(0), ..world.verifiers() }).await.unwrap();
    world.pull(Verifiers { max: None, ..world.verifiers() }).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_refuses() {
    let world = World::new().await;
    std::fs::write(world.programs.path().join("notes.txt"), "no program").unwrap();
    let objection = world.pull(world.verifiers()).await.unwrap_err();
    assert!(matches!(objection, Objection::Failed { problem: VerifierProblem::Start(_), .. }), "{objection}");
    let file = Verifiers { directory: world.programs.path().join("notes.txt"), ..world.verifiers() };
    let objection = world.pull(file).await.unwrap_err();
    assert!(matches!(objection, Objection::Directory { .. }), "{objection}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_a_signal_ends_refuses() {
    let world = World::new().await;
    world.program("10-die", "kill -9 $$");
    let objection = world.pull(world.verifiers()).await.unwrap_err();
    assert!(matches!(objection, Objection::Failed { problem: VerifierProblem::Killed, .. }), "{objection}");
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_output_is_cut_and_does_not_hang_the_verifier() {
    let world = World::new().await;
    world.program("10-chatty", "head -c 3000000 /dev/zero | tr '\\0' x; head -c 3000000 /dev/zero | tr '\\0' y >&2");
    let said = world.pull(world.verifiers()).await.unwrap();
    let reason = said[0].strip_prefix("verifier 10-chatty: ").unwrap();
    assert_eq!(reason, format!("{}(stdout truncated)", "x".repeat(32 << 10)));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_does_not_read_its_input_is_not_stuck() {
    let world = World::new().await;
    world.program("10-deaf", "exec <&-; exit 0");
    world.pull(world.verifiers()).await.unwrap();
}

/// Whether a process runs; a zombie does not.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// Waits until a process that was killed is gone.
async fn is_gone(pid: &str) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while runs(pid) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    !runs(pid)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_hangs_is_killed_with_all_its_children() {
    let world = World::new().await;
    let pid = world.shelf_file("pid");
    for script in ["wait", "exit 0"] {
        // The second leaves at once and leaves a child that keeps its output open.
        world.program("10-slow", &format!("sleep 1000 & echo $! > {}; {script}", pid.display()));
        let slow = Verifiers { timeout: Duration::from_secs(2), ..world.verifiers() };
        let objection = world.pull(slow).await.unwrap_err();
        assert!(matches!(objection, Objection::Failed { problem: VerifierProblem::Slow(_), .. }), "{objection}");
        assert!(is_gone(&world.file("pid")).await, "the child outlived its verifier");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_given_up_takes_its_verifier_along() {
    let world = World::new().await;
    let pid = world.shelf_file("pid");
    world.program("10-slow", &format!("sleep 1000 & echo $! > {}.new; mv {0}.new {0}; wait", pid.display()));
    let node = world.node(world.verifiers());
    let pull = node.pull(&world.name);
    let started = async {
        while !pid.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        outcome = pull => panic!("{outcome:?}"),
        () = started => {}
    }
    assert!(is_gone(&world.file("pid")).await, "the child outlived the pull");
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_are_judged_too() {
    let world = World::new().await;
    let free = Node::new();
    free.pull(&world.name).await.unwrap();
    let mut archive = std::io::Cursor::new(Vec::new());
    let request = orlop_image::ExportRequest { names: vec![world.name.clone()], ..Default::default() };
    free.images.export(&free.scope, &request, &mut archive).await.unwrap();
    world.program("10-no", "echo not by this door; exit 1");
    let node = world.node(world.verifiers());
    archive.set_position(0);
    let result = node.images.import(&node.scope, &mut archive, &ImportRequest::default(), &|_| {}).await;
    assert!(result.unwrap_err().to_string().contains("not by this door"));
    assert!(node.names().is_empty());
}
