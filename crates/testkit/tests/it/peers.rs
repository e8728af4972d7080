//! The real peers and the broken network: they start, do what they say, and end.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use orlop_testkit::archive::{oci_archive, write_layout};
use orlop_testkit::containerd::{self, Containerd, Programs};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process::{need, need_root, output, run};
use orlop_testkit::proxy::{Fault, Proxy};
use orlop_testkit::registry::{self, PASSWORD, Registry, USER};
use orlop_testkit::tls::Certificates;
use orlop_testkit::token::{self, TokenServer};
use rustix::process::{Pid, test_kill_process};

fn image() -> Content {
    Content::image(&Image::host().layer(Layer::noise("f", 1, 200_000)))
}

/// `skopeo copy` of a made image to a registry, with more arguments.
fn copy(host: &str, more: &[&str]) -> bool {
    let dir = tempfile::tempdir().unwrap();
    write_layout(dir.path(), &[("one", &image())]).unwrap();
    let source = format!("oci:{}:one", dir.path().display());
    let target = format!("docker://{host}/x/y:1");
    let mut args = vec!["copy", "--quiet"];
    args.extend(more);
    args.extend([source.as_str(), target.as_str()]);
    run("skopeo", args).status.success()
}

#[test]
fn a_registry_takes_images_and_ends_when_dropped() {
    if need("skopeo", "skopeo").is_none() {
        return;
    }
    let Some(registry) = Registry::start(&registry::Options::new()) else { return };
    assert!(copy(&registry.host(), &["--dest-tls-verify=false"]), "{}", registry.log());
    let layer = &image().layers()[0];
    assert_eq!(std::fs::read(registry.blob_path(layer)).unwrap(), image().bytes(layer));
    assert!(registry.log().contains("PUT /v2/x/y/manifests/1"), "{}", registry.log());
    assert!(registry.url().starts_with("http://127.0.0.1:"));
    let (address, dir) = (registry.address(), registry.dir().to_owned());
    drop(registry);
    assert!(TcpStream::connect(address).is_err());
    assert!(!dir.exists());
}

#[test]
fn a_registry_with_basic_authentication() {
    if need("skopeo", "skopeo").is_none() {
        return;
    }
    let Some(registry) = Registry::start(&registry::Options::new().basic()) else { return };
    assert!(!copy(&registry.host(), &["--dest-tls-verify=false"]));
    assert!(!copy(&registry.host(), &["--dest-tls-verify=false", "--dest-creds", "user:wrong"]));
    let right = format!("{USER}:{PASSWORD}");
    assert!(copy(&registry.host(), &["--dest-tls-verify=false", "--dest-creds", &right]), "{}", registry.log());
}

#[test]
fn a_registry_with_tokens() {
    if need("skopeo", "skopeo").is_none() {
        return;
    }
    let tokens = TokenServer::start(token::Options::default());
    let Some(registry) = Registry::start(&registry::Options::new().token(&tokens)) else { return };
    let copy = |creds: &str| copy(&registry.host(), &["--dest-tls-verify=false", "--dest-creds", creds]);
    assert!(!copy("user:wrong"));
    assert!(tokens.asked().iter().all(|a| a.status == 401));
    assert!(copy("user:secret"), "{}\n{:?}", registry.log(), tokens.asked());
    let last = tokens.asked().pop().unwrap();
    assert_eq!((last.user.as_deref(), last.status), (Some("user"), 200));
    assert_eq!(last.scopes, ["repository:x/y:pull,push"]);
    tokens.set(|o| o.get_status = Some(503));
    assert!(!copy("user:secret"));
}

