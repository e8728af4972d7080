//! A private certificate authority with a server's and a client's certificate.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// Certificates as PEM files in a directory.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// The authority's certificate: what a client must trust.
    pub ca: PathBuf,
    /// The server's certificate, for `localhost`, `127.0.0.1` and `::1`.
    pub server: PathBuf,
    /// The server's key.
    pub server_key: PathBuf,
    /// The client's certificate.
    pub client: PathBuf,
    /// The client's key.
    pub client_key: PathBuf,
}

impl Certificates {
    /// Makes a new authority and writes everything into `dir`.
    ///
    /// # Panics
    /// If the directory cannot be written.
    pub fn create(dir: &Path) -> Self {
        let files = Self {
            ca: dir.join("ca.pem"),
            server: dir.join("server.pem"),
            server_key: dir.join("server-key.pem"),
            client: dir.join("client.pem"),
            client_key: dir.join("client-key.pem"),
        };
        let ca_key = KeyPair::generate().expect("a key");
        let mut ca = named("Orlop test authority", &[]);
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_certificate = ca.self_signed(&ca_key).expect("a certificate");
        write(&files.ca, &ca_certificate.pem());
        let issuer = Issuer::new(ca, ca_key);

        let mut server = named("Orlop test server", &["localhost", "127.0.0.1", "::1"]);
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        issue(server, &issuer, &files.server, &files.server_key);
        let mut client = named("Orlop test client", &[]);
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        issue(client, &issuer, &files.client, &files.client_key);
        files
    }
}

fn named(name: &str, alternatives: &[&str]) -> CertificateParams {
    let alternatives: Vec<String> = alternatives.iter().map(|a| (*a).to_owned()).collect();
    let mut params = CertificateParams::new(alternatives).expect("names are plain");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn issue(params: CertificateParams, issuer: &Issuer<'_, KeyPair>, certificate: &Path, key: &Path) {
    let pair = KeyPair::generate().expect("a key");
    let signed = params.signed_by(&pair, issuer).expect("a certificate");
    write(certificate, &signed.pem());
    write(key, &pair.serialize_pem());
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
