//! Requests to a registry with users, tokens and rules. The first line is a method and a path; headers follow, then an empty line and
//! the body.
//!
//! Whatever is asked, the answer is one of the specification's and never the registry's own failure; what nobody may read is read by
//! nobody; and an answer to somebody without the right never says more than one about what is not there.

use std::cell::RefCell;
use std::sync::Arc;

use orlop_content::MemoryStore;
use orlop_oci::Digest;
use orlop_registry::{
    Access, Action, Body, MemoryIndex, Permissions, Registry, RepositoryPattern, RepositoryRule, TokenKey, Tokens,
    Users,
};
use tokio::runtime::{Builder, Runtime};

use super::Target;

/// See the module.
pub const TARGET: Target = Target {
    name: "registry",
    run,
    seeds,
    words: &[
        b"GET /v2/private/app/manifests/1",
        b"GET /token?service=r&scope=repository:team/app:pull,push",
        b"POST /token",
        b"/v2/team/app/blobs/uploads/",
        b"?mount=sha256:",
        b"&from=private/app",
        b"authorization: Basic YWxpY2U6d29uZGVybGFuZA==\n",
        b"authorization: Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.",
        b"grant_type=password&username=alice&password=wonderland",
        b"if-none-match: *\n",
        b"range: bytes=0-\n",
        b"%2f",
        b"/_catalog?n=",
    ],
    limit: 4 << 10,
    isolated: false,
};

/// alice's password is wonderland.
const USERS: &str = "alice:$2b$04$abcdefghijklmnopqrstuujZkTwHUiJ9XdZPwKfcfDo7dMp5DjlTu\n";

/// What is in the repository that nobody may read.
const SECRET: &[u8] = b"{\"kept\":\"from everybody\"}";

/// So many inputs have a registry together; then another one takes its place, so that what they leave in memory ends.
const INPUTS: u32 = 1000;

struct Rig {
    runtime: Runtime,
    registry: Registry,
    inputs: u32,
}

thread_local! {
    static RIG: RefCell<Option<Rig>> = const { RefCell::new(None) };
}

impl Rig {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let registry = Registry::new(Arc::new(MemoryStore::new()), Arc::new(MemoryIndex::new()));
        let path = format!("/v2/private/app/blobs/uploads/?digest={}", Digest::of(SECRET));
        let push = http::Request::post(path).body(Body::from(SECRET)).expect("a request");
        let pushed = runtime.block_on(registry.handle(push));
        assert_eq!(pushed.status(), 201);
        let rule = |repositories: &str, who: &str, actions: &[Action]| RepositoryRule {
            repositories: vec![RepositoryPattern::new(repositories)],
            who: vec![who.parse().expect("a name")],
            actions: actions.to_vec(),
        };
        registry.set_access(Access {
            users: Some(Arc::new(Users::parse(USERS).expect("users"))),
            permissions: Permissions::new(vec![
                rule("team/*", "alice", &Action::ALL),
                rule("public/*", "anonymous", &[Action::Pull]),
            ]),
            tokens: Some(Tokens::new(TokenKey::random(), None)),
            ..Access::default()
        });
        Self { runtime, registry, inputs: 0 }
    }
}

impl Rig {
    /// Status and body of an answer.
    fn ask(&self, request: http::Request<Body>) -> (http::StatusCode, Vec<u8>) {
        self.runtime.block_on(async {
            let answer = self.registry.handle(request).await;
            let status = answer.status();
            assert!(!status.is_server_error(), "{status}");
            let body = orlop_registry::body_bytes(answer.into_body(), 16 << 20).await.expect("a whole answer");
            assert!(!body.windows(SECRET.len()).any(|part| part == SECRET), "what nobody may read was read");
            (status, body.to_vec())
        })
    }
}

fn run(bytes: &[u8]) {
    let Some(first) = request(bytes) else { return };
    RIG.with_borrow_mut(|kept| {
        if kept.as_ref().is_none_or(|rig| rig.inputs >= INPUTS) {
            *kept = Some(Rig::new());
        }
        let rig = kept.get_or_insert_with(Rig::new);
        rig.inputs += 1;
        let private = first.uri().path().starts_with("/v2/private/");
        let (status, body) = rig.ask(first);
        assert!(!private || status.is_client_error(), "{status} of what nobody may have");
        if let Some(other) = elsewhere(bytes).as_deref().and_then(request) {
            let (other, said) = rig.ask(other);
            assert_eq!(
                (status, renamed(&body)),
                (other, renamed(&said)),
                "the answer tells that there is such a repository"
            );
        }
    });
}

/// What an answer says of one repository, as if it spoke of the other.
fn renamed(body: &[u8]) -> String {
    String::from_utf8_lossy(body).replace("private/app", "private/xyz")
}

/// The same request to a repository that is not there, if it is one to the repository that nobody may read.
fn elsewhere(bytes: &[u8]) -> Option<Vec<u8>> {
    const THERE: &[u8] = b" /v2/private/app/";
    let line = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let at = bytes[..line].windows(THERE.len()).position(|part| part == THERE)?;
    let mut other = bytes.to_vec();
    other[at..at + THERE.len()].copy_from_slice(b" /v2/private/xyz/");
    Some(other)
}

/// The request, if the bytes are one.
fn request(bytes: &[u8]) -> Option<http::Request<Body>> {
    let at = bytes.windows(2).position(|two| two == b"\n\n");
    let (head, body) = at.map_or((bytes, &bytes[bytes.len()..]), |at| (&bytes[..at], &bytes[at + 2..]));
    let mut lines = head.split(|byte| *byte == b'\n');
    let first = std::str::from_utf8(lines.next()?).ok()?;
    let (method, path) = first.split_once(' ')?;
    let mut request = http::Request::builder().method(method).uri(path);
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        request = request.header(&line[..colon], line[colon + 1..].trim_ascii());
    }
    request.body(Body::from(body.to_vec())).ok()
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let digest = Digest::of(SECRET);
    let alice = "authorization: Basic YWxpY2U6d29uZGVybGFuZA==";
    let form = "grant_type=password&username=alice&password=wonderland&scope=repository:team/app:pull";
    [
        ("root", "GET /v2/".to_owned()),
        ("catalog", format!("GET /v2/_catalog?n=2&last=a\n{alice}")),
        ("private", format!("GET /v2/private/app/blobs/{digest}\n{alice}\nrange: bytes=0-3")),
        ("mount", format!("POST /v2/team/app/blobs/uploads/?mount={digest}&from=private/app\n{alice}")),
        ("upload", format!("POST /v2/team/app/blobs/uploads/?digest={}\n{alice}\n\nx", Digest::of(b"x"))),
        (
            "token",
            format!("GET /token?service=r&scope=repository:team/app:pull,push&scope=repository:private/app:*\n{alice}"),
        ),
        ("login", format!("POST /token\ncontent-type: application/x-www-form-urlencoded\n\n{form}")),
        (
            "bearer",
            "GET /v2/private/app/tags/list\nauthorization: Bearer eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.e30.".to_owned(),
        ),
        ("manifest", format!("PUT /v2/team/app/manifests/1\n{alice}\n\n{{\"schemaVersion\":2,\"manifests\":[]}}")),
        (
            "conditional",
            format!("GET /v2/public/app/blobs/{digest}\nif-none-match: \"{digest}\", *\nif-range: W/\"x\""),
        ),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_owned(), text.into_bytes()))
    .collect()
}
