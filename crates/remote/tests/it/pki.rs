//! A private CA with a server's and a client's certificate, and tokens signed under it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SigningKey as _,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub(crate) struct Pki {
    directory: tempfile::TempDir,
    token_key: KeyPair,
    token_certificate: String,
}

impl Pki {
    /// Names `127.0.0.1` and `localhost`, unless others are given.
    pub(crate) fn new() -> Self {
        Self::for_names(&["127.0.0.1", "localhost"])
    }

    pub(crate) fn for_names(names: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a test's CA");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let write = |name: &str, text: String| std::fs::write(directory.path().join(name), text).unwrap();
        write("ca.pem", ca.pem());
        let issue = |names: &[&str], usage| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            let mut params = CertificateParams::new(names).unwrap();
            params.distinguished_name.push(DnType::CommonName, "a test");
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &ca).unwrap(), key)
        };
        let (server, key) = issue(names, ExtendedKeyUsagePurpose::ServerAuth);
        write("server.pem", server.pem());
        write("server.key", key.serialize_pem());
        let (client, key) = issue(&["client"], ExtendedKeyUsagePurpose::ClientAuth);
        write("client.cert", client.pem());
        write("client.key", key.serialize_pem());
        write("both.pem", format!("{}{}", client.pem(), key.serialize_pem()));
        let (token, token_key) = issue(&["tokens"], ExtendedKeyUsagePurpose::ServerAuth);
        Self { token_certificate: STANDARD.encode(token.der()), token_key, directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn server(&self, wants_client: bool) -> Arc<rustls::ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if wants_client {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let chain = vec![CertificateDer::from_pem_file(self.path("server.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(self.path("server.key")).unwrap();
        Arc::new(builder.with_single_cert(chain, key).unwrap())
    }

    /// A token as docker-registry checks it: ES256, with the certificate in the header.
    pub(crate) fn token(&self, issuer: &str, audience: &str, access: &str) -> String {
        let now = jiff::Timestamp::now().as_second();
        let header = format!(r#"{{"typ":"JWT","alg":"ES256","x5c":["{}"]}}"#, self.token_certificate);
        let claims = format!(
            r#"{{"iss":"{issuer}","sub":"me","aud":"{audience}","exp":{},"nbf":{},"iat":{now},"jti":"1","access":{access}}}"#,
            now + 300,
            now - 10
        );
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.token_key.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(fixed(&signature)))
    }
}

/// From the signature's DER (two integers) to the 64 bytes that JWS wants.
fn fixed(der: &[u8]) -> Vec<u8> {
    let r_len = usize::from(der[3]);
    let (r, rest) = der[4..].split_at(r_len);
    let s = &rest[2..2 + usize::from(rest[1])];
    let mut out = Vec::with_capacity(64);
    for number in [r, s] {
        let number = &number[number.iter().take_while(|b| **b == 0).count()..];
        out.extend(std::iter::repeat_n(0, 32 - number.len()));
        out.extend_from_slice(number);
    }
    out
}

/// `key: "path"` for YAML and TOML.
pub(crate) fn quoted(path: &Path) -> String {
    format!("{:?}", path.to_str().unwrap())
}
