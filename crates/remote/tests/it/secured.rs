//! docker-registry with passwords, tokens and TLS, and behind a proxy that cuts connections.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use orlop_remote::{Client, ClientOptions, Error, Tuning, Uploaded};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::common::*;
use crate::fake::*;
use crate::pki::{Pki, quoted};

/// `htpasswd -Bbn` of apache2-utils; `None` where it is not installed.
fn htpasswd(user: &str, password: &str) -> Option<tempfile::NamedTempFile> {
    let Ok(output) = Command::new("htpasswd").args(["-Bbn", user, password]).output() else {
        eprintln!("skipped: htpasswd is not installed (apt-get install apache2-utils)");
        return None;
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), output.stdout).unwrap();
    Some(file)
}

#[tokio::test]
async fn passwords_over_tls_with_a_private_ca() {
    let Some(passwords) = htpasswd("me", "secret") else { return };
    let pki = Pki::new();
    let tls = format!(
        "  tls:\n    certificate: {}\n    key: {}\n    clientcas: [{}]",
        quoted(&pki.path("server.pem")),
        quoted(&pki.path("server.key")),
        quoted(&pki.path("ca.pem"))
    );
    let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}", quoted(passwords.path()));
    let Some(registry) = Registry::start(&tls, &auth) else { return };
    let text = format!(
        "server = 'https://{}'\nca = {}\nclient = [[{}, {}]]",
        registry.address,
        quoted(&pki.path("ca.pem")),
        quoted(&pki.path("client.cert")),
        quoted(&pki.path("client.key"))
    );
    let root = hosts(&[(&registry.address.to_string(), &text)]);
    let with = |password: &str| {
        let options = ClientOptions {
            hosts_dirs: vec![root.path().to_owned()],
            credentials: Some(("me".to_owned(), password.to_owned())),
            ..ClientOptions::default()
        };
        Client::with_tuning(options, quick())
    };
    let repository = registry.repository("private/app");
    let bytes = noise(1, 500_000);
    push_image(&with("secret"), &repository, "v1", &bytes).await;
    let reference = repository.with_tag("v1").unwrap();
    assert_eq!(pull_image(&with("secret"), &reference).await.unwrap(), bytes);
    let error = with("guess").resolve(&reference).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    let anonymous = client_with_hosts(&root).resolve(&reference).await.unwrap_err();
    assert!(matches!(anonymous, Error::Unauthorized { .. }), "{anonymous}");
}

