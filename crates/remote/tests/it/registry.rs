//! Against Debian's docker-registry: push, pull, upload in chunks, mount, referrers.

use crate::common::*;
use orlop_oci::Reference;
use orlop_remote::{Client, ClientOptions, Error, Tuning, Uploaded};

#[tokio::test]
async fn what_is_pushed_comes_back() {
    let Some(registry) = Registry::start("", "") else { return };
    let (client, repository) = (client(), registry.repository("team/app"));
    let bytes = noise(1, 3_000_000);
    assert_eq!(push(&client, &repository, &bytes).await, (Uploaded::Sent, 3_000_000));
    assert_eq!(push(&client, &repository, &bytes).await, (Uploaded::Present, 0));
    let document = push_image(&client, &repository, "v1", &bytes).await;

    for reference in [repository.with_tag("v1").unwrap(), repository.with_digest(document.digest().digest())] {
        let resolved = client.resolve(&reference).await.unwrap();
        assert_eq!(resolved.descriptor, document.descriptor());
        assert_eq!(resolved.host, registry.address.to_string());
        assert_eq!(pull_image(&client, &reference).await.unwrap(), bytes);
    }
    let descriptor = layer(&bytes);
    let (tail, error) = collect(client.blob(&repository, &descriptor, 2_999_000).await.unwrap()).await;
    assert!(error.is_none() && tail == bytes[2_999_000..]);
    assert!(client.has_blob(&repository, &descriptor.digest).await.unwrap());
    assert!(!client.has_blob(&registry.repository("other"), &descriptor.digest).await.unwrap());
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let Some(registry) = Registry::start("", "") else { return };
    let client = client();
    let reference: Reference = format!("{}/nobody:home", registry.address).parse().unwrap();
    let error = client.resolve(&reference).await.unwrap_err();
    assert!(matches!(&error, Error::NotFound { host, .. } if *host == registry.address.to_string()), "{error}");
    let blob = layer(&noise(9, 10));
    assert!(matches!(
        client.blob(reference.repository().unwrap(), &blob, 0).await.map(drop),
        Err(Error::NotFound { .. })
    ));
}

#[tokio::test]
async fn blobs_of_every_size_go_by_chunks_and_by_parallel_ranges() {
    let Some(registry) = Registry::start("", "") else { return };
    let tuning = Tuning {
        upload_chunk_bytes: 100_000,
        parallel_from: 150_000,
        parallel_below: u64::MAX,
        probe_bytes: 50_000,
        range_bytes: 40_000,
        ..quick()
    };
    let client = Client::with_tuning(ClientOptions::default(), tuning);
    let repository = registry.repository("sizes");
    for (seed, size) in [0, 1, 99_999, 100_000, 100_001, 150_000, 1_234_567].into_iter().enumerate() {
        let bytes = noise(seed as u64, size);
        push(&client, &repository, &bytes).await;
        for offset in [0, size / 3, size] {
            let stream = client.blob(&repository, &layer(&bytes), offset as u64).await.unwrap();
            let (got, error) = collect(stream).await;
            assert!(error.is_none(), "{error:?}");
            assert!(got == bytes[offset..], "{size} from {offset}");
        }
    }
}

#[tokio::test]
async fn a_blob_of_another_repository_is_mounted() {
    let Some(registry) = Registry::start("", "") else { return };
    let client = client();
    let (from, to) = (registry.repository("from"), registry.repository("to"));
    let bytes = noise(3, 50_000);
    push(&client, &from, &bytes).await;
    let candidates = [registry.repository("empty"), from];
    let uploaded = client
        .push_blob(&to, &layer(&bytes), &candidates, &|_| panic!("nothing has to be sent"), &|_| {})
        .await
        .unwrap();
    assert_eq!(uploaded, Uploaded::Mounted);
    assert!(client.has_blob(&to, &layer(&bytes).digest).await.unwrap());
}

#[tokio::test]
async fn referrers_are_listed_by_tag_where_there_is_no_api() {
    let Some(registry) = Registry::start("", "") else { return };
    let (client, repository) = (client(), registry.repository("signed"));
    let bytes = noise(4, 1000);
    let image = push_image(&client, &repository, "v1", &bytes).await;
    let subject = image.digest().digest();
    assert!(client.referrers(&repository, subject, None).await.unwrap().is_empty());

    let config = bytes::Bytes::from_static(b"{}");
    for kind in ["application/vnd.test.sbom", "application/vnd.test.signature"] {
        let extra = format!(
            r#","artifactType":"{kind}","annotations":{{"k":"v"}},"subject":{{"mediaType":"{}","digest":"{subject}","size":{}}}"#,
            image.media_type(),
            image.raw().len()
        );
        let document = manifest(&config, &layer(&bytes), &extra);
        let reference = repository.with_digest(document.digest().digest());
        // The second time nothing may be listed twice.
        client.push_document(&reference, &document).await.unwrap();
        client.push_document(&reference, &document).await.unwrap();
    }
    let all = client.referrers(&repository, subject, None).await.unwrap();
    assert_eq!(all.len(), 2);
    let signatures = client.referrers(&repository, subject, Some("application/vnd.test.signature")).await.unwrap();
    assert_eq!(signatures.len(), 1);
    assert_eq!(signatures[0].artifact_type.as_deref(), Some("application/vnd.test.signature"));
    assert_eq!(signatures[0].annotations["k"], "v");
}
