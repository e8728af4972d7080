//! The specification's endpoints over real HTTP: what they answer to right and to wrong requests.

use std::collections::BTreeSet;

use crate::common::{Peer, code, descriptor, digest_of, header, image};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use orlop_content::{IngestManager as _, IngestOptions, Ingester as _, Manager as _};
use orlop_oci::{Digest, media_type};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn bytes(length: usize) -> Bytes {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect::<Vec<_>>().into()
}

#[tokio::test]
async fn the_root_says_which_protocol_is_spoken() {
    let peer = Peer::start().await;
    let response = peer.get("/v2/").await;
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "docker-distribution-api-version"), "registry/2.0");
    assert_eq!(peer.request("POST", "/v2/").send().await.unwrap().status(), 405);
    assert_eq!(peer.get("/other").await.status(), 404);
}

#[tokio::test]
async fn a_blob_goes_in_at_once_and_comes_out_by_ranges() {
    let peer = Peer::start().await;
    let body = bytes(3_000_000);
    let digest = Digest::of(&body);
    let post = peer.request("POST", &format!("/v2/a/b/blobs/uploads/?digest={digest}")).body(body.clone());
    let response = post.send().await.unwrap();
    assert_eq!(response.status(), 201);
    let location = header(&response, "location").to_owned();
    assert_eq!(location, format!("/v2/a/b/blobs/{digest}"));
    let response = peer.get(&location).await;
    assert_eq!(header(&response, "docker-content-digest"), digest.as_str());
    assert_eq!(response.bytes().await.unwrap(), body);
    let head = peer.request("HEAD", &location).send().await.unwrap();
    assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, "3000000"));
    for (range, expected) in
        [("bytes=10-19", 10..20), ("bytes=2999990-", 2_999_990..3_000_000), ("bytes=-1", 2_999_999..3_000_000)]
    {
        let response = peer.request("GET", &location).header("range", range).send().await.unwrap();
        assert_eq!(response.status(), 206);
        let content_range = format!("bytes {}-{}/3000000", expected.start, expected.end - 1);
        assert_eq!(header(&response, "content-range"), content_range);
        assert_eq!(response.bytes().await.unwrap(), body.slice(expected));
    }
    let beyond = peer.request("GET", &location).header("range", "bytes=3000000-").send().await.unwrap();
    assert_eq!((beyond.status().as_u16(), header(&beyond, "content-range")), (416, "bytes */3000000"));
}

#[tokio::test]
async fn chunks_must_continue_what_is_there() {
    let peer = Peer::start().await;
    let body = bytes(1_000_000);
    let location = peer.start_upload("chunked").await;
    let patch =
        |range: &'static str, part: Bytes| peer.request("PATCH", &location).header("content-range", range).body(part);
    let first = patch("0-399999", body.slice(..400_000)).send().await.unwrap();
    assert_eq!((first.status().as_u16(), header(&first, "range")), (202, "0-399999"));
    for range in ["0-399999", "500000-999999"] {
        let wrong = patch(range, body.slice(400_000..)).send().await.unwrap();
        assert_eq!((wrong.status().as_u16(), header(&wrong, "range")), (416, "0-399999"), "{range}");
    }
    assert_eq!(code(patch("nonsense", Bytes::new()).send().await.unwrap()).await, (400, "BLOB_UPLOAD_INVALID".into()));
    let wrong = patch("400000-400009", body.slice(400_000..)).send().await.unwrap();
    assert_eq!(code(wrong).await, (400, "SIZE_INVALID".into()));
    let status = peer.get(&location).await;
    assert_eq!((status.status().as_u16(), header(&status, "range")), (204, "0-399999"));
    let digest = Digest::of(&body);
    let put = peer.request("PUT", &format!("{location}?digest={digest}")).header("content-range", "400000-999999");
    assert_eq!(put.body(body.slice(400_000..)).send().await.unwrap().status(), 201);
    assert_eq!(peer.get(&format!("/v2/chunked/blobs/{digest}")).await.bytes().await.unwrap(), body);
    assert_eq!(code(peer.get(&location).await).await, (404, "BLOB_UPLOAD_UNKNOWN".into()));
}

