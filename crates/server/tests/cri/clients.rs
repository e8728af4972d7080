//! Clients of others, unmodified: crictl, and one in Go that asks as kubelet does.

use std::path::Path;
use std::process::Command;

use orlop_testkit::go::Module;
use orlop_testkit::process::{Output, output};
use orlop_testkit::registry::Options;
use serde_json::Value;

use crate::rig::{Node, Shelf, address, id, made};

async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || output(&mut command)).await.unwrap()
}

struct Crictl<'a> {
    program: &'a Path,
    node: &'a Node,
}

impl Crictl<'_> {
    async fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(self.program);
        // A configuration of its own, so that this machine's does not count.
        let config = self.node.directory.path().join("crictl.yaml");
        std::fs::write(&config, "timeout: 60\n").unwrap();
        let endpoint = address(&self.node.socket());
        command.arg("--config").arg(config).args(["-r", &endpoint, "-i", &endpoint]).args(args);
        run(command).await
    }

    async fn ok(&self, args: &[&str]) -> String {
        self.run(args).await.ok().stdout
    }

    async fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args).await).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn crictl_works_as_with_any_runtime() {
    let Some(program) = orlop_testkit::process::need_peer("crictl") else { return };
    let Some(shelf) = Shelf::start(&Options::new()) else { return };
    let (content, node) = (made(30), Node::new().await);
    let crictl = Crictl { program: &program, node: &node };
    let name = shelf.put("team/app:v1", &content).await;
    let id = id(&content);

    let version = crictl.ok(&["version"]).await;
    assert!(version.contains("RuntimeName:  orlop") && version.contains("RuntimeApiVersion:  v1"), "{version}");
    let info = crictl.json(&["info"]).await;
    assert_eq!(info["status"]["conditions"][0]["reason"], "ImageStoreOnly");
    assert_eq!(crictl.json(&["images", "-o", "json"]).await["images"], serde_json::json!([]));

    let pulled = crictl.ok(&["pull", &name]).await;
    assert!(pulled.contains(&id), "{pulled}");
    let table = crictl.ok(&["images"]).await;
    assert!(table.contains(&shelf.name("team/app")) && table.contains(&id[7..20]), "{table}");
    let images = crictl.json(&["images", "-o", "json"]).await;
    assert_eq!(images["images"][0]["id"], id);
    assert_eq!(images["images"][0]["repoTags"][0], name);
    assert_eq!(crictl.ok(&["images", "-q"]).await.trim(), id);
    assert_eq!(crictl.ok(&["images", "-q", &shelf.name("team/app")]).await.trim(), id);
    assert_eq!(crictl.ok(&["images", "-q", "example.org/none"]).await.trim(), "");
    let inspected = crictl.json(&["inspecti", &id[7..20]]).await;
    assert_eq!(inspected["status"]["id"], id);
    assert_eq!(inspected["info"]["imageSpec"]["config"]["User"], "65532:65532");
    assert!(inspected.to_string().contains("removing it by any name removes all of them"), "{inspected}");
    let usage = crictl.json(&["imagefsinfo"]).await;
    let bytes = usage["status"]["imageFilesystems"][0]["usedBytes"]["value"].as_str().unwrap().to_owned();
    assert!(bytes.parse::<u64>().unwrap() >= 300_000, "{usage}");

    let missing = crictl.run(&["pull", &shelf.name("team/none:1")]).await;
    assert!(!missing.status.success() && missing.stderr.contains("not found"), "{}", missing.stderr);
    let containers = crictl.run(&["ps"]).await;
    assert!(!containers.status.success() && containers.stderr.contains("runs no containers"), "{}", containers.stderr);
    let removed = crictl.ok(&["rmi", &id[7..20]]).await;
    assert!(removed.contains(&name), "{removed}");
    assert_eq!(crictl.ok(&["images", "-q"]).await.trim(), "");
    assert!(!crictl.run(&["inspecti", &name]).await.status.success());
    assert_eq!((node.blobs(), node.snapshots("")), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_in_go_asks_as_kubelet_does() {
    let Some(module) = Module::find("cri") else { return };
    let Some(shelf) = Shelf::start(&Options::new()) else { return };
    let (content, node) = (made(31), Node::new().await);
    let name = shelf.put("team/app:v1", &content).await;
    let directory = node.directory.path().to_owned();
    let built = tokio::task::spawn_blocking(move || module.program(&directory)).await.unwrap();
    let Some(binary) = built else { return };
    let mut client = Command::new(binary);
    client.args([&address(&node.socket()), &name, &id(&content)]);
    let said = run(client).await.ok().stdout;
    assert!(said.trim_end().ends_with("all as kubelet expects it"), "{said}");
}
