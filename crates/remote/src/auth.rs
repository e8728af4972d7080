//! Getting past 401: Basic, and Bearer tokens (Docker's token and OAuth2 authentication specifications).
//!
//! # Invariants
//! - Credentials go to the host they belong to, or to the realm that this host named; over plain HTTP only where the host
//!   itself is reached so, or on loopback.
//! - Of the callers that need the same token at the same time one fetches it and the others wait for it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use url::Url;

use crate::challenge::Challenge;
use crate::credentials::{self, Credential};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::failure::{self, Refusal};
use crate::hosts::{authority, is_loopback};
use crate::providers::Providers;
use crate::scope::Scopes;
use crate::{CLIENT_ID, ClientOptions, CredentialSource, Login, retry};

/// A token's lifetime where the server says nothing (Docker's token specification).
const DEFAULT_LIFETIME: u64 = 60;
/// Token answers are small; some registries' tokens have several KiB.
const MAX_TOKEN_BYTES: usize = 256 * 1024;
/// How long credentials found in files or by helpers are used without looking again.
const CREDENTIAL_LIFETIME: Duration = Duration::from_secs(60);
/// More cached tokens than this are thinned out.
const MAX_TOKENS: usize = 1024;

/// How a host wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// User and password with every request.
    Basic,
    /// A token from a realm.
    Bearer {
        /// Where tokens come from.
        realm: String,
        /// For whom they are.
        service: Option<String>,
    },
}

impl Scheme {
    /// The best of the challenges that Orlop can meet, with the scope it asks for.
    pub(crate) fn choose(challenges: &[Challenge]) -> Option<(Self, Option<String>)> {
        let bearer = challenges.iter().find(|c| c.scheme == "bearer" && c.get("realm").is_some());
        if let Some(challenge) = bearer {
            let realm = challenge.get("realm")?.to_owned();
            let service = challenge.get("service").filter(|s| !s.is_empty()).map(str::to_owned);
            let scope = challenge.get("scope").filter(|s| !s.is_empty()).map(str::to_owned);
            return Some((Self::Bearer { realm, service }, scope));
        }
        challenges.iter().any(|c| c.scheme == "basic").then_some((Self::Basic, None))
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    host: String,
    realm: String,
    service: Option<String>,
    scopes: Scopes,
    repository: String,
}

struct Token {
    header: HeaderValue,
    expires: Instant,
}

type Slot = Arc<tokio::sync::Mutex<Option<Token>>>;
type Known = HashMap<(String, String), (Instant, Option<Credential>)>;

/// Knows credentials and tokens; shared by all clones of a client.
pub(crate) struct Authenticator {
    explicit: Option<Login>,
    config: Option<PathBuf>,
    providers: Providers,
    source: Option<Arc<dyn CredentialSource>>,
    tokens: Mutex<HashMap<TokenKey, Slot>>,
    known: tokio::sync::Mutex<Known>,
}

impl Authenticator {
    pub(crate) fn new(options: &ClientOptions) -> Self {
        Self {
            explicit: options.explicit(),
            config: options.docker_config.clone(),
            providers: options.providers.clone(),
            source: options.source.clone(),
            tokens: Mutex::default(),
            known: tokio::sync::Mutex::default(),
        }
    }

