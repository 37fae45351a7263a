//! TLS towards a `reconst` of which nothing is known but its authority's fingerprint.
//!
//! Enters: the fingerprint of an invite. Leaves: a client configuration for [`ENROL_ALPN`], and, after a handshake, the authority's
//! certificate. Always holds: the server has shown a certificate for `reconst`, signed by the authority of that fingerprint, before a byte
//! is said to it; the client shows none.

use std::sync::{Arc, Mutex};

use quinn_proto::crypto::rustls::QuicClientConfig;
use rustls::{
    CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::tls::{ENROL_ALPN, TlsError, provider};
use crate::community::invite::Fingerprint;

/// A client's TLS towards the `reconst` of one fingerprint.
pub struct PinnedTls {
    /// The configuration for quinn.
    pub crypto: Arc<QuicClientConfig>,
    verifier: Arc<PinnedVerifier>,
}

/// What was found of the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Server {
    /// It belongs to the authority, whose certificate this is, DER.
    Trusted(Vec<u8>),
    /// It belongs to another authority, or to none.
    Foreign,
    /// It belongs to the authority, but its certificate can't be used: the sentence says why.
    Unusable(String),
}

#[derive(Debug)]
struct PinnedVerifier {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
    server: Mutex<Option<Server>>,
}

impl PinnedTls {
    /// The TLS towards the `reconst` whose authority has this fingerprint; for one connection, which [`PinnedTls::server`] is about.
    ///
    /// # Errors
    /// If the crypto provider lacks what TLS 1.3 and QUIC need.
    pub fn new(fingerprint: Fingerprint) -> Result<Self, TlsError> {
        let verifier = Arc::new(PinnedVerifier { fingerprint, provider: provider(), server: Mutex::default() });
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![ENROL_ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self { crypto: Arc::new(QuicClientConfig::try_from(config)?), verifier })
    }

    /// What the handshake has found of the server, once it got that far.
    pub fn server(&self) -> Option<Server> {
        self.verifier.server.lock().expect("nothing panics while it is held").clone()
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (server, verified) = self.judge(end_entity, intermediates, server_name, now);
        *self.server.lock().expect("nothing panics while it is held") = Some(server);
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl PinnedVerifier {
    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> (Server, Result<ServerCertVerified, rustls::Error>) {
        let Some(authority) = intermediates.iter().find(|certificate| Fingerprint::of(certificate) == self.fingerprint) else {
            return (Server::Foreign, Err(CertificateError::UnknownIssuer.into()));
        };
        let verified = self.verify_signed_by(authority, end_entity, server_name, now);
        let server = match &verified {
            Ok(_) => Server::Trusted(authority.to_vec()),
            Err(rustls::Error::InvalidCertificate(error)) if is_about_time(error) => {
                Server::Unusable(format!("its certificate is not valid now ({error}): check this PC's clock"))
            }
            // Whoever shows the authority's certificate, which is no secret, without one of its own.
            Err(_) => Server::Foreign,
        };
        (server, verified)
    }

    fn verify_signed_by(
        &self,
        authority: &CertificateDer<'_>,
        end_entity: &CertificateDer<'_>,
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, &[], now)
    }
}

fn is_about_time(error: &CertificateError) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    matches!(error, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
}