/// A chunk without `Content-Length` that is shorter or longer than its `Content-Range` must not be taken for whole.
#[tokio::test]
async fn a_streamed_chunk_must_be_as_long_as_it_says() {
    let peer = Peer::start().await;
    let location = peer.start_upload("streamed").await;
    for length in [99, 101] {
        let stream = futures::stream::iter([Ok::<_, std::io::Error>(bytes(length))]);
        let patch = peer.request("PATCH", &location).header("content-range", "0-99");
        let response = patch.body(reqwest::Body::wrap_stream(stream)).send().await.unwrap();
        assert_eq!(code(response).await, (400, "SIZE_INVALID".into()));
        assert_eq!(header(&peer.get(&location).await, "range"), "0-0", "nothing of it stays");
    }
    let stream = futures::stream::iter([Ok::<_, std::io::Error>(bytes(100))]);
    let patch = peer.request("PATCH", &location).header("content-range", "0-99");
    assert_eq!(patch.body(reqwest::Body::wrap_stream(stream)).send().await.unwrap().status(), 202);
}

#[tokio::test]
async fn an_upload_goes_on_after_a_broken_connection() {
    let peer = Peer::start().await;
    let body = bytes(900_000);
    let location = peer.start_upload("broken").await;
    let mut stream = TcpStream::connect(peer.server.address()).await.unwrap();
    let head = format!("PATCH {location} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body[..600_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    // The answer, or the end of the connection, says that the registry has seen the break.
    let _ = stream.read_to_end(&mut Vec::new()).await;
    let status = peer.get(&location).await;
    let there = header(&status, "range").strip_prefix("0-").unwrap().parse::<usize>().unwrap() + 1;
    assert_eq!(there, 600_000);
    let digest = Digest::of(&body);
    let put = peer.request("PUT", &format!("{location}?digest={digest}")).body(body.slice(there..));
    assert_eq!(put.send().await.unwrap().status(), 201);
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_nothing_of_them_stays() {
    let peer = Peer::start().await;
    let location = peer.start_upload("wrong").await;
    let digest = Digest::of(b"right");
    let put = peer.request("PUT", &format!("{location}?digest={digest}")).body("wrong").send().await.unwrap();
    assert_eq!(code(put).await, (400, "DIGEST_INVALID".into()));
    assert_eq!(peer.get(&location).await.status(), 404);
    assert_eq!(peer.get(&format!("/v2/wrong/blobs/{digest}")).await.status(), 404);
    assert!(peer.store.statuses().await.unwrap().is_empty());
    assert!(peer.store.list().await.unwrap().is_empty());
    for query in ["", "?digest=sha256:12", "?digest=md5:d41d8cd98f00b204e9800998ecf8427e"] {
        let location = peer.start_upload("wrong").await;
        let put = peer.request("PUT", &format!("{location}{query}")).body("right").send().await.unwrap();
        assert_eq!(code(put).await, (400, "DIGEST_INVALID".into()), "{query}");
    }
}

#[tokio::test]
async fn a_cancelled_upload_is_gone() {
    let peer = Peer::start().await;
    let location = peer.start_upload("cancelled").await;
    peer.request("PATCH", &location).body("abc").send().await.unwrap();
    assert_eq!(peer.request("DELETE", &location).send().await.unwrap().status(), 204);
    assert_eq!(code(peer.request("PATCH", &location).body("d").send().await.unwrap()).await.0, 404);
    assert_eq!(peer.request("DELETE", &location).send().await.unwrap().status(), 404);
    assert!(peer.store.statuses().await.unwrap().is_empty());
    let foreign = peer.start_upload("one").await.replace("/one/", "/two/");
    assert_eq!(peer.get(&foreign).await.status(), 404, "an upload belongs to its repository");
    for id in ["x", "%00", "%2fetc", "0123456789abcdef0123456789abcdef"] {
        assert_eq!(peer.get(&format!("/v2/one/blobs/uploads/{id}")).await.status(), 404, "{id}");
    }
}

#[tokio::test]
async fn idle_uploads_are_dropped_and_nothing_else() {
    let peer = Peer::start().await;
    let location = peer.start_upload("idle").await;
    let foreign = IngestOptions { reference: "not an upload".into(), ..Default::default() };
    drop(peer.store.writer(foreign).await.unwrap());
    let hour = SignedDuration::from_hours(1);
    assert_eq!(peer.registry.drop_idle_uploads(Timestamp::now() - hour).await.unwrap(), 0);
    assert_eq!(peer.registry.drop_idle_uploads(Timestamp::now() + hour).await.unwrap(), 1);
    assert_eq!(peer.get(&location).await.status(), 404);
    assert_eq!(peer.store.statuses().await.unwrap().len(), 1);
}

/// A `POST` with a digest whose body breaks off leaves an upload that nobody can name.
#[tokio::test]
async fn a_broken_monolithic_upload_leaves_nothing() {
    let peer = Peer::start().await;
    let mut stream = TcpStream::connect(peer.server.address()).await.unwrap();
    let digest = Digest::of(b"0123456789");
    let head =
        format!("POST /v2/a/blobs/uploads/?digest={digest} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n0123");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let _ = stream.read_to_end(&mut Vec::new()).await;
    assert!(peer.store.statuses().await.unwrap().is_empty());
}

#[tokio::test]
async fn blobs_belong_to_repositories_and_can_be_mounted() {
    let peer = Peer::start().await;
    let digest = peer.push_blob("from", &bytes(100)).await;
    let blob = |name: &str| format!("/v2/{name}/blobs/{digest}");
    assert_eq!(code(peer.get(&blob("to")).await).await, (404, "BLOB_UNKNOWN".into()));
    let mount = |from: &str| peer.request("POST", &format!("/v2/to/blobs/uploads/?mount={digest}{from}"));
    for from in ["", "&from=nowhere", "&from=.."] {
        let refused = mount(from).send().await.unwrap();
        assert_eq!(refused.status(), 202, "what cannot be mounted is to be uploaded");
        assert!(header(&refused, "location").contains("/uploads/"));
    }
    let mounted = mount("&from=from").send().await.unwrap();
    assert_eq!((mounted.status().as_u16(), header(&mounted, "location")), (201, blob("to").as_str()));
    assert_eq!(peer.request("DELETE", &blob("from")).send().await.unwrap().status(), 202);
    assert_eq!(peer.get(&blob("from")).await.status(), 404);
    assert_eq!(peer.request("DELETE", &blob("from")).send().await.unwrap().status(), 404);
    assert_eq!(peer.get(&blob("to")).await.status(), 200);
}

/// Naming the digest of a blob that the store has is no proof of having its bytes.
#[tokio::test]
async fn an_upload_of_known_content_is_verified_too() {
    let peer = Peer::start().await;
    let digest = peer.push_blob("owner", &bytes(100)).await;
    let post = peer.request("POST", &format!("/v2/thief/blobs/uploads/?digest={digest}")).body("guess");
    assert_eq!(code(post.send().await.unwrap()).await, (400, "DIGEST_INVALID".into()));
    assert_eq!(peer.get(&format!("/v2/thief/blobs/{digest}")).await.status(), 404);
    peer.push_blob("thief", &bytes(100)).await;
    assert_eq!(peer.get(&format!("/v2/thief/blobs/{digest}")).await.status(), 200);
}

#[tokio::test]
async fn manifests_come_by_tag_and_by_digest() {
    let peer = Peer::start().await;
    let manifest = peer.push_image("app", "v1", "one").await;
    let digest = digest_of(&manifest);
    for reference in ["v1", digest.as_str()] {
        let path = format!("/v2/app/manifests/{reference}");
        let head = peer.request("HEAD", &path).send().await.unwrap();
        assert_eq!((head.status().as_u16(), header(&head, "docker-content-digest")), (200, digest.as_str()));
        assert_eq!(header(&head, "content-length"), manifest.to_string().len().to_string());
        let get = peer.get(&path).await;
        assert_eq!(header(&get, "content-type"), media_type::OCI_MANIFEST);
        assert_eq!(get.text().await.unwrap(), manifest.to_string());
    }
    let newer = peer.push_image("app", "v1", "two").await;
    let tagged: Value = peer.get("/v2/app/manifests/v1").await.json().await.unwrap();
    assert_eq!(tagged, newer, "a tag moves");
    assert_eq!(peer.get(&format!("/v2/app/manifests/{digest}")).await.status(), 200, "and the old manifest stays");
    assert_eq!(code(peer.get("/v2/app/manifests/v2").await).await, (404, "MANIFEST_UNKNOWN".into()));
    assert_eq!(code(peer.get("/v2/none/manifests/v2").await).await, (404, "NAME_UNKNOWN".into()));
    assert_eq!(code(peer.get(&format!("/v2/UP/manifests/{digest}")).await).await, (400, "NAME_INVALID".into()));
}

#[tokio::test]
async fn deleting_by_digest_takes_the_tags_along() {
    let peer = Peer::start().await;
    let manifest = peer.push_image("app", "one", "x").await;
    peer.push_manifest("app", "two", &manifest).await;
    let delete = |key: &str| peer.request("DELETE", &format!("/v2/app/manifests/{key}"));
    assert_eq!(delete("one").send().await.unwrap().status(), 202);
    assert_eq!(peer.get("/v2/app/manifests/one").await.status(), 404);
    assert_eq!(peer.get("/v2/app/manifests/two").await.status(), 200);
    let digest = digest_of(&manifest);
    assert_eq!(delete(digest.as_str()).send().await.unwrap().status(), 202);
    for key in ["two", digest.as_str()] {
        assert_eq!(peer.get(&format!("/v2/app/manifests/{key}")).await.status(), 404);
    }
    assert_eq!(code(delete(digest.as_str()).send().await.unwrap()).await, (404, "MANIFEST_UNKNOWN".into()));
}

#[tokio::test]
async fn a_manifest_needs_what_it_refers_to() {
    let peer = Peer::start().await;
    let (config, layer) = (Bytes::from_static(b"{}"), bytes(50));
    let manifest = image(&config, &layer);
    let refused = |response| async { assert_eq!(code(response).await, (400, "MANIFEST_BLOB_UNKNOWN".into())) };
    refused(peer.push_manifest("app", "v1", &manifest).await).await;
    peer.push_blob("app", &config).await;
    peer.push_blob("other", &layer).await;
    refused(peer.push_manifest("app", "v1", &manifest).await).await;
    peer.push_blob("app", &layer).await;
    let mut lying = manifest.clone();
    lying["layers"][0]["size"] = json!(49);
    refused(peer.push_manifest("app", "v1", &lying).await).await;
    assert_eq!(peer.push_manifest("app", "v1", &manifest).await.status(), 201);
    let entry = descriptor(media_type::OCI_MANIFEST, manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry]});
    refused(peer.push_manifest("elsewhere", "v1", &index).await).await;
    assert_eq!(peer.push_manifest("app", "list", &index).await.status(), 201);
    let mut foreign = manifest.clone();
    let absent = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    foreign["layers"][0] = descriptor(absent, b"never pushed");
    assert_eq!(peer.push_manifest("app", "foreign", &foreign).await.status(), 201);
}

