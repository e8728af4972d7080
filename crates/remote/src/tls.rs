//! What TLS trusts, and who it says we are.
//!
//! Trusted are the system's certificates, found where OpenSSL would look (its variables `SSL_CERT_FILE` and
//! `SSL_CERT_DIR` count), and on a machine that has none, Mozilla's list as it was when Orlop was built. CAs from
//! hosts.toml come on top of these, for their host only.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme, WantsVerifier};

use crate::error::{ConfigError, Error, Result};

/// A file in PEM form, as it was read.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Pem {
    /// Where it was.
    pub(crate) path: PathBuf,
    /// What was in it.
    pub(crate) bytes: Vec<u8>,
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The bytes may be a private key.
        self.path.fmt(f)
    }
}

/// How to do TLS with one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsOptions {
    /// CAs beside the system's.
    pub(crate) ca: Vec<Pem>,
    /// Certificates with their keys.
    pub(crate) clients: Vec<(Pem, Pem)>,
    /// Believe every certificate.
    pub(crate) skip_verify: bool,
}

impl TlsOptions {
    /// Whether any certificate was configured.
    pub(crate) fn has_certificates(&self) -> bool {
        !(self.ca.is_empty() && self.clients.is_empty())
    }
}

/// A configuration that believes nobody.
pub(crate) fn without_roots() -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(builder(&provider)?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

fn builder(provider: &Arc<CryptoProvider>) -> Result<ConfigBuilder<ClientConfig, WantsVerifier>> {
    ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Config { path: PathBuf::new(), reason: e.into() })
}

/// A TLS configuration; `identify` says whether client certificates may be shown.
pub(crate) fn client_config(options: &TlsOptions, identify: bool) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = builder(&provider)?;
    let builder = if options.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(NoVerifier(provider.clone())))
    } else {
        builder.with_root_certificates(roots(&options.ca)?)
    };
    let mut config = if identify && !options.clients.is_empty() {
        let keys = options.clients.iter().map(|(cert, key)| certified_key(&provider, cert, key));
        builder.with_client_cert_resolver(Arc::new(Identities(keys.collect::<Result<_>>()?)))
    } else {
        builder.with_no_client_auth()
    };
    // HTTP/1.1 only: parallel ranges are to be separate TCP connections, and a stalled one must not hold the others.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn roots(extra: &[Pem]) -> Result<RootCertStore> {
    static SYSTEM: OnceLock<RootCertStore> = OnceLock::new();
    let mut roots = SYSTEM.get_or_init(system_roots).clone();
    for pem in extra {
        let mut found = false;
        for certificate in CertificateDer::pem_slice_iter(&pem.bytes) {
            let certificate = certificate.map_err(|_| bad_pem(pem, "CA certificate"))?;
            roots.add(certificate).map_err(|e| Error::Config { path: pem.path.clone(), reason: e.into() })?;
            found = true;
        }
        if !found {
            return Err(bad_pem(pem, "CA certificate"));
        }
    }
    Ok(roots)
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "part of the system's CA store cannot be read");
    }
    let (_, ignored) = roots.add_parsable_certificates(native.certs);
    if ignored > 0 {
        tracing::debug!(ignored, "certificates of the system's CA store that are not usable");
    }
    if roots.is_empty() {
        tracing::info!("this machine has no CA certificates; Mozilla's list from when Orlop was built is used");
        roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
    }
    roots
}

fn certified_key(provider: &CryptoProvider, cert: &Pem, key: &Pem) -> Result<Arc<CertifiedKey>> {
    let chain = CertificateDer::pem_slice_iter(&cert.bytes)
        .collect::<std::result::Result<Vec<_>, _>>()
        .ok()
        .filter(|chain| !chain.is_empty())
        .ok_or_else(|| bad_pem(cert, "client certificate"))?;
    let private = PrivateKeyDer::from_pem_slice(&key.bytes).map_err(|_| bad_pem(key, "private key"))?;
    let certified = CertifiedKey::from_der(chain, private, provider)
        .map_err(|e| Error::Config { path: key.path.clone(), reason: e.into() })?;
    Ok(Arc::new(certified))
}

fn bad_pem(pem: &Pem, what: &'static str) -> Error {
    Error::Config { path: pem.path.clone(), reason: ConfigError::Pem(what) }
}

/// Shows the first client certificate whose key can sign as the server wishes.
#[derive(Debug)]
struct Identities(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Identities {
    fn resolve(&self, _issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|identity| identity.key.choose_scheme(schemes).is_some()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Believes every certificate (`skip_verify`), but still checks that the server holds its key.
#[derive(Debug)]
struct NoVerifier(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerifier {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
