//! Policies, keys and verifiers as an operator gives them; signatures by the real cosign where it is installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::{Done, Orlop};
use orlop_testkit::archive;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process::{self, need, which};
use orlop_testkit::registry::{Options, Registry};
use orlop_testkit::tar::Entry;

/// A key that signed nothing (made by `openssl ecparam -name prime256v1`).
const STRANGER: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEJOSSRT3lTALxZVpKL/KcMz4yZrVF\n\
    YEVdoxPXQApSckZYcKcDD5iz2bjhPUKbnJa/fGHxV3VpOJGrdnIuvCmHfw==\n\
    -----END PUBLIC KEY-----\n";

fn image() -> Content {
    Content::image(&Image::host().layer(Layer::new([Entry::file("hello", "hello\n")])))
}

/// A registry that has an image as `HOST/team/app:1`, and that name.
fn registry() -> Option<(Registry, String)> {
    let registry = Registry::start(&Options::new())?;
    let name = format!("{}/team/app:1", registry.host());
    push(&image(), &name);
    Some((registry, name))
}

fn push(content: &Content, name: &str) {
    let store = Orlop::new();
    let file = archive_of(&store, name, content);
    store.ok(["import", "--no-unpack", file.to_str().unwrap()]);
    store.ok(["push", name]);
}

fn archive_of(store: &Orlop, name: &str, content: &Content) -> PathBuf {
    let file = store.path("image.tar");
    std::fs::write(&file, archive::oci_archive(&[(name, content)])).unwrap();
    file
}

/// A configuration whose policy is `policy`, with no verifiers but those of `verifiers`.
fn configure(store: &Orlop, policy: &str, verifiers: &str) -> PathBuf {
    std::fs::write(store.path("policy.toml"), policy).unwrap();
    std::fs::write(store.path("stranger.pub"), STRANGER).unwrap();
    let config = store.path("config.toml");
    let policy = store.path("policy.toml");
    let text = format!("[verify]\npolicy = {policy:?}\nverifiers = {verifiers:?}\n");
    std::fs::write(&config, text).unwrap();
    config
}

fn with(store: &Orlop, config: &Path, args: &[&str]) -> Done {
    store.run([&["--config", config.to_str().unwrap()], args].concat())
}

const REJECT: &str = "[default]\nrequire = \"reject\"\n";
const SIGNED: &str = "[default]\nrequire = \"signed\"\nkeys = [\"stranger.pub\"]\n";

#[test]
fn a_refused_pull_says_everything_and_ends_with_5() {
    let Some((_registry, name)) = registry() else { return };
    let store = Orlop::new();
    let config = configure(&store, SIGNED, "");
    let done = with(&store, &config, &["pull", &name]);
    assert_eq!(done.code, 5, "{}", done.err);
    let digest = image().root.digest;
    for part in [&name, "policy.toml:1", "stranger.pub", digest.as_str(), "found no signature", "hint: sign exactly"] {
        assert!(done.err.contains(part), "no {part:?} in {}", done.err);
    }
    assert_eq!(store.records(), Vec::<String>::new());

    let accepting = format!("{REJECT}[[rule]]\nimages = [\"127.0.0.1:*/team/*\"]\nrequire = \"accept\"\n");
    let config = configure(&store, &accepting, "");
    assert_eq!(with(&store, &config, &["pull", &name]).code, 0);
    store.is_sound();
}

#[test]
fn an_import_is_refused_by_the_same_policy() {
    let store = Orlop::new();
    let config = configure(&store, REJECT, "");
    let file = archive_of(&store, "registry.example.com/app:1", &image());
    let done = with(&store, &config, &["import", file.to_str().unwrap()]);
    assert_eq!(done.code, 5, "{}", done.err);
    assert!(done.err.contains("the default rule"), "{}", done.err);
    assert_eq!(store.records(), Vec::<String>::new());
    store.is_sound();
}

