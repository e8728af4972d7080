//! Credentials that the client gives when a registry asks for some.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orlop_api::containerd::types::transfer::{AuthRequest, AuthResponse, AuthType};
use orlop_remote::{BoxError, Credential, CredentialSource};

use crate::any::unpack;
use crate::streaming::Link;

/// Asks the client through a stream, one question at a time.
pub(super) struct Asked {
    link: Arc<Link>,
    reference: String,
    turn: tokio::sync::Mutex<()>,
}

impl Asked {
    pub(super) fn new(link: Arc<Link>, reference: String) -> Self {
        Self { link, reference, turn: tokio::sync::Mutex::default() }
    }
}

#[tonic::async_trait]
impl CredentialSource for Asked {
    async fn credential(&self, host: &str) -> Result<Option<Credential>, BoxError> {
        let _turn = self.turn.lock().await;
        let question =
            AuthRequest { host: host.to_owned(), reference: self.reference.clone(), wwwauthenticate: Vec::new() };
        self.link.send(&question).await?;
        let answer = self.link.receive().await?.ok_or("the client ended the stream instead of answering")?;
        let answer = unpack::<AuthResponse>(&answer)
            .ok_or_else(|| format!("expected an answer with credentials, found {:?}", answer.type_url))??;
        Ok(credential(answer))
    }
}

fn credential(answer: AuthResponse) -> Option<Credential> {
    let kind = answer.auth_type();
    if answer.secret.is_empty() && answer.username.is_empty() {
        return None;
    }
    match kind {
        AuthType::None => None,
        AuthType::Credentials => Some(Credential::Basic { user: answer.username, password: answer.secret }),
        AuthType::Refresh => Some(Credential::Identity(answer.secret)),
        AuthType::Header => header(&answer.secret),
    }
}

/// What an `Authorization` header says.
fn header(value: &str) -> Option<Credential> {
    let (scheme, rest) = value.trim().split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Credential::Bearer(rest.trim().to_owned()));
    }
    let decoded = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    scheme
        .eq_ignore_ascii_case("basic")
        .then(|| Credential::Basic { user: user.to_owned(), password: password.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: AuthType, username: &str, secret: &str) -> Option<Credential> {
        let (username, secret) = (username.to_owned(), secret.to_owned());
        credential(AuthResponse { auth_type: kind.into(), secret, username, expire_at: None })
    }

    #[test]
    fn every_kind_of_answer_is_understood() {
        let basic = Credential::Basic { user: "me".into(), password: "pass:word".into() };
        assert!(answer(AuthType::Credentials, "me", "pass:word") == Some(basic.clone()));
        assert!(answer(AuthType::Header, "", "Basic bWU6cGFzczp3b3Jk") == Some(basic));
        assert!(answer(AuthType::Header, "", "Bearer abc") == Some(Credential::Bearer("abc".into())));
        assert!(answer(AuthType::Refresh, "", "token") == Some(Credential::Identity("token".into())));
        for (kind, secret) in [(AuthType::Refresh, ""), (AuthType::None, "x"), (AuthType::Header, "nonsense")] {
            assert!(answer(kind, "", secret).is_none());
        }
    }
}
