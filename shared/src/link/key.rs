//! A key made on this PC, for a certificate that is asked for.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{
    error::Unspecified,
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};

use crate::community::enrol::{EnrolRequest, KeyingMaterial, Title, signed_request};

/// A new Ed25519 key. Prints without itself.
pub struct NewKey {
    pair: Ed25519KeyPair,
    pkcs8: Vec<u8>,
}

impl NewKey {
    /// A key of the system's randomness.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn generate() -> Result<Self, Unspecified> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())?.as_ref().to_vec();
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|_| Unspecified)?;
        Ok(Self { pair, pkcs8 })
    }

    /// The key as a profile holds it, PKCS#8 PEM. A secret.
    pub fn to_pem(&self) -> String {
        pem("PRIVATE KEY", &self.pkcs8)
    }

    /// A request, over the connection of `material`, for a certificate of this key.
    pub fn request(&self, title: Title, material: &KeyingMaterial) -> EnrolRequest {
        let public_key = self.pair.public_key().as_ref().try_into().expect("an Ed25519 key has 32 bytes");
        let signature = self.pair.sign(&signed_request(material, &public_key)).as_ref().try_into().expect("a signature has 64 bytes");
        EnrolRequest { title, public_key, signature }
    }
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewKey(***)")
    }
}

/// Whether who sent `request` over the connection of `material` holds its key.
pub fn holds_its_key(request: &EnrolRequest, material: &KeyingMaterial) -> bool {
    let signed = signed_request(material, &request.public_key);
    UnparsedPublicKey::new(&ED25519, request.public_key).verify(&signed, &request.signature).is_ok()
}

/// `der` as PEM (RFC 7468) under `label`.
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for start in (0..text.len()).step_by(LINE_CHARACTERS) {
        out.push_str(&text[start..text.len().min(start + LINE_CHARACTERS)]);
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

const LINE_CHARACTERS: usize = 64;

#[cfg(test)]
mod tests {
    use rustls::pki_types::{CertificateDer, pem::PemObject};

    use super::*;

    #[test]
    fn a_request_is_worth_nothing_on_another_connection_or_for_another_key() {
        let (key, other) = (NewKey::generate().expect("a key"), NewKey::generate().expect("a key"));
        let request = key.request(Title::Certificate, &[1; 32]);
        assert!(holds_its_key(&request, &[1; 32]));
        assert!(!holds_its_key(&request, &[2; 32]));
        let forged = EnrolRequest { public_key: other.request(Title::Certificate, &[1; 32]).public_key, ..request };
        assert!(!holds_its_key(&forged, &[1; 32]));
    }

    #[test]
    fn pem_is_what_others_read() {
        for len in [1, 47, 48, 49, 500] {
            let der = vec![7; len];
            let read = CertificateDer::from_pem_slice(pem("CERTIFICATE", &der).as_bytes()).expect("PEM");
            assert_eq!(read.as_ref(), der);
        }
    }
}
