//! Signatures as cosign attaches them, made on the spot.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use orlop_image::PublicKey;
use orlop_oci::{Descriptor, Digest, media_type};
use serde_json::{Value, json};

use super::Made;

pub const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
pub const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";

/// Somebody who signs.
pub struct Signer {
    pub name: &'static str,
    pair: Pair,
}

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Rsa(Box<RsaKeyPair>),
    Ed25519(Ed25519KeyPair),
}

impl Signer {
    pub fn new(name: &'static str) -> Self {
        Self::ecdsa(name, &signature::ECDSA_P256_SHA256_ASN1_SIGNING)
    }

    pub fn ecdsa(name: &'static str, algorithm: &'static EcdsaSigningAlgorithm) -> Self {
        Self { name, pair: Pair::Ecdsa(EcdsaKeyPair::generate(algorithm).unwrap()) }
    }

    pub fn rsa(name: &'static str) -> Self {
        Self { name, pair: Pair::Rsa(Box::new(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())) }
    }

    pub fn ed25519(name: &'static str) -> Self {
        Self { name, pair: Pair::Ed25519(Ed25519KeyPair::generate().unwrap()) }
    }

    pub fn pem(&self) -> String {
        let der: PublicKeyX509Der<'_> = match &self.pair {
            Pair::Ecdsa(pair) => pair.public_key().as_der().unwrap(),
            Pair::Rsa(pair) => pair.public_key().as_der().unwrap(),
            Pair::Ed25519(pair) => pair.public_key().as_der().unwrap(),
        };
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der.as_ref()))
    }

    pub fn key(&self) -> PublicKey {
        PublicKey::from_pem(self.name, self.pem().as_bytes()).unwrap()
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        match &self.pair {
            Pair::Ecdsa(pair) => pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            Pair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let mut out = vec![0; pair.public_modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut out).unwrap();
                out
            }
        }
    }
}

/// What cosign signs of an image.
pub fn payload(digest: &Digest, reference: &str) -> String {
    json!({
        "critical": {
            "identity": {"docker-reference": reference},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string()
}

/// The tag of an image's signatures.
pub fn tag(digest: &Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

/// A layer with a signature.
pub fn simple_layer(made: &mut Made, payload: &str, signature: &[u8]) -> Descriptor {
    let mut layer = made.add(SIMPLE, payload.to_owned());
    layer.annotations.insert("dev.cosignproject.cosign/signature".to_owned(), STANDARD.encode(signature));
    layer
}

/// The manifest of some signatures.
pub fn simple_manifest(made: &mut Made, layers: &[Descriptor]) -> Descriptor {
    let config = made.add(
        media_type::OCI_CONFIG,
        r#"{"architecture":"","os":"","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#,
    );
    made.manifest(&config, layers)
}

/// A good signature in the form that goes under a tag.
pub fn simple(made: &mut Made, signer: &Signer, digest: &Digest) -> Descriptor {
    let payload = payload(digest, "registry.example.com/app");
    let signature = signer.sign(payload.as_bytes());
    let layer = simple_layer(made, &payload, &signature);
    simple_manifest(made, &[layer])
}

/// What DSSE signs.
pub fn pae(kind: &str, payload: &str) -> Vec<u8> {
    format!("DSSEv1 {} {kind} {} {payload}", kind.len(), payload.len()).into_bytes()
}

/// A bundle with a statement about a digest.
pub fn bundle_json(signer: &Signer, digest: &Digest, predicate: &str) -> Value {
    const STATEMENT: &str = "application/vnd.in-toto+json";
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": digest.hex()}}],
        "predicateType": predicate,
        "predicate": {},
    })
    .to_string();
    let signature = signer.sign(&pae(STATEMENT, &statement));
    json!({
        "mediaType": BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": "x"}},
        "dsseEnvelope": {
            "payload": STANDARD.encode(&statement),
            "payloadType": STATEMENT,
            "signatures": [{"sig": STANDARD.encode(signature)}],
        },
    })
}

/// A referrer of an image with a bundle in it.
pub fn referrer(made: &mut Made, subject: &Descriptor, bundle: &str) -> Descriptor {
    let config = made.add("application/vnd.oci.empty.v1+json", "{}");
    let layer = made.add(BUNDLE, bundle.to_owned());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "artifactType": BUNDLE,
        "config": config, "layers": [layer], "subject": subject,
    });
    made.add(media_type::OCI_MANIFEST, manifest.to_string())
}

/// A good bundle.
pub fn bundle(made: &mut Made, signer: &Signer, subject: &Descriptor) -> Descriptor {
    let bundle = bundle_json(signer, &subject.digest, SIGN).to_string();
    referrer(made, subject, &bundle)
}
