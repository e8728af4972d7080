//! Who may do what: users, permissions by repository, tokens, read-only mode, and a log of every decision.
//!
//! Independent of the index: a node's registry and a gateway have the same. [`Access::open`] lets everybody do everything, which is
//! for a registry that only the machine itself reaches.
//!
//! # How somebody says who he is
//! By `Authorization: Basic` with a password of the user file ([`Users`]), or by a bearer token that this registry issued for one
//! (Docker's token flow, [`tokens`]). A token counts for no more than its user may do now. Without credentials he is anonymous.
//!
//! # Invariants
//! - Whatever has a repository in its path is answered only if a rule allows it to the caller; a mount needs to read its source too.
//! - A wrong password or token is never taken for nobody: it is refused.
//! - Passwords and tokens are in no log line, error or `Debug`.
//!
//! # Concurrency
//! All of it is read by many requests at once; passwords are hashed on the blocking pool, a few at a time ([`users`]).

mod audit;
mod challenge;
mod permissions;
mod scope;
pub(crate) mod tokens;
mod users;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

pub use audit::{Audit, Decision};
use http::request::Parts;
use http::{HeaderMap, header};
pub use permissions::{Permissions, RepositoryPattern, RepositoryRule, Who, WhoError};
pub(crate) use scope::Scope;
pub use tokens::{TokenKey, Tokens};
pub use users::{Users, UsersError, Verdict};

use orlop_oci::Digest;

use crate::error::{Code, Failure};

/// What may be done in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Reading everything that it has.
    Pull,
    /// Adding blobs and manifests, moving tags.
    Push,
    /// Deleting blobs, manifests and tags.
    Delete,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pull, Self::Push, Self::Delete];

    /// As tokens and configurations say it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who may do what.
#[derive(Default)]
pub struct Access {
    /// Who can log in; none: nobody can.
    pub users: Option<Arc<Users>>,
    /// What they may.
    pub permissions: Permissions,
    /// Issues and checks tokens; none: clients send their passwords with each request.
    pub tokens: Option<Tokens>,
    /// Nothing is changed, whoever asks.
    pub read_only: bool,
    /// Is told of every decision.
    pub audit: Option<Arc<dyn Audit>>,
}

impl Access {
    /// Everybody may do everything.
    pub fn open() -> Self {
        Self { permissions: Permissions::all(), ..Self::default() }
    }
}

/// A caller for one request: who he is, and what he asks for that nobody else may bring along.
#[derive(Clone)]
pub(crate) struct Session {
    access: Arc<Access>,
    address: Option<IpAddr>,
    user: Option<String>,
    /// What his token is for; none: he sent no token.
    granted: Option<Vec<Scope>>,
    /// Where this registry was asked, for challenges.
    place: challenge::Place,
}

impl Access {
    /// Finds out who asks.
    pub(crate) async fn identify(
        self: &Arc<Self>,
        request: &Parts,
        address: Option<IpAddr>,
        secure: bool,
    ) -> Result<Session, Failure> {
        let place = challenge::Place::of(request, secure);
        let anonymous = Session { access: self.clone(), address, user: None, granted: None, place };
        let Some(value) = request.headers.get(header::AUTHORIZATION) else { return Ok(anonymous) };
        if self.users.is_none() {
            // Nobody can log in here: what a client sends that has a password for this host does not matter.
            return Ok(anonymous);
        }
        let wrong =
            |session: &Session| Err(session.challenge(&[], Some("invalid_token"), "the credentials are not valid"));
        let Some((kind, value)) = value.to_str().ok().and_then(|value| value.trim().split_once(' ')) else {
            return wrong(&anonymous);
        };
        if kind.eq_ignore_ascii_case("basic") {
            return match challenge::basic(value.trim()) {
                // Some clients send empty ones when they have none.
                Some((user, password)) if user.is_empty() && password.is_empty() => Ok(anonymous),
                Some((user, password)) => self.log_in(anonymous, user, password).await,
                None => self.log_in(anonymous, String::new(), String::new()).await,
            };
        }
        if kind.eq_ignore_ascii_case("bearer")
            && let Some(tokens) = &self.tokens
            && let Some((user, granted)) = tokens.verify(value.trim(), &anonymous.place.service())
        {
            return Ok(Session { user, granted: Some(granted), ..anonymous });
        }
        wrong(&anonymous)
    }

    /// Whoever has this name and password, from where `session` is.
    async fn log_in(&self, session: Session, user: String, password: String) -> Result<Session, Failure> {
        let verdict = match &self.users {
            Some(users) if !user.is_empty() => users.verify(&user, password, session.address).await,
            _ => Verdict::Wrong,
        };
        match verdict {
            Verdict::Right => Ok(Session { user: Some(user), ..session }),
            Verdict::Wrong => {
                self.tell_login(&session);
                Err(session.challenge(&[], Some("invalid_token"), "the credentials are not valid"))
            }
            Verdict::Busy => Err(Code::Busy.because("too many log in at once; try again")),
        }
    }

