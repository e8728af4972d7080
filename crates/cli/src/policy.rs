//! The policy file, and what the configuration makes of it.
//!
//! Every mistake is told with file and line; nothing is guessed, since a rule that does not mean what it looks like
//! lets images in.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use orlop_image::{Gate, Identity, MAX_KEY_BYTES, Policy, PublicKey, Requirement, Rule, Signed, Verifiers};
use serde::Deserialize;
use toml::Spanned;

use crate::client::pb;
use crate::config::Verify;
use crate::error::{Class, CliError, Result};

/// Read where the configuration names no other, if it is there.
const DEFAULT_POLICY: &str = "/etc/orlop/policy.toml";
/// containerd's place, so that a node's verifiers go on working.
const DEFAULT_VERIFIERS: &str = "/opt/containerd/image-verifier/bin";

/// Reads what the configuration names, or what is at the usual places.
pub(crate) fn gate(settings: &Verify) -> Result<Gate> {
    let policy = named(settings.policy.as_deref(), DEFAULT_POLICY).map(read).transpose()?;
    let verifiers = named(settings.verifiers.as_deref(), DEFAULT_VERIFIERS).map(|directory| Verifiers {
        directory: directory.to_owned(),
        max: usize::try_from(settings.max_verifiers).ok(),
        timeout: Duration::from_secs(settings.verifier_seconds.into()),
    });
    Ok(Gate { policy: policy.map(Arc::new), verifiers })
}

/// What is named, even if it is not there; else what is there.
fn named<'a>(given: Option<&'a Path>, usual: &'a str) -> Option<&'a Path> {
    match given {
        Some(path) => Some(path).filter(|path| !path.as_os_str().is_empty()),
        None => Some(Path::new(usual)).filter(|path| path.exists()),
    }
}

