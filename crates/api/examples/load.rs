//! One client for two servers: puts the same load on any socket that speaks containerd's API and prints what it took.
//!
//! `load SOCKET WHAT ARGS…`, see [`USAGE`]. The benchmarks `api.py`, `lens.py` and `large.py` in `benches/` run it against
//! Orlop and containerd.
//!
//! The timed part begins when everything that the client alone needs is made, and ends with the last answer. The client says
//! `begin` there and `end`, and waits for a line on its standard input each time: whoever measures the server looks at it
//! in between.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use orlop_api::containerd::services::content::v1 as content;
use orlop_api::containerd::services::images::v1 as images;
use orlop_api::containerd::services::leases::v1 as leases;
use orlop_api::containerd::services::snapshots::v1 as snapshots;
use orlop_api::containerd::types::Descriptor;
use orlop_api::runtime::v1 as cri;
use orlop_api::{LEASE_HEADER, MAX_MESSAGE_BYTES, NAMESPACE_HEADER};
use prost::bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tonic::Request;
use tonic::transport::Channel;

const USAGE: &str = "load SOCKET
    write MIB SEED        one blob, in pieces of 1 MiB, each answered before the next
    read MIB SEED         the same blob, whole
    small COUNT WRITERS   blobs of 4 KiB
    snapshots COUNT CLIENTS SNAPSHOTTER   prepare and remove
    fill COUNT [SNAPSHOTTER]  images of ten blobs and three records; with a snapshotter, unpacked to a snapshot a layer
    names COUNT           one image with so many tags in one repository
    remove FROM COUNT CLIENTS  the records of so many images of `fill`; the last with its space given back
    records FROM COUNT    prints the names of those records, untimed
    usage SNAPSHOTTER     lists the snapshots, and asks each what it takes
    list TIMES            Images.List
    cri TIMES             ImageService.ListImages
    ready IMAGES [TAGS]   asks ImageService.ListImages until so many are there; the server need not run yet";

/// What containerd's own client sends at a time.
const PIECE: usize = 1 << 20;
const SMALL: usize = 4 << 10;
const NAMESPACE: &str = "k8s.io";
const LEASE: &str = "load";
/// Images made at the same time.
const FILLERS: usize = 16;
/// Snapshots asked at the same time.
const ASKED: usize = 32;
/// Layers of an image; with config and manifest ten blobs.
const LAYERS: usize = 8;
/// How often a server that is starting is asked.
const ASK: Duration = Duration::from_millis(1);
/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(100);

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let [socket, what, rest @ ..] = words.as_slice() else { return Err(USAGE.into()) };
    match (*what, rest) {
        ("ready", [images]) => return ready(Path::new(socket), images.parse()?, 0).await,
        ("ready", [images, tags]) => return ready(Path::new(socket), images.parse()?, tags.parse()?).await,
        _ => {}
    }
    let load = Load { channel: orlop_api::channel::unix(Path::new(socket)).await? };
    if let ("records", [from, count]) = (*what, rest) {
        let from = from.parse()?;
        let names = load.records_of(from..from + count.parse::<usize>()?).await?;
        names.into_iter().flatten().for_each(|name| println!("{name}"));
        return Ok(());
    }
    load.lease().await?;
    let seconds = match (*what, rest) {
        ("write", [mib, seed]) => load.write_large(mib.parse()?, seed.parse()?).await?,
        ("read", [mib, seed]) => load.read_large(mib.parse()?, seed.parse()?).await?,
        ("small", [count, writers]) => load.write_small(count.parse()?, writers.parse()?).await?,
        ("snapshots", [count, clients, driver]) => load.snapshots(count.parse()?, clients.parse()?, driver).await?,
        ("fill", [count]) => load.fill(count.parse()?, None).await?,
        ("fill", [count, driver]) => load.fill(count.parse()?, Some(driver)).await?,
        ("names", [count]) => load.names(count.parse()?).await?,
        ("remove", [from, count, clients]) => load.remove(from.parse()?, count.parse()?, clients.parse()?).await?,
        ("usage", [driver]) => load.usage(driver).await?,
        ("list", [times]) => load.list(times.parse()?).await?,
        ("cri", [times]) => load.list_cri(times.parse()?).await?,
        _ => return Err(USAGE.into()),
    };
    println!("{seconds:.6}");
    Ok(())
}

