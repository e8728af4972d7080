//! Users, rules and tokens of gateways: one registry, whichever of them is asked.

use orlop_testkit::process::output;
use reqwest::{Client as Http, RequestBuilder};
use rustix::process::Signal;
use serde_json::Value;

use crate::world::{Gateway, World};

/// alice's password is wonderland, bob's is builder, as `htpasswd -B` writes them.
const USERS: &str = "alice:$2b$04$abcdefghijklmnopqrstuujZkTwHUiJ9XdZPwKfcfDo7dMp5DjlTu\n\
    bob:$2y$04$abcdefghijklmnopqrstuu/GACL4BASs5qZJ2H5JEo0yW9XEj5.iq\n";

/// What clients call all gateways.
const NAME: &str = "registry.example";

/// Writes a configuration in which alice does what she likes in her team's repositories, and bob reads all; returns its name.
fn configure(world: &World, more: &str) -> String {
    let dir = world.dir.path();
    let (users, key, audit) = (dir.join("users"), dir.join("token-key"), dir.join("audit.jsonl"));
    std::fs::write(&users, USERS).unwrap();
    std::fs::write(&key, [7; 32]).unwrap();
    let text = format!(
        "[registry]\nusers = {users:?}\nauthentication = \"token\"\ntoken_key = {key:?}\naudit = {audit:?}\n\
         permissions = [{{ repositories = [\"team/*\"], users = [\"alice\"], actions = [\"pull\", \"push\", \"delete\"] }}, \
         {{ repositories = [\"*\"], users = [\"bob\"], actions = [\"pull\"] }}]\n{more}\n"
    );
    let config = dir.join("gateway.toml");
    std::fs::write(&config, text).unwrap();
    config.to_str().unwrap().to_owned()
}

/// A request to one gateway, as its clients call all of them.
fn ask(http: &Http, gateway: &Gateway, method: &str, path: &str) -> RequestBuilder {
    http.request(method.parse().unwrap(), format!("http://{}{path}", gateway.host)).header("host", NAME)
}

async fn token(http: &Http, gateway: &Gateway, user: &str, password: &str, scope: &str) -> String {
    let path = format!("/token?service={NAME}&scope={scope}");
    let answer = ask(http, gateway, "GET", &path).basic_auth(user, Some(password)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_one_gateway_counts_at_all_and_rules_are_read_anew() {
    let Some(world) = World::new() else { return };
    let config = configure(&world, "");
    let mut gateways = [world.gateway("1", &["--config", &config]), world.gateway("2", &["--config", &config])];
    let http = Http::new();
    let alice = token(&http, &gateways[0], "alice", "wonderland", "repository:team/app:pull,push").await;
    let bob = token(&http, &gateways[1], "bob", "builder", "repository:team/app:pull,push").await;
    let blob = orlop_testkit::image::noise(3, 1000);
    let digest = orlop_oci::Digest::of(&blob);
    let upload = format!("/v2/team/app/blobs/uploads/?digest={digest}");
    let push = async |gateway: &Gateway, token: &str| {
        let request = ask(&http, gateway, "POST", &upload).bearer_auth(token).body(blob.clone());
        request.send().await.unwrap().status().as_u16()
    };
    let pull = async |gateway: &Gateway, token: Option<&str>| {
        let request = ask(&http, gateway, "GET", &format!("/v2/team/app/blobs/{digest}"));
        let request = token.into_iter().fold(request, RequestBuilder::bearer_auth);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(push(&gateways[1], &bob).await, 403);
    assert_eq!(push(&gateways[1], &alice).await, 201);
    assert_eq!(pull(&gateways[0], None).await, 401);
    assert_eq!((pull(&gateways[0], Some(&bob)).await, pull(&gateways[1], Some(&bob)).await), (200, 200));

    // What is read anew counts for tokens that are out.
    configure(&world, "read_only = true");
    gateways[0].daemon.signal(Signal::HUP);
    gateways[0].daemon.wait_for(|daemon| daemon.log().contains("who may do what was read anew").then_some(()));
    assert_eq!((push(&gateways[0], &alice).await, push(&gateways[1], &alice).await), (405, 201));
    assert_eq!(pull(&gateways[0], Some(&alice)).await, 200);
    std::fs::write(&config, "[registry]\nauthentication = \"token\"\n").unwrap();
    gateways[0].daemon.signal(Signal::HUP);
    gateways[0].daemon.wait_for(|daemon| daemon.log().contains("the new configuration is refused").then_some(()));
    assert_eq!(pull(&gateways[0], None).await, 401, "the old rules stay in force");

    let audit = std::fs::read_to_string(world.dir.path().join("audit.jsonl")).unwrap();
    let lines: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let has = |user: &str, action: &str, allowed: bool| {
        lines.iter().any(|line| line["user"] == user && line["action"] == action && line["allowed"] == allowed)
    };
    assert!(has("alice", "token", true) && has("alice", "push", true) && has("bob", "push", false), "{audit}");
    for gateway in &mut gateways {
        let log = gateway.daemon.log();
        assert!(![&alice, &bob].iter().any(|token| log.contains(token.as_str())) && !log.contains("wonderland"));
    }
    assert!(!audit.contains(&alice) && !audit.contains("wonderland"));
}

/// A gateway that other machines reach is open to nobody by an oversight.
#[test]
fn a_gateway_for_other_machines_wants_to_know_who_may_do_what() {
    let Some(world) = World::new() else { return };
    let done = output(&mut world.registry(&["--listen", "0.0.0.0:0"]));
    assert_eq!(done.status.code(), Some(2));
    assert!(done.stderr.contains("nobody said who may do what"), "{}", done.stderr);
    let config = configure(&world, "");
    let command = world.registry(&["--config", &config, "--listen", "0.0.0.0:0"]);
    drop(Gateway::start(command, &world.dir.path().join("1")));
}
