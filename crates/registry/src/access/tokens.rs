//! Tokens that this registry issues itself (Docker's registry token specification): JSON web tokens (RFC 7519) with HMAC-SHA-256.
//!
//! `GET /token?service=…&scope=…` with `Basic` credentials, or `POST` with a form (OAuth 2.0's password grant, as Docker sends it),
//! gives a token for those of the scopes' actions that the user may do. Without credentials it is a token of nobody, for what
//! everybody may do.
//!
//! A token is for the `service` that its client asks for: the host that the challenge named, which may not be where tokens are issued.
//! Registries that share a key so take each other's tokens where clients call them by one name.

use aws_lc_rs::hmac;
use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Method, Request, Response, StatusCode, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::challenge::{Place, plain_host};
use super::{Decision, Scope, Session, audit};
use crate::error::{Code, Failure};
use crate::{json, route};

/// How long a token counts: longer than the longest request of a push is likely to take, as short as that allows.
const SECONDS: i64 = 300;

/// A clock of another gateway may be so far ahead.
const SKEW: i64 = 60;

/// The longest token that is looked at, and the longest form.
const MAX_TOKEN: usize = 16 << 10;

/// Scopes of one token.
const MAX_SCOPES: usize = 32;

/// `{"alg":"HS256","typ":"JWT"}`: the only header that is made or taken.
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";

const ISSUER: &str = "orlop";

/// What tokens are signed with. Registries that share it take each other's tokens.
#[derive(Clone)]
pub struct TokenKey(hmac::Key);

impl TokenKey {
    /// The fewest bytes of a key: those of the hash.
    pub const MIN_BYTES: usize = 32;

    /// A key of these bytes; none if they are too few.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= Self::MIN_BYTES).then(|| Self(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }

    /// A key that nobody else has: tokens end with the process.
    pub fn random() -> Self {
        let bytes: [u8; Self::MIN_BYTES] = rand::random();
        Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
    }
}

/// Issues tokens and checks them.
pub struct Tokens {
    key: TokenKey,
    realm: Option<String>,
}

/// What a token says.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    /// The user; empty: nobody.
    sub: String,
    /// The host for which it is.
    aud: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: String,
    access: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    actions: Vec<String>,
}

#[derive(Serialize)]
struct Issued {
    token: String,
    access_token: String,
    expires_in: i64,
    issued_at: String,
}

impl Tokens {
    /// Tokens of a key, issued at a URL; none: `/token` of the host that the client asked.
    pub const fn new(key: TokenKey, realm: Option<String>) -> Self {
        Self { key, realm }
    }

    pub(super) fn realm(&self, place: &Place) -> String {
        self.realm.clone().unwrap_or_else(|| place.own_realm())
    }

    fn issue(&self, user: Option<&str>, service: &str, granted: &[Scope], now: Timestamp) -> String {
        let now = now.as_second();
        let entry = |scope: &Scope| Entry {
            kind: "repository".to_owned(),
            name: scope.repository.clone(),
            actions: scope.actions.iter().map(ToString::to_string).collect(),
        };
        let claims = Claims {
            iss: ISSUER.to_owned(),
            sub: user.unwrap_or_default().to_owned(),
            aud: service.to_owned(),
            iat: now,
            nbf: now,
            exp: now + SECONDS,
            jti: format!("{:032x}", rand::random::<u128>()),
            access: granted.iter().map(entry).collect(),
        };
        let payload = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims).unwrap_or_default());
        let signed = format!("{HEADER}.{payload}");
        let tag = hmac::sign(&self.key.0, signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    /// Whose token it is and what it is for; none if it does not count.
    pub(super) fn verify(&self, token: &str, service: &str) -> Option<(Option<String>, Vec<Scope>)> {
        self.verify_at(token, service, Timestamp::now())
    }

    fn verify_at(&self, token: &str, service: &str, now: Timestamp) -> Option<(Option<String>, Vec<Scope>)> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let (signed, tag) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
        if header != HEADER || hmac::verify(&self.key.0, signed.as_bytes(), &tag).is_err() {
            return None;
        }
        let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        let now = now.as_second();
        if claims.iss != ISSUER || claims.aud != service || now >= claims.exp || now + SKEW < claims.nbf {
            return None;
        }
        let scope = |entry: &Entry| format!("{}:{}:{}", entry.kind, entry.name, entry.actions.join(",")).parse().ok();
        let granted = claims.access.iter().filter_map(scope).collect();
        Some(((!claims.sub.is_empty()).then_some(claims.sub), granted))
    }
}

/// What a client asks for a token with.
struct Wish {
    /// What the token is to be for; none: the host that was asked.
    service: Option<String>,
    scopes: Vec<Scope>,
    /// Name and password in the form.
    login: Option<(String, String)>,
}

