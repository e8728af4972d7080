//! Who refers to a manifest: the referrers API, and the tag that stands in for it (distribution-spec, "Listing Referrers",
//! "Referrers Tag Schema").

use http::header::{ACCEPT, LINK};
use http::{Method, StatusCode};
use orlop_oci::media_type::OCI_INDEX;
use orlop_oci::{Descriptor, Digest, Document, Index, MAX_MANIFEST_BYTES, MediaKind, RepositoryName};
use url::Url;

use crate::answer::Answer;
use crate::client::Client;
use crate::endpoint::{Endpoint, Patience, Request, Target};
use crate::error::{Error, Result};
use crate::hosts_toml::Capability;
use crate::{push, resolve};

/// More pages of one list are not read.
const MAX_PAGES: usize = 64;
/// More referrers of one manifest are not kept.
const MAX_REFERRERS: usize = 16_384;

/// See [`Client::referrers`].
pub(crate) async fn list(
    client: &Client,
    repository: &RepositoryName,
    digest: &Digest,
    artifact_type: Option<&str>,
) -> Result<Vec<Descriptor>> {
    let what = format!("the referrers of {repository}@{digest}");
    let mut tour = client.tour(repository.domain(), Capability::Referrers).await?;
    let mut failed = false;
    while let Some((endpoint, patience)) = tour.next() {
        let asking =
            Asking { client, endpoint: &endpoint, patience, repository: repository.path(), digest, what: &what };
        match asking.list(artifact_type).await {
            Ok(found) => {
                tour.succeeded(&endpoint);
                // A mirror has what it was asked for once; who refers to that it need not have heard of.
                if !found.is_empty() || !endpoint.is_mirror() {
                    return Ok(found);
                }
            }
            Err(error) => {
                failed = true;
                tour.failed(&endpoint, error);
            }
        }
    }
    if failed { Err(tour.into_error(&what)) } else { Ok(Vec::new()) }
}

/// Adds a document to the tag that lists the referrers of `subject`.
///
/// Between reading and writing the tag another client may do the same; the specification offers nothing against that.
pub(crate) async fn add_to_tag(
    client: &Client,
    endpoint: &Endpoint,
    repository: &RepositoryName,
    subject: &Digest,
    document: &Document,
) -> Result<()> {
    let what = format!("the referrers of {repository}@{subject}");
    let path = repository.path();
    let patience = Patience::Patient;
    let _lock = client.lock_referrers().await;
    let asking = Asking { client, endpoint, patience, repository: path, digest: subject, what: &what };
    let (mut index, _) = asking.by_tag().await?;
    let descriptor = describe(document);
    if index.manifests.iter().any(|m| m.digest == descriptor.digest) {
        return Ok(());
    }
    index.manifests.push(descriptor);
    let raw = serde_json::to_vec(&index).map_err(|source| Error::Document {
        what: what.clone(),
        host: endpoint.host().to_owned(),
        source: orlop_oci::DocumentError::Json { what: "image index", source },
    })?;
    let updated = Document::parse(raw.into(), Some(OCI_INDEX)).map_err(|source| Error::Document {
        what: what.clone(),
        host: endpoint.host().to_owned(),
        source,
    })?;
    push::put_document(client, endpoint, path, &tag(subject), &updated, &what).await.map(drop)
}

/// How a list of referrers describes a document: with its artifact type and annotations.
fn describe(document: &Document) -> Descriptor {
    let mut descriptor = document.descriptor();
    if let Some(manifest) = document.manifest() {
        // Without an artifact type the config's media type counts.
        let kind = manifest.artifact_type.clone().filter(|t| !t.is_empty());
        descriptor.artifact_type = kind.or_else(|| Some(manifest.config.media_type.clone()));
        descriptor.annotations.clone_from(&manifest.annotations);
    } else if let Some(index) = document.index() {
        descriptor.artifact_type.clone_from(&index.artifact_type);
        descriptor.annotations.clone_from(&index.annotations);
    }
    descriptor
}

/// `sha256-<hex>`, each part cut to what a tag may hold.
fn tag(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("{}-{}", digest.algorithm().as_str(), &hex[..hex.len().min(64)])
}

struct Asking<'a> {
    client: &'a Client,
    endpoint: &'a Endpoint,
    patience: Patience,
    repository: &'a str,
    digest: &'a Digest,
    what: &'a str,
}