#[test]
fn tokens_by_post() {
    let tokens = TokenServer::start(token::Options::default());
    let ask = |body: &str| -> (String, String) {
        let host = tokens.realm().trim_start_matches("http://").trim_end_matches("/token").to_owned();
        let mut stream = TcpStream::connect(&host).unwrap();
        let head = "Content-Type: application/x-www-form-urlencoded\r\nConnection: close\r\n";
        write!(stream, "POST /token HTTP/1.1\r\nHost: {host}\r\n{head}Content-Length: {}\r\n\r\n{body}", body.len())
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    };
    let scope = "scope=repository%3Aa%2Fb%3Apull&service=x";
    let (status, body) = ask(&format!("grant_type=password&username=user&password=secret&{scope}"));
    assert!(status.contains("200") && body.contains("access_token"), "{status} {body}");
    let (status, _) = ask(&format!("grant_type=password&username=user&password=no&{scope}"));
    assert!(status.contains("401"), "{status}");
    tokens.set(|o| o.post_status = Some(405));
    let (status, _) = ask(&format!("grant_type=refresh_token&refresh_token=user%3Asecret&{scope}"));
    assert!(status.contains("405"), "{status}");
    assert_eq!(tokens.asked()[0].scopes, ["repository:a/b:pull"]);
    assert_eq!(tokens.asked().iter().map(|a| a.status).collect::<Vec<_>>(), [200, 401, 405]);
}

#[test]
fn a_registry_with_a_private_authority_and_client_certificates() {
    let Some(curl) = need("curl", "curl") else { return };
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::create(dir.path());
    let curl = |url: &str, args: &[&Path]| {
        let mut command = Command::new(&curl);
        command.args(["-sf", url]);
        for pair in args.chunks(2) {
            command.args(pair);
        }
        output(&mut command).status.success()
    };
    let ca = [Path::new("--cacert"), &certificates.ca];
    let both =
        [ca.as_slice(), &[Path::new("--cert"), &certificates.client, Path::new("--key"), &certificates.client_key]]
            .concat();

    let Some(plain) = Registry::start(&registry::Options::new().tls(&certificates)) else { return };
    let url = format!("{}/v2/", plain.url());
    assert!(url.starts_with("https://"));
    assert!(!curl(&url, &[]), "the authority is not trusted by default");
    assert!(curl(&url, &ca), "{}", plain.log());

    let Some(mutual) = Registry::start(&registry::Options::new().client_certificates(&certificates)) else { return };
    let url = format!("{}/v2/", mutual.url());
    assert!(!curl(&url, &ca));
    assert!(curl(&url, &both), "{}", mutual.log());
}

#[test]
fn a_mirror_fetches_from_its_upstream() {
    if need("skopeo", "skopeo").is_none() {
        return;
    }
    let Some(upstream) = Registry::start(&registry::Options::new()) else { return };
    assert!(copy(&upstream.host(), &["--dest-tls-verify=false"]));
    let mirror = Registry::start(&registry::Options::new().mirror_of(&upstream.url())).unwrap();
    let source = format!("docker://{}/x/y:1", mirror.host());
    let raw = run("skopeo", ["inspect", "--tls-verify=false", "--raw", &source]).ok().stdout;
    let content = image();
    assert_eq!(raw.as_bytes(), content.bytes(&content.root.digest));
}

/// A server that answers each connection with `reply` once it has read `ping`.
fn server(reply: Vec<u8>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut ping = [0; 4];
            // Whoever breaks the connection is not this server's business.
            if stream.read_exact(&mut ping).is_ok() {
                let _ = stream.write_all(&reply);
            }
        }
    });
    address
}

fn fetch(proxy: &Proxy) -> Vec<u8> {
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    let mut got = Vec::new();
    // A cut connection may be an end or an error.
    let _ = stream.write_all(b"ping");
    let _ = stream.read_to_end(&mut got);
    got
}

#[test]
fn the_proxy_breaks_the_connections_it_is_told_to() {
    let reply: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
    let proxy = Proxy::start(server(reply.clone()));
    proxy.next([Fault::None, Fault::CutAfter(70_000), Fault::CorruptAt(100_001), Fault::Refuse, Fault::CutAfter(0)]);
    assert_eq!(fetch(&proxy), reply);
    assert_eq!(fetch(&proxy), reply[..70_000]);
    let corrupt = fetch(&proxy);
    let wrong: Vec<usize> = (0..reply.len()).filter(|i| corrupt[*i] != reply[*i]).collect();
    assert_eq!((corrupt.len(), wrong), (reply.len(), vec![100_001]));
    assert!(fetch(&proxy).is_empty());
    assert!(fetch(&proxy).is_empty());
    assert_eq!(fetch(&proxy), reply, "after the plan comes the default");
    let counts = proxy.counts();
    assert_eq!((counts.connections, counts.faults), (6, 4));
    assert_eq!(counts.down, 3 * 200_000 + 70_000);
    proxy.set_default(Fault::CutAfter(10));
    assert_eq!(fetch(&proxy), reply[..10]);
}