#[tokio::test]
async fn bad_manifests_are_refused() {
    let peer = Peer::start().await;
    let put = |key: &str, media_type: &str, body: Vec<u8>| {
        peer.request("PUT", &format!("/v2/app/manifests/{key}")).header("content-type", media_type).body(body).send()
    };
    let manifest = peer.push_image("app", "v1", "x").await;
    let other = Digest::of(b"other");
    let response = put(other.as_str(), media_type::OCI_MANIFEST, manifest.to_string().into()).await.unwrap();
    assert_eq!(code(response).await, (400, "DIGEST_INVALID".into()));
    let response = put("v1", media_type::OCI_INDEX, manifest.to_string().into()).await.unwrap();
    assert_eq!(code(response).await, (400, "MANIFEST_INVALID".into()));
    for body in ["", "{", "[]", "null", "{}", r#"{"schemaVersion":1,"fsLayers":[]}"#] {
        let response = put("v1", media_type::OCI_MANIFEST, body.into()).await.unwrap();
        assert_eq!(code(response).await, (400, "MANIFEST_INVALID".into()), "{body}");
    }
    let response = put(".hidden", media_type::OCI_MANIFEST, manifest.to_string().into()).await.unwrap();
    assert_eq!(code(response).await, (400, "MANIFEST_INVALID".into()));
    let response = put("v1", media_type::OCI_MANIFEST, vec![b' '; 5 << 20]).await;
    // The registry may close the connection before the client has sent everything.
    if let Ok(response) = response {
        assert_eq!(response.status(), 413);
    }
    let tagged: Value = peer.get("/v2/app/manifests/v1").await.json().await.unwrap();
    assert_eq!(tagged, manifest);
}

