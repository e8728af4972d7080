//! Where a blob's bytes can come from: the registry's hosts in order, then the URLs of a non-distributable layer.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use http::header::{CONTENT_RANGE, RANGE};
use http::{Method, StatusCode};
use orlop_oci::{Descriptor, MediaKind, RepositoryName};
use url::Url;

use crate::answer::Answer;
use crate::client::{Client, Tour};
use crate::endpoint::{Endpoint, Patience, Request, Target};
use crate::error::{Error, Result};
use crate::hosts_toml::Capability;

/// More URLs of one layer are not tried.
const MAX_URLS: usize = 4;

/// One way to the bytes.
#[derive(Clone)]
struct Way {
    endpoint: Arc<Endpoint>,
    patience: Patience,
    /// Of a non-distributable layer: a URL instead of the registry's own path.
    url: Option<Url>,
    /// Where the registry redirected to: the next range goes there at once.
    location: Option<Url>,
}

struct State {
    tour: Tour,
    urls: Vec<Url>,
    current: Option<Way>,
    last: Option<Arc<Endpoint>>,
}

/// A blob and the ways to it; shared by all of its ranges.
pub(super) struct Source {
    client: Client,
    repository: String,
    path: String,
    what: String,
    size: u64,
    state: Mutex<State>,
}

/// An answer that gives the blob from some offset on.
pub(super) struct Opened {
    pub(super) answer: Answer,
    /// Bytes to throw away first: the host ignored the range.
    pub(super) skip: u64,
}