#[test]
fn the_daemon_holds_to_its_policy_whoever_asks() {
    let Some((_registry, name)) = registry() else { return };
    let store = Orlop::new();
    // From before there was a policy.
    let file = archive_of(&store, "registry.example.com/old:1", &image());
    store.ok(["import", file.to_str().unwrap()]);
    let before = store.records();
    let config = configure(&store, REJECT, "");
    let daemon = store.serve(&["--config", config.to_str().unwrap()]);
    // The command's own configuration has no policy; the daemon's counts.
    let done = store.run(["pull", &name]);
    assert_eq!(done.code, 5, "{}", done.err);
    let file = archive_of(&store, "registry.example.com/app:1", &image());
    assert_eq!(store.run(["import", file.to_str().unwrap()]).code, 5);
    assert_eq!(store.run(["tag", "registry.example.com/old:1", "registry.example.com/new:1"]).code, 5);
    if let Some(ctr) = need("ctr", "containerd") {
        let mut tag = Command::new(ctr);
        tag.arg("--address").arg(daemon.socket()).args(["-n", "k8s.io", "images", "tag"]);
        let said = process::output(tag.args(["registry.example.com/old:1", "registry.example.com/new:1"]));
        assert!(!said.status.success() && said.stderr.contains("the default rule"), "{}", said.stderr);
    }
    assert_eq!(store.records(), before);
}

