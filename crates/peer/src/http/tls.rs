//! Mutual TLS: only nodes with a certificate of the fleet's authority give and are given.
//!
//! Names in certificates are not looked at: nodes are found by IP, all nodes of a fleet may do the same, and what they
//! give is hashed. So one authority that signs for nothing else is what parts a fleet from everybody else.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// What a node shows, and whom it believes: files in PEM form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The node's certificate, with those between it and the authority's.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority that signs for the fleet.
    pub authority: PathBuf,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or has nothing of what is expected in it.
    #[error("{}: expected {expected}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key do not fit together, or the authority is none.
    #[error("{0}")]
    Rustls(String),
}

/// Both ends of TLS.
#[derive(Clone)]
pub(crate) struct Ends {
    pub(super) client: ClientConfig,
    pub(super) server: Arc<ServerConfig>,
}

impl Tls {
    /// Reads the files.
    pub(crate) fn load(&self) -> Result<Ends, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let failed = |error: &dyn std::fmt::Display| TlsError::Rustls(error.to_string());
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.authority)? {
            roots.add(certificate).map_err(|e| failed(&e))?;
        }
        let (chain, roots) = (certificates(&self.certificate)?, Arc::new(roots));
        let believed = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|e| failed(&e))?;
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| failed(&e))?
            .with_client_cert_verifier(believed)
            .with_single_cert(chain.clone(), key(&self.key)?)
            .map_err(|e| failed(&e))?;
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| failed(&e))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(OfTheFleet { roots, provider }))
            .with_client_auth_cert(chain, key(&self.key)?)
            .map_err(|e| failed(&e))?;
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Ends { client, server: Arc::new(server) })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |reason: String| TlsError::File { path: path.to_owned(), expected: "certificates in PEM form", reason };
    let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let found =
        CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>().map_err(|e| wrong(e.to_string()))?;
    if found.is_empty() { Err(wrong("it has none".to_owned())) } else { Ok(found) }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let wrong =
        |reason: String| TlsError::File { path: path.to_owned(), expected: "a private key in PEM form", reason };
    let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| wrong(e.to_string()))
}

/// Believes certificates that the authority signed, whatever name is in them.
#[derive(Debug)]
struct OfTheFleet {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OfTheFleet {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
