//! A small token server as Docker's registries use them: OAuth2 by POST, the older way by GET.
//!
//! It signs tokens that `docker-registry` verifies, so that the whole exchange is real.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{RawForm, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, SigningKey};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// The service that tokens are for.
pub const SERVICE: &str = "orlop-test-registry";
/// Who signs them.
pub const ISSUER: &str = "orlop-test-tokens";

/// What the server does.
#[derive(Debug, Clone)]
pub struct Options {
    /// Names and passwords. Others are refused with 401.
    pub users: BTreeMap<String, String>,
    /// Whether tokens are given without a name, for pulling only.
    pub anonymous: bool,
    /// Answers every POST with this status: 404 or 405 for servers without OAuth2.
    pub post_status: Option<u16>,
    /// Answers every GET with this status.
    pub get_status: Option<u16>,
    /// Seconds that a token is good for.
    pub expires_in: u64,
}

impl Default for Options {
    fn default() -> Self {
        let users = BTreeMap::from([("user".to_owned(), "secret".to_owned())]);
        Self { users, anonymous: false, post_status: None, get_status: None, expires_in: 300 }
    }
}

/// One request as it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// The name that was given, if any.
    pub user: Option<String>,
    /// The scopes that were asked for.
    pub scopes: Vec<String>,
    /// The status of the answer.
    pub status: u16,
}

struct Shared {
    options: Mutex<Options>,
    asked: Mutex<Vec<Asked>>,
    key: KeyPair,
    certificate: Vec<u8>,
}

/// A running token server; it ends when dropped.
pub struct TokenServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    certificate: PathBuf,
    _dir: tempfile::TempDir,
}

impl TokenServer {
    /// Starts one on a free port.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(options: Options) -> Self {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![ISSUER.to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("tokens.pem");
        std::fs::write(&path, certificate.pem()).expect("a writable directory");
        let shared = Arc::new(Shared {
            options: Mutex::new(options),
            asked: Mutex::default(),
            key,
            certificate: certificate.der().to_vec(),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel();
        let state = Arc::clone(&shared);
        let thread = std::thread::spawn(move || serve(listener, state, stopped));
        Self { address, shared, stop: Some(stop), thread: Some(thread), certificate: path, _dir: dir }
    }

    /// The realm for a `WWW-Authenticate` header: `http://127.0.0.1:PORT/token`.
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.address)
    }

    /// The certificate of the key that signs, as a PEM file.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Changes what the server does from now on.
    pub fn set(&self, change: impl FnOnce(&mut Options)) {
        change(&mut self.shared.options.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its panic, if any, has been printed.
            let _ = thread.join();
        }
    }
}

fn serve(listener: std::net::TcpListener, state: Arc<Shared>, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        listener.set_nonblocking(true).expect("a socket");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        let router = Router::new().route("/token", get(by_get).post(by_post)).with_state(state);
        tokio::select! {
            result = axum::serve(listener, router) => result.expect("served"),
            _ = stopped => {}
        }
    });
}

async fn by_get(State(shared): State<Arc<Shared>>, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let query = pairs(query.unwrap_or_default().as_bytes());
    let basic = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(basic);
    let forced = shared.options.lock().unwrap_or_else(PoisonError::into_inner).get_status;
    let scopes = query.iter().filter(|(k, _)| k == "scope").map(|(_, v)| v.clone()).collect();
    shared.answer("GET", basic, scopes, forced)
}

async fn by_post(State(shared): State<Arc<Shared>>, RawForm(form): RawForm) -> Response {
    let form = pairs(&form);
    let value = |key: &str| form.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    let credentials = match value("grant_type").as_deref() {
        Some("password") => value("username").zip(value("password")),
        // A refresh token is `user:password` here.
        Some("refresh_token") => {
            value("refresh_token").and_then(|t| t.split_once(':').map(|(u, p)| (u.to_owned(), p.to_owned())))
        }
        _ => None,
    };
    let forced = shared.options.lock().unwrap_or_else(PoisonError::into_inner).post_status;
    let scopes = value("scope").map(|s| s.split(' ').map(str::to_owned).collect()).unwrap_or_default();
    shared.answer("POST", credentials, scopes, forced)
}

