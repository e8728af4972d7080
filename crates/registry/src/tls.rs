//! The certificate of a registry, which may be renewed while it is served.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};

/// A certificate with its key. Clones are the same one.
#[derive(Clone)]
pub struct Certificate {
    current: Arc<RwLock<Arc<CertifiedKey>>>,
}

/// Why a certificate is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// There is none.
    #[error("expected PEM with a certificate, found none")]
    NoCertificate,
    /// Not PEM.
    #[error("the {what} cannot be read: {reason}")]
    Pem {
        /// `certificate` or `key`.
        what: &'static str,
        /// What is wrong; nothing of a key.
        reason: String,
    },
    /// They do not belong together, or are of a kind that is not known.
    #[error("certificate and key do not serve: {0}")]
    Unusable(#[from] rustls::Error),
}

impl Certificate {
    /// A certificate, with those of authorities between after it, and its key, both in PEM.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        Ok(Self { current: Arc::new(RwLock::new(Arc::new(certified(certificate, key)?))) })
    }

    /// Takes another one's place in connections that are made from now on.
    pub fn replace(&self, with: &Self) {
        let with = with.get();
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = with;
    }

    /// How TLS is spoken with it: 1.2 and 1.3, HTTP/2 and HTTP/1.1.
    pub fn config(&self) -> Result<Arc<ServerConfig>, CertificateError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn get(&self) -> Arc<CertifiedKey> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn certified(certificate: &[u8], key: &[u8]) -> Result<CertifiedKey, CertificateError> {
    let wrong =
        |what| move |error: rustls::pki_types::pem::Error| CertificateError::Pem { what, reason: error.to_string() };
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(wrong("certificate"))?;
    if chain.is_empty() {
        return Err(CertificateError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(wrong("key"))?;
    Ok(CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())?)
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").finish_non_exhaustive()
    }
}
