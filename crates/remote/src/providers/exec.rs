//! Running a program and reading its answer.

use std::collections::HashMap;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::str::FromStr;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::{ImagePattern, Provider};
use crate::credentials::Credential;
use crate::duration::parse_duration;

/// The group of the protocol's versions.
const GROUP: &str = "credentialprovider.kubelet.k8s.io";
const REQUEST: &str = "CredentialProviderRequest";
const RESPONSE: &str = "CredentialProviderResponse";

/// Answers have some passwords, of a few KiB each at most.
const MAX_OUTPUT: u64 = 1 << 20;
/// As much is told of what a program that failed said on standard error.
const MAX_COMPLAINT: usize = 300;

/// A version of the protocol. All that Orlop reads and writes is the same in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiVersion {
    /// Since Kubernetes 1.26.
    V1,
    /// Since 1.24.
    V1Beta1,
    /// Since 1.20.
    V1Alpha1,
}

impl ApiVersion {
    const ALL: [Self; 3] = [Self::V1, Self::V1Beta1, Self::V1Alpha1];

    const fn word(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V1Beta1 => "v1beta1",
            Self::V1Alpha1 => "v1alpha1",
        }
    }

    fn name(self) -> String {
        format!("{GROUP}/{}", self.word())
    }
}

impl FromStr for ApiVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|version| version.name() == text);
        found.ok_or_else(|| format!("expected {GROUP}/v1, v1beta1 or v1alpha1, found {text:?}"))
    }
}

/// For what an answer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum KeyType {
    Image,
    Registry,
    Global,
}

/// What a program said.
pub(super) struct Answer {
    pub(super) key_type: KeyType,
    /// `None`: the configuration says it.
    pub(super) lifetime: Option<Duration>,
    auth: Vec<(ImagePattern, Credential)>,
}

impl Answer {
    /// What it has for an image: of several keys that fit, the one that says most.
    pub(super) fn credential(&self, image: &str) -> Option<Credential> {
        let fitting = self.auth.iter().filter(|(pattern, _)| pattern.fits(image) || is_hub(pattern, image));
        let best = fitting.max_by_key(|(pattern, _)| pattern.weight());
        best.map(|(_, credential)| credential.clone())
    }
}

/// Docker's old key for its Hub.
fn is_hub(pattern: &ImagePattern, image: &str) -> bool {
    image.starts_with("docker.io/") && matches!(pattern.to_string().as_str(), "index.docker.io" | "index.docker.io/v1/")
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    cache_key_type: KeyType,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<HashMap<String, User>>,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// Why there is no answer. Nothing of the answer itself is in it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("it cannot be run: {0}")]
    Start(io::Error),
    #[error("its output cannot be read: {0}")]
    Talk(io::Error),
    #[error("it was killed since it took more than {0:?}")]
    Slow(Duration),
    #[error("it ended with {status}{complaint}")]
    Failed { status: ExitStatus, complaint: String },
    #[error("it said more than {MAX_OUTPUT} bytes")]
    Long,
    #[error(
        "its answer is no {RESPONSE}: expected JSON with apiVersion, kind, cacheKeyType (Image, Registry or Global) and auth; line {0}, column {1}"
    )]
    Unreadable(usize, usize),
    #[error("expected a {RESPONSE} of {expected}, found apiVersion and kind otherwise")]
    Version { expected: String },
    #[error("its cacheDuration is no length of time such as 10m")]
    Lifetime,
    #[error("a key of its auth is no pattern of images")]
    Key,
}

/// Asks about an image.
pub(super) async fn ask(provider: &Provider, image: &str) -> Result<Answer, Problem> {
    let request =
        serde_json::json!({ "apiVersion": provider.version.name(), "kind": REQUEST, "image": image }).to_string();
    let mut running = Running::start(provider).map_err(Problem::Start)?;
    let heard = tokio::time::timeout(provider.timeout, running.finish(request.into_bytes())).await;
    let Heard { status, out, err } = heard.map_err(|_| Problem::Slow(provider.timeout))?.map_err(Problem::Talk)?;
    if !status.success() {
        return Err(Problem::Failed { status, complaint: complaint(&err) });
    }
    if out.len() as u64 > MAX_OUTPUT {
        return Err(Problem::Long);
    }
    read(&out, provider.version)
}

/// What it said on standard error, on one line without anything that a terminal would obey.
fn complaint(err: &[u8]) -> String {
    let text = String::from_utf8_lossy(err);
    let plain = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    let said: String = plain.take(MAX_COMPLAINT).collect();
    if said.is_empty() { said } else { format!(": {said}") }
}

/// What an answer in a version of the protocol has for an image, `host/repository`: for whoever has one without its program.
///
/// # Errors
/// What is wrong with the answer, without anything that it says.
pub fn read_answer(answer: &[u8], version: ApiVersion, image: &str) -> Result<Option<Credential>, String> {
    let answer = read(answer, version).map_err(|problem| problem.to_string())?;
    Ok(answer.credential(image))
}

