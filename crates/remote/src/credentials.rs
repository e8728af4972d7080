//! Who we are at a host: Docker's `config.json` and its credential helpers.
//!
//! # Which entry counts
//! A helper from `credHelpers`, else `credsStore`, else `auths`. Keys are compared without scheme; a key with a path
//! (`quay.io/team`) counts for repositories below that path only, the longest first, except for the API's own paths
//! (`/v1`, `/v2`). Docker Hub's key is `https://index.docker.io/v1/`, whatever host is really asked.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::error::{Error, Result};

/// Docker Hub's key in `auths`, `credHelpers` and credential helpers.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// What proves who we are.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Credential {
    /// User and password.
    Basic {
        /// Not empty.
        user: String,
        /// May be empty.
        password: String,
    },
    /// An OAuth2 refresh token, exchanged for an access token.
    Identity(String),
    /// An access token, sent as it is.
    Bearer(String),
}

impl Credential {
    /// User and password from what Docker's configuration calls `auth`: the base64 of `user:password`.
    pub fn from_auth(text: &str) -> Option<Self> {
        decode_auth(text).map(|(user, password)| Self::Basic { user, password })
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Credential::Basic",
            Self::Identity(_) => "Credential::Identity",
            Self::Bearer(_) => "Credential::Bearer",
        })
    }
}

#[derive(Default, Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: HashMap<String, AuthEntry>,
    #[serde(default, rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl AuthEntry {
    fn credential(&self) -> Option<Credential> {
        if !self.identitytoken.is_empty() {
            return Some(Credential::Identity(self.identitytoken.clone()));
        }
        if !self.registrytoken.is_empty() {
            return Some(Credential::Bearer(self.registrytoken.clone()));
        }
        if let Some((user, password)) = decode_auth(&self.auth) {
            return Some(Credential::Basic { user, password });
        }
        (!self.username.is_empty())
            .then(|| Credential::Basic { user: self.username.clone(), password: self.password.clone() })
    }
}

