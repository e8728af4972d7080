//! Bringing sound bytes: by the way that pulls and imports go, so that they resume, wait for each other and verify.

use orlop_metadata::{Damaged, Scope};
use orlop_oci::media_type::OCI_MANIFEST;
use orlop_oci::{Descriptor, Digest, MAX_MANIFEST_BYTES, MediaKind, RepositoryName};
use orlop_remote::Client;
use tokio::io::AsyncRead;

use super::sources::{Sources, unknown};
use super::{End, Mending};
use crate::pull::{Nowhere, Registry, lacking};
use crate::walk::{Documents as _, kind_word};
use crate::{Error, Images, Result, Sink};

impl Images {
    /// Asks registries for everything. What a document describes can be asked for once that is mended: so as long as one round
    /// mends something, there is another.
    pub(super) async fn bring_all(
        &self,
        scope: &Scope,
        client: &Client,
        mendings: &mut [Mending],
        sink: Sink<'_>,
    ) -> Result<()> {
        let mut last = false;
        loop {
            let mut progress = false;
            for mending in mendings.iter_mut().filter(|mending| mending.end == End::Planned) {
                let Damaged::Blob(digest) = mending.what.clone() else { continue };
                let wanted = digest.clone();
                let sources = self.blocking(move |store| Sources::of(store, &wanted)).await?;
                let descriptor = self.described(&sources.namespace, &digest, mending.size).await?;
                if descriptor.is_none() && !last {
                    continue;
                }
                let descriptor = descriptor.unwrap_or_else(|| unknown(&digest, mending.size));
                mending.end = self.bring(scope, client, &descriptor, &sources, sink).await?;
                progress = true;
            }
            if !progress && last {
                return Ok(());
            }
            last = !progress;
        }
    }

    /// Asks one repository after the other.
    pub(super) async fn bring(
        &self,
        scope: &Scope,
        client: &Client,
        descriptor: &Descriptor,
        sources: &Sources,
        sink: Sink<'_>,
    ) -> Result<End> {
        let scope = Scope { namespace: sources.namespace.clone(), ..scope.clone() };
        let mut said = Vec::new();
        for repository in &sources.repositories {
            match self.bring_from(&scope, client, descriptor, repository, sink).await {
                Ok(()) => return Ok(End::Mended { from: repository.to_string() }),
                Err(error) if is_ours(&error) => return Err(error),
                Err(error) => said.push(format!("{repository}: {error}")),
            }
        }
        let reason = match said.is_empty() {
            true => "no registry is known that had it".to_owned(),
            false => format!("nobody who was asked has it: {}", said.join("; ")),
        };
        Ok(left(reason, &descriptor.digest))
    }

    async fn bring_from(
        &self,
        scope: &Scope,
        client: &Client,
        descriptor: &Descriptor,
        repository: &RepositoryName,
        sink: Sink<'_>,
    ) -> Result<()> {
        let origin = Registry::new(self, client, repository.clone());
        self.under_lease(scope, async |scope| {
            let session = self.session(scope, &origin, sink);
            if matches!(descriptor.kind(), MediaKind::Manifest | MediaKind::Index | MediaKind::Schema1) {
                let found = session.load(descriptor, kind_word(descriptor)).await?;
                return found.map(drop).ok_or_else(|| lacking(descriptor));
            }
            match session.blob(descriptor).await {
                // Nothing here said what it is; registries keep documents elsewhere.
                Err(Error::Remote(error)) if error.is_not_found() && descriptor.size <= MAX_MANIFEST_BYTES => {
                    let document = Descriptor { media_type: OCI_MANIFEST.to_owned(), ..descriptor.clone() };
                    session.load(&document, "manifest").await.map_err(|_| Error::Remote(error)).map(drop)
                }
                other => other,
            }
        })
        .await
    }

    /// Takes an archive in under the scope's lease, and sees what it mended.
    pub(super) async fn bring_archive(
        &self,
        scope: Scope,
        archive: &mut (dyn AsyncRead + Send + Unpin),
        mendings: &mut [Mending],
        sink: Sink<'_>,
    ) -> Result<()> {
        // Rows of another namespace are written anew there: whoever has the bytes has them for all.
        let mut session = self.session(scope, &Nowhere, sink);
        session.take_in(archive).await?;
        for mending in mendings.iter_mut() {
            let Damaged::Blob(digest) = mending.what.clone() else { continue };
            let wanted = digest.clone();
            let damage = self.blocking(move |store| Ok(store.quarantine_blob(&wanted)?)).await?;
            mending.end = match damage {
                None => End::Mended { from: "the archive".to_owned() },
                Some(_) => left("the archive does not have it".to_owned(), &digest),
            };
        }
        Ok(())
    }
}

/// Whether another source would fail the same way: it is the store that cannot, not the source.
pub(super) fn is_ours(error: &Error) -> bool {
    match error {
        Error::Remote(_) | Error::Incomplete { .. } | Error::Document { .. } | Error::Inconsistent { .. } => false,
        Error::Content(inner) => {
            !matches!(inner, orlop_content::Error::DigestMismatch { .. } | orlop_content::Error::SizeMismatch { .. })
        }
        _ => true,
    }
}

pub(super) fn left(reason: String, digest: &Digest) -> End {
    let advice = format!(
        "nothing else is lost. `orlop repair --from ARCHIVE` takes it from an archive of an image that has it (`orlop export`, \
         `skopeo copy --all` on a machine that has the image); a pull of any image that has {digest} mends it too"
    );
    End::Left { reason, advice }
}
