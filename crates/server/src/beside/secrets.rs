//! The secrets that kubelet brings with pulls which a containerd makes.
//!
//! # Invariants
//! - A secret is here as long as the [`Hold`] of its call, and never more than [`MAX`] of them at once.
//! - Whoever asks for an image's secret asks on behalf of that containerd, which comes to its layers only after the registry has let
//!   it have the manifest by the same secret.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use orlop_oci::Reference;
use orlop_remote::Login;

/// Pulls whose secrets are remembered at once; further ones are made without Orlop's layers. kubelet makes some dozens at once.
const MAX: usize = 1024;

/// All of them.
#[derive(Default)]
pub(super) struct Secrets {
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    next: u64,
    /// Image and secret, by number, the newest last.
    logins: BTreeMap<u64, (String, Login)>,
}

/// Keeps a secret until it is dropped.
pub(super) struct Hold {
    held: Arc<Mutex<Held>>,
    number: u64,
}

impl Secrets {
    /// Remembers the secret of an image; `None` if there are too many, or the name is no image's.
    pub(super) fn hold(&self, image: &str, login: Login) -> Option<Hold> {
        let image = normal(image)?;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.logins.len() >= MAX {
            tracing::warn!(
                image,
                "too many pulls at once: containerd makes this one without Orlop's layers if they need its secret"
            );
            return None;
        }
        let number = held.next;
        held.next += 1;
        held.logins.insert(number, (image, login));
        Some(Hold { held: Arc::clone(&self.held), number })
    }

    /// The newest secret of an image.
    pub(super) fn of(&self, image: &str) -> Option<Login> {
        let image = normal(image)?;
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.logins.values().rev().find(|(of, _)| *of == image).map(|(_, login)| login.clone())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).logins.remove(&self.number);
    }
}

/// A name as containerd gives it to its snapshotter.
fn normal(image: &str) -> Option<String> {
    image.parse::<Reference>().ok().map(|reference| reference.to_string())
}

#[cfg(test)]
mod tests {
    use orlop_remote::Credential;

    use super::*;

    fn login(text: &str) -> Login {
        Login { credential: Credential::Bearer(text.to_owned()), server: None }
    }

    #[test]
    fn a_secret_is_there_as_long_as_its_call_whatever_form_the_name_has() {
        let secrets = Secrets::default();
        let first = secrets.hold("busybox", login("first"));
        assert_eq!(secrets.of("docker.io/library/busybox:latest"), Some(login("first")));
        assert_eq!(secrets.of("docker.io/library/busybox:2"), None);
        let second = secrets.hold("docker.io/library/busybox:latest", login("second"));
        assert_eq!(secrets.of("busybox"), Some(login("second")));
        drop(second);
        assert_eq!(secrets.of("busybox"), Some(login("first")));
        drop(first);
        assert_eq!(secrets.of("busybox"), None);
        assert!(secrets.hold("Not A Name", login("x")).is_none());
    }

    #[test]
    fn more_than_can_be_remembered_are_not() {
        let secrets = Secrets::default();
        let all: Vec<Hold> = (0..MAX).filter_map(|n| secrets.hold(&format!("app:{n}"), login("x"))).collect();
        assert_eq!(all.len(), MAX);
        assert!(secrets.hold("more", login("x")).is_none() && secrets.of("more").is_none());
        drop(all);
        assert!(secrets.hold("more", login("x")).is_some());
    }
}