/// The file as it stands.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Spanned<Entry>,
    #[serde(default)]
    rule: Vec<Spanned<Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    images: Option<Vec<Spanned<String>>>,
    require: Require,
    keys: Option<Spanned<Vec<Spanned<String>>>>,
    threshold: Option<Spanned<u32>>,
    identity: Option<Spanned<Same>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Require {
    Accept,
    Reject,
    Signed,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Same {
    Any,
    Repository,
}

/// Reads a policy file and the keys that it names.
pub(crate) fn read(path: &Path) -> Result<Policy> {
    let text = std::fs::read_to_string(path).map_err(CliError::at("read policy", path))?;
    Reader { path, text: &text }.policy()
}

/// A policy of one rule: signed by any of these keys.
pub(crate) fn of_keys(paths: &[PathBuf]) -> Result<Policy> {
    let keys = paths.iter().map(|path| {
        let name = path.display().to_string();
        let pem = read_key(path).map_err(CliError::at("read key", path))?;
        PublicKey::from_pem(&name, &pem).map_err(|e| CliError::new(Class::Usage, format!("key {name}: {e}")))
    });
    let keys = keys.collect::<Result<Vec<_>>>()?;
    let requirement = Requirement::Signed(Signed { keys, threshold: 1, identity: Identity::Any });
    let default = Rule { images: Vec::new(), place: "--key".to_owned(), requirement };
    Ok(Policy { rules: Vec::new(), default })
}

/// One byte more than a key may have shows that it has more.
fn read_key(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_KEY_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn policy(&self) -> Result<Policy> {
        let file: File = toml::from_str(self.text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            self.wrong(at, error.message())
        })?;
        let rules = file.rule.into_iter().map(|entry| self.rule(entry, true)).collect::<Result<_>>()?;
        Ok(Policy { rules, default: self.rule(file.default, false)? })
    }

    fn rule(&self, entry: Spanned<Entry>, has_images: bool) -> Result<Rule> {
        let at = entry.span().start;
        let entry = entry.into_inner();
        let mut images = Vec::new();
        for pattern in entry.images.iter().flatten() {
            images.push(pattern.get_ref().parse().map_err(|e| self.wrong(pattern.span().start, e))?);
        }
        match (has_images, images.is_empty()) {
            (true, true) => {
                return Err(self.wrong(at, "a rule says which images it is for: images = [\"HOST/PATH/*\"]"));
            }
            (false, false) => return Err(self.wrong(at, "the default is for all images that no rule names: no images")),
            _ => {}
        }
        let place = self.place(at);
        let requirement = match entry.require {
            Require::Signed => Requirement::Signed(self.signed(at, &entry)?),
            other => {
                self.check_bare(&entry)?;
                if other == Require::Accept { Requirement::Accept } else { Requirement::Reject }
            }
        };
        Ok(Rule { images, place, requirement })
    }

    /// Keys beside `accept` would look as if somebody checked them.
    fn check_bare(&self, entry: &Entry) -> Result<()> {
        let spans = [
            entry.keys.as_ref().map(Spanned::span),
            entry.threshold.as_ref().map(Spanned::span),
            entry.identity.as_ref().map(Spanned::span),
        ];
        match spans.into_iter().flatten().next() {
            Some(span) => Err(self.wrong(span.start, "keys, threshold and identity go only with require = \"signed\"")),
            None => Ok(()),
        }
    }

    fn signed(&self, at: usize, entry: &Entry) -> Result<Signed> {
        let given = entry.keys.as_ref().map(|keys| keys.get_ref().as_slice()).unwrap_or_default();
        if given.is_empty() {
            return Err(self.wrong(at, "signed by whom? give keys = [\"FILE.pub\"]"));
        }
        let keys = given.iter().map(|key| self.key(key)).collect::<Result<Vec<_>>>()?;
        let different = keys.iter().map(PublicKey::id).collect::<BTreeSet<_>>().len();
        let threshold = match &entry.threshold {
            None => 1,
            Some(threshold) => match *threshold.get_ref() as usize {
                n if (1..=different).contains(&n) => n,
                n => {
                    let what = format!("threshold {n}: expected 1 to {different}, the number of different keys");
                    return Err(self.wrong(threshold.span().start, what));
                }
            },
        };
        let identity = match entry.identity.as_ref().map(Spanned::get_ref) {
            Some(Same::Repository) => Identity::Repository,
            Some(Same::Any) | None => Identity::Any,
        };
        Ok(Signed { keys, threshold, identity })
    }

    /// A file, beside the policy unless its path is absolute, or PEM text itself.
    fn key(&self, given: &Spanned<String>) -> Result<PublicKey> {
        let (text, at) = (given.get_ref(), given.span().start);
        if text.trim_start().starts_with("-----BEGIN") {
            let name = format!("the key at {}", self.place(at));
            return PublicKey::from_pem(name, text.as_bytes()).map_err(|e| self.wrong(at, e));
        }
        let path = self.path.parent().unwrap_or(Path::new("")).join(text);
        let pem = read_key(&path).map_err(|e| self.wrong(at, format!("key {}: {e}", path.display())))?;
        PublicKey::from_pem(text, &pem).map_err(|e| self.wrong(at, format!("key {}: {e}", path.display())))
    }

    fn place(&self, at: usize) -> String {
        let line = self.text.as_bytes().iter().take(at).filter(|b| **b == b'\n').count() + 1;
        format!("{}:{line}", self.path.display())
    }

    fn wrong(&self, at: usize, what: impl std::fmt::Display) -> CliError {
        CliError::new(Class::Usage, format!("policy {}: {what}", self.place(at)))
            .hint("docs/verification.md shows what a policy looks like")
    }
}

/// The policy for a server that does not read this machine's files.
pub(crate) fn to_api(policy: &Policy) -> pb::Policy {
    pb::Policy { rules: policy.rules.iter().map(rule_to_api).collect(), default: Some(rule_to_api(&policy.default)) }
}

fn rule_to_api(rule: &Rule) -> pb::PolicyRule {
    let mut message = pb::PolicyRule {
        images: rule.images.iter().map(ToString::to_string).collect(),
        place: rule.place.clone(),
        ..pb::PolicyRule::default()
    };
    match &rule.requirement {
        Requirement::Accept => message.require = "accept".to_owned(),
        Requirement::Reject => message.require = "reject".to_owned(),
        Requirement::Signed(signed) => {
            message.require = "signed".to_owned();
            let key = |key: &PublicKey| pb::PolicyKey { name: key.name().to_owned(), der: key.der().to_vec().into() };
            message.keys = signed.keys.iter().map(key).collect();
            message.threshold = u32::try_from(signed.threshold).unwrap_or(u32::MAX);
            let repository = signed.identity == Identity::Repository;
            message.identity = if repository { "repository" } else { "any" }.to_owned();
        }
    }
    message
}