/// A token server: `me` with `secret` may do everything, everybody may read what is public.
async fn token_server(pki: Arc<Pki>) -> Fake {
    Fake::start(move |seen| {
        let known = match seen.method.as_str() {
            // An old server: it knows no POST.
            "POST" => return status(404),
            _ => seen.header("authorization") == Some(&basic("me", "secret")),
        };
        if seen.header("authorization").is_some() && !known {
            return reply(401, &[], r#"{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}"#);
        }
        let url = url::Url::parse(&format!("http://h{}", seen.uri)).unwrap();
        let access: Vec<String> = url
            .query_pairs()
            .filter(|(name, _)| name == "scope")
            .filter_map(|(_, scope)| {
                let (name, actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
                let allowed: Vec<_> = actions
                    .split(',')
                    .filter(|action| known || (*action == "pull" && name.starts_with("public/")))
                    .map(|action| format!("{action:?}"))
                    .collect();
                Some(format!(r#"{{"type":"repository","name":"{name}","actions":[{}]}}"#, allowed.join(",")))
            })
            .collect();
        let token = pki.token("orlop-test", "registry.test", &format!("[{}]", access.join(",")));
        reply(200, &[], format!(r#"{{"token":"{token}","expires_in":300}}"#))
    })
    .await
}

#[tokio::test]
async fn tokens_of_a_token_server() {
    let pki = Arc::new(Pki::new());
    let tokens = token_server(pki.clone()).await;
    let auth = format!(
        "auth:\n  token:\n    realm: http://{}/token\n    service: registry.test\n    issuer: orlop-test\n    \
         rootcertbundle: {}",
        tokens.address,
        quoted(&pki.path("ca.pem"))
    );
    let Some(registry) = Registry::start("", &auth) else { return };
    let (owner, stranger) = (client_with_user("me", "secret"), client());
    let bytes = noise(2, 300_000);
    for path in ["private/app", "public/app"] {
        push_image(&owner, &registry.repository(path), "v1", &bytes).await;
    }
    // A mount needs to read the other repository too.
    let mounted = owner
        .push_blob(
            &registry.repository("private/other"),
            &layer(&bytes),
            &[registry.repository("private/app")],
            &|_| panic!("nothing has to be sent"),
            &|_| {},
        )
        .await
        .unwrap();
    assert_eq!(mounted, Uploaded::Mounted);
    let reference = |path: &str| registry.repository(path).with_tag("v1").unwrap();
    assert_eq!(pull_image(&owner, &reference("private/app")).await.unwrap(), bytes);
    assert_eq!(pull_image(&stranger, &reference("public/app")).await.unwrap(), bytes);
    let error = pull_image(&stranger, &reference("private/app")).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. } | Error::Denied { .. }), "{error}");
    let wrong = client_with_user("me", "guess").resolve(&reference("public/app")).await.unwrap_err();
    assert!(wrong.to_string().contains("wrong password"), "{wrong}");
}

/// Passes bytes on and breaks the first `cuts` connections after `limit` of them in either direction.
async fn cutting_proxy(to: SocketAddr, limit: usize, mut cuts: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((client, _)) = listener.accept().await else { return };
            let Ok(server) = TcpStream::connect(to).await else { return };
            let limit = if cuts > 0 { limit } else { usize::MAX };
            cuts = cuts.saturating_sub(1);
            tokio::spawn(async move {
                let (client_read, client_write) = client.into_split();
                let (server_read, server_write) = server.into_split();
                // Whichever direction is used up first ends both.
                tokio::select! {
                    () = pass(client_read, server_write, limit) => {}
                    () = pass(server_read, client_write, limit) => {}
                }
            });
        }
    });
    address
}

async fn pass(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf, mut limit: usize) {
    let mut buffer = vec![0; 16 * 1024];
    while limit > 0 {
        let most = buffer.len().min(limit);
        match from.read(&mut buffer[..most]).await {
            Ok(read) if read > 0 => {
                limit -= read;
                if to.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

#[tokio::test]
async fn a_pull_survives_a_network_that_cuts_every_connection() {
    let Some(registry) = Registry::start("", "") else { return };
    let bytes = noise(3, 5_000_000);
    push_image(&client(), &registry.repository("cut/app"), "v1", &bytes).await;
    let address = cutting_proxy(registry.address, 400_000, usize::MAX).await;
    let reference: orlop_oci::Reference = format!("{address}/cut/app:v1").parse().unwrap();
    for parallel_from in [u64::MAX, 1_000_000] {
        let tuning =
            Tuning { parallel_from, parallel_below: u64::MAX, probe_bytes: 300_000, range_bytes: 300_000, ..quick() };
        let client = Client::with_tuning(ClientOptions::default(), tuning);
        assert!(pull_image(&client, &reference).await.unwrap() == bytes);
    }
}

#[tokio::test]
async fn a_push_survives_a_network_that_cuts_some_connections() {
    let Some(registry) = Registry::start("", "") else { return };
    let bytes = noise(4, 5_000_000);
    for (path, upload_chunk_bytes) in [("whole", u64::MAX), ("chunks", 150_000)] {
        // One for finding out that the registry speaks HTTP, two for the upload.
        let address = cutting_proxy(registry.address, 400_000, 3).await;
        let through = orlop_oci::RepositoryName::parse(&format!("{address}/{path}")).unwrap();
        let tuning = Tuning { upload_chunk_bytes, ..quick() };
        push_image(&Client::with_tuning(ClientOptions::default(), tuning), &through, "v1", &bytes).await;
        // What came through the broken network is what is there.
        let direct = registry.repository(path).with_tag("v1").unwrap();
        assert!(pull_image(&client(), &direct).await.unwrap() == bytes);
    }
}