#[test]
fn a_stalled_connection_goes_on_when_released() {
    let reply = vec![7u8; 50_000];
    let proxy = Proxy::start(server(reply.clone()));
    proxy.next([Fault::StallAfter(1_000)]);
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    stream.write_all(b"ping").unwrap();
    let mut got = vec![0; 1_000];
    stream.read_exact(&mut got).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
    assert!(stream.read(&mut [0; 1]).is_err(), "nothing comes");
    proxy.release();
    stream.set_read_timeout(None).unwrap();
    stream.read_to_end(&mut got).unwrap();
    assert_eq!(got, reply);
}

fn containerd_pulls(programs: Option<Programs>, cri: bool) {
    if !need_root() || need("skopeo", "skopeo").is_none() {
        return;
    }
    let Some(programs) = programs else { return };
    let Some(registry) = Registry::start(&registry::Options::new()) else { return };
    assert!(copy(&registry.host(), &["--dest-tls-verify=false"]));
    let containerd = Containerd::start(&programs, &containerd::Options { cri, ..containerd::Options::default() });
    let name = format!("{}/x/y:1", registry.host());
    containerd.ctr("k8s.io", &["images", "pull", "--plain-http", &name]).ok();
    let listed = containerd.ctr("k8s.io", &["images", "ls", "-q"]).ok().stdout;
    assert!(listed.lines().any(|l| l == name), "{listed}");
    let blobs = containerd.ctr("k8s.io", &["content", "ls", "-q"]).ok().stdout;
    assert_eq!(blobs.lines().count(), 3, "{blobs}");
    let archive = registry.dir().join("archive.tar");
    std::fs::write(&archive, oci_archive(&[("docker.io/library/in:1", &image())])).unwrap();
    containerd.ctr("k8s.io", &["images", "import", archive.to_str().unwrap()]).ok();
    let listed = containerd.ctr("k8s.io", &["images", "ls", "-q"]).ok().stdout;
    assert!(listed.lines().any(|l| l == "docker.io/library/in:1"), "{listed}");
    assert!(containerd.root().exists() && containerd.socket().exists());
}

#[test]
fn debians_containerd_pulls_and_imports() {
    containerd_pulls(Programs::debian(), false);
}

#[test]
fn the_current_containerd_pulls_and_imports() {
    containerd_pulls(Programs::current(), false);
}

#[test]
fn containerd_with_cri_writes_the_id_record() {
    if !need_root() {
        return;
    }
    let Some(programs) = Programs::debian() else { return };
    let options = containerd::Options { cri: true, ..containerd::Options::default() };
    let containerd = Containerd::start(&programs, &options);
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("archive.tar");
    std::fs::write(&archive, oci_archive(&[("docker.io/library/in:1", &image())])).unwrap();
    containerd.ctr("k8s.io", &["images", "import", archive.to_str().unwrap()]).ok();
    let id = image().image_id().unwrap().to_string();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !containerd.ctr("k8s.io", &["images", "ls", "-q"]).ok().stdout.contains(&id) {
        assert!(std::time::Instant::now() < deadline, "no record {id}\n{}", containerd.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_daemon_ends_with_its_guard() {
    let dir = tempfile::tempdir().unwrap();
    let daemon =
        orlop_testkit::process::Daemon::start(Command::new("sleep").arg("1000"), &dir.path().join("log")).unwrap();
    let pid = Pid::from_raw(daemon.id() as i32).unwrap();
    assert!(test_kill_process(pid).is_ok());
    drop(daemon);
    assert!(test_kill_process(pid).is_err());
}