#[tokio::test]
async fn one_request_may_set_several_tags() {
    let peer = Peer::start().await;
    let manifest = peer.push_image("app", "v1", "x").await;
    let digest = digest_of(&manifest);
    let put = |query: &str| {
        let put = peer.request("PUT", &format!("/v2/app/manifests/{digest}?{query}"));
        put.header("content-type", media_type::OCI_MANIFEST).body(manifest.to_string()).send()
    };
    let response = put("tag=a&tag=b").await.unwrap();
    assert_eq!(response.status(), 201);
    let said: Vec<_> = response.headers().get_all("oci-tag").iter().collect();
    assert_eq!(said, ["a", "b"]);
    assert_eq!(put("tag=bad%20tag").await.unwrap().status(), 400);
    assert_eq!(put(&"tag=a&".repeat(65)).await.unwrap().status(), 400);
    let tags: Value = peer.get("/v2/app/tags/list").await.json().await.unwrap();
    assert_eq!(tags, json!({"name": "app", "tags": ["a", "b", "v1"]}));
}

#[tokio::test]
async fn tags_and_repositories_are_listed_in_pages() {
    let peer = Peer::start().await;
    let manifest = peer.push_image("app", "t0", "x").await;
    for i in 1..7 {
        peer.push_manifest("app", &format!("t{i}"), &manifest).await;
    }
    let mut path = "/v2/app/tags/list?n=3".to_owned();
    let mut pages = Vec::new();
    loop {
        let response = peer.get(&path).await;
        let next = response.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        let page: Value = response.json().await.unwrap();
        pages.push(page["tags"].clone());
        let Some(link) = next else { break };
        path = link.strip_prefix('<').unwrap().strip_suffix(r#">; rel="next""#).unwrap().to_owned();
    }
    assert_eq!(pages, [json!(["t0", "t1", "t2"]), json!(["t3", "t4", "t5"]), json!(["t6"])]);
    let of = async |query: &str| {
        let listed: Value = peer.get(&format!("/v2/app/tags/list?{query}")).await.json().await.unwrap();
        listed["tags"].clone()
    };
    assert_eq!(of("n=0").await, json!([]));
    assert_eq!(of("last=t4").await, json!(["t5", "t6"]));
    assert_eq!(of("last=zz").await, json!([]));
    assert_eq!(of("n=99999999999").await.as_array().unwrap().len(), 7);
    assert_eq!(peer.get("/v2/app/tags/list?n=-1").await.status(), 400);
    assert_eq!(code(peer.get("/v2/none/tags/list").await).await, (404, "NAME_UNKNOWN".into()));
    peer.push_blob("a/b", &bytes(1)).await;
    let catalog: Value = peer.get("/v2/_catalog?n=1").await.json().await.unwrap();
    assert_eq!(catalog, json!({"repositories": ["a/b"]}));
}

#[tokio::test]
async fn referrers_are_listed_and_filtered() {
    let peer = Peer::start().await;
    let subject = descriptor(media_type::OCI_MANIFEST, b"not pushed yet");
    let subject_digest = Digest::of(b"not pushed yet");
    let empty = Bytes::from_static(b"{}");
    peer.push_blob("app", &empty).await;
    let push = async |kind: Option<&str>, note: &str| {
        let mut manifest = image(&empty, &empty);
        manifest["subject"] = subject.clone();
        manifest["annotations"] = json!({"note": note});
        if let Some(kind) = kind {
            manifest["artifactType"] = json!(kind);
        }
        let response = peer.push_manifest("app", digest_of(&manifest).as_str(), &manifest).await;
        assert_eq!((response.status().as_u16(), header(&response, "oci-subject")), (201, subject_digest.as_str()));
        digest_of(&manifest).to_string()
    };
    let (signature, sbom) = (push(Some("test/signature"), "1").await, push(Some("test/sbom"), "2").await);
    let typeless = push(None, "3").await;
    let path = format!("/v2/app/referrers/{subject_digest}");
    let response = peer.get(&path).await;
    assert_eq!(header(&response, "content-type"), media_type::OCI_INDEX);
    let index: Value = response.json().await.unwrap();
    let listed = index["manifests"].as_array().unwrap();
    let digests: BTreeSet<_> = listed.iter().map(|m| m["digest"].as_str().unwrap().to_owned()).collect();
    assert_eq!(digests, BTreeSet::from([signature.clone(), sbom, typeless.clone()]));
    let by_digest = |digest: &str| listed.iter().find(|m| m["digest"] == digest).unwrap();
    assert_eq!(by_digest(&typeless)["artifactType"], media_type::OCI_CONFIG, "the config's type stands in");
    assert_eq!(by_digest(&signature)["annotations"], json!({"note": "1"}));
    let response = peer.get(&format!("{path}?artifactType=test%2Fsignature")).await;
    assert_eq!(header(&response, "oci-filters-applied"), "artifactType");
    let filtered: Value = response.json().await.unwrap();
    assert_eq!(filtered["manifests"], json!([by_digest(&signature)]));
    let delete = peer.request("DELETE", &format!("/v2/app/manifests/{signature}")).send().await.unwrap();
    assert_eq!(delete.status(), 202);
    let index: Value = peer.get(&path).await.json().await.unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    let none: Value = peer.get(&format!("/v2/none/referrers/{subject_digest}")).await.json().await.unwrap();
    assert_eq!(none["manifests"], json!([]));
    assert_eq!(code(peer.get("/v2/app/referrers/sha256:1").await).await, (400, "DIGEST_INVALID".into()));
}

#[tokio::test]
async fn a_shutdown_lets_requests_finish_and_takes_no_more() {
    let peer = Peer::start().await;
    let location = peer.start_upload("last").await;
    let address = peer.server.address();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("PATCH {location} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nfirst");
    stream.write_all(head.as_bytes()).await.unwrap();
    // A second request on its own connection, answered, shows that the registry has accepted the first connection.
    peer.get("/v2/").await;
    let shutdown = tokio::spawn(peer.server.shutdown());
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    stream.write_all(b"-last").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    shutdown.await.unwrap();
}
