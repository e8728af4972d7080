//! What a registry says. The first byte chooses what is asked for; the rest is what each request is answered with, one answer
//! after the other, separated by a line `--`: a status, lines of headers, an empty line, a body. `@REGISTRY@` and `@OTHER@`
//! are addresses of two servers, both of which give these answers.
//!
//! Whatever they say (challenges, redirects, links, ranges, lengths, digests, times to wait): the number of requests is
//! bounded; the password goes to nobody but the registry and whom it named as its token server; and what is given back is
//! a document byte for byte, a blob with as many bytes as it has, or an error.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use orlop_oci::{Descriptor, Digest, Document, MAX_MANIFEST_BYTES, Reference, RepositoryName, media_type};
use orlop_remote::{BlobStream, Client, ClientOptions, Error, Tuning};
use tokio::runtime::{Builder, Runtime};

use super::Target;
use crate::scratch::Cell;

/// See the module.
pub const TARGET: Target = Target {
    name: "headers",
    run,
    seeds,
    words: &[
        b"\n--\n",
        b"WWW-Authenticate: Bearer realm=\"http://@REGISTRY@/token\",service=\"s\",scope=\"repository:a/b:pull\"\n",
        b"WWW-Authenticate: Basic realm=\"r\"\n",
        b"Location: http://@OTHER@/elsewhere\n",
        b"Location: /v2/a/b/blobs/uploads/1?x=y\n",
        b"Link: </v2/a/b/referrers/x?n=1>; rel=\"next\"\n",
        b"Content-Range: bytes 0-4/11\n",
        b"Range: 0-4\n",
        b"Retry-After: 0\n",
        b"Retry-After: Fri, 31 Dec 1999 23:59:59 GMT\n",
        b"Docker-Content-Digest: sha256:",
        b"Content-Type: application/vnd.oci.image.index.v1+json\n",
        b"Content-Length: 18446744073709551615\n",
        b"Content-Encoding: gzip\n",
        b"Transfer-Encoding: chunked\n",
        b"OCI-Subject: sha256:",
        b"206",
        b"401",
        b"429",
        b"307",
    ],
    limit: 4 << 10,
    isolated: true,
};

const BLOB: &[u8] = b"hello, blob";
const DOCUMENT: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
const PASSWORD: &str = "p4ssw0rd-of-the-fuzzer";
/// Requests that one operation may lead to: attempts, redirects, tokens, pages, pieces.
const MOST_REQUESTS: usize = 400;

/// A request as it came.
struct Seen {
    to_registry: bool,
    head: String,
}

/// What is answered, and what was asked.
#[derive(Default)]
struct Script {
    answers: Vec<Vec<u8>>,
    seen: Vec<Seen>,
}

struct Rig {
    runtime: Runtime,
    script: Arc<Mutex<Script>>,
    registry: String,
    other: String,
}

impl Rig {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let script = Arc::new(Mutex::new(Script::default()));
        let [registry, other] = [true, false].map(|to_registry| serve(to_registry, script.clone()));
        Self { runtime, script, registry, other }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A server; its address.
fn serve(to_registry: bool, script: Arc<Mutex<Script>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let address = listener.local_addr().expect("a listener has an address").to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A connection that breaks is the client's matter.
            let _ = answer(stream, to_registry, &script);
        }
    });
    address
}

/// Answers one request and closes the connection.
fn answer(mut stream: TcpStream, to_registry: bool, script: &Mutex<Script>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && head.len() < 64 << 10 {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).and_then(|n| n.trim().parse().ok());
    std::io::copy(&mut (&mut stream).take(length.unwrap_or(0)), &mut std::io::sink())?;
    let whole = {
        let mut script = script.lock().unwrap_or_else(PoisonError::into_inner);
        let at = script.seen.len().min(script.answers.len().saturating_sub(1));
        script.seen.push(Seen { to_registry, head: head.clone() });
        script.answers.get(at).map(|answer| written(answer, head.starts_with("HEAD ")))
    };
    stream.write_all(&whole.unwrap_or_default())?;
    stream.shutdown(std::net::Shutdown::Write)
}

