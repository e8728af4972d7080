//! The same calls on the same images, beside a real containerd 2.x with its CRI plugin.
//!
//! What may differ: `spec`, which containerd never sets, and what `orlop` explains in a verbose status.

use orlop_api::runtime::v1 as pb;
use orlop_api::runtime::v1::image_service_client::ImageServiceClient;
use orlop_testkit::containerd::{Containerd, Options as ContainerdOptions, Programs};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process::need_root;
use orlop_testkit::registry::Options;
use orlop_testkit::tar::Entry;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::rig::{Node, Shelf, client, image, list, pull, request, spec, status};

/// An image without its `spec`.
fn bare(mut image: pb::Image) -> pb::Image {
    image.spec = None;
    image
}

async fn listed(client: &ImageServiceClient<Channel>) -> Vec<pb::Image> {
    let mut images: Vec<pb::Image> = list(client).await.into_iter().map(bare).collect();
    images.sort_by(|a, b| a.id.cmp(&b.id));
    images
}

/// Image and containerd's part of the information, or the code.
async fn told(client: &ImageServiceClient<Channel>, name: &str) -> Result<(Option<pb::Image>, Value), Code> {
    let found = status(client, name).await.map_err(|status| status.code())?;
    let info = found.info.get("info").map_or(Value::Null, |text| serde_json::from_str(text).unwrap());
    Ok((found.image.map(bare), info))
}

async fn removed(client: &ImageServiceClient<Channel>, name: &str) -> Result<(), Code> {
    let request = pb::RemoveImageRequest { image: spec(name) };
    client.clone().remove_image(request).await.map(drop).map_err(|status| status.code())
}

async fn pulled(client: &ImageServiceClient<Channel>, name: &str) -> Result<String, Code> {
    pull(client, request(name)).await.map_err(|status: Status| status.code())
}

/// Images of several makes, by name.
async fn shelve(shelf: &Shelf) -> Vec<String> {
    let rich = image(20)
        .config("User", json!("nobody:nogroup"))
        .config("Env", json!(["A=<b>&c"]))
        .config("Cmd", json!(["/bin/true"]))
        .config("Entrypoint", json!([]))
        .config("ExposedPorts", json!({"80/tcp": {}}))
        .config("Volumes", json!({"/data": {}}))
        .config("Labels", json!({"k": "v"}))
        .config("WorkingDir", json!("/"))
        .config("Healthcheck", json!({"Test": ["NONE"]}));
    let foreign = Image::new("linux/s390x").layer(Layer::noise("n", 2, 99));
    let plain = Content::image(&image(21));
    let index = Content::index(&[Content::image(&foreign), plain.clone(), Content::attestation(&plain)]);
    let twice = Layer::new([Entry::file("same", "same")]);
    let mut names = Vec::new();
    for (name, content) in [
        ("team/rich:1", Content::image(&rich)),
        ("team/index:1", index),
        ("team/docker:1", Content::image(&image(22).docker())),
        ("team/twice:1", Content::image(&Image::host().layer(twice.clone()).layer(twice))),
        ("team/empty:1", Content::image(&Image::host())),
        ("other/plain:1", plain),
    ] {
        names.push(shelf.put(name, &content).await);
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_of_containerd() {
    let (Some(programs), true) = (Programs::current(), need_root()) else { return };
    let Some(shelf) = Shelf::start(&Options::new()) else { return };
    let containerd = Containerd::start(&programs, &ContainerdOptions { cri: true, ..Default::default() });
    let theirs = client(&orlop_api::channel::unix(&containerd.socket()).await.unwrap());
    let node = Node::new().await;
    let ours = &node.images;
    assert_eq!(listed(ours).await, listed(&theirs).await);

    let mut names = shelve(&shelf).await;
    for name in &names {
        assert_eq!(pulled(ours, name).await, pulled(&theirs, name).await, "{name}");
    }
    assert_eq!(listed(ours).await, listed(&theirs).await);
    let ids: Vec<String> = listed(ours).await.into_iter().map(|image| image.id).collect();
    assert_eq!(ids.len(), 5, "one image has two names");
    names.extend(ids.iter().flat_map(|id| [id.clone(), id[7..].to_owned(), id[..15].to_owned(), id[7..15].to_owned()]));
    names.extend(listed(ours).await.into_iter().flat_map(|image| image.repo_digests));
    names.extend(["nothing", "no/such:1", "sha256:", "sha512:ab", "zz", "UPPER!!"].map(str::to_owned));
    for name in &names {
        assert_eq!(told(ours, name).await, told(&theirs, name).await, "{name}");
    }
    for name in [shelf.name("none:1"), "127.0.0.1:1/x:1".to_owned(), "UPPER!!".to_owned(), String::new()] {
        assert_eq!(pulled(ours, &name).await, pulled(&theirs, &name).await, "{name}");
    }
    for name in ["nothing:1", &names[1], &ids[0], &ids[0]] {
        assert_eq!(removed(ours, name).await, removed(&theirs, name).await, "{name}");
        assert_eq!(listed(ours).await, listed(&theirs).await, "after removing {name}");
    }
}