/// Runs the timed part; returns its seconds.
async fn timed(work: impl Future<Output = Result<()>>) -> Result<f64> {
    step("begin")?;
    let start = Instant::now();
    work.await?;
    let seconds = start.elapsed().as_secs_f64();
    step("end")?;
    Ok(seconds)
}

/// Says where the work is, and waits for a line; the end of the input is one.
fn step(word: &str) -> Result<()> {
    println!("{word}");
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

/// Says `ready` as soon as a server lists so many images, with so many tags.
async fn ready(socket: &Path, images: usize, tags: usize) -> Result<()> {
    println!("waiting");
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Ok(channel) = orlop_api::channel::unix(socket).await {
            let load = Load { channel };
            while start.elapsed() < PATIENCE {
                match load.count_cri().await {
                    Ok(found) if found.images >= images && found.tags >= tags => {
                        println!("ready");
                        return Ok(());
                    }
                    Ok(_) => {}
                    Err(status) if status.code() == tonic::Code::Unavailable => break,
                    Err(_) => {}
                }
                tokio::time::sleep(ASK).await;
            }
        }
        tokio::time::sleep(ASK).await;
    }
    Err(format!("there were no {images} images with {tags} tags within {PATIENCE:?}").into())
}

/// A request in the namespace, under the lease.
fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let headers = request.metadata_mut();
    headers.insert(NAMESPACE_HEADER, NAMESPACE.parse().expect("a plain word"));
    headers.insert(LEASE_HEADER, LEASE.parse().expect("a plain word"));
    request
}

/// What CRI lists.
struct Listed {
    images: usize,
    tags: usize,
}

#[derive(Clone)]
struct Load {
    channel: Channel,
}