#[test]
fn a_directory_of_verifiers_decides_too() {
    let Some((_registry, name)) = registry() else { return };
    let store = Orlop::new();
    let programs = store.path("verifiers");
    std::fs::create_dir(&programs).unwrap();
    let script = "cat > \"$0\" && chmod 755 \"$0\"";
    let put = |text: &str| {
        let mut writer = Command::new("sh");
        writer.args(["-c", script]).arg(programs.join("10-check")).stdin(Stdio::piped());
        let mut writer = writer.spawn().unwrap();
        std::io::Write::write_all(&mut writer.stdin.take().unwrap(), text.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
    };
    let config = configure(&store, "[default]\nrequire = \"accept\"\n", programs.to_str().unwrap());
    put("#!/bin/sh\necho not today\nexit 1\n");
    let done = with(&store, &config, &["pull", &name]);
    assert_eq!(done.code, 5, "{}", done.err);
    assert!(done.err.contains("10-check says no (exit code 1): not today"), "{}", done.err);
    put("#!/bin/sh\necho fine\n");
    let done = with(&store, &config, &["pull", &name]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("verified by verifier 10-check: fine"), "{}", done.err);
}

#[test]
fn mistakes_in_a_policy_are_told_with_file_and_line() {
    let store = Orlop::new();
    let rule = |text: &str| format!("{REJECT}\n[[rule]]\n{text}\n");
    let cases = [
        ("[default]\nrequire = \"perhaps\"\n".to_owned(), 2, "unknown variant `perhaps`"),
        ("[default\n".to_owned(), 1, ""),
        ("".to_owned(), 1, "missing field `default`"),
        (format!("{REJECT}color = \"red\"\n"), 3, "unknown field `color`"),
        (format!("{REJECT}images = [\"*\"]\n"), 1, "no images"),
        (rule("require = \"accept\""), 4, "which images"),
        (rule("images = []\nrequire = \"accept\""), 4, "which images"),
        (rule("images = [\"team/*\"]\nrequire = \"accept\""), 5, "\"team/*\" is no pattern"),
        (rule("images = [\"*\"]\nrequire = \"signed\""), 4, "signed by whom"),
        (rule("images = [\"*\"]\nrequire = \"accept\"\nkeys = [\"stranger.pub\"]"), 7, "only with require"),
        (rule("images = [\"*\"]\nrequire = \"signed\"\nkeys = [\"none.pub\"]"), 7, "none.pub: No such file"),
        (rule("images = [\"*\"]\nrequire = \"signed\"\nkeys = [\"policy.toml\"]"), 7, "found 0"),
        (
            rule("images = [\"*\"]\nrequire = \"signed\"\nkeys = [\"stranger.pub\"]\nthreshold = 2"),
            8,
            "expected 1 to 1",
        ),
        (
            rule(
                "images = [\"*\"]\nrequire = \"signed\"\nkeys = [\"stranger.pub\", \"./stranger.pub\"]\nthreshold = 2",
            ),
            8,
            "expected 1 to 1",
        ),
        (rule("images = [\"*\"]\nrequire = \"signed\"\nkeys = [\"stranger.pub\"]\nidentity = \"who\""), 8, "`who`"),
    ];
    for (text, line, reason) in cases {
        let config = configure(&store, &text, "");
        let done = with(&store, &config, &["images"]);
        assert_eq!(done.code, 2, "{text}\n{}", done.err);
        let place = format!("policy {}:{line}: ", store.path("policy.toml").display());
        assert!(done.err.contains(&place) && done.err.contains(reason), "{text}\n{}\n{place}{reason}", done.err);
    }
}

#[test]
fn verify_without_a_policy_checks_the_bytes_and_says_so() {
    let store = Orlop::new();
    let file = archive_of(&store, "registry.example.com/app:1", &image());
    store.ok(["import", file.to_str().unwrap()]);
    std::fs::write(store.path("stranger.pub"), STRANGER).unwrap();
    let report = store.json(["verify", "--offline", "registry.example.com/app:1"]);
    assert_eq!(report["schema"], "orlop.verify/v1");
    assert_eq!((&report["ok"], &report["images"][0]["accepted"]), (&true.into(), &true.into()));
    assert!(report["images"][0]["rule"].is_null());

    let key = store.path("stranger.pub");
    let done = store.run(["verify", "--offline", "-o", "json", "--key", key.to_str().unwrap(), "none:1"]);
    assert_eq!(done.code, 3, "{}", done.err);
    let args = ["verify", "--offline", "-o", "json", "--key", key.to_str().unwrap(), "registry.example.com/app:1"];
    let done = store.run(args);
    assert_eq!(done.code, 5, "{}", done.err);
    let report: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!((&report["ok"], &report["images"][0]["accepted"]), (&false.into(), &false.into()));
    assert_eq!(report["problems"], serde_json::json!([]), "the bytes are sound");
    assert!(report["images"][0]["refused"].as_str().unwrap().contains("found no signature"));
}

/// cosign 3: on `PATH`, or built from source into `~/go/bin`.
fn cosign() -> Option<PathBuf> {
    let built = PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join("go/bin/cosign");
    let found = which("cosign").or_else(|| built.is_file().then_some(built));
    let version = |path: &PathBuf| process::run(path, ["version"]);
    let right = found.filter(|path| {
        let said = version(path);
        format!("{}{}", said.stdout, said.stderr).contains("v3.")
    });
    if right.is_none() {
        eprintln!("skipped: cosign 3 is not installed (go install github.com/sigstore/cosign/v3/cmd/cosign@latest)");
    }
    right
}

/// cosign with key pairs in a directory. It finds no configuration of whoever runs the tests.
struct Cosign {
    program: PathBuf,
    dir: tempfile::TempDir,
}

impl Cosign {
    fn new() -> Option<Self> {
        Some(Self { program: cosign()?, dir: tempfile::tempdir().unwrap() })
    }

    fn run(&self, args: &[&str]) {
        let mut command = Command::new(&self.program);
        command.args(args).current_dir(self.dir.path()).env("COSIGN_PASSWORD", "").env("HOME", self.dir.path());
        process::output(command.stdin(Stdio::null())).ok();
    }

    /// A key pair that `openssl genpkey` makes with these options; its public key.
    fn pair(&self, name: &str, options: &[&str]) -> PathBuf {
        let pem = self.dir.path().join(format!("{name}.pem"));
        let mut all = vec!["genpkey", "-out", pem.to_str().unwrap()];
        all.extend(options);
        process::run("openssl", all).ok();
        self.run(&["import-key-pair", "--yes", "--key", pem.to_str().unwrap(), "--output-key-prefix", name]);
        self.dir.path().join(format!("{name}.pub"))
    }

    /// Signs `NAME@DIGEST`: as a bundle, or in the older form.
    fn sign(&self, key: &str, name: &str, bundle: bool) {
        self.run(&[
            "sign",
            "--yes",
            "--key",
            &format!("{key}.key"),
            "--tlog-upload=false",
            "--use-signing-config=false",
            &format!("--new-bundle-format={bundle}"),
            "--allow-http-registry",
            name,
        ]);
    }
}

/// Not Ed25519: cosign 3.1 signs with a variant of it (Ed25519ph) that it does not verify itself.
const KINDS: [(&str, &[&str]); 3] = [
    ("p256", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
    ("p384", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]),
    ("rsa", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"]),
];

#[test]
fn what_cosign_signs_is_let_in() {
    let (Some(cosign), Some(_)) = (Cosign::new(), need("openssl", "openssl")) else { return };
    for bundle in [false, true] {
        let Some((registry, name)) = registry() else { return };
        let digest = image().root.digest;
        let target = format!("{}/team/app@{digest}", registry.host());
        for (kind, options) in KINDS {
            let store = Orlop::new();
            let public = cosign.pair(kind, options);
            let policy = format!("[default]\nrequire = \"signed\"\nkeys = [{public:?}]\n");
            let config = configure(&store, &policy, "");
            let done = with(&store, &config, &["pull", &name]);
            assert_eq!(done.code, 5, "not signed by {kind} yet: {}", done.err);
            cosign.sign(kind, &target, bundle);
            let done = with(&store, &config, &["pull", &name]);
            assert_eq!(done.code, 0, "{kind}, bundle {bundle}: {}", done.err);
            assert!(done.err.contains(&format!("verified by key {}", public.display())), "{}", done.err);

            let key = public.to_str().unwrap();
            let report = store.json(["verify", "--key", key, "--offline", &name]);
            assert_eq!(report["images"][0]["accepted"], true, "the signature was kept");
            let form = if bundle { "bundle" } else { "cosign" };
            let signatures = report["images"][0]["signatures"].as_array().unwrap();
            assert!(signatures.iter().any(|s| s["form"] == form && !s["key"].is_null()), "{report}");
            std::fs::write(store.path("stranger.pub"), STRANGER).unwrap();
            let stranger = store.path("stranger.pub");
            assert_eq!(store.run(["verify", "--key", stranger.to_str().unwrap(), &name]).code, 5);
            store.is_sound();
        }
    }
}

/// The tag now means other bytes; the signature is still that of the old ones.
#[test]
fn a_moved_tag_does_not_inherit_what_cosign_signed() {
    let (Some(cosign), Some(_)) = (Cosign::new(), need("openssl", "openssl")) else { return };
    let Some((registry, name)) = registry() else { return };
    let store = Orlop::new();
    let public = cosign.pair(KINDS[0].0, KINDS[0].1);
    let config = configure(&store, &format!("[default]\nrequire = \"signed\"\nkeys = [{public:?}]\n"), "");
    cosign.sign("p256", &format!("{}/team/app@{}", registry.host(), image().root.digest), true);
    assert_eq!(with(&store, &config, &["pull", &name]).code, 0);
    let records = store.records();
    push(&Content::image(&Image::host().layer(Layer::new([Entry::file("hello", "evil\n")]))), &name);
    let done = with(&store, &config, &["pull", &name]);
    assert_eq!(done.code, 5, "{}", done.err);
    assert_eq!(store.records(), records);
}

/// A mirror that has the image and not its signatures is no reason to refuse: whoever has them is asked.
#[test]
fn a_mirror_without_signatures_is_passed_over() {
    let (Some(cosign), Some(_)) = (Cosign::new(), need("openssl", "openssl")) else { return };
    let (Some((registry, name)), Some((mirror, _))) = (registry(), registry()) else { return };
    let public = cosign.pair(KINDS[0].0, KINDS[0].1);
    let digest = image().root.digest;
    for bundle in [true, false] {
        let store = Orlop::new();
        let config = configure(&store, &format!("[default]\nrequire = \"signed\"\nkeys = [{public:?}]\n"), "");
        let hosts = store.path("certs.d");
        let dir = hosts.join(format!("{}_", registry.host().replace(':', "_")));
        std::fs::create_dir_all(&dir).unwrap();
        let text = format!("server = \"{}\"\n[host.\"{}\"]\n", registry.url(), mirror.url());
        std::fs::write(dir.join("hosts.toml"), text).unwrap();
        cosign.sign("p256", &format!("{}/team/app@{digest}", registry.host()), bundle);
        let done = with(&store, &config, &["pull", "--hosts-dir", hosts.to_str().unwrap(), &name]);
        assert_eq!(done.code, 0, "bundle {bundle}: {}", done.err);
    }
    assert!(mirror.log().contains("/v2/team/app/"), "the mirror was asked: {}", mirror.log());
}
