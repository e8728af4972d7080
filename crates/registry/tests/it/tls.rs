//! TLS with a private CA, as a cluster's registry has it.

use std::sync::Arc;

use orlop_content::MemoryStore;
use orlop_registry::{MemoryIndex, Registry, ServeOptions};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reqwest::{Certificate, Client};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

#[tokio::test]
async fn only_who_trusts_the_ca_is_served() {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let tls = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key);

    let registry = Registry::new(Arc::new(MemoryStore::new()), Arc::new(MemoryIndex::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = registry
        .serve(listener, ServeOptions { tls: Some(Arc::new(tls.unwrap())), ..ServeOptions::default() })
        .unwrap();
    let url = format!("https://localhost:{}/v2/", server.address().port());

    let trusted = Certificate::from_der(ca.der()).unwrap();
    let client = Client::builder().tls_certs_only([trusted]).build().unwrap();
    // A client that never says hello holds up nobody.
    let _silent = TcpStream::connect(server.address()).await.unwrap();
    assert_eq!(client.get(&url).send().await.unwrap().status(), 200);
    assert!(Client::new().get(&url).send().await.is_err(), "an unknown CA");
    assert!(Client::new().get(url.replace("https", "http")).send().await.is_err(), "no plain HTTP");
}
