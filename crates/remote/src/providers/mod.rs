//! Credential provider plugins, as kubelet has them: programs that say who we are at a registry.
//!
//! Source of the protocol: Kubernetes' `credentialprovider.kubelet.k8s.io` (v1, v1beta1, v1alpha1), and kubelet's behaviour where
//! that says nothing. A program is asked about an image, `host/repository`, if one of its patterns fits, and answers with
//! users and passwords by pattern, and with how long and for what else that answer counts.
//!
//! # Invariants
//! - A host gets what the answer says of that very host, whatever else is in it.
//! - Answers are in memory only, at most [`MAX_ANSWERS`] of each program, and no longer than the program says.
//! - A program that fails costs nobody more than its time: it is told in the log, and the registry is asked without it.
//! - What a program says goes into no message: it may be the secret.
//!
//! # Concurrency
//! For one image a program runs once at a time; whoever asks meanwhile waits and is given that answer, if it counts for longer
//! than that.

mod exec;
mod pattern;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use exec::{Answer, KeyType};
pub use exec::{ApiVersion, read_answer as read_provider_answer};
pub use pattern::{ImagePattern, ImagePatternError};

use crate::credentials::{Credential, is_docker_hub};
use crate::turns::Turns;

/// Answers of one program that are remembered. Beyond it those that end first are forgotten.
const MAX_ANSWERS: usize = 1024;

/// A program, as kubelet's `CredentialProviderConfig` describes it.
#[derive(Clone)]
pub struct Provider {
    /// Its name there.
    pub name: String,
    /// Where it is.
    pub program: PathBuf,
    /// For which images it is asked.
    pub images: Vec<ImagePattern>,
    /// How long an answer counts that does not say it; zero: not beyond the operation.
    pub default_cache: Duration,
    /// What is spoken with it.
    pub version: ApiVersion,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, beside this process's own.
    pub env: Vec<(String, String)>,
    /// How long it may take.
    pub timeout: Duration,
}

/// Its environment may have secrets.
impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider").field("name", &self.name).field("program", &self.program).finish_non_exhaustive()
    }
}

/// The programs, in the order in which they are asked, and what they have answered. Cheap to clone.
#[derive(Clone, Default)]
pub struct Providers {
    plugins: Arc<[Plugin]>,
}

impl fmt::Debug for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.plugins.iter().map(|plugin| &plugin.provider.name)).finish()
    }
}

impl FromIterator<Provider> for Providers {
    fn from_iter<T: IntoIterator<Item = Provider>>(providers: T) -> Self {
        Self { plugins: providers.into_iter().map(Plugin::new).collect() }
    }
}

impl Providers {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.plugins.is_empty()
    }

    /// Who we are at a host for a repository; the first program that knows counts.
    pub(crate) async fn find(&self, host: &str, repository: &str) -> Option<Credential> {
        let image = image(host, repository);
        for plugin in self.plugins.iter().filter(|plugin| plugin.is_for(&image)) {
            if let Some(found) = plugin.credential(&image).await {
                return Some(found);
            }
        }
        None
    }
}

/// What programs call a repository at a host. Docker Hub has several hosts and one name.
fn image(host: &str, repository: &str) -> String {
    let host = if is_docker_hub(host) { "docker.io" } else { host };
    format!("{host}/{repository}")
}

/// A program and its answers.
struct Plugin {
    provider: Provider,
    answers: Mutex<HashMap<Key, Kept>>,
    /// The images that it is being asked about.
    asking: Turns<String>,
}

/// For what an answer counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Image(String),
    Registry(String),
    Global,
}

struct Kept {
    answer: Arc<Answer>,
    until: Instant,
}

impl Plugin {
    fn new(provider: Provider) -> Self {
        Self { provider, answers: Mutex::default(), asking: Turns::default() }
    }

    fn is_for(&self, image: &str) -> bool {
        self.provider.images.iter().any(|pattern| pattern.fits(image))
    }

    async fn credential(&self, image: &str) -> Option<Credential> {
        if let Some(answer) = self.known(image) {
            return answer.credential(image);
        }
        let turn = self.asking.of(&image.to_owned());
        let _turn = turn.lock().await;
        if let Some(answer) = self.known(image) {
            return answer.credential(image);
        }
        match exec::ask(&self.provider, image).await {
            Ok(answer) => {
                let answer = Arc::new(answer);
                self.keep(image, &answer);
                answer.credential(image)
            }
            Err(problem) => {
                let provider = &self.provider.name;
                tracing::warn!(provider, image, %problem, "a credential provider gave no answer; the registry is asked without it");
                None
            }
        }
    }

    /// An answer that counts for an image still: as kubelet, what is for it alone first.
    fn known(&self, image: &str) -> Option<Arc<Answer>> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let kinds = [KeyType::Image, KeyType::Registry, KeyType::Global];
        let mut kept = kinds.into_iter().filter_map(|kind| answers.get(&key(kind, image)));
        kept.find(|kept| kept.until > now).map(|kept| Arc::clone(&kept.answer))
    }

    fn keep(&self, image: &str, answer: &Arc<Answer>) {
        let lifetime = answer.lifetime.unwrap_or(self.provider.default_cache);
        let now = Instant::now();
        let Some(until) = now.checked_add(lifetime).filter(|until| *until > now) else { return };
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.retain(|_, kept| kept.until > now);
        if answers.len() >= MAX_ANSWERS
            && let Some(first) = answers.iter().min_by_key(|(_, kept)| kept.until).map(|(key, _)| key.clone())
        {
            answers.remove(&first);
        }
        answers.insert(key(answer.key_type, image), Kept { answer: Arc::clone(answer), until });
    }
}

fn key(kind: KeyType, image: &str) -> Key {
    match kind {
        KeyType::Image => Key::Image(image.to_owned()),
        KeyType::Registry => Key::Registry(image.split('/').next().unwrap_or_default().to_owned()),
        KeyType::Global => Key::Global,
    }
}

#[cfg(test)]
mod tests;
