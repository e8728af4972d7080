//! Private CAs, client certificates, certificates that nobody checks, and HTTP where HTTPS was expected.

use bytes::Bytes;
use orlop_oci::Document;
use orlop_remote::{Client, ClientOptions, Error};

use crate::common::*;
use crate::fake::*;
use crate::pki::{Pki, quoted};

fn document() -> Document {
    manifest(&noise(1, 10), &layer(&noise(2, 10)), "")
}

async fn secure(pki: &Pki, wants_client: bool) -> Fake {
    let document = document();
    Fake::tls(pki.server(wants_client), move |seen| good(seen, &document, &Bytes::new())).await
}

fn reference() -> orlop_oci::Reference {
    "registry.invalid/a:1".parse().unwrap()
}

async fn resolve(text: &str) -> Result<(), Error> {
    let root = hosts(&[("registry.invalid", text)]);
    client_with_hosts(&root).resolve(&reference()).await.map(drop)
}

#[tokio::test]
async fn a_private_ca_is_trusted_when_named_and_the_error_says_how() {
    let pki = Pki::new();
    let fake = secure(&pki, false).await;
    let server = format!("server = 'https://{}'", fake.address);
    let error = resolve(&server).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Tls { .. }) && !error.is_temporary(), "{text}");
    assert!(text.contains("hosts.toml") && text.contains("`ca`"), "{text}");
    resolve(&format!("{server}\nca = {}", quoted(&pki.path("ca.pem")))).await.unwrap();
    resolve(&format!("{server}\nca = [{}]", quoted(&pki.path("ca.pem")))).await.unwrap();
    resolve(&format!("{server}\nskip_verify = true")).await.unwrap();
    let other = Pki::new();
    let wrong = resolve(&format!("{server}\nca = {}", quoted(&other.path("ca.pem")))).await;
    assert!(matches!(wrong, Err(Error::Tls { .. })), "{wrong:?}");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let pki = Pki::for_names(&["elsewhere.example"]);
    let fake = secure(&pki, false).await;
    let text = format!("server = 'https://{}'\nca = {}", fake.address, quoted(&pki.path("ca.pem")));
    let error = resolve(&text).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }) && error.to_string().contains("name"), "{error}");
}

#[tokio::test]
async fn client_certificates_are_shown_in_every_form() {
    let pki = Pki::new();
    let fake = secure(&pki, true).await;
    let base = format!("server = 'https://{}'\nca = {}", fake.address, quoted(&pki.path("ca.pem")));
    let error = resolve(&base).await.unwrap_err();
    assert!(error.to_string().contains("client certificate"), "{error}");
    let (cert, key, both) = (pki.path("client.cert"), pki.path("client.key"), pki.path("both.pem"));
    for client in [format!("[[{}, {}]]", quoted(&cert), quoted(&key)), format!("[{}]", quoted(&both)), quoted(&both)] {
        resolve(&format!("{base}\nclient = {client}")).await.unwrap();
    }
    let error = resolve(&format!("{base}\nclient = {}", quoted(&cert))).await.unwrap_err();
    assert!(matches!(error, Error::Config { .. }) && error.to_string().contains("private key"), "{error}");
}

#[tokio::test]
async fn docker_s_directory_of_certificates_works_too() {
    let pki = Pki::new();
    let fake = secure(&pki, true).await;
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join(format!("127.0.0.1:{}", fake.address.port()));
    std::fs::create_dir(&directory).unwrap();
    for (from, to) in [("ca.pem", "ca.crt"), ("client.cert", "client.cert"), ("client.key", "client.key")] {
        std::fs::copy(pki.path(from), directory.join(to)).unwrap();
    }
    client_with_hosts(&root).resolve(&fake.reference("a:1")).await.unwrap();
}

#[tokio::test]
async fn loopback_registries_are_not_checked_and_step_down_to_http_by_themselves() {
    let pki = Pki::for_names(&["elsewhere.example"]);
    let fake = secure(&pki, false).await;
    client().resolve(&fake.reference("a:1")).await.unwrap();
    let document = document();
    let plain = Fake::start(move |seen| good(seen, &document, &Bytes::new())).await;
    client().resolve(&plain.reference("a:1")).await.unwrap();
    let options = ClientOptions { plain_http: true, ..ClientOptions::default() };
    Client::with_tuning(options, quick()).resolve(&plain.reference("a:1")).await.unwrap();
    let text = format!("server = 'https://{}'", plain.address);
    let error = resolve(&text).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }) && error.to_string().contains("plain HTTP"), "{error}");
}

#[tokio::test]
async fn https_is_not_left_for_http() {
    let pki = Pki::new();
    let plain = Fake::start(|_| reply(200, &[], "stolen")).await;
    let to = format!("http://{}/x?token=secret", plain.address);
    let fake = Fake::tls(pki.server(false), move |_| reply(302, &[("location", &to)], "")).await;
    let text = format!("server = 'https://{}'\nca = {}", fake.address, quoted(&pki.path("ca.pem")));
    let root = hosts(&[("registry.invalid", &text)]);
    let error = client_with_hosts(&root)
        .blob(reference().repository().unwrap(), &layer(&noise(1, 6)), 0)
        .await
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
    assert!(plain.seen().is_empty());
}

#[tokio::test]
async fn credentials_are_not_sent_to_a_plain_realm_of_a_secure_registry() {
    let pki = Pki::new();
    let fake = Fake::tls(pki.server(false), |_| {
        reply(401, &[("www-authenticate", "Bearer realm=\"http://tokens.invalid/t\"")], "")
    })
    .await;
    let text = format!("server = 'https://{}'\nca = {}", fake.address, quoted(&pki.path("ca.pem")));
    let root = hosts(&[("registry.invalid", &text)]);
    let options = ClientOptions {
        hosts_dirs: vec![root.path().to_owned()],
        credentials: Some(("me".to_owned(), "pass".to_owned())),
        ..ClientOptions::default()
    };
    let error = Client::with_tuning(options, quick()).resolve(&reference()).await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }) && error.to_string().contains("https realm"), "{error}");
}

#[tokio::test]
async fn a_client_certificate_is_not_shown_after_a_redirect() {
    let pki = Pki::new();
    // The second host would take the certificate, but must not see it.
    let elsewhere = secure(&pki, true).await;
    let to = format!("https://{}/data", elsewhere.address);
    let first = Fake::tls(pki.server(true), move |_| reply(307, &[("location", &to)], "")).await;
    let text = format!(
        "server = 'https://{}'\nca = {}\nclient = {}",
        first.address,
        quoted(&pki.path("ca.pem")),
        quoted(&pki.path("both.pem"))
    );
    let root = hosts(&[("registry.invalid", &text)]);
    let error = client_with_hosts(&root)
        .blob(reference().repository().unwrap(), &layer(&noise(1, 6)), 0)
        .await
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error}");
    assert_eq!(first.seen().len(), 1);
    assert!(elsewhere.seen().is_empty());
}
