//! What signed bytes claim, in cosign's two forms. No I/O.
//!
//! *Simple signing*: a layer whose bytes are a JSON payload, its signature an annotation of the layer's descriptor.
//! *Bundle*: a layer whose bytes are a sigstore bundle (version 0.3) with a DSSE envelope around an in-toto statement of
//! cosign's own predicate type. Other statements (provenance, scan results) say something about an image; that it may be
//! used is none of what they say, so they are no signatures here.
//!
//! # Invariants
//! - A claim is believed only under a key that made the signature over exactly these bytes.
//! - What a transparency log or a certificate in the bundle says is not looked at: the key alone decides.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use orlop_oci::{Descriptor, Digest, RepositoryName};
use serde::Deserialize;

use super::key::PublicKey;
use super::policy::Identity;

/// Media type of a simple signing payload.
pub(super) const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Before the version, in the media type of a bundle.
pub(super) const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
/// Media type of an attestation that is attached under a tag of its own.
pub(super) const ENVELOPE: &str = "application/vnd.dsse.envelope.v1+json";

/// Where cosign keeps the signature of a payload.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const SIMPLE_TYPE: &str = "cosign container image signature";
const STATEMENT: &str = "application/vnd.in-toto+json";
const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

/// The form of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A simple signing payload.
    Simple,
    /// A sigstore bundle.
    Bundle,
}

impl Form {
    /// The word used in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Simple => "cosign",
            Self::Bundle => "bundle",
        }
    }

    /// By the media type of a layer; `None`: such a layer is no signature.
    pub(super) fn of(media_type: &str) -> Option<Self> {
        match media_type {
            SIMPLE => Some(Self::Simple),
            other if other.starts_with(BUNDLE) => Some(Self::Bundle),
            _ => None,
        }
    }
}

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Flaw {
    /// Its bytes are not what they should be.
    Malformed(String),
    /// No key of the rule made it, or its bytes were changed after it was made.
    Key,
    /// It is for something else.
    Digest(String),
    /// It says that the image is another one; nothing, if it says none.
    Identity(String),
    /// A statement about the image, not a signature of it.
    Predicate(String),
    /// Its bytes cannot be had.
    Missing,
    /// Larger than any signature.
    TooLarge(u64),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(reason) => write!(f, "it is malformed: {reason}"),
            Self::Key => f.write_str("no trusted key made it over these bytes"),
            Self::Digest(found) => write!(f, "it is for {found}"),
            Self::Identity(found) if found.is_empty() => {
                f.write_str("it does not say of which repository the image is")
            }
            Self::Identity(found) => write!(f, "it says that the image is {found:?}"),
            Self::Predicate(found) => write!(f, "it is a statement of type {found:?}, not a signature"),
            Self::Missing => f.write_str("its bytes are missing"),
            Self::TooLarge(size) => write!(f, "it has {size} bytes, more than any signature"),
        }
    }
}

/// What is to be proved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) digest: &'a Digest,
    pub(super) repository: Option<&'a RepositoryName>,
    pub(super) identity: Identity,
    pub(super) keys: &'a [PublicKey],
}

