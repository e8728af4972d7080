//! Asking a peer for a blob.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, RANGE, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use orlop_oci::{Digest, MAX_MANIFEST_BYTES, RepositoryName};
use url::Url;

use super::tls::Ends;
use super::{COMING, GIVE, HAS, LOAD, MAX_TRY, MIRRORED, TRY};
use crate::StartError;
use crate::schedule::End;

/// How long a connection may take to be made: peers are near, or they are no use.
const CONNECT_TIME: Duration = Duration::from_millis(400);
/// How long an unused connection is kept.
const POOL_IDLE: Duration = Duration::from_secs(30);
/// Addresses of one peer that are tried.
const MAX_ADDRESSES: usize = 2;
/// No peer is left alone for longer because it says so.
const MOST_PAUSE: Duration = Duration::from_secs(10);

/// Bytes of a refusal that are read, and how long they are waited for.
const MAX_REFUSAL: u64 = 4096;
const REFUSAL_TIME: Duration = Duration::from_millis(50);

/// What a peer is asked.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) repository: RepositoryName,
    pub(crate) digest: Digest,
    pub(crate) size: Option<u64>,
    pub(crate) offset: u64,
    pub(crate) is_document: bool,
    /// This node gives it on, and takes it from who has not all of it.
    pub(crate) gives_on: bool,
}

/// A peer gives.
pub(crate) struct Answer {
    response: reqwest::Response,
    /// Bytes that it will give.
    pub(crate) length: u64,
    /// How busy it says it is.
    pub(crate) load: Option<f64>,
    /// How much of the blob it has, if that is not all of it.
    pub(crate) had: Option<u64>,
}

/// A peer does not give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) end: End,
    pub(crate) said: String,
    /// How long it wants to be left alone.
    pub(crate) pause: Option<Duration>,
    /// Where else the blob may be had, as it says.
    pub(crate) elsewhere: Vec<IpAddr>,
}

impl Refusal {
    fn new(end: End, said: impl Into<String>) -> Self {
        Self { end, said: said.into(), pause: None, elsewhere: Vec::new() }
    }
}

/// Asks peers. Cheap to clone; connections are shared.
#[derive(Clone)]
pub(crate) struct Asker {
    client: reqwest::Client,
    scheme: &'static str,
    port: u16,
}

impl Asker {
    /// Asks at this port, at which every node serves.
    ///
    /// It asks from the address at which it serves, if that is one, so that others who are told of it find it.
    pub(crate) fn new(serves: SocketAddr, tls: Option<&Ends>) -> Result<Self, StartError> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("orlop/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIME)
            .pool_idle_timeout(POOL_IDLE)
            .tcp_nodelay(true)
            .http1_only()
            .local_address((!serves.ip().is_unspecified()).then(|| serves.ip()))
            .no_proxy();
        if let Some(ends) = tls {
            builder = builder.tls_backend_preconfigured(ends.client.clone());
        } else {
            // Without this the authorities of the system are read, which nobody asks.
            let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let none = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let none =
                none.map_err(|e| StartError::Io { what: "set up TLS".into(), source: std::io::Error::other(e) })?;
            let none = none.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
            builder = builder.tls_backend_preconfigured(none);
        }
        let client = builder.build();
        let client = client
            .map_err(|e| StartError::Io { what: "set up the client".into(), source: std::io::Error::other(e) })?;
        Ok(Self { client, scheme: if tls.is_some() { "https" } else { "http" }, port: serves.port() })
    }

    /// The client, for what is not a blob.
    pub(crate) const fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// Asks a peer at its addresses, one after the other while none answers.
    pub(crate) async fn ask(&self, addresses: &[IpAddr], question: &Question) -> Result<Answer, Refusal> {
        let mut refused = Refusal::new(End::Unreachable, "its address is not known");
        for address in addresses.iter().take(MAX_ADDRESSES) {
            match self.ask_at(*address, question).await {
                Err(refusal) if refusal.end == End::Unreachable => refused = refusal,
                other => return other,
            }
        }
        Err(refused)
    }

    async fn ask_at(&self, address: IpAddr, question: &Question) -> Result<Answer, Refusal> {
        let url = url(self.scheme, SocketAddr::new(address, self.port), question);
        let url = url.ok_or_else(|| Refusal::new(End::Unreachable, "its address is no address"))?;
        let mut request = self.client.get(url).header(MIRRORED, "true").header(ACCEPT_ENCODING, "identity");
        if question.is_document {
            request = request.header(ACCEPT, "*/*");
        }
        if question.offset > 0 {
            request = request.header(RANGE, format!("bytes={}-", question.offset));
        }
        if question.gives_on {
            request = request.header(COMING, GIVE);
        }
        let response = request.send().await.map_err(|error| {
            let why = if error.is_connect() || error.is_timeout() { "cannot be reached" } else { "does not answer" };
            Refusal::new(End::Unreachable, format!("{why}: {}", innermost(&error)))
        })?;
        match read_head(response.status(), response.headers(), question) {
            Ok(Head { length, load, had }) => Ok(Answer { response, length, load, had }),
            Err(refusal) => {
                let elsewhere = elsewhere(response.headers(), address);
                finish(response).await;
                Err(Refusal { elsewhere, ..refusal })
            }
        }
    }
}

