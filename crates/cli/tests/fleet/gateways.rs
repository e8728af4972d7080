//! Gateways in fair weather, and what they say when what they stand on is away.

use std::process::Command;
use std::time::Duration;

use orlop_testkit::process::{need, output, run};
use orlop_testkit::s3::S3;
use reqwest::Client as Http;
use rustix::process::Signal;

use crate::client::{Client, Image, Trouble};
use crate::common::binary;
use crate::world::World;

fn noise(length: usize, seed: u64) -> Vec<u8> {
    orlop_testkit::image::noise(seed, length)
}

/// What was pushed by one is pulled by the others; an upload goes from one to the next between its requests.
#[tokio::test(flavor = "multi_thread")]
async fn three_gateways_are_one_registry() {
    let Some(world) = World::new() else { return };
    let cache = world.dir.path().join("cache");
    let cached = ["--cache", cache.to_str().unwrap()];
    let gateways = [world.gateway("1", &[]), world.gateway("2", &[]), world.gateway("3", &cached)];
    let http = Http::new();
    let clients = gateways.each_ref().map(|gateway| Client::new(&http, &gateway.host));
    let image = Image::new("one", vec![noise(10, 1), noise(100_000, 2), noise(17 << 20, 3)]);
    clients[0].push("team/app", &image, "v1", true).await.unwrap();
    for client in &clients {
        client.pull("team/app", &image).await.unwrap();
        let tags = client.get("/v2/team/app/tags/list").await.unwrap();
        assert_eq!(String::from_utf8(tags).unwrap(), r#"{"name":"team/app","tags":["v1"]}"#);
        assert_eq!(client.get("/readyz").await.unwrap(), b"ok\n");
    }
    assert!(cache.join("blobs/sha256").read_dir().unwrap().count() >= 3, "the third has a cache");

    // Each chunk at another one.
    let bytes = noise(20 << 20, 4);
    let digest = orlop_oci::Digest::of(&bytes);
    let post = http.post(clients[0].url("/v2/team/app/blobs/uploads/")).send().await.unwrap();
    let location = post.headers()["location"].to_str().unwrap().to_owned();
    for (i, chunk) in bytes.chunks(7 << 20).enumerate() {
        let patch = http.patch(clients[(i + 1) % 3].url(&location)).body(chunk.to_vec()).send().await.unwrap();
        assert_eq!(patch.status(), 202, "{}", patch.text().await.unwrap());
    }
    let put = http.put(format!("{}?digest={digest}", clients[2].url(&location))).send().await.unwrap();
    assert_eq!(put.status(), 201, "{}", put.text().await.unwrap());
    assert_eq!(clients[1].get(&format!("/v2/team/app/blobs/{digest}")).await.unwrap(), bytes);
    assert!(matches!(clients[0].get(&format!("/v2/other/blobs/{digest}")).await, Err(Trouble::Missing(_))));
}

#[test]
fn the_conformance_suite_of_the_specification_finds_nothing() {
    let Some(world) = World::new() else { return };
    crate::conformance::run(&world.gateway("1", &[]).host);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_others_wrote_push_and_pull() {
    let Some(world) = World::new() else { return };
    if need("skopeo", "skopeo").is_none() {
        return;
    }
    let gateways = [world.gateway("1", &[]), world.gateway("2", &["--redirect-from", "1MiB"])];
    let content = orlop_testkit::image::Content::image(
        &orlop_testkit::image::Image::host().layer(orlop_testkit::image::Layer::noise("large", 5, 9 << 20)),
    );
    let dir = world.dir.path();
    let layout = dir.join("layout");
    orlop_testkit::archive::write_layout(&layout, &[("v1", &content)]).unwrap();
    let from = format!("oci:{}:v1", layout.display());
    let hosts = gateways.each_ref().map(|gateway| gateway.host.clone());
    let back = dir.join("back");
    let steps = [
        [from, format!("docker://{}/team/app:v1", hosts[0])],
        [format!("docker://{}/team/app:v1", hosts[1]), format!("oci:{}:v1", back.display())],
    ];
    tokio::task::spawn_blocking(move || {
        for [from, to] in &steps {
            let copy = ["--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", from, to];
            run("skopeo", copy).ok();
        }
    })
    .await
    .unwrap();
    for digest in content.blobs.keys() {
        let file = |root: &std::path::Path| std::fs::read(root.join("blobs/sha256").join(digest.hex())).unwrap();
        assert_eq!(file(&layout), file(&back), "{digest}");
    }
}

/// 503 with Retry-After while the database or the bucket is away, and everything that was acknowledged when they are back.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_away_is_said_and_nothing_is_lost() {
    let Some(mut world) = World::new() else { return };
    let gateway = world.gateway("1", &["--bucket-patience", "500ms"]);
    let client = Client::new(&Http::new(), &gateway.host);
    let (before, during) = (Image::new("before", vec![noise(1000, 6)]), Image::new("during", vec![noise(1000, 7)]));
    client.push("app", &before, "v1", false).await.unwrap();

    world.busy.set_busy(true);
    assert!(matches!(client.push("app", &during, "v2", false).await, Err(Trouble::Away(_))));
    assert!(matches!(client.pull("app", &before).await, Err(Trouble::Away(_))));
    assert_eq!(ready(&client).await.0, 503);
    assert_eq!(client.get("/healthz").await.unwrap(), b"ok\n", "it is not the gateway that is ill");
    world.busy.set_busy(false);
    client.push("app", &during, "v2", false).await.unwrap();

    world.postgres.kill();
    let trouble = client.pull("app", &before).await;
    assert!(matches!(trouble, Err(Trouble::Away(_))), "{trouble:?}");
    let (status, why) = ready(&client).await;
    assert!(status == 503 && why.contains("database"), "{status} {why}");
    world.postgres.restart();
    for image in [&before, &during] {
        client.pull("app", image).await.unwrap();
    }
    assert_eq!(ready(&client).await.0, 200);
}

async fn ready(client: &Client) -> (u16, String) {
    let response = reqwest::get(client.url("/readyz")).await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

/// SIGTERM lets a push that is under way end, and refuses new ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_asked_to_end_finishes_what_runs() {
    let Some(world) = World::new() else { return };
    let mut gateway = world.gateway("1", &[]);
    let client = Client::new(&Http::new(), &gateway.host);
    let post = reqwest::Client::new().post(client.url("/v2/app/blobs/uploads/")).send().await.unwrap();
    let url = client.url(post.headers()["location"].to_str().unwrap());
    let bytes = noise(1 << 20, 8);
    let digest = orlop_oci::Digest::of(&bytes);
    let (sender, receiver) = futures::channel::mpsc::unbounded::<Result<Vec<u8>, std::io::Error>>();
    sender.unbounded_send(Ok(bytes[..1000].to_vec())).unwrap();
    let body = reqwest::Body::wrap_stream(receiver);
    let put = tokio::spawn(reqwest::Client::new().put(format!("{url}?digest={digest}")).body(body).send());
    // It is under way when its row says so.
    while world.sql("SELECT count(*) FROM ingests WHERE writer IS NOT NULL") != "1" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gateway.daemon.signal(Signal::TERM);
    gateway.daemon.wait_for(|daemon| daemon.log().contains("finishing what runs").then_some(()));
    sender.unbounded_send(Ok(bytes[1000..].to_vec())).unwrap();
    drop(sender);
    assert_eq!(put.await.unwrap().unwrap().status(), 201);
    assert!(gateway.daemon.wait().success());
    let other = world.gateway("2", &[]);
    let blob = Client::new(&Http::new(), &other.host).get(&format!("/v2/app/blobs/{digest}")).await.unwrap();
    assert_eq!(blob, bytes);
}

#[test]
fn what_cannot_be_is_said_before_it_serves() {
    let Some(world) = World::new() else { return };
    let run = |command: &mut Command| {
        let done = output(command.envs(S3::variables()));
        (done.status.code().unwrap(), done.stderr)
    };
    let listen = ["--listen", "127.0.0.1:0"];
    let (code, said) = run(binary().args(["registry", "--database", "mysql://x", "--bucket", "s3://x"]).args(listen));
    assert!(code == 2 && said.contains("the database's URL"), "{code} {said}");
    let (code, said) =
        run(binary().args(["registry", "--database", &world.postgres.url("postgres"), "--bucket", "x"]).args(listen));
    assert!(code == 2 && said.contains("s3://BUCKET"), "{code} {said}");
    let (code, said) = run(binary().args(["registry", "--bucket", "s3://x"]).args(listen));
    assert!(code == 2 && said.contains("--database"), "{code} {said}");
    // Another database's bucket.
    world.collect(&[]).ok();
    world.sql("UPDATE identity SET id = 'another'");
    let (code, said) = run(&mut world.registry(&listen));
    assert!(code == 4 && said.contains("the bucket belongs to the database"), "{code} {said}");
}

/// The script of docs/operations/shared.md, as it is.
#[test]
fn the_script_brings_the_tier_up_and_takes_it_down() {
    let Some(_servers) = World::new() else { return };
    if need("setpriv", "util-linux").is_none() {
        return;
    }
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/shared-tier");
    let dir = tempfile::tempdir().unwrap();
    let done = output(
        Command::new(script)
            .args(["--check", dir.path().to_str().unwrap()])
            .env("ORLOP", env!("CARGO_BIN_EXE_orlop"))
            .env("S3", std::env::var("ORLOP_TEST_S3").unwrap_or_default())
            .env("PORT", free_ports().to_string()),
    )
    .ok();
    assert!(done.stdout.contains("checked: pushed by the first gateway, pulled by the last"), "{}", done.stdout);
    assert!(done.stdout.contains("swept: 3 objects seen"), "{}", done.stdout);
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("cmdline"));
    let commands = processes.filter_map(|path| Some(String::from_utf8_lossy(&std::fs::read(path).ok()?).into_owned()));
    let left: Vec<_> = commands.filter(|command| command.contains(dir.path().to_str().unwrap())).collect();
    assert_eq!(left, [""; 0], "nothing of it runs any more");
}

/// The first of four ports in a row that nobody has now.
fn free_ports() -> u16 {
    loop {
        let first = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if first < 65_000 && (1..4).all(|next| std::net::TcpListener::bind(("127.0.0.1", first + next)).is_ok()) {
            return first;
        }
    }
}
