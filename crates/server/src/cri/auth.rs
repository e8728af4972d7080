//! The secret that a pull brings, in whichever of its forms.

use orlop_api::runtime::v1::AuthConfig;
use orlop_remote::{Credential, Login};
use tonic::Status;

/// What the request proves its right with; `None`: nothing, and the node's own configuration counts.
///
/// Of several forms the first counts: user and password, identity token (a refresh token), `auth` (base64 of
/// `user:password`), registry token (an access token). With a server address the secret is for that host alone.
///
/// # Errors
/// `UNKNOWN`, as containerd's, if `auth` is not what it should be.
pub(crate) fn login(auth: Option<&AuthConfig>) -> Result<Option<Login>, Status> {
    let Some(auth) = auth else { return Ok(None) };
    let credential = if !auth.username.is_empty() {
        Credential::Basic { user: auth.username.clone(), password: auth.password.clone() }
    } else if !auth.identity_token.is_empty() {
        Credential::Identity(auth.identity_token.clone())
    } else if !auth.auth.is_empty() {
        // The text itself stays out of the message: it is the secret.
        Credential::from_auth(&auth.auth)
            .ok_or_else(|| Status::unknown("auth config: `auth` is not the base64 of user:password"))?
    } else if !auth.registry_token.is_empty() {
        Credential::Bearer(auth.registry_token.clone())
    } else {
        return Ok(None);
    };
    let server = Some(auth.server_address.clone()).filter(|server| !server.is_empty());
    Ok(Some(Login { credential, server }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(user: &str, password: &str) -> Credential {
        Credential::Basic { user: user.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn every_form_is_understood_in_containerds_order() {
        let empty = AuthConfig::default;
        let all = AuthConfig {
            username: "u".into(),
            password: "p".into(),
            auth: "bWU6cGE6c3M=".into(),
            server_address: "https://r.example/v1/".into(),
            identity_token: "refresh".into(),
            registry_token: "access".into(),
        };
        let credential = |auth: AuthConfig| login(Some(&auth)).unwrap().map(|login| login.credential);
        assert_eq!(login(None).unwrap(), None);
        assert_eq!(credential(empty()), None);
        assert_eq!(credential(all.clone()), Some(basic("u", "p")));
        assert_eq!(login(Some(&all)).unwrap().unwrap().server.as_deref(), Some("https://r.example/v1/"));
        let without_user = AuthConfig { username: String::new(), ..all };
        assert_eq!(credential(without_user.clone()), Some(Credential::Identity("refresh".into())));
        let without_identity = AuthConfig { identity_token: String::new(), ..without_user };
        assert_eq!(credential(without_identity.clone()), Some(basic("me", "pa:ss")));
        let token = AuthConfig { auth: String::new(), ..without_identity };
        assert_eq!(credential(token), Some(Credential::Bearer("access".into())));
        for broken in ["!!!", "bm90aGluZw=="] {
            let status = login(Some(&AuthConfig { auth: broken.into(), ..empty() })).unwrap_err();
            assert!(!status.message().contains(broken), "{status:?}");
        }
    }
}