/// An answer as it travels. What is no status is 200; a length is added where the answer says none.
fn written(answer: &[u8], is_head: bool) -> Vec<u8> {
    let split = answer.windows(2).position(|two| two == b"\n\n");
    let (head, body) = split.map_or((answer, &[][..]), |at| (&answer[..at], &answer[at + 2..]));
    let mut lines = head.split(|byte| *byte == b'\n');
    let status = lines.next().and_then(|line| std::str::from_utf8(line).ok()?.trim().parse::<u16>().ok());
    let mut out = format!("HTTP/1.1 {:03} Said\r\nConnection: close\r\n", status.unwrap_or(200)).into_bytes();
    let mut has_length = false;
    for line in lines {
        let lower = line.to_ascii_lowercase();
        has_length |= lower.starts_with(b"content-length") || lower.starts_with(b"transfer-encoding");
        out.extend_from_slice(line);
        out.extend_from_slice(b"\r\n");
    }
    if !has_length {
        out.extend(format!("Content-Length: {}\r\n", body.len()).into_bytes());
    }
    out.extend_from_slice(b"\r\n");
    if !is_head {
        out.extend_from_slice(body);
    }
    out
}

static CELL: LazyLock<Cell> = LazyLock::new(|| Cell::start("headers", true, Rig::new, one));

fn run(bytes: &[u8]) {
    CELL.run(bytes);
}

fn one(rig: &mut Rig, bytes: &[u8]) {
    let Some((choice, said)) = bytes.split_first() else { return };
    let said = String::from_utf8_lossy(said).replace("@REGISTRY@", &rig.registry).replace("@OTHER@", &rig.other);
    let answers: Vec<Vec<u8>> = said.split("\n--\n").map(|answer| answer.as_bytes().to_vec()).collect();
    *rig.lock() = Script { answers, seen: Vec::new() };
    let nothing = Duration::ZERO;
    let tuning = Tuning {
        attempts: 2,
        backoff: nothing,
        backoff_limit: nothing,
        retry_after_limit: nothing,
        parallel_from: 4,
        parallel_below: u64::MAX,
        probe_bytes: 2,
        range_bytes: 3,
        ranges: 2,
        upload_chunk_bytes: 4,
        ..Tuning::default()
    };
    let credentials = Some(("fuzz".to_owned(), PASSWORD.to_owned()));
    let client =
        Client::with_tuning(ClientOptions { credentials, plain_http: true, ..ClientOptions::default() }, tuning);
    let reference: Reference = format!("{}/a/b:tag", rig.registry).parse().expect("a reference");
    let repository = reference.repository().expect("it has a repository").clone();
    rig.runtime.block_on(ask(&client, *choice, &reference, &repository));
    let script = rig.lock();
    assert!(script.seen.len() <= MOST_REQUESTS, "{} requests", script.seen.len());
    // Whom a challenge names as its token server may have it, and what names the other one has its address in it.
    let is_named = script.answers.iter().any(|answer| {
        let answer = String::from_utf8_lossy(answer);
        answer.to_ascii_lowercase().contains("realm") && answer.contains(&rig.other)
    });
    for seen in script.seen.iter().filter(|seen| !seen.to_registry) {
        let secret = seen.head.to_ascii_lowercase().contains("authorization: basic") || seen.head.contains(PASSWORD);
        assert!(!secret || is_named, "the password went to another host: {}", seen.head);
    }
}

/// Asks for something, and looks at what comes back.
async fn ask(client: &Client, choice: u8, reference: &Reference, repository: &RepositoryName) {
    let blob = Descriptor::new("application/octet-stream", Digest::of(BLOB), BLOB.len() as u64);
    let raw = Bytes::from_static(DOCUMENT.as_bytes());
    let document = Document::parse(raw.clone(), Some(media_type::OCI_INDEX)).expect("a document");
    let said = match choice % 8 {
        0 => client.resolve(reference).await.map(|found| {
            assert!(found.descriptor.size <= MAX_MANIFEST_BYTES);
        }),
        1 => client.resolve(&repository.with_digest(document.digest().digest())).await.map(|found| {
            assert_eq!(&found.descriptor.digest, document.digest().digest());
        }),
        2 => client.document(repository, &document.descriptor()).await.map(|found| assert_eq!(found.raw(), &raw)),
        3 | 4 => fetched(client, repository, &blob, if choice % 8 == 3 { 0 } else { 4 }).await,
        5 => client.has_blob(repository, &blob.digest).await.map(drop),
        6 => client.referrers(repository, &blob.digest, Some("application/x")).await.map(|found| {
            assert!(found.len() <= 10_000);
        }),
        _ if choice & 8 == 0 => client.push_document(reference, &document).await,
        _ => {
            let source = |offset: u64| -> BlobStream {
                let rest = Bytes::from_static(&BLOB[usize::try_from(offset).unwrap_or(0).min(BLOB.len())..]);
                Box::pin(futures::stream::iter([Ok(rest)]))
            };
            client
                .push_blob(repository, &blob, &[], &source, &|sent| assert!(sent <= BLOB.len() as u64))
                .await
                .map(drop)
        }
    };
    if let Err(error) = said {
        let text = error.to_string();
        assert!(!text.is_empty() && !text.contains(PASSWORD), "{text}");
        assert!(!text.chars().any(|c| c.is_control()), "{text:?}");
    }
}