    /// The `Authorization` for a request, as far as it is known how the host wants to be asked. `refused` is what the host
    /// did not accept a moment ago.
    pub(crate) async fn header(
        &self,
        endpoint: &Endpoint,
        repository: &str,
        scopes: &Scopes,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>> {
        let Some(scheme) = endpoint.scheme() else { return Ok(None) };
        let credential = self.credential(endpoint, repository).await?;
        let header = match (scheme, credential) {
            (Scheme::Basic, Some(Credential::Basic { user, password })) => Some(basic(&user, &password)),
            (Scheme::Basic, _) => None,
            (Scheme::Bearer { .. }, Some(Credential::Bearer(token))) => bearer(&token),
            (Scheme::Bearer { realm, service }, credential) => {
                let (host, repository) = (endpoint.host().to_owned(), repository.to_owned());
                let key = TokenKey { host, realm, service, scopes: scopes.clone(), repository };
                return self.token(endpoint, key, credential, refused).await.map(Some);
            }
        };
        Ok(header.filter(|h| Some(h) != refused))
    }

    async fn credential(&self, endpoint: &Endpoint, repository: &str) -> Result<Option<Credential>> {
        let explicit = self.explicit.as_ref().filter(|login| self.source.is_none() && is_for(login, endpoint));
        if let Some(login) = explicit {
            return Ok(Some(login.credential.clone()));
        }
        if self.source.is_none() && self.config.is_none() && self.providers.is_empty() {
            return Ok(None);
        }
        // Held while a helper runs: helpers ask people for passwords, and nobody wants to be asked ten times at once.
        let mut known = self.known.lock().await;
        let key = (endpoint.host().to_owned(), repository.to_owned());
        if let Some((at, found)) = known.get(&key).filter(|(at, _)| at.elapsed() < CREDENTIAL_LIFETIME) {
            let _ = at;
            return Ok(found.clone());
        }
        let found = self.look_up(endpoint.host(), repository).await?;
        known.retain(|_, (at, _)| at.elapsed() < CREDENTIAL_LIFETIME);
        known.insert(key, (Instant::now(), found.clone()));
        Ok(found)
    }

    async fn look_up(&self, host: &str, repository: &str) -> Result<Option<Credential>> {
        if let Some(source) = &self.source {
            let asked = source.credential(host).await;
            return asked.map_err(|source| Error::CredentialSource { host: host.to_owned(), source });
        }
        if let Some(found) = self.providers.find(host, repository).await {
            return Ok(Some(found));
        }
        match &self.config {
            Some(config) => credentials::find(config, host, repository).await,
            None => Ok(None),
        }
    }

    async fn token(
        &self,
        endpoint: &Endpoint,
        key: TokenKey,
        credential: Option<Credential>,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue> {
        let slot = self.slot(&key);
        let mut token = slot.lock().await;
        if let Some(token) = token.as_ref().filter(|t| t.expires > Instant::now() && Some(&t.header) != refused) {
            return Ok(token.header.clone());
        }
        let fetched = fetch(endpoint, &key, credential).await?;
        let header = fetched.header.clone();
        *token = Some(fetched);
        Ok(header)
    }

    fn slot(&self, key: &TokenKey) -> Slot {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_TOKENS {
            let now = Instant::now();
            tokens.retain(|_, slot| slot.try_lock().map_or(true, |t| t.as_ref().is_some_and(|t| t.expires > now)));
            if tokens.len() >= MAX_TOKENS {
                tokens.clear();
            }
        }
        tokens.entry(key.clone()).or_default().clone()
    }
}

/// A secret without a host belongs to the registry that the reference names.
fn is_for(login: &Login, endpoint: &Endpoint) -> bool {
    match &login.server {
        Some(server) => credentials::names_host(server, endpoint.host()),
        None => endpoint.is_upstream(),
    }
}

fn basic(user: &str, password: &str) -> HeaderValue {
    secret(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
        .unwrap_or_else(|| HeaderValue::from_static("Basic"))
}

fn bearer(token: &str) -> Option<HeaderValue> {
    secret(format!("Bearer {token}"))
}

fn secret(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

/// Fetches a token: by POST where there are credentials, by GET where the realm does not take that, or anonymously.
async fn fetch(endpoint: &Endpoint, key: &TokenKey, credential: Option<Credential>) -> Result<Token> {
    let realm = realm_url(endpoint, key, credential.is_some())?;
    let started = Instant::now();
    let posted = match &credential {
        Some(credential) => Some(exchange(endpoint, &realm, key, oauth(endpoint, &realm, key, credential)?).await?),
        None => None,
    };
    let body = match (posted, credential) {
        (Some(Ok(body)), _) => body,
        (Some(Err(refusal)), Some(Credential::Basic { user, password })) if takes_get_instead(refusal.status) => {
            let request = get(endpoint, &realm, key)?.header(AUTHORIZATION, basic(&user, &password));
            let fetched = exchange(endpoint, &realm, key, request).await?;
            fetched.map_err(|refusal| refusal.into_error(&what(key), &authority(&realm)))?
        }
        (Some(Err(refusal)), _) => return Err(refusal.into_error(&what(key), &authority(&realm))),
        (None, _) => exchange(endpoint, &realm, key, get(endpoint, &realm, key)?)
            .await?
            .map_err(|refusal| refusal.into_error(&what(key), &authority(&realm)))?,
    };
    read_token(&body, started).ok_or_else(|| Error::Protocol {
        what: what(key),
        host: authority(&realm),
        expected: "JSON with `token` or `access_token`",
        // Not shown: it may hold a token.
        found: format!("{} bytes without one", body.len()),
    })
}

const fn takes_get_instead(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
    )
}

fn what(key: &TokenKey) -> String {
    format!("a token for {}", key.scopes.texts().join(" "))
}

fn read_token(body: &[u8], started: Instant) -> Option<Token> {
    let answer: TokenAnswer = serde_json::from_slice(body).ok()?;
    let text = if answer.token.is_empty() { answer.access_token } else { answer.token };
    let header = bearer(&text).filter(|_| !text.is_empty())?;
    // A tenth of its life is kept back for clocks and ways.
    let lifetime = Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFETIME).min(86_400)).mul_f64(0.9);
    Some(Token { header, expires: started + lifetime })
}

/// The realm as a URL that credentials may be sent to.
fn realm_url(endpoint: &Endpoint, key: &TokenKey, secret: bool) -> Result<Url> {
    let wrong = |expected| Error::Protocol {
        what: "the authentication challenge".to_owned(),
        host: endpoint.host().to_owned(),
        expected,
        found: key.realm.clone(),
    };
    let base = endpoint.base();
    let realm = base.join(&key.realm).map_err(|_| wrong("a realm that is an http or https URL"))?;
    if !matches!(realm.scheme(), "http" | "https") || !realm.has_host() {
        return Err(wrong("a realm that is an http or https URL"));
    }
    let plain = realm.scheme() == "http" && base.scheme() == "https";
    if secret && plain && !realm.host_str().is_some_and(is_loopback) {
        return Err(wrong("an https realm, since credentials are sent there"));
    }
    Ok(realm)
}

fn oauth(endpoint: &Endpoint, realm: &Url, key: &TokenKey, credential: &Credential) -> Result<reqwest::RequestBuilder> {
    let scope = key.scopes.texts().join(" ");
    let mut form: Vec<(&str, &str)> = vec![("client_id", CLIENT_ID), ("scope", &scope)];
    if let Some(service) = &key.service {
        form.push(("service", service));
    }
    match credential {
        Credential::Basic { user, password } => {
            form.extend([("grant_type", "password"), ("username", user.as_str()), ("password", password.as_str())]);
        }
        Credential::Identity(token) | Credential::Bearer(token) => {
            form.extend([("grant_type", "refresh_token"), ("refresh_token", token.as_str())]);
        }
    }
    Ok(endpoint.request_to(http::Method::POST, realm)?.form(&form))
}

fn get(endpoint: &Endpoint, realm: &Url, key: &TokenKey) -> Result<reqwest::RequestBuilder> {
    let mut query: Vec<(&str, String)> = Vec::new();
    if let Some(service) = &key.service {
        query.push(("service", service.clone()));
    }
    query.extend(key.scopes.texts().into_iter().map(|scope| ("scope", scope)));
    Ok(endpoint.request_to(http::Method::GET, realm)?.query(&query))
}

/// One request to the realm: its body, or its refusal. Redirects are refusals: the realm was named by the host, what lies
/// behind a redirect was not.
async fn exchange(
    endpoint: &Endpoint,
    realm: &Url,
    key: &TokenKey,
    request: reqwest::RequestBuilder,
) -> Result<std::result::Result<Vec<u8>, Refusal>> {
    let (host, what, limit) = (authority(realm), what(key), endpoint.response_timeout());
    let late = || Error::Timeout { what: what.clone(), host: host.clone(), after: limit };
    let sent = tokio::time::timeout(limit, request.send()).await.map_err(|_| late())?;
    let mut response = sent.map_err(|e| failure::of_exchange(e, &host, &what, limit))?;
    let (status, wait) = (response.status(), retry::retry_after(response.headers(), jiff::Timestamp::now()));
    let mut body = Vec::new();
    loop {
        let chunk = tokio::time::timeout(limit, response.chunk()).await.map_err(|_| late())?;
        match chunk.map_err(|e| failure::of_exchange(e, &host, &what, limit))? {
            Some(chunk) if body.len() + chunk.len() <= MAX_TOKEN_BYTES => body.extend_from_slice(&chunk),
            Some(_) => return Err(Error::TooLarge { what, host, limit: MAX_TOKEN_BYTES as u64 }),
            None => break,
        }
    }
    Ok(if status.is_success() { Ok(body) } else { Err(Refusal::parse(status, &body, wait)) })
}