impl Asking<'_> {
    async fn list(&self, artifact_type: Option<&str>) -> Result<Vec<Descriptor>> {
        let (index, filtered) = match self.by_api(artifact_type).await? {
            Some(found) => found,
            None => self.by_tag().await?,
        };
        let mut found = index.manifests;
        if let Some(wanted) = artifact_type.filter(|_| !filtered) {
            found.retain(|d| d.artifact_type.as_deref() == Some(wanted));
        }
        Ok(found)
    }

    /// `None` if the host does not have the API. The flag says that it filtered every page itself.
    async fn by_api(&self, artifact_type: Option<&str>) -> Result<Option<(Index, bool)>> {
        let mut target = Target::Path(format!("{}/referrers/{}", self.repository, self.digest));
        let mut all: Option<(Index, bool)> = None;
        for page in 0..MAX_PAGES {
            let mut request = self.request(target).header(ACCEPT, OCI_INDEX);
            if let Some(wanted) = artifact_type.filter(|_| page == 0) {
                request = request.query("artifactType", wanted);
            }
            let answer = self.endpoint.call(self.client.auth(), &request, self.patience).await?;
            let is_index = answer.media_type().is_some_and(|t| MediaKind::of(&t) == MediaKind::Index);
            // Hosts without the API answer 404, or whatever their web pages are.
            let absent = matches!(answer.status().as_u16(), 400 | 404 | 405) || (answer.status() == 200 && !is_index);
            if page == 0 && absent {
                answer.drain().await;
                return Ok(None);
            }
            let answer = answer.expect(&[StatusCode::OK], self.what).await?;
            let filtered = answer
                .text("oci-filters-applied")
                .is_some_and(|names| names.split(',').any(|n| n.trim() == "artifactType"));
            let next = next_page(&answer);
            let found = self.read(answer).await?;
            let (index, all_filtered) = all.get_or_insert_with(|| (empty_index(), true));
            index.manifests.extend(found.manifests);
            *all_filtered &= filtered;
            if index.manifests.len() > MAX_REFERRERS {
                index.manifests.truncate(MAX_REFERRERS);
                break;
            }
            match next.filter(|next| self.endpoint.is_own(next)) {
                Some(next) => target = Target::Url(next),
                None => break,
            }
        }
        Ok(all)
    }

    /// The list under the tag; an empty one if there is no such tag.
    async fn by_tag(&self) -> Result<(Index, bool)> {
        let path = format!("{}/manifests/{}", self.repository, tag(self.digest));
        let request = self.request(Target::Path(path)).header(ACCEPT, resolve::accept());
        let answer = self.endpoint.call(self.client.auth(), &request, self.patience).await?;
        match answer.expect(&[StatusCode::OK], self.what).await {
            Ok(answer) => Ok((self.read(answer).await?, false)),
            Err(Error::NotFound { .. }) => Ok((empty_index(), false)),
            Err(error) => Err(error),
        }
    }

    fn request(&self, target: Target) -> Request {
        Request::new(Method::GET, target, self.repository, self.what)
    }

    async fn read(&self, answer: Answer) -> Result<Index> {
        let host = answer.host();
        let raw = answer.unpacked(self.what)?.bytes(MAX_MANIFEST_BYTES, self.what).await?;
        serde_json::from_slice(&raw).map_err(|source| Error::Document {
            what: self.what.to_owned(),
            host,
            source: orlop_oci::DocumentError::Json { what: "image index", source },
        })
    }
}

fn empty_index() -> Index {
    Index {
        schema_version: 2,
        media_type: Some(OCI_INDEX.to_owned()),
        artifact_type: None,
        manifests: Vec::new(),
        subject: None,
        annotations: std::collections::BTreeMap::new(),
    }
}

/// `Link: <…>; rel="next"` (RFC 8288).
fn next_page(answer: &Answer) -> Option<Url> {
    let links = answer.headers().get_all(LINK);
    links.iter().filter_map(|v| v.to_str().ok()).find_map(next_link).and_then(|link| answer.url().join(link).ok())
}

fn next_link(header: &str) -> Option<&str> {
    let mut rest = header;
    while let Some((_, after)) = rest.split_once('<') {
        let (link, parameters) = after.split_once('>')?;
        let own = parameters.split('<').next().unwrap_or("");
        let is_next = own.split([';', ',']).any(|parameter| {
            parameter.split_once('=').is_some_and(|(name, value)| {
                name.trim().eq_ignore_ascii_case("rel")
                    && value.trim().trim_matches('"').split_ascii_whitespace().any(|r| r.eq_ignore_ascii_case("next"))
            })
        });
        if is_next {
            return Some(link);
        }
        rest = parameters;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_the_next_page_among_links() {
        assert_eq!(next_link(r#"</a>; rel="next""#), Some("/a"));
        assert_eq!(next_link(r#"</p>; rel=prev, </n?x=1>; title="t"; rel=next"#), Some("/n?x=1"));
        assert_eq!(next_link(r#"</p>; rel="prev""#), None);
        assert_eq!(next_link("</p"), None);
    }

    #[test]
    fn tags_hold_no_more_than_64_digits() {
        let digest: Digest = format!("sha512:{}", "ab".repeat(64)).parse().unwrap();
        assert_eq!(tag(&digest), format!("sha512-{}", "ab".repeat(32)));
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*") {
            next_link(&text);
        }
    }
}