/// Answers `/token`.
pub(crate) async fn answer(session: Session, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let access = session.access().clone();
    let Some(tokens) = &access.tokens else { return Err(Code::NotFound.into()) };
    let method = request.method().clone();
    let wish = match method {
        Method::GET | Method::HEAD => Wish::of_query(request.uri())?,
        Method::POST => Wish::of_form(request).await?,
        _ => return Err(Code::Unsupported.into()),
    };
    let session = match wish.login {
        Some((user, password)) => access.log_in(session, user, password).await?,
        None => session,
    };
    // A token does not make another one.
    if session.granted.is_some() {
        return Err(session.challenge(&[], Some("invalid_token"), "a token is asked for with a password"));
    }
    let granted = session.grant(wish.scopes);
    let now = Timestamp::now();
    let service = wish.service.unwrap_or_else(|| session.place().service());
    let token = tokens.issue(session.user(), &service, &granted, now);
    let told = granted.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let decision = Decision {
        address: session.address,
        user: session.user(),
        action: "token",
        repository: None,
        reference: Some(&told),
        allowed: true,
        reason: "",
    };
    audit::tell(access.audit.as_deref(), &decision);
    let issued = Issued {
        access_token: token.clone(),
        token,
        expires_in: SECONDS,
        issued_at: now.strftime("%FT%TZ").to_string(),
    };
    let mut response = json(StatusCode::OK, "application/json", serde_json::to_vec(&issued).unwrap_or_default());
    response.headers_mut().insert(header::CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    Ok(response)
}

impl Wish {
    fn of_query(uri: &http::Uri) -> Result<Self, Failure> {
        let scopes = route::queries(uri, "scope").collect::<Vec<_>>();
        let service = route::query(uri, "service").and_then(|service| plain_host(&service));
        Ok(Self { service, scopes: scopes_of(&scopes)?, login: None })
    }

    async fn of_form(request: Request<Body>) -> Result<Self, Failure> {
        let body = axum::body::to_bytes(request.into_body(), MAX_TOKEN).await;
        let body = body.map_err(|_| Code::Unsupported.because("the form is too long, or broke off"))?;
        let values = |name: &'static str| {
            let pairs = url::form_urlencoded::parse(&body).filter(move |(key, _)| key == name);
            pairs.map(|(_, value)| value.into_owned())
        };
        let value = |name| values(name).next();
        let scopes: Vec<String> = values("scope").collect();
        let login = match value("grant_type").as_deref() {
            Some("password") => Some((value("username").unwrap_or_default(), value("password").unwrap_or_default())),
            _ => return Err(Code::Unsupported.because("grant_type: only password is known")),
        };
        let service = value("service").and_then(|service| plain_host(&service));
        Ok(Self { service, scopes: scopes_of(&scopes)?, login })
    }
}

/// Each text may have several, with spaces between. What is no scope of a repository counts for nothing: clients ask for
/// `registry:catalog:*` too.
fn scopes_of(texts: &[String]) -> Result<Vec<Scope>, Failure> {
    let scopes: Vec<Scope> =
        texts.iter().flat_map(|text| text.split(' ')).filter_map(|text| text.parse().ok()).collect();
    if scopes.len() > MAX_SCOPES {
        return Err(Code::Unsupported.because(format!("{} scopes, at most {MAX_SCOPES} are taken", scopes.len())));
    }
    Ok(scopes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(text: &str) -> Scope {
        text.parse().unwrap()
    }

    #[test]
    fn a_token_says_what_it_was_issued_for_and_no_longer_than_its_time() {
        let tokens = Tokens::new(TokenKey::random(), None);
        let now = Timestamp::now();
        let granted = vec![scope("repository:team/app:pull,push")];
        let token = tokens.issue(Some("alice"), "r.example:5000", &granted, now);
        let verify = |token: &str, service: &str, seconds: i64| {
            tokens.verify_at(token, service, Timestamp::from_second(now.as_second() + seconds).unwrap())
        };
        assert_eq!(verify(&token, "r.example:5000", 0), Some((Some("alice".into()), granted)));
        assert!(verify(&token, "r.example:5000", SECONDS).is_none(), "its time is up");
        assert!(verify(&token, "r.example:5000", -SKEW - 1).is_none(), "its time has not come");
        assert!(verify(&token, "other.example", 0).is_none(), "it is for another registry");
        let other = Tokens::new(TokenKey::random(), None);
        assert!(other.verify(&token, "r.example:5000").is_none(), "another key");
        let nobody = tokens.issue(None, "s", &[], now);
        assert_eq!(verify(&nobody, "s", 0), Some((None, Vec::new())));
    }

    #[test]
    fn a_token_that_was_changed_does_not_count() {
        let tokens = Tokens::new(TokenKey::random(), None);
        let token = tokens.issue(Some("alice"), "s", &[scope("repository:a:pull")], Timestamp::now());
        let parts: Vec<&str> = token.split('.').collect();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
        let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        let forged = URL_SAFE_NO_PAD.encode(claims.replace("pull", "push"));
        for bad in [
            String::new(),
            "..".to_owned(),
            format!("{none}.{}.", parts[1]),
            format!("{none}.{}.{}", parts[1], parts[2]),
            format!("{}.{forged}.{}", parts[0], parts[2]),
            format!("{}.{}", parts[0], parts[1]),
            "a".repeat(MAX_TOKEN + 1),
        ] {
            assert!(tokens.verify(&bad, "s").is_none(), "{bad}");
        }
        assert!(tokens.verify(&token, "s").is_some());
        assert!(TokenKey::new(&[0; 31]).is_none());
    }
}