impl Shared {
    fn answer(
        &self,
        method: &'static str,
        credentials: Option<(String, String)>,
        scopes: Vec<String>,
        forced: Option<u16>,
    ) -> Response {
        let options = self.options.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let known = credentials.as_ref().is_some_and(|(user, password)| options.users.get(user) == Some(password));
        let allowed = known || (credentials.is_none() && options.anonymous);
        let status = forced.unwrap_or(if allowed { 200 } else { 401 });
        let user = credentials.map(|(user, _)| user);
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push(Asked { method, user: user.clone(), scopes: scopes.clone(), status });
        drop(asked);
        let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status != 200 {
            return (code, "refused by the test's token server").into_response();
        }
        let token = self.token(&user.unwrap_or_default(), &scopes, known, options.expires_in);
        let field = if method == "POST" { "access_token" } else { "token" };
        let body = json!({field: token, "expires_in": options.expires_in, "scope": scopes.join(" ")});
        ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
    }

    /// A JSON web token in ES256 whose header carries the certificate.
    fn token(&self, user: &str, scopes: &[String], known: bool, seconds: u64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let access: Vec<Value> = scopes.iter().filter_map(|s| access(s, known)).collect();
        let head = json!({"typ": "JWT", "alg": "ES256", "x5c": [BASE64_STANDARD.encode(&self.certificate)]});
        let claims = json!({
            "iss": ISSUER, "sub": user, "aud": SERVICE, "access": access, "jti": "1",
            "iat": now.saturating_sub(10), "nbf": now.saturating_sub(10), "exp": now + seconds,
        });
        let encode = |v: &Value| BASE64_URL_SAFE_NO_PAD.encode(v.to_string());
        let signed = format!("{}.{}", encode(&head), encode(&claims));
        let signature = self.key.sign(signed.as_bytes()).expect("signing in memory");
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(plain_signature(&signature)))
    }
}

/// `repository:a/b:pull,push` as a claim; without a name only pulling is allowed.
fn access(scope: &str, known: bool) -> Option<Value> {
    let (kind, rest) = scope.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    let actions: Vec<&str> = actions.split(',').filter(|a| known || *a == "pull").collect();
    Some(json!({"type": kind, "name": name, "actions": actions}))
}

/// ES256 wants the two numbers as 32 bytes each; the library gives them as DER.
fn plain_signature(der: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    // SEQUENCE (2 bytes), then INTEGERs: tag, length, bytes, perhaps with a leading zero or too short.
    let mut rest = &der[2..];
    for _ in 0..2 {
        let length = usize::from(rest[1]);
        let number = &rest[2..2 + length];
        let number = &number[number.len().saturating_sub(32)..];
        out.resize(out.len() + 32 - number.len(), 0);
        out.extend_from_slice(number);
        rest = &rest[2 + length..];
    }
    out
}

fn basic(header: &str) -> Option<(String, String)> {
    let bytes = BASE64_STANDARD.decode(header.strip_prefix("Basic ")?).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

/// `a=b&c=d`, percent-decoded.
fn pairs(text: &[u8]) -> Vec<(String, String)> {
    let decode = |part: &[u8]| {
        let mut out = Vec::new();
        let mut bytes = part.iter().copied();
        while let Some(b) = bytes.next() {
            match b {
                b'+' => out.push(b' '),
                b'%' => {
                    let hex = [bytes.next().unwrap_or(b'0'), bytes.next().unwrap_or(b'0')];
                    let hex = std::str::from_utf8(&hex).ok().and_then(|h| u8::from_str_radix(h, 16).ok());
                    out.push(hex.unwrap_or(b'?'));
                }
                _ => out.push(b),
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    text.split(|b| *b == b'&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let at = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
            (decode(&pair[..at]), decode(pair.get(at + 1..).unwrap_or_default()))
        })
        .collect()
}