/// Reads what else a refusal says, so that the next question goes over the same connection: who waits asks often.
async fn finish(response: reqwest::Response) {
    if response.content_length().is_some_and(|length| length <= MAX_REFUSAL) {
        drop(tokio::time::timeout(REFUSAL_TIME, response.bytes()).await);
    }
}

fn url(scheme: &str, at: SocketAddr, question: &Question) -> Option<Url> {
    let kind = if question.is_document { "manifests" } else { "blobs" };
    let (path, digest) = (question.repository.path(), &question.digest);
    let mut url = Url::parse(&format!("{scheme}://{at}/v2/{path}/{kind}/{digest}")).ok()?;
    url.query_pairs_mut().append_pair("ns", question.repository.domain());
    Some(url)
}

/// Other peers that an answer names, who are to be where the one is that answered: on loopback, or not.
fn elsewhere(headers: &HeaderMap, address: IpAddr) -> Vec<IpAddr> {
    let text = headers.get(TRY).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_good = |ip: &IpAddr| {
        !ip.is_unspecified() && !ip.is_multicast() && *ip != address && ip.is_loopback() == address.is_loopback()
    };
    text.split(',').filter_map(|ip| ip.trim().parse().ok()).filter(is_good).take(MAX_TRY).collect()
}

/// What the head of an answer says: how many bytes will come, how busy the peer is, and how many it has if that is not all.
#[derive(Debug, PartialEq)]
struct Head {
    length: u64,
    load: Option<f64>,
    had: Option<u64>,
}

fn read_head(status: StatusCode, headers: &HeaderMap, question: &Question) -> Result<Head, Refusal> {
    let text = |name: http::HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let load = headers.get(LOAD).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<f64>().ok());
    match status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => {}
        StatusCode::NOT_FOUND => {
            return Err(match headers.get(COMING).map(http::HeaderValue::as_bytes) {
                Some(b"waits") => Refusal::new(End::Equal, "waits for it too"),
                Some(b"follows") => Refusal::new(End::Equal, "has no more of it"),
                Some(b"behind") => Refusal::new(End::Missing, "has less of it"),
                _ => Refusal::new(End::Missing, "does not have it"),
            });
        }
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
            let seconds = text(RETRY_AFTER).and_then(|text| text.parse().ok());
            let pause = seconds.map(|seconds| Duration::from_secs(seconds).min(MOST_PAUSE));
            return Err(Refusal { pause, ..Refusal::new(End::Busy, "is busy") });
        }
        other => return Err(Refusal::new(End::Unreachable, format!("answered {other}"))),
    }
    if text(CONTENT_ENCODING).is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        return Err(Refusal::new(End::Broken, "gives it packed, which has another digest"));
    }
    let (start, total) = match status {
        StatusCode::OK => (0, text(CONTENT_LENGTH).and_then(|length| length.parse().ok())),
        _ => content_range(text(CONTENT_RANGE).unwrap_or_default())
            .ok_or_else(|| Refusal::new(End::Broken, "does not say which range it gives"))?,
    };
    if start != question.offset {
        return Err(Refusal::new(End::Broken, format!("gives it from byte {start} on, not from {}", question.offset)));
    }
    let total = total.or(question.size).ok_or_else(|| Refusal::new(End::Broken, "does not say how much it gives"))?;
    if question.size.is_some_and(|size| size != total) {
        return Err(Refusal::new(
            End::Broken,
            format!("has {total} bytes of it, not {}", question.size.unwrap_or_default()),
        ));
    }
    if question.is_document && total > MAX_MANIFEST_BYTES {
        return Err(Refusal::new(End::Broken, format!("gives a document of {total} bytes")));
    }
    match total.checked_sub(start) {
        Some(length) => {
            let had = text(http::HeaderName::from_static(HAS)).and_then(|had| had.parse().ok());
            Ok(Head { length, load, had: had.filter(|had| *had < total) })
        }
        None => Err(Refusal::new(End::Broken, "gives less than nothing")),
    }
}

/// `bytes first-last/total` (RFC 9110, section 14.4): where it begins, and the total; only to the end of the blob.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, total) =
        (first.trim().parse().ok()?, last.trim().parse::<u64>().ok()?, total.trim().parse::<u64>().ok()?);
    (last.checked_add(1)? == total && first <= last).then_some((first, Some(total)))
}

fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

impl Answer {
    /// The next bytes.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, String> {
        self.response.chunk().await.map_err(|error| format!("broke off: {}", innermost(&error)))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn question(offset: u64, size: Option<u64>) -> Question {
        let repository = RepositoryName::parse("docker.io/library/alpine").unwrap();
        Question { repository, digest: Digest::of(b"x"), size, offset, is_document: false, gives_on: false }
    }

    fn head(status: u16, headers: &[(&'static str, &str)], question: &Question) -> Result<Head, Refusal> {
        let headers = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
        read_head(StatusCode::from_u16(status).unwrap(), &headers.collect(), question)
    }

    #[test]
    fn heads_that_fit_and_heads_that_do_not() {
        let (all, rest) = (question(0, Some(10)), question(4, Some(10)));
        assert_eq!(
            head(200, &[("content-length", "10"), ("x-orlop-load", "0.5")], &all),
            Ok(Head { length: 10, load: Some(0.5), had: None })
        );
        assert_eq!(
            head(206, &[("content-range", "bytes 4-9/10")], &rest),
            Ok(Head { length: 6, load: None, had: None })
        );
        assert_eq!(
            head(200, &[("content-length", "7")], &question(0, None)),
            Ok(Head { length: 7, load: None, had: None })
        );
        let end = |status, headers: &[_], question| head(status, headers, question).unwrap_err().end;
        assert_eq!(end(404, &[], &all), End::Missing);
        assert_eq!(end(500, &[], &all), End::Unreachable);
        assert_eq!(end(401, &[], &all), End::Unreachable);
        assert_eq!(end(200, &[("content-length", "11")], &all), End::Broken);
        // It ignores ranges: what came before would come again.
        assert_eq!(end(200, &[("content-length", "10")], &rest), End::Broken);
        assert_eq!(end(206, &[("content-range", "bytes 3-9/10")], &rest), End::Broken);
        assert_eq!(end(206, &[("content-range", "bytes 4-8/10")], &rest), End::Broken);
        assert_eq!(end(206, &[], &rest), End::Broken);
        assert_eq!(end(200, &[("content-length", "10"), ("content-encoding", "gzip")], &all), End::Broken);
        let busy = head(503, &[("retry-after", "3600")], &all).unwrap_err();
        assert_eq!((busy.end, busy.pause), (End::Busy, Some(MOST_PAUSE)));
    }

    #[test]
    fn what_is_said_of_a_blob_that_is_coming() {
        let all = question(0, Some(10));
        let partial = head(200, &[("content-length", "10"), ("x-orlop-has", "4")], &all).unwrap();
        assert_eq!((partial.length, partial.had), (10, Some(4)));
        assert_eq!(head(200, &[("content-length", "10"), ("x-orlop-has", "10")], &all).unwrap().had, None);
        let end = |said| head(404, &[("x-orlop-coming", said)], &all).unwrap_err().end;
        assert_eq!(
            [end("waits"), end("follows"), end("behind"), end("x")],
            [End::Equal, End::Equal, End::Missing, End::Missing]
        );
        let named = |text: &str, asked: &str| {
            let headers =
                HeaderMap::from_iter([(http::HeaderName::from_static(TRY), HeaderValue::from_str(text).unwrap())]);
            elsewhere(&headers, asked.parse().unwrap()).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(named("10.0.0.1, x,127.0.0.1,0.0.0.0,10.0.0.9,fd00::1", "10.0.0.9"), ["10.0.0.1", "fd00::1"]);
        assert_eq!(named("10.0.0.1,127.0.0.2", "127.0.0.1"), ["127.0.0.2"]);
        assert_eq!(named(&["10.0.0.1"; 100].join(","), "10.0.0.9").len(), MAX_TRY);
    }

    #[test]
    fn urls_are_spegel_s() {
        let url = url("http", "10.0.0.1:5000".parse().unwrap(), &question(0, None)).unwrap();
        let digest = Digest::of(b"x");
        assert_eq!(url.as_str(), format!("http://10.0.0.1:5000/v2/library/alpine/blobs/{digest}?ns=docker.io"));
    }

    proptest! {
        #[test]
        fn no_head_promises_more_than_there_is(status in prop_oneof![Just(200u16), Just(206)], range in ".{0,40}", a in any::<u64>(), b in any::<u64>(), total in any::<u64>(), offset in any::<u64>()) {
            let question = question(offset, Some(total));
            let _ = content_range(&range);
            let text = format!("bytes {a}-{b}/{total}");
            if let Ok(Head { length, .. }) = head(status, &[("content-range", text.as_str())], &question) {
                prop_assert!(length <= total);
            }
        }
    }
}