impl Load {
    fn content(&self) -> content::content_client::ContentClient<Channel> {
        let client = content::content_client::ContentClient::new(self.channel.clone());
        client.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// A lease that holds everything made here, if it is not there from another run.
    async fn lease(&self) -> Result<()> {
        let mut client = leases::leases_client::LeasesClient::new(self.channel.clone());
        let mut request = Request::new(leases::CreateRequest { id: LEASE.to_owned(), labels: BTreeMap::new() });
        request.metadata_mut().insert(NAMESPACE_HEADER, NAMESPACE.parse()?);
        match client.create(request).await {
            Err(status) if status.code() != tonic::Code::AlreadyExists => Err(status.into()),
            _ => Ok(()),
        }
    }

    /// Writes a blob in pieces, waiting for the answer to each, as containerd's client does.
    async fn write_expected(&self, name: &str, pieces: &[Bytes], digest: &str) -> Result<()> {
        let total: usize = pieces.iter().map(Bytes::len).sum();
        let (send, receive) = tokio::sync::mpsc::channel(1);
        let first = content::WriteContentRequest {
            action: content::WriteAction::Stat.into(),
            r#ref: name.to_owned(),
            total: total as i64,
            expected: digest.to_owned(),
            ..Default::default()
        };
        send.send(first.clone()).await?;
        let requests = stream::unfold(receive, |mut receive| async { receive.recv().await.map(|m| (m, receive)) });
        let mut answers = self.content().write(call(requests)).await?.into_inner();
        let mut offset = answers.message().await?.ok_or("no answer")?.offset;
        for piece in pieces {
            let action = content::WriteAction::Write.into();
            send.send(content::WriteContentRequest { action, offset, data: piece.clone(), ..first.clone() }).await?;
            offset = answers.message().await?.ok_or("no answer")?.offset;
        }
        let action = content::WriteAction::Commit.into();
        send.send(content::WriteContentRequest { action, offset, ..first }).await?;
        // To the end: a stream that is dropped before counts as one that the client gave up.
        while answers.message().await?.is_some() {}
        Ok(())
    }

    async fn write_large(&self, mib: usize, seed: u64) -> Result<f64> {
        let (pieces, digest) = large(mib, seed);
        timed(self.write_expected(&format!("large-{seed}"), &pieces, &digest)).await
    }

    async fn read_large(&self, mib: usize, seed: u64) -> Result<f64> {
        let (_, digest) = large(mib, seed);
        timed(async {
            let request = content::ReadContentRequest { digest, offset: 0, size: 0 };
            let mut answers = self.content().read(call(request)).await?.into_inner();
            let mut read = 0;
            while let Some(answer) = answers.message().await? {
                read += answer.data.len();
            }
            if read != mib * PIECE {
                return Err(format!("expected {} bytes, got {read}", mib * PIECE).into());
            }
            Ok(())
        })
        .await
    }

    async fn write_small(&self, count: usize, writers: usize) -> Result<f64> {
        let blob = |n: usize| {
            let mut bytes = vec![0; SMALL];
            fill_bytes(&mut bytes, n as u64 + 1);
            (digest(&bytes), [Bytes::from(bytes)])
        };
        let blobs: Vec<_> = (0..count).map(blob).collect();
        let blobs = blobs.as_slice();
        timed(async {
            let all = (0..writers).map(|writer| async move {
                for (n, (digest, pieces)) in blobs.iter().enumerate().skip(writer).step_by(writers) {
                    self.write_expected(&format!("small-{n}"), pieces, digest).await?;
                }
                Result::Ok(())
            });
            try_join_all(all).await.map(drop)
        })
        .await
    }

    async fn snapshots(&self, count: usize, clients: usize, snapshotter: &str) -> Result<f64> {
        let all = (0..clients).map(|client| async move {
            let mut service = snapshots::snapshots_client::SnapshotsClient::new(self.channel.clone());
            for n in (client..count).step_by(clients) {
                let (snapshotter, key) = (snapshotter.to_owned(), format!("load-{n}"));
                let prepare = snapshots::PrepareSnapshotRequest {
                    snapshotter: snapshotter.clone(),
                    key: key.clone(),
                    ..Default::default()
                };
                service.prepare(call(prepare)).await?;
                service.remove(call(snapshots::RemoveSnapshotRequest { snapshotter, key })).await?;
            }
            Result::Ok(())
        });
        timed(async { try_join_all(all).await.map(drop) }).await
    }

    async fn usage(&self, snapshotter: &str) -> Result<f64> {
        let service = snapshots::snapshots_client::SnapshotsClient::new(self.channel.clone());
        let request = snapshots::ListSnapshotsRequest { snapshotter: snapshotter.to_owned(), ..Default::default() };
        timed(async {
            let mut pages = service.clone().list(call(request)).await?.into_inner();
            let mut keys = Vec::new();
            while let Some(page) = pages.message().await? {
                keys.extend(page.info.into_iter().map(|info| info.name));
            }
            let count = keys.len();
            let ask = |key| {
                let mut service = service.clone();
                let request = snapshots::UsageRequest { snapshotter: snapshotter.to_owned(), key };
                async move { service.usage(call(request)).await.map(drop) }
            };
            stream::iter(keys).map(Ok).try_for_each_concurrent(ASKED, ask).await?;
            eprintln!("{count} snapshots");
            Ok(())
        })
        .await
    }

    async fn fill(&self, count: usize, snapshotter: Option<&str>) -> Result<f64> {
        let all = stream::iter(0..count).map(Ok).try_for_each_concurrent(FILLERS, |n| self.image(n, snapshotter));
        timed(all).await
    }

    /// A committed, empty snapshot for each layer; the uppermost.
    async fn unpack(&self, snapshotter: &str, diff_ids: &[String]) -> Result<String> {
        let mut service = snapshots::snapshots_client::SnapshotsClient::new(self.channel.clone());
        let mut parent = String::new();
        for diff_id in diff_ids {
            let chain =
                if parent.is_empty() { diff_id.clone() } else { digest(format!("{parent} {diff_id}").as_bytes()) };
            let (snapshotter, key) = (snapshotter.to_owned(), format!("unpack {chain}"));
            let prepare = snapshots::PrepareSnapshotRequest {
                snapshotter: snapshotter.clone(),
                key: key.clone(),
                parent,
                ..Default::default()
            };
            service.prepare(call(prepare)).await?;
            let commit =
                snapshots::CommitSnapshotRequest { snapshotter, key, name: chain.clone(), ..Default::default() };
            service.commit(call(commit)).await?;
            parent = chain;
        }
        Ok(parent)
    }

    /// An image of `fill` with its three records.
    async fn image(&self, n: usize, snapshotter: Option<&str>) -> Result<()> {
        let (target, config) = self.content_of(n, snapshotter).await?;
        for name in [tag(n), format!("{}@{}", repository(n), target.digest), config] {
            self.record(name, target.clone()).await?;
        }
        Ok(())
    }

    async fn names(&self, count: usize) -> Result<f64> {
        let (target, _) = self.content_of(0, None).await?;
        let name = |n| format!("registry.example/names/app:{n}");
        let all = stream::iter(0..count).map(Ok);
        timed(all.try_for_each_concurrent(FILLERS, |n| self.record(name(n), target.clone()))).await
    }

    /// Each image's records one after the other, as many images at a time as there are clients.
    async fn remove(&self, from: usize, count: usize, clients: usize) -> Result<f64> {
        let doomed = self.records_of(from..from + count).await?;
        let (last, others) = doomed.split_last().ok_or("nothing to remove")?;
        timed(async {
            let others = stream::iter(others.iter().map(Vec::as_slice)).map(Ok);
            others.try_for_each_concurrent(clients, |names| self.delete(names, false)).await?;
            self.delete(last, true).await
        })
        .await
    }

    /// The records of images of `fill`, the tag of each first: whoever looks after hash references would write them again
    /// as long as it is there.
    async fn records_of(&self, wanted: Range<usize>) -> Result<Vec<Vec<String>>> {
        let service = images::images_client::ImagesClient::new(self.channel.clone());
        let mut service = service.max_decoding_message_size(MAX_MESSAGE_BYTES);
        let answer = service.list(call(images::ListImagesRequest::default())).await?.into_inner();
        let mut of_target: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for image in answer.images {
            of_target.entry(image.target.unwrap_or_default().digest).or_default().push(image.name);
        }
        let tags: BTreeSet<String> = wanted.map(tag).collect();
        let mut found = Vec::new();
        for mut names in of_target.into_values() {
            if let Some(at) = names.iter().position(|name| tags.contains(name)) {
                names.swap(0, at);
                found.push(names);
            }
        }
        Ok(found)
    }

    /// Deletes records, the last with its space given back if that is asked. One that another took away is gone.
    async fn delete(&self, names: &[String], reclaim: bool) -> Result<()> {
        let mut service = images::images_client::ImagesClient::new(self.channel.clone());
        for (n, name) in names.iter().enumerate() {
            let sync = reclaim && n + 1 == names.len();
            let request = images::DeleteImageRequest { name: name.clone(), sync, ..Default::default() };
            match service.delete(call(request)).await {
                Err(status) if status.code() != tonic::Code::NotFound => return Err(status.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// The blobs of an image, and its snapshots if a snapshotter is named; its target and its config's digest.
    async fn content_of(&self, n: usize, snapshotter: Option<&str>) -> Result<(Descriptor, String)> {
        let oci = "application/vnd.oci.image";
        let none = BTreeMap::new();
        let mut labels = BTreeMap::new();
        let (mut diff_ids, mut layers) = (Vec::new(), Vec::new());
        for at in 0..LAYERS {
            let layer = format!("layer {at} of {n}");
            let size = layer.len();
            let digest = self.write_small_blob(layer, &none).await?;
            labels.insert(format!("containerd.io/gc.ref.content.l.{at}"), digest.clone());
            layers.push(format!(r#"{{"mediaType":"{oci}.layer.v1.tar","digest":"{digest}","size":{size}}}"#));
            diff_ids.push(digest);
        }
        let mut unpacked = BTreeMap::new();
        if let Some(snapshotter) = snapshotter {
            let top = self.unpack(snapshotter, &diff_ids).await?;
            unpacked.insert(format!("containerd.io/gc.ref.snapshot.{snapshotter}"), top);
        }
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux","n":{n},"config":{{}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            diff_ids.join("\",\"")
        );
        let size = config.len();
        let config = self.write_small_blob(config, &unpacked).await?;
        labels.insert("containerd.io/gc.ref.content.config".to_owned(), config.clone());
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{oci}.manifest.v1+json","config":{{"mediaType":"{oci}.config.v1+json","digest":"{config}","size":{size}}},"layers":[{}]}}"#,
            layers.join(",")
        );
        let size = manifest.len() as i64;
        let digest = self.write_small_blob(manifest, &labels).await?;
        let media_type = format!("{oci}.manifest.v1+json");
        Ok((Descriptor { media_type, size, digest, ..Default::default() }, config))
    }

    /// Writes a blob with one message; one that is there is there.
    async fn write_small_blob(&self, text: String, labels: &BTreeMap<String, String>) -> Result<String> {
        let digest = digest(text.as_bytes());
        let whole = content::WriteContentRequest {
            action: content::WriteAction::Commit.into(),
            r#ref: digest.clone(),
            total: text.len() as i64,
            expected: digest.clone(),
            data: text.into(),
            labels: labels.clone(),
            ..Default::default()
        };
        let written = async {
            let mut answers = self.content().write(call(stream::iter([whole]))).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok::<_, tonic::Status>(())
        };
        match written.await {
            Err(status) if status.code() != tonic::Code::AlreadyExists => Err(status.into()),
            Ok(()) | Err(_) => Ok(digest),
        }
    }

    /// Makes a record, unless whoever looks after hash references was faster.
    async fn record(&self, name: String, target: Descriptor) -> Result<()> {
        let mut service = images::images_client::ImagesClient::new(self.channel.clone());
        let labels = BTreeMap::from([("io.cri-containerd.image".to_owned(), "managed".to_owned())]);
        let image = images::Image { name, target: Some(target), labels, ..Default::default() };
        match service.create(call(images::CreateImageRequest { image: Some(image), ..Default::default() })).await {
            Err(status) if status.code() != tonic::Code::AlreadyExists => Err(status.into()),
            _ => Ok(()),
        }
    }

    async fn list(&self, times: usize) -> Result<f64> {
        let service = images::images_client::ImagesClient::new(self.channel.clone());
        let mut service = service.max_decoding_message_size(MAX_MESSAGE_BYTES);
        let seconds = timed(async {
            for _ in 0..times {
                let answer = service.list(call(images::ListImagesRequest::default())).await?.into_inner();
                eprintln!("{} records", answer.images.len());
            }
            Ok(())
        });
        Ok(seconds.await? / times as f64)
    }

    async fn list_cri(&self, times: usize) -> Result<f64> {
        let seconds = timed(async {
            for _ in 0..times {
                eprintln!("{} images", self.count_cri().await?.images);
            }
            Ok(())
        });
        Ok(seconds.await? / times as f64)
    }

    async fn count_cri(&self) -> std::result::Result<Listed, tonic::Status> {
        let service = cri::image_service_client::ImageServiceClient::new(self.channel.clone());
        let mut service = service.max_decoding_message_size(MAX_MESSAGE_BYTES);
        let answer = service.list_images(cri::ListImagesRequest::default()).await?;
        let images = answer.into_inner().images;
        Ok(Listed { images: images.len(), tags: images.iter().map(|image| image.repo_tags.len()).sum() })
    }
}

fn repository(n: usize) -> String {
    format!("registry.example/team{}/app{n}", n % 50)
}

fn tag(n: usize) -> String {
    format!("{}:1.0", repository(n))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A blob that does not compress, and its digest.
fn large(mib: usize, seed: u64) -> (Vec<Bytes>, String) {
    let mut hash = Sha256::new();
    let pieces = (0..mib).map(|n| {
        let mut piece = vec![0; PIECE];
        fill_bytes(&mut piece, seed << 32 | n as u64 | 1);
        hash.update(&piece);
        Bytes::from(piece)
    });
    let pieces = pieces.collect();
    (pieces, format!("sha256:{}", hex::encode(hash.finalize())))
}

/// Fills with xorshift's numbers, the same for the same seed.
fn fill_bytes(bytes: &mut [u8], mut state: u64) {
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
}