fn decode_auth(text: &str) -> Option<(String, String)> {
    let bytes = STANDARD.decode(text.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    // Docker's own files end with a NUL at times.
    (!user.is_empty()).then(|| (user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// Finds the credentials for a repository at a host. A file that does not exist holds none.
pub(crate) async fn find(config: &Path, host: &str, repository: &str) -> Result<Option<Credential>> {
    let fail = |reason| Error::Config { path: config.to_owned(), reason };
    let bytes = match tokio::fs::read(config).await {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail(e.into())),
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let file: ConfigFile = serde_json::from_slice(&bytes).map_err(|e| fail(e.into()))?;
    let helper = best(file.helpers.iter(), host, repository).map(|(key, helper)| (key.as_str(), helper.as_str()));
    let store = Some(file.store.as_str()).filter(|s| !s.is_empty()).map(|store| (server_key(host), store));
    for (server, helper) in helper.into_iter().chain(store) {
        if let Some(found) = ask_helper(helper, server).await? {
            return Ok(Some(found));
        }
    }
    Ok(best(file.auths.iter(), host, repository).and_then(|(_, entry)| entry.credential()))
}

pub(crate) fn is_docker_hub(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

fn server_key(host: &str) -> &str {
    if is_docker_hub(host) { DOCKER_HUB_KEY } else { host }
}

/// The entry whose key fits best: the longest path; among equals the one without a scheme.
fn best<'a, V>(
    entries: impl Iterator<Item = (&'a String, &'a V)>,
    host: &str,
    repository: &str,
) -> Option<(&'a String, &'a V)> {
    entries
        .filter_map(|(key, value)| fit(key, host, repository).map(|rank| (rank, key, value)))
        .max_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.len().cmp(&a.1.len())).then_with(|| b.1.cmp(a.1)))
        .map(|(_, key, value)| (key, value))
}

/// Whether a server address, a host or a URL, names a host.
pub(crate) fn names_host(address: &str, host: &str) -> bool {
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    let named = bare.split('/').next().unwrap_or_default();
    named.eq_ignore_ascii_case(host) || (is_docker_hub(host) && is_docker_hub(named))
}

/// How well a key fits: the length of its path, or `None` if it does not.
fn fit(key: &str, host: &str, repository: &str) -> Option<usize> {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (key_host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let same = key_host.eq_ignore_ascii_case(host) || (is_docker_hub(host) && is_docker_hub(key_host));
    if !same {
        return None;
    }
    let path = path.trim_end_matches('/');
    if matches!(path, "" | "v1" | "v2") {
        return Some(0);
    }
    let below = repository.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    below.then_some(path.len())
}

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username")]
    user: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// Asks `docker-credential-<helper>`, found in `PATH`; `None` if it knows nothing of this server.
async fn ask_helper(helper: &str, server: &str) -> Result<Option<Credential>> {
    if helper.is_empty() || !helper.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(Error::CredentialHelper {
            helper: helper.to_owned(),
            host: server.to_owned(),
            reason: "its name may have letters, digits, - _ and . only".to_owned(),
        });
    }
    run_helper(Command::new(format!("docker-credential-{helper}")), helper, server).await
}

/// docker-credential-helpers' protocol: the word `get`, the server on standard input, JSON on standard output.
async fn run_helper(mut command: Command, helper: &str, server: &str) -> Result<Option<Credential>> {
    let fail = |reason: String| Error::CredentialHelper { helper: helper.to_owned(), host: server.to_owned(), reason };
    let run = async {
        let mut child = command
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A helper may answer without reading.
            let _ = stdin.write_all(server.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(HELPER_TIMEOUT, run).await {
        Ok(Ok(output)) => output,
        Ok(Err(e)) if e.kind() == io::ErrorKind::NotFound => {
            return Err(fail("the program is not installed, or not in PATH".to_owned()));
        }
        Ok(Err(e)) => return Err(fail(e.to_string())),
        Err(_) => return Err(fail(format!("no answer within {HELPER_TIMEOUT:?}"))),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        if said.contains("credentials not found") {
            return Ok(None);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let reason: String = format!("{} {}", said.trim(), stderr.trim()).trim().chars().take(300).collect();
        return Err(fail(if reason.is_empty() { output.status.to_string() } else { reason }));
    }
    // The answer itself stays out of the message: it may hold the secret.
    let answer: HelperAnswer =
        serde_json::from_str(&said).map_err(|e| fail(format!("its answer is not what the protocol says: {e}")))?;
    Ok(match answer.user.as_str() {
        TOKEN_USER => Some(Credential::Identity(answer.secret)),
        "" => None,
        _ => Some(Credential::Basic { user: answer.user, password: answer.secret }),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    async fn lookup(json: &str, host: &str, repository: &str) -> Option<Credential> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json).unwrap();
        find(file.path(), host, repository).await.unwrap()
    }

    fn user(credential: Option<Credential>) -> Option<String> {
        match credential? {
            Credential::Basic { user, password } => Some(format!("{user}:{password}")),
            Credential::Identity(token) => Some(format!("identity {token}")),
            Credential::Bearer(token) => Some(format!("bearer {token}")),
        }
    }

    #[tokio::test]
    async fn every_form_of_entry_and_key_is_understood() {
        let hub = STANDARD.encode("me:pass:word");
        let json = format!(
            r#"{{"auths": {{
                "https://index.docker.io/v1/": {{"auth": "{hub}"}},
                "http://plain.example": {{"username": "u", "password": "p"}},
                "https://r.example:5000/v2/": {{"identitytoken": "refresh", "auth": "eDp5"}},
                "quay.io": {{"username": "all", "password": ""}},
                "quay.io/team/app": {{"registrytoken": "ready"}},
                "empty.example": {{}}
            }}, "HttpHeaders": {{"x": "y"}}}}"#
        );
        let get = async |host, repository| user(lookup(&json, host, repository).await);
        assert_eq!(get("registry-1.docker.io", "library/busybox").await.as_deref(), Some("me:pass:word"));
        assert_eq!(get("docker.io", "library/busybox").await.as_deref(), Some("me:pass:word"));
        assert_eq!(get("plain.example", "a").await.as_deref(), Some("u:p"));
        assert_eq!(get("r.example:5000", "a").await.as_deref(), Some("identity refresh"));
        assert_eq!(get("r.example", "a").await, None);
        assert_eq!(get("quay.io", "team/application").await.as_deref(), Some("all:"));
        assert_eq!(get("quay.io", "team/app/x").await.as_deref(), Some("bearer ready"));
        assert_eq!(get("empty.example", "a").await, None);
    }

    #[tokio::test]
    async fn missing_and_empty_files_hold_nothing_and_broken_ones_are_named() {
        assert_eq!(find(Path::new("/nonexistent/config.json"), "h", "r").await.unwrap(), None);
        assert_eq!(lookup(" \n", "h", "r").await, None);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{").unwrap();
        let error = find(file.path(), "h", "r").await.unwrap_err().to_string();
        assert!(error.contains(&*file.path().to_string_lossy()), "{error}");
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (helper, expected) in [("orlop-none", "not installed"), ("../evil", "letters")] {
            std::fs::write(file.path(), format!(r#"{{"credHelpers": {{"h": "{helper}"}}}}"#)).unwrap();
            let error = find(file.path(), "h", "r").await.unwrap_err().to_string();
            assert!(error.contains(helper) && error.contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn helpers_answer_by_their_protocol() {
        let script = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            script.path(),
            r#"test "$1" = get || exit 9
            read -r server
            case "$server" in
                user) echo '{"ServerURL":"x","Username":"me","Secret":"pass"}' ;;
                token) echo '{"ServerURL":"x","Username":"<token>","Secret":"refresh"}' ;;
                none) echo 'credentials not found in native keychain'; exit 1 ;;
                broken) echo 'the keychain is locked' >&2; exit 1 ;;
                rubbish) echo '{"Secret":"do-not-show"' ;;
            esac"#,
        )
        .unwrap();
        let ask = async |server: &str| {
            let mut command = Command::new("/bin/sh");
            command.arg(script.path());
            run_helper(command, "test", server).await
        };
        assert_eq!(user(ask("user").await.unwrap()).as_deref(), Some("me:pass"));
        assert_eq!(user(ask("token").await.unwrap()).as_deref(), Some("identity refresh"));
        assert_eq!(ask("none").await.unwrap(), None);
        assert!(ask("broken").await.unwrap_err().to_string().contains("the keychain is locked"));
        let rubbish = ask("rubbish").await.unwrap_err().to_string();
        assert!(rubbish.contains("docker-credential-test") && !rubbish.contains("do-not-show"), "{rubbish}");
    }

    proptest! {
        #[test]
        fn a_key_never_fits_another_host(key in "[a-z:/.]{0,20}", host in "[a-z]{1,5}\\.[a-z]{1,3}", repo in "[a-z/]{0,9}") {
            if fit(&key, &host, &repo).is_some() {
                let bare = key.trim_start_matches("https://").trim_start_matches("http://");
                prop_assert!(bare.starts_with(&host));
            }
            decode_auth(&key);
        }
    }
}