fn read(out: &[u8], version: ApiVersion) -> Result<Answer, Problem> {
    // Of serde's own message only the place is told: it quotes what it finds.
    let response: Response =
        serde_json::from_slice(out).map_err(|error| Problem::Unreadable(error.line(), error.column()))?;
    if response.api_version != version.name() || response.kind != RESPONSE {
        return Err(Problem::Version { expected: version.name() });
    }
    let lifetime = response.cache_duration.map(|text| parse_duration(&text).ok_or(Problem::Lifetime)).transpose()?;
    let user = |(key, user): (String, User)| {
        let pattern = key.parse().map_err(|_| Problem::Key)?;
        Ok((pattern, Credential::Basic { user: user.username, password: user.password }))
    };
    let auth = response.auth.unwrap_or_default().into_iter().map(user).collect::<Result<_, Problem>>()?;
    Ok(Answer { key_type: response.cache_key_type, lifetime, auth })
}

struct Heard {
    status: ExitStatus,
    out: Vec<u8>,
    err: Vec<u8>,
}

/// A program at work. When this is dropped before it has finished, its process group is killed.
struct Running {
    child: Child,
    group: Option<Pid>,
}

impl Running {
    fn start(provider: &Provider) -> io::Result<Self> {
        let mut command = Command::new(&provider.program);
        command.args(&provider.args).envs(provider.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.process_group(0).kill_on_drop(true).spawn()?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(Self { child, group })
    }

    /// Feeds it, hears it out, and waits for its end. It has said too much as soon as it has said a byte more than it may.
    async fn finish(&mut self, input: Vec<u8>) -> io::Result<Heard> {
        let (stdin, stdout, stderr) = (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take());
        let feed = async {
            if let Some(mut stdin) = stdin {
                // It need not read; then the pipe breaks.
                let _ = stdin.write_all(&input).await;
            }
        };
        let ((), out, err) = tokio::join!(feed, hear(stdout), hear(stderr));
        let (out, err) = (out?, err?);
        // Not before: a number that was waited for may belong to somebody else's group.
        let status = self.child.wait().await?;
        self.group = None;
        Ok(Heard { status, out, err })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // An error means that all of it has ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// What it says, up to a byte more than it may. The rest is read and thrown away, so that it comes to its end.
async fn hear(source: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let Some(mut source) = source else { return Ok(Vec::new()) };
    let mut kept = Vec::new();
    (&mut source).take(MAX_OUTPUT + 1).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut source, &mut tokio::io::sink()).await?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_their_mistakes_told_without_what_they_say() {
        let answer = |json: &str| read(json.as_bytes(), ApiVersion::V1);
        let head = r#""apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse""#;
        let auth =
            r#""auth":{"*.example":{"username":"u","password":"p"},"r.example/team":{"username":"t","password":"q"}}"#;
        let read =
            answer(&format!(r#"{{{head},"cacheKeyType":"Registry","cacheDuration":"1h30m",{auth},"new":1}}"#)).ok();
        let read = read.unwrap();
        assert_eq!((read.key_type, read.lifetime), (KeyType::Registry, Some(Duration::from_secs(5400))));
        let user = |image| match read.credential(image) {
            Some(Credential::Basic { user, password }) => Some(format!("{user}:{password}")),
            _ => None,
        };
        assert_eq!(user("r.example/app").as_deref(), Some("u:p"));
        assert_eq!(user("r.example/team/app").as_deref(), Some("t:q"));
        assert_eq!(user("r.example.evil/app"), None);
        assert_eq!(user("r.example:443/app"), None);
        let hub = answer(&format!(
            r#"{{{head},"cacheKeyType":"Image","auth":{{"https://index.docker.io/v1/":{{"username":"h","password":"p"}}}}}}"#
        ));
        assert!(hub.is_ok_and(|hub| hub.credential("docker.io/library/busybox").is_some()));
        let empty = answer(&format!(r#"{{{head},"cacheKeyType":"Global","auth":null}}"#)).ok().unwrap();
        assert!(empty.lifetime.is_none() && empty.credential("r.example/app").is_none());

        for broken in [
            String::new(),
            "Secret-1".to_owned(),
            format!(r#"{{{head},"cacheKeyType":"Secret-1"}}"#),
            format!(r#"{{{head},"auth":{{}}}}"#),
            format!(r#"{{{head},"cacheKeyType":"Image","cacheDuration":"Secret-1"}}"#),
            format!(r#"{{{head},"cacheKeyType":"Image","auth":{{"Secret-1 ":{{}}}}}}"#),
            format!(r#"{{{head},"cacheKeyType":"Image","auth":"Secret-1"}}"#),
            r#"{"apiVersion":"Secret-1","kind":"CredentialProviderResponse","cacheKeyType":"Image"}"#.to_owned(),
            r#"{"apiVersion":"credentialprovider.kubelet.k8s.io/v1beta1","kind":"CredentialProviderResponse","cacheKeyType":"Image"}"#.to_owned(),
        ] {
            let problem = answer(&broken).err().unwrap_or_else(|| panic!("{broken} was read"));
            assert!(!problem.to_string().contains("Secret-1"), "{problem}");
        }
    }
}