    fn tell_login(&self, session: &Session) {
        let decision = Decision {
            address: session.address,
            user: None,
            action: "login",
            repository: None,
            reference: None,
            allowed: false,
            reason: "the password is not that of the user",
        };
        audit::tell(self.audit.as_deref(), &decision);
    }
}

impl Session {
    /// The name under which he is known.
    pub(crate) fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Whether he may; says nothing to anybody.
    fn may(&self, action: Action, repository: &str) -> bool {
        let granted =
            self.granted.as_ref().is_none_or(|scopes| scopes.iter().any(|scope| scope.covers(action, repository)));
        granted && self.has_right(action, repository)
    }

    /// Whether rules allow it, whatever his token is for.
    fn has_right(&self, action: Action, repository: &str) -> bool {
        let local = self.address.is_none_or(|address| address.is_loopback());
        self.access.permissions.allow(self.user.as_deref(), local, action, repository)
    }

    /// Whether he hears of a repository in a list; tokens do not say which lists they are for.
    pub(crate) fn may_list(&self, repository: &str) -> bool {
        self.has_right(Action::Pull, repository)
    }

    /// Whether a blob may be mounted from a repository. That it may not be is written down, and no reason to refuse the upload.
    pub(crate) fn may_mount(&self, from: &str, digest: &Digest) -> bool {
        self.require(Action::Pull, from, Some(digest.as_str())).is_ok()
    }

    /// Lets a request in, or says why not.
    pub(crate) fn require(&self, action: Action, repository: &str, reference: Option<&str>) -> Result<(), Failure> {
        let reason = self.objection(action, repository);
        let decision = Decision {
            address: self.address,
            user: self.user.as_deref(),
            action: action.as_str(),
            repository: Some(repository),
            reference,
            allowed: reason.is_none(),
            reason: reason.unwrap_or_default(),
        };
        audit::tell(self.access.audit.as_deref(), &decision);
        match reason {
            None => Ok(()),
            Some(reason) if self.access.read_only && action != Action::Pull => Err(Code::ReadOnly.because(reason)),
            Some(reason) => Err(self.refusal(action, repository, reason)),
        }
    }

    fn objection(&self, action: Action, repository: &str) -> Option<&'static str> {
        if self.access.read_only && action != Action::Pull {
            return Some("the registry is read-only");
        }
        (!self.may(action, repository)).then_some(match (&self.user, &self.granted) {
            (None, _) => "it is not for everybody",
            (Some(_), None) => "the user may not do this here",
            (Some(_), Some(_)) => "the user may not do this here, or the token is not for it",
        })
    }

    /// Somebody who could log in, or get a token that is for it, is told how.
    fn refusal(&self, action: Action, repository: &str, reason: &'static str) -> Failure {
        let other_token = self.granted.is_some() && self.has_right(action, repository);
        let can_do_more = self.access.users.is_some() && (self.user.is_none() || other_token);
        if !can_do_more {
            return Code::Denied.because(reason);
        }
        let mut actions = vec![Action::Pull];
        actions.extend((action != Action::Pull).then_some(action));
        let scope = Scope { repository: repository.to_owned(), actions };
        let error = self.granted.is_some().then_some("insufficient_scope");
        self.challenge(&[scope], error, reason)
    }

    /// `/v2/` and lists: who has no password is asked for one where anybody has, since clients find out there how to log in.
    pub(crate) fn require_login(&self) -> Result<(), Failure> {
        match self.access.users.is_some() && self.user.is_none() && self.granted.is_none() {
            true => Err(self.challenge(&[], None, "log in")),
            false => Ok(()),
        }
    }

    fn challenge(&self, scopes: &[Scope], error: Option<&str>, reason: &str) -> Failure {
        let realm = self.access.tokens.as_ref().map(|tokens| tokens.realm(&self.place));
        let value = match realm {
            Some(realm) => challenge::bearer(&realm, &self.place.service(), scopes, error),
            None => challenge::basic_realm(&self.place.service()),
        };
        Code::Unauthorized.because(reason).with_header("www-authenticate", value)
    }

    /// What a token for these scopes is for: those of their actions that he may do.
    pub(crate) fn grant(&self, wanted: Vec<Scope>) -> Vec<Scope> {
        let allowed = |scope: Scope| {
            let actions = scope.actions.iter().copied().filter(|action| self.may(*action, &scope.repository)).collect();
            Scope { actions, ..scope }
        };
        wanted.into_iter().map(allowed).filter(|scope| !scope.actions.is_empty()).collect()
    }

    pub(crate) fn access(&self) -> &Arc<Access> {
        &self.access
    }

    pub(crate) fn place(&self) -> &challenge::Place {
        &self.place
    }
}

/// What the parts of a request that nobody should see look like in logs: not at all.
impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("address", &self.address).field("user", &self.user).finish_non_exhaustive()
    }
}

/// The host that a client says.
pub(crate) fn host(headers: &HeaderMap) -> Option<String> {
    challenge::plain_host(headers.get(header::HOST)?.to_str().ok()?)
}