impl Source {
    pub(super) async fn new(
        client: &Client,
        repository: &RepositoryName,
        descriptor: &Descriptor,
    ) -> Result<Arc<Self>> {
        let foreign = matches!(descriptor.kind(), MediaKind::Layer { foreign: true, .. });
        let mut urls: Vec<Url> = descriptor
            .urls
            .iter()
            .filter(|_| foreign)
            .filter_map(|url| Url::parse(url).ok())
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.username().is_empty())
            .take(MAX_URLS)
            .collect();
        urls.reverse();
        let tour = client.tour(repository.domain(), Capability::Pull).await?;
        Ok(Arc::new(Self {
            client: client.clone(),
            repository: repository.path().to_owned(),
            path: format!("{}/blobs/{}", repository.path(), descriptor.digest),
            what: format!("{repository}@{}", descriptor.digest),
            size: descriptor.size,
            state: Mutex::new(State { tour, urls, current: None, last: None }),
        }))
    }

    pub(super) fn what(&self) -> &str {
        &self.what
    }

    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Opens a range at the way that worked last, else at the next ones.
    pub(super) async fn open(&self, range: &Range<u64>) -> Result<Opened> {
        loop {
            let Some(way) = self.way() else { return Err(self.error()) };
            match self.open_at(&way, range).await {
                Ok(opened) => {
                    self.worked(&way, &opened.answer);
                    return Ok(opened);
                }
                Err(error) => self.give_up(&way.endpoint, way.url.as_ref(), error),
            }
        }
    }

    /// Leaves the current way for the next one: what came from there was not good.
    pub(super) fn leave(&self, error: Error) {
        if let Some(way) = self.way() {
            self.give_up(&way.endpoint, way.url.as_ref(), error);
        }
    }

    /// What all ways said.
    pub(super) fn error(&self) -> Error {
        let mut state = self.lock();
        state.tour.take_error(&self.what)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn way(&self) -> Option<Way> {
        let mut state = self.lock();
        if state.current.is_none() {
            state.current = match state.tour.next() {
                Some((endpoint, patience)) => {
                    state.last = Some(endpoint.clone());
                    Some(Way { endpoint, patience, url: None, location: None })
                }
                None => {
                    let endpoint = state.last.clone();
                    let url = state.urls.pop();
                    endpoint.zip(url).map(|(endpoint, url)| Way {
                        endpoint,
                        patience: Patience::Patient,
                        url: Some(url),
                        location: None,
                    })
                }
            };
        }
        state.current.clone()
    }

    fn worked(&self, way: &Way, answer: &Answer) {
        let mut state = self.lock();
        state.tour.succeeded(&way.endpoint);
        if let Some(current) = state.current.as_mut().filter(|c| Arc::ptr_eq(&c.endpoint, &way.endpoint)) {
            let elsewhere = !way.endpoint.is_own(answer.url());
            current.location = elsewhere.then(|| answer.url().clone());
            // It answered: from now on it deserves patience.
            current.patience = Patience::Patient;
        }
    }

    /// Another range may have left this way already.
    fn give_up(&self, endpoint: &Arc<Endpoint>, url: Option<&Url>, error: Error) {
        let mut state = self.lock();
        let same = state.current.as_ref().is_some_and(|c| Arc::ptr_eq(&c.endpoint, endpoint) && c.url.as_ref() == url);
        if same {
            state.current = None;
            state.tour.failed(endpoint, error);
        }
    }

    async fn open_at(&self, way: &Way, range: &Range<u64>) -> Result<Opened> {
        if let Some(location) = &way.location {
            // Signed URLs expire: the registry then gives a new one.
            let hasty = Way { patience: Patience::Hasty, ..way.clone() };
            let opened = self.request(&hasty, Target::Url(location.clone()), range).await;
            if opened.is_ok() {
                return opened;
            }
        }
        let target = way.url.clone().map_or_else(|| Target::Path(self.path.clone()), Target::Url);
        self.request(way, target, range).await
    }

    async fn request(&self, way: &Way, target: Target, range: &Range<u64>) -> Result<Opened> {
        let mut request = Request::new(Method::GET, target, &self.repository, &self.what);
        if range.end < self.size {
            request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        } else if range.start > 0 {
            request = request.header(RANGE, format!("bytes={}-", range.start));
        }
        let answer = way.endpoint.call(self.client.auth(), &request, way.patience).await?;
        let answer = answer.expect(&[StatusCode::OK, StatusCode::PARTIAL_CONTENT], &self.what).await?;
        let answer = answer.unpacked(&self.what)?;
        self.check(answer, range)
    }

    /// Compares what came with what was asked for.
    fn check(&self, answer: Answer, range: &Range<u64>) -> Result<Opened> {
        if answer.status() == StatusCode::OK {
            self.check_size(&answer, answer.content_length())?;
            return Ok(Opened { answer, skip: range.start });
        }
        let text = answer.text(CONTENT_RANGE).unwrap_or_default();
        match ContentRange::parse(text) {
            Some(got) if got.start == range.start && got.end > got.start => {
                self.check_size(&answer, got.total)?;
                Ok(Opened { answer, skip: 0 })
            }
            _ => Err(Error::Protocol {
                what: self.what.clone(),
                host: answer.host(),
                expected: "206 with a Content-Range that starts where it was asked to",
                found: text.to_owned(),
            }),
        }
    }

    fn check_size(&self, answer: &Answer, said: Option<u64>) -> Result<()> {
        match said {
            Some(actual) if actual != self.size => {
                Err(Error::SizeMismatch { what: self.what.clone(), host: answer.host(), expected: self.size, actual })
            }
            _ => Ok(()),
        }
    }
}

/// `Content-Range: bytes start-last/total` (RFC 9110 §14.4).
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    start: u64,
    /// One past the last byte.
    end: u64,
    total: Option<u64>,
}

impl ContentRange {
    fn parse(text: &str) -> Option<Self> {
        let (unit, rest) = text.trim().split_once(' ')?;
        let (range, total) = rest.trim().split_once('/')?;
        let (start, last) = range.split_once('-')?;
        let total = match total.trim() {
            "*" => None,
            digits => Some(digits.parse().ok()?),
        };
        let end = last.trim().parse::<u64>().ok()?.checked_add(1)?;
        unit.eq_ignore_ascii_case("bytes").then_some(Self { start: start.trim().parse().ok()?, end, total })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_content_ranges() {
        let parsed = |text| ContentRange::parse(text).map(|r| (r.start, r.end, r.total));
        assert_eq!(parsed("bytes 0-9/20"), Some((0, 10, Some(20))));
        assert_eq!(parsed("Bytes 5-5/*"), Some((5, 6, None)));
        for text in ["", "bytes", "bytes */20", "bytes 1-/2", "lines 0-1/2", "bytes 0-18446744073709551615/2"] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*", a in any::<u64>(), b in any::<u64>()) {
            ContentRange::parse(&text);
            ContentRange::parse(&format!("bytes {a}-{b}/{text}"));
        }
    }
}