impl Wanted<'_> {
    /// The key that made the signature, if the layer is a good signature of what is wanted.
    pub(super) fn check(&self, form: Form, layer: &Descriptor, bytes: &[u8]) -> Result<PublicKey, Flaw> {
        match form {
            Form::Simple => self.simple(layer, bytes),
            Form::Bundle => self.bundle(bytes),
        }
    }

    fn simple(&self, layer: &Descriptor, payload: &[u8]) -> Result<PublicKey, Flaw> {
        let text = layer.annotations.get(SIGNATURE).ok_or_else(|| malformed("its layer has no signature"))?;
        let signature = STANDARD.decode(text.trim()).map_err(|e| malformed(format!("signature: {e}")))?;
        let key = self.key_of(&signature, payload)?;
        let claim: Simple = serde_json::from_slice(payload).map_err(|e| malformed(format!("payload: {e}")))?;
        let critical = claim.critical;
        if critical.kind != SIMPLE_TYPE {
            return Err(malformed(format!("expected type {SIMPLE_TYPE:?}, found {:?}", critical.kind)));
        }
        if critical.image.digest != self.digest.as_str() {
            return Err(Flaw::Digest(critical.image.digest));
        }
        self.check_identity(&critical.identity.reference)?;
        Ok(key)
    }

    fn bundle(&self, bytes: &[u8]) -> Result<PublicKey, Flaw> {
        let bundle: Bundle = serde_json::from_slice(bytes).map_err(|e| malformed(format!("bundle: {e}")))?;
        let envelope = bundle.envelope.ok_or_else(|| malformed("the bundle has no DSSE envelope"))?;
        if envelope.kind != STATEMENT {
            return Err(malformed(format!("expected a payload of type {STATEMENT:?}, found {:?}", envelope.kind)));
        }
        // The bundle's specification: exactly one, although DSSE allows several.
        let [signature] = envelope.signatures.as_slice() else {
            return Err(malformed(format!("expected one signature, found {}", envelope.signatures.len())));
        };
        let payload = STANDARD.decode(&envelope.payload).map_err(|e| malformed(format!("payload: {e}")))?;
        let signature = STANDARD.decode(&signature.sig).map_err(|e| malformed(format!("signature: {e}")))?;
        let key = self.key_of(&signature, &pre_authentication(&envelope.kind, &payload))?;
        let statement: Statement =
            serde_json::from_slice(&payload).map_err(|e| malformed(format!("statement: {e}")))?;
        if statement.predicate != SIGN_PREDICATE {
            return Err(Flaw::Predicate(statement.predicate));
        }
        if !statement.subject.iter().any(|subject| subject.is(self.digest)) {
            let found: Vec<String> = statement.subject.iter().map(Subject::text).collect();
            return Err(Flaw::Digest(found.join(", ")));
        }
        self.check_identity("")?;
        Ok(key)
    }

    fn key_of(&self, signature: &[u8], message: &[u8]) -> Result<PublicKey, Flaw> {
        self.keys.iter().find(|key| key.made(signature, message)).cloned().ok_or(Flaw::Key)
    }

    /// cosign writes the repository alone, or what the signer gave: then often with a tag.
    fn check_identity(&self, found: &str) -> Result<(), Flaw> {
        if self.identity == Identity::Any {
            return Ok(());
        }
        let said = found.parse::<orlop_oci::Reference>().ok();
        let same = said.as_ref().and_then(|r| r.repository()).is_some_and(|r| Some(r) == self.repository);
        if same { Ok(()) } else { Err(Flaw::Identity(found.to_owned())) }
    }
}

fn malformed(reason: impl Into<String>) -> Flaw {
    Flaw::Malformed(reason.into())
}

/// What DSSE signs: type and payload, each after its length (DSSE protocol, "PAE").
fn pre_authentication(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

#[derive(Deserialize)]
struct Simple {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    identity: SimpleIdentity,
    image: SimpleImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct SimpleIdentity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Deserialize)]
struct SimpleImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

#[derive(Deserialize)]
struct Bundle {
    #[serde(rename = "dsseEnvelope")]
    envelope: Option<Envelope>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    #[serde(rename = "payloadType")]
    kind: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Deserialize)]
struct Statement {
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate: String,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    digest: std::collections::BTreeMap<String, String>,
}

impl Subject {
    fn is(&self, digest: &Digest) -> bool {
        self.digest.get(digest.algorithm().as_str()).is_some_and(|hex| hex == digest.hex())
    }

    fn text(&self) -> String {
        self.digest.iter().map(|(algorithm, hex)| format!("{algorithm}:{hex}")).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_signed_bytes_of_dsse_are_those_of_its_specification() {
        let message = pre_authentication("http://example.com/HelloWorld", b"hello world");
        assert_eq!(message, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,40}") {
            let digest = Digest::of(b"x");
            let wanted = Wanted { digest: &digest, repository: None, identity: Identity::Repository, keys: &[] };
            let mut layer = Descriptor::new(SIMPLE, Digest::of(&bytes), bytes.len() as u64);
            layer.annotations.insert(SIGNATURE.to_owned(), text);
            prop_assert!(wanted.check(Form::Simple, &layer, &bytes).is_err());
            prop_assert!(wanted.check(Form::Bundle, &layer, &bytes).is_err());
        }
    }
}
