//! Reading blobs: one stream that survives broken connections, or several ranges at once.

mod download;
mod parallel;
mod source;

use http::{Method, StatusCode};
use orlop_oci::{Descriptor, Digest, RepositoryName};

use crate::BlobStream;
use crate::answer::Answer;
use crate::client::Client;
use crate::endpoint::{Request, Target};
use crate::error::{Error, Result};
use crate::hosts_toml::Capability;

use download::Download;
use source::Source;

/// See [`Client::blob`].
pub(crate) async fn open(
    client: &Client,
    repository: &RepositoryName,
    descriptor: &Descriptor,
    offset: u64,
) -> Result<BlobStream> {
    let size = descriptor.size;
    if offset > size {
        return Err(Error::SizeMismatch {
            what: format!("{repository}@{}", descriptor.digest),
            host: "the caller".to_owned(),
            expected: size,
            actual: offset,
        });
    }
    if offset == size {
        return Ok(Box::pin(futures::stream::empty()));
    }
    let source = Source::new(client, repository, descriptor).await?;
    let tuning = client.tuning();
    if size - offset >= tuning.parallel_from && tuning.ranges > 1 {
        return parallel::open(source, offset, tuning).await;
    }
    let mut download = Download::new(source, offset..size);
    download.connect().await?;
    Ok(download.into_stream())
}

/// See [`Client::has_blob`].
pub(crate) async fn exists(client: &Client, repository: &RepositoryName, digest: &Digest) -> Result<bool> {
    match head(client, repository, digest).await {
        Ok(_) => Ok(true),
        Err(Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// See [`Client::blob_size`].
pub(crate) async fn size(client: &Client, repository: &RepositoryName, digest: &Digest) -> Result<u64> {
    let answer = head(client, repository, digest).await?;
    answer.content_length().ok_or_else(|| Error::Protocol {
        what: format!("{repository}@{digest}"),
        host: answer.host(),
        expected: "the Content-Length of the blob",
        found: String::new(),
    })
}

async fn head(client: &Client, repository: &RepositoryName, digest: &Digest) -> Result<Answer> {
    let what = format!("{repository}@{digest}");
    let mut tour = client.tour(repository.domain(), Capability::Pull).await?;
    while let Some((endpoint, patience)) = tour.next() {
        let target = Target::Path(format!("{}/blobs/{digest}", repository.path()));
        let request = Request::new(Method::HEAD, target, repository.path(), &what);
        let answer = match endpoint.call(client.auth(), &request, patience).await {
            Ok(answer) => answer.expect(&[StatusCode::OK], &what).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => {
                tour.succeeded(&endpoint);
                return Ok(answer);
            }
            Err(error) => tour.failed(&endpoint, error),
        }
    }
    Err(tour.into_error(&what))
}