/// As many bytes as promised, or an error and nothing after it.
async fn fetched(client: &Client, repository: &RepositoryName, blob: &Descriptor, offset: u64) -> Result<(), Error> {
    let mut stream = client.blob(repository, blob, offset).await?;
    let mut length = offset;
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => length += piece.len() as u64,
            Err(error) => {
                assert!(stream.next().await.is_none(), "more after an error");
                assert!(length <= blob.size);
                return Err(error);
            }
        }
        assert!(length <= blob.size, "more than the descriptor says");
    }
    assert_eq!(length, blob.size, "less than the descriptor says");
    Ok(())
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let digest = Digest::of(DOCUMENT.as_bytes());
    let length = DOCUMENT.len();
    let typed =
        format!("Content-Type: {}\nDocker-Content-Digest: {digest}\nContent-Length: {length}", media_type::OCI_INDEX);
    let token = "401\nWWW-Authenticate: Bearer realm=\"http://@REGISTRY@/token\",service=\"s\",scope=\"repository:a/b:pull\"\n\n\
                 {}\n--\n200\nContent-Type: application/json\n\n{\"token\":\"t\",\"expires_in\":60}\n--\n";
    let all: [(&str, u8, String); 18] = [
        ("resolve", 0, format!("200\n{typed}\n")),
        ("resolve-by-get", 0, format!("200\nContent-Type: {}\n\n--\n200\n{typed}\n\n{DOCUMENT}", media_type::OCI_INDEX)),
        ("resolve-token", 0, format!("{token}200\n{typed}\n")),
        ("resolve-basic", 0, format!("401\nWWW-Authenticate: Basic realm=\"r\"\n\n--\n200\n{typed}\n")),
        ("resolve-elsewhere", 0, format!("307\nLocation: http://@OTHER@/x\n\n--\n200\n{typed}\n")),
        ("resolve-digest", 1, format!("200\n{typed}\n")),
        ("document", 2, format!("200\n{typed}\n\n{DOCUMENT}")),
        ("blob", 3, "200\nContent-Length: 11\n\nhello, blob".to_owned()),
        ("blob-ranges", 3, "206\nContent-Range: bytes 0-10/11\n\nhello, blob\n--\n206\nContent-Range: bytes 2-4/11\n\nllo".to_owned()),
        ("blob-offset", 4, "206\nContent-Range: bytes 4-10/11\n\no, blob".to_owned()),
        ("blob-redirect", 3, "302\nLocation: http://@OTHER@/storage?sig=x\n\n--\n200\n\nhello, blob".to_owned()),
        (
            "basic-elsewhere",
            3,
            "401\nWWW-Authenticate: Basic realm=\"r\"\n\n--\n307\nLocation: http://@OTHER@/x\n\n--\n200\n\nhello, blob".to_owned(),
        ),
        ("too-many", 3, "429\nRetry-After: 0\n\n{\"errors\":[{\"code\":\"TOOMANYREQUESTS\",\"message\":\"slow\"}]}\n--\n200\n\nhello, blob".to_owned()),
        ("has-blob", 5, "200\nContent-Length: 11\n".to_owned()),
        ("referrers", 6, format!("200\nContent-Type: {0}\nOCI-Filters-Applied: artifactType\nLink: </v2/a/b/referrers/x?n=1>; rel=\"next\"\n\n{DOCUMENT}\n--\n200\nContent-Type: {0}\n\n{DOCUMENT}", media_type::OCI_INDEX)),
        ("push-document", 7, format!("201\nLocation: /v2/a/b/manifests/tag\nDocker-Content-Digest: {digest}\n")),
        ("push-blob", 15, "404\n\n--\n202\nLocation: /v2/a/b/blobs/uploads/1\nRange: 0-0\n\n--\n202\nLocation: /v2/a/b/blobs/uploads/1\nRange: 0-3\n\n--\n202\nLocation: /v2/a/b/blobs/uploads/1\nRange: 0-7\n\n--\n201\nLocation: /v2/a/b/blobs/x\n".to_owned()),
        ("push-blob-broken", 15, "404\n\n--\n202\nLocation: http://@REGISTRY@/u?a=b\nOCI-Chunk-Min-Length: 3\n\n--\n416\nRange: 0-1\n\n--\n204\nLocation: /u\nRange: bytes=0-1\n\n--\n500\n\n".to_owned()),
    ];
    all.into_iter().map(|(name, choice, text)| (name.to_owned(), [&[choice], text.as_bytes()].concat())).collect()
}
