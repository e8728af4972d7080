//! Public keys, and what they say of a signature. No I/O.
//!
//! A key is a PEM block `PUBLIC KEY` (SubjectPublicKeyInfo, RFC 7468). The signature schemes are those of cosign: ECDSA
//! in ASN.1 form, RSA with PKCS #1 v1.5 padding, Ed25519.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rsa::PublicEncryptingKey;
use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use orlop_oci::Digest;
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::{self, PemObject};

/// Larger files are no keys: an RSA key of 8192 bits has 1.5 KiB.
pub const MAX_KEY_BYTES: usize = 64 << 10;
/// Shorter RSA keys can be broken.
const MIN_RSA_BITS: usize = 2048;

/// cosign signs with SHA-256 whatever the curve; its bundles use the hash of the curve's strength.
static P256: [&dyn VerificationAlgorithm; 1] = [&signature::ECDSA_P256_SHA256_ASN1];
static P384: [&dyn VerificationAlgorithm; 2] = [&signature::ECDSA_P384_SHA384_ASN1, &signature::ECDSA_P384_SHA256_ASN1];
static RSA: [&dyn VerificationAlgorithm; 1] = [&signature::RSA_PKCS1_2048_8192_SHA256];
static ED25519: [&dyn VerificationAlgorithm; 1] = [&signature::ED25519];

/// A public key that signatures are checked with.
#[derive(Clone)]
pub struct PublicKey {
    name: String,
    id: Digest,
    kind: &'static str,
    schemes: Arc<Vec<ParsedPublicKey>>,
}

impl PublicKey {
    /// Reads a key from PEM. `name` is what people call it: its file.
    ///
    /// # Errors
    /// [`KeyError`] unless there is exactly one public key of a kind that is known.
    pub fn from_pem(name: impl Into<String>, text: &[u8]) -> Result<Self, KeyError> {
        if text.len() > MAX_KEY_BYTES {
            return Err(KeyError::TooLarge { size: text.len() });
        }
        let keys =
            SubjectPublicKeyInfoDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>().map_err(KeyError::Pem)?;
        let [der] = keys.as_slice() else {
            // Nobody should have to hand out a private key to learn that it is the wrong one.
            let private = text.windows(PRIVATE.len()).any(|w| w == PRIVATE);
            return Err(if private && keys.is_empty() { KeyError::Private } else { KeyError::Count(keys.len()) });
        };
        Self::from_der(name, der)
    }

    /// Reads a key from its SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// As [`PublicKey::from_pem`].
    pub fn from_der(name: impl Into<String>, der: &[u8]) -> Result<Self, KeyError> {
        let known: [(&str, &[&'static dyn VerificationAlgorithm]); 4] =
            [("ECDSA P-256", &P256), ("ECDSA P-384", &P384), ("RSA", &RSA), ("Ed25519", &ED25519)];
        for (kind, algorithms) in known {
            let schemes = algorithms.iter().map(|a| ParsedPublicKey::new(*a, der)).collect::<Result<Vec<_>, _>>();
            let Ok(schemes) = schemes else { continue };
            if kind == "RSA" {
                check_rsa(der)?;
            }
            return Ok(Self { name: name.into(), id: Digest::of(der), kind, schemes: Arc::new(schemes) });
        }
        Err(KeyError::Unsupported)
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 of its SubjectPublicKeyInfo: two names of one key have one id.
    pub const fn id(&self) -> &Digest {
        &self.id
    }

    /// Its SubjectPublicKeyInfo.
    pub fn der(&self) -> &[u8] {
        // Every kind has a scheme, and each keeps what it was read from.
        self.schemes.first().map_or(&[], AsRef::as_ref)
    }

    /// `ECDSA P-256`, `ECDSA P-384`, `RSA` or `Ed25519`.
    pub const fn kind(&self) -> &'static str {
        self.kind
    }

    /// Whether this key made `signature` over `message`.
    pub fn made(&self, signature: &[u8], message: &[u8]) -> bool {
        self.schemes.iter().any(|scheme| scheme.verify_sig(message, signature).is_ok())
    }
}

const PRIVATE: &[u8] = b"PRIVATE KEY-----";

fn check_rsa(der: &[u8]) -> Result<(), KeyError> {
    match PublicEncryptingKey::from_der(der) {
        Ok(key) if key.key_size_bits() >= MIN_RSA_BITS => Ok(()),
        _ => Err(KeyError::Weak),
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}:{})", self.name, self.id.algorithm().as_str(), &self.id.hex()[..12])
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKey").field("name", &self.name).field("id", &self.id).finish_non_exhaustive()
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for PublicKey {}

/// Why bytes are no public key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The PEM frame is broken.
    #[error("not PEM: {0}")]
    Pem(pem::Error),
    /// None, or more than one.
    #[error("expected one block \"BEGIN PUBLIC KEY\", found {0}")]
    Count(usize),
    /// The other half of the pair.
    #[error("expected a public key, found a private one: keep it secret and give its public half")]
    Private,
    /// A kind of key that signatures are not checked with.
    #[error("unknown kind of key: expected ECDSA P-256 or P-384, RSA, or Ed25519")]
    Unsupported,
    /// Too short to be trusted.
    #[error("expected an RSA key of {MIN_RSA_BITS} to 8192 bits")]
    Weak,
    /// No key is as large.
    #[error("it has {size} bytes; a public key has less than {MAX_KEY_BYTES}")]
    TooLarge {
        /// What it has.
        size: usize,
    },
}
