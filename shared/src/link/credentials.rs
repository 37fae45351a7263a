//! A member's certificate and key in use, which a renewal replaces while connections stand.
//!
//! Enters: a profile, and later another of the same member. Leaves: TLS configurations and signatures by whatever it is then. Always holds:
//! a certificate goes with its own key.

use std::sync::{Arc, RwLock};

use quinn_proto::crypto::rustls::QuicClientConfig;
use rustls::{
    Error, InconsistentKeys, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    sign::CertifiedKey,
};

use super::tls::{Signer, TlsError, provider, roots};
use crate::community::profile::Profile;

/// A member's certificate and key; clones share them.
#[derive(Clone, Debug)]
pub struct Credentials {
    signer: Arc<RwLock<Signer>>,
}

impl Credentials {
    /// The credentials of `profile`.
    ///
    /// # Errors
    /// If its certificate or key can't be used, or one is not the other's.
    pub fn new(profile: &Profile) -> Result<Self, TlsError> {
        Ok(Self { signer: Arc::new(RwLock::new(checked(profile)?)) })
    }

    /// The signer that they make now; for one message, since the next may be signed by another key.
    pub fn signer(&self) -> Signer {
        self.signer.read().expect("nothing panics while it is held").clone()
    }

    /// The client end of paths or logins: each connection begins with what the credentials are then.
    ///
    /// # Errors
    /// If the authority's certificate can't be used.
    pub fn client_crypto(&self, authority_pem: &str, alpn: &[u8]) -> Result<Arc<dyn quinn_proto::crypto::ClientConfig>, TlsError> {
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots(authority_pem)?)
            .with_client_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(QuicClientConfig::try_from(config)?))
    }

    /// Uses those of `profile` from now on.
    ///
    /// # Errors
    /// As [`Credentials::new`]; nothing changes then.
    pub fn replace(&self, profile: &Profile) -> Result<(), TlsError> {
        let signer = checked(profile)?;
        *self.signer.write().expect("nothing panics while it is held") = signer;
        Ok(())
    }
}

impl ResolvesClientCert for Credentials {
    fn resolve(&self, _root_hint_subjects: &[&[u8]], _signature_schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::new(self.signer().certified_key()))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn checked(profile: &Profile) -> Result<Signer, TlsError> {
    let signer = Signer::from_profile(profile)?;
    match signer.certified_key().keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(signer),
        Err(error) => Err(error.into()),
    }
}
