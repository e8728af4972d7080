//! Lists: tags, repositories, referrers.

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, Uri, header};
use orlop_oci::{Descriptor, Digest, Index, media_type};
use serde::Serialize;

use crate::access::Session;
use crate::error::{Code, Failure};
use crate::route::{query, query_encode};
use crate::{Inner, ManifestRecord, json, text};

/// The longest page, whatever the client asks for.
const MAX_PAGE: usize = 10_000;

/// Repositories that are looked at at once for a page of the catalogue: of most of them its reader may not hear.
const BATCH: usize = 1000;

#[derive(Serialize)]
struct Tags<'a> {
    name: &'a str,
    tags: Vec<String>,
}

#[derive(Serialize)]
struct Catalog {
    repositories: Vec<String>,
}

struct Page {
    limit: usize,
    last: Option<String>,
}

impl Page {
    fn of(uri: &Uri) -> Result<Self, Failure> {
        let limit = match query(uri, "n") {
            None => MAX_PAGE,
            Some(n) => match n.parse::<usize>() {
                Ok(n) => n.min(MAX_PAGE),
                Err(_) => return Err(Code::PageInvalid.because(format!("n={n:?} is not a number"))),
            },
        };
        Ok(Self { limit, last: query(uri, "last").filter(|last| !last.is_empty()) })
    }

    /// Cuts off the name that was asked for in excess and returns where the next page is.
    fn next(&self, path: &str, names: &mut Vec<String>) -> Option<String> {
        if names.len() <= self.limit || self.limit == 0 {
            names.truncate(self.limit);
            return None;
        }
        names.truncate(self.limit);
        let last = query_encode(names.last()?);
        Some(format!("<{path}?n={}&last={last}>; rel=\"next\"", self.limit))
    }
}

fn page_of(document: &impl Serialize, next: Option<String>) -> Response<Body> {
    let mut response = json(StatusCode::OK, "application/json", serde_json::to_vec(document).unwrap_or_default());
    if let Some(next) = next {
        response.headers_mut().insert(header::LINK, text(next));
    }
    response
}

impl Inner {
    /// `GET /v2/<name>/tags/list`
    pub(crate) async fn tags(&self, name: &str, uri: &Uri) -> Result<Response<Body>, Failure> {
        let page = Page::of(uri)?;
        let mut tags = self.index.tags(name, page.last.as_deref(), page.limit + 1).await?;
        let next = page.next(&format!("/v2/{name}/tags/list"), &mut tags);
        Ok(page_of(&Tags { name, tags }, next))
    }

    /// `GET /v2/_catalog`
    ///
    /// Only those that the caller may read.
    pub(crate) async fn catalog(&self, uri: &Uri, session: &Session) -> Result<Response<Body>, Failure> {
        let page = Page::of(uri)?;
        let (mut repositories, mut after) = (Vec::new(), page.last.clone());
        let batch = BATCH.max(page.limit + 1);
        while page.limit > 0 && repositories.len() <= page.limit {
            let more = self.index.repositories(after.as_deref(), batch).await?;
            let is_last = more.len() < batch;
            after = more.last().cloned().or(after);
            repositories.extend(more.into_iter().filter(|name| session.may_list(name)));
            if is_last {
                break;
            }
        }
        repositories.truncate(page.limit + 1);
        let next = page.next("/v2/_catalog", &mut repositories);
        Ok(page_of(&Catalog { repositories }, next))
    }

    /// `GET /v2/<name>/referrers/<digest>`
    pub(crate) async fn referrers(&self, name: &str, digest: &Digest, uri: &Uri) -> Result<Response<Body>, Failure> {
        let filter = query(uri, "artifactType").filter(|filter| !filter.is_empty());
        let records = self.index.referrers(name, digest).await?.into_iter();
        let wanted = |r: &ManifestRecord| filter.is_none() || r.artifact_type == filter;
        let index = Index {
            schema_version: 2,
            media_type: Some(media_type::OCI_INDEX.to_owned()),
            artifact_type: None,
            manifests: records.filter(wanted).map(descriptor).collect(),
            subject: None,
            annotations: Default::default(),
        };
        let mut response = json(StatusCode::OK, media_type::OCI_INDEX, serde_json::to_vec(&index).unwrap_or_default());
        if filter.is_some() {
            response.headers_mut().insert("oci-filters-applied", HeaderValue::from_static("artifactType"));
        }
        Ok(response)
    }
}

fn descriptor(record: ManifestRecord) -> Descriptor {
    Descriptor {
        artifact_type: record.artifact_type,
        annotations: record.annotations,
        ..Descriptor::new(record.media_type, record.digest, record.size)
    }
}
