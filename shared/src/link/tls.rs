//! Certificates in use: TLS for paths and logins, signatures for the LAN's messages.
//!
//! Enters: a member's [`Profile`], or the authority's and `reconst`'s own certificates, as PEM. Leaves: configurations ready for
//! quinn, the identity that a peer's certificate carries, signed and verified messages.
//!
//! Always holds: TLS 1.3 alone, certificates on both ends, one authority, no early data (it could be replayed) and no resumption (so
//! that every connection is authenticated anew and a removed member can't ride on a ticket). Whether a member is still one is left to
//! `reconst`'s accounts.

use std::{fmt, sync::Arc};

use quinn_proto::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use rustls::{
    RootCertStore, SignatureScheme,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime, pem::PemObject},
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SigningKey},
};
use thiserror::Error;
use webpki::{EndEntityCert, KeyUsage};

use super::credentials::Credentials;
use crate::community::{
    member::{Identity, MemberError, RECONST_NAME},
    profile::Profile,
};

/// The ALPN of a path's connection.
pub const PATH_ALPN: &[u8] = b"tributary/1";

/// The ALPN of a relay's login.
pub const LOGIN_ALPN: &[u8] = b"tributary-login/1";

/// The ALPN of a connection made to become a member.
pub const ENROL_ALPN: &[u8] = b"tributary-enrol/1";

/// A certificate or key that can't be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// No PEM of the kind wanted.
    #[error("the {what} is not readable as PEM: {source}")]
    Pem {
        /// What was read: "authority's certificate" and the like.
        what: &'static str,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// The authority's certificate can't be one.
    #[error("the authority's certificate is not usable: {0}")]
    Authority(#[from] webpki::Error),
    /// The key is of a kind that LAN messages are not signed with.
    #[error("the key is not an Ed25519 key")]
    NotEd25519,
    /// rustls refuses the certificate or key.
    #[error("the certificate or its key is not usable: {0}")]
    Rustls(#[from] rustls::Error),
    /// rustls refuses the authority.
    #[error("the authority's certificate is not usable: {0}")]
    ClientVerifier(#[from] VerifierBuilderError),
    /// The crypto provider lacks what QUIC starts with.
    #[error("{0}")]
    Cipher(#[from] NoInitialCipherSuite),
}

/// A certificate that names no member.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// Not an X.509 certificate.
    #[error("the certificate is not readable: {0}")]
    Certificate(#[from] webpki::Error),
    /// Not exactly one DNS name.
    #[error("a member's certificate holds exactly one name, this one holds {0}")]
    Names(usize),
    /// One name, of no member.
    #[error(transparent)]
    Name(#[from] MemberError),
}

/// A message that is not from a member.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// The certificate names no member.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate is not of this authority, not for members, or not valid now.
    #[error("the certificate is not valid here: {0}")]
    Chain(webpki::Error),
    /// The signature is not by the certificate's key over this message.
    #[error("the signature does not match: {0}")]
    Signature(webpki::Error),
}

/// The crypto provider of every TLS configuration here; none is installed process-wide.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The client end of a path or a login, as the member of `profile`, whatever is renewed later.
///
/// # Errors
/// If the profile's certificates or key can't be used.
pub fn client_crypto(profile: &Profile, alpn: &[u8]) -> Result<Arc<dyn quinn_proto::crypto::ClientConfig>, TlsError> {
    Credentials::new(profile)?.client_crypto(&profile.authority_pem, alpn)
}

/// `reconst`'s end of paths or logins: takes clients with a certificate of the authority alone.
///
/// # Errors
/// If a certificate or the key can't be used.
pub fn server_crypto(
    authority_pem: &str,
    certificate_pem: &str,
    key_pem: &str,
    alpn: &[u8],
) -> Result<Arc<dyn quinn_proto::crypto::ServerConfig>, TlsError> {
    let client_verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority_pem)?), provider()).build()?;
    server_config(client_verifier, vec![certificate("server's certificate", certificate_pem)?], key_pem, vec![alpn.to_vec()])
}

/// `reconst`'s end of the login port: logins and, told apart by their [`protocol`], enrolments. It takes clients without a certificate
/// too, since who enrols has none: for a login [`peer_certificate`] must be looked at. The authority's certificate goes along for those
/// who know its fingerprint alone.
///
/// # Errors
/// If a certificate or the key can't be used.
pub fn login_port_crypto(
    authority_pem: &str,
    certificate_pem: &str,
    key_pem: &str,
) -> Result<Arc<dyn quinn_proto::crypto::ServerConfig>, TlsError> {
    let client_verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority_pem)?), provider()).allow_unauthenticated().build()?;
    let chain = vec![certificate("server's certificate", certificate_pem)?, certificate("authority's certificate", authority_pem)?];
    server_config(client_verifier, chain, key_pem, vec![LOGIN_ALPN.to_vec(), ENROL_ALPN.to_vec()])
}

fn server_config(
    client_verifier: Arc<dyn ClientCertVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key_pem: &str,
    alpn_protocols: Vec<Vec<u8>>,
) -> Result<Arc<dyn quinn_proto::crypto::ServerConfig>, TlsError> {
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(client_verifier)
        .with_single_cert(chain, private_key(key_pem)?)?;
    config.alpn_protocols = alpn_protocols;
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(QuicServerConfig::try_from(config)?))
}

/// The name that a client passes to `quinn::Endpoint::connect_with`, wherever `reconst` is.
pub const SERVER_NAME: &str = RECONST_NAME;

/// The certificate that the other end of `connection` authenticated with; none before the handshake is done.
pub fn peer_certificate(connection: &quinn::Connection) -> Option<CertificateDer<'static>> {
    let certificates = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    certificates.into_iter().next()
}

/// The ALPN that both ends of `connection` agreed on; none before the handshake is done.
pub fn protocol(connection: &quinn::Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<quinn_proto::crypto::rustls::HandshakeData>().ok()?.protocol
}

/// The member that `certificate` names; says nothing of who signed it.
///
/// # Errors
/// If it is unreadable or names no member.
pub fn identity(certificate: &CertificateDer<'_>) -> Result<Identity, IdentityError> {
    let parsed = EndEntityCert::try_from(certificate)?;
    let mut names = parsed.valid_dns_names();
    match (names.next(), names.count()) {
        (Some(name), 0) => Ok(Identity::from_dns_name(name)?),
        (first, others) => Err(IdentityError::Names(usize::from(first.is_some()) + others)),
    }
}

/// Signs LAN messages as one member. Prints without its key.
#[derive(Clone)]
pub struct Signer {
    identity: Identity,
    certificate: CertificateDer<'static>,
    key: Arc<dyn SigningKey>,
}

impl Signer {
    /// The signer that `profile` makes of whoever holds it.
    ///
    /// # Errors
    /// If the profile's certificate or key can't be used, or the key is not Ed25519.
    pub fn from_profile(profile: &Profile) -> Result<Self, TlsError> {
        let key = provider().key_provider.load_private_key(private_key(&profile.key_pem)?)?;
        if key.choose_scheme(&[SignatureScheme::ED25519]).is_none() {
            return Err(TlsError::NotEd25519);
        }
        let certificate = certificate("member's certificate", &profile.certificate_pem)?;
        Ok(Self { identity: profile.identity.clone(), certificate, key })
    }

    /// The member that signs.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The signature of `message`, 64 bytes.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signer = self.key.choose_scheme(&[SignatureScheme::ED25519]).expect("from_profile takes Ed25519 keys alone");
        signer.sign(&in_context(message)).expect("an Ed25519 signature needs neither randomness nor a length limit")
    }

    /// What TLS shows and signs with.
    pub(super) fn certified_key(&self) -> CertifiedKey {
        CertifiedKey::new(vec![self.certificate.clone()], Arc::clone(&self.key))
    }

    /// The certificate that a [`MemberVerifier`] checks the signatures with.
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("identity", &self.identity).field("key", &"***").finish_non_exhaustive()
    }
}

/// Verifies LAN messages against one authority.
#[derive(Clone, Debug)]
pub struct MemberVerifier {
    anchor: TrustAnchor<'static>,
    provider: Arc<CryptoProvider>,
}

impl MemberVerifier {
    /// A verifier that trusts members of this authority.
    ///
    /// # Errors
    /// If the PEM holds no usable certificate.
    pub fn new(authority_pem: &str) -> Result<Self, TlsError> {
        let authority = certificate("authority's certificate", authority_pem)?;
        Ok(Self { anchor: webpki::anchor_from_trusted_cert(&authority)?.to_owned(), provider: provider() })
    }

    /// The member that signed `message`: its certificate is one of the authority's for a member, valid `now`, and the signature is by
    /// its key.
    ///
    /// # Errors
    /// If any of that does not hold. The cheap checks come first; two Ed25519 verifications are the most it costs.
    pub fn verify(&self, certificate: &[u8], message: &[u8], signature: &[u8], now: UnixTime) -> Result<Identity, VerifyError> {
        let certificate = CertificateDer::from(certificate);
        let member = self.verify_certificate(&certificate, now)?;
        let parsed = EndEntityCert::try_from(&certificate).map_err(IdentityError::from)?;
        parsed.verify_signature(webpki::ring::ED25519, &in_context(message), signature).map_err(VerifyError::Signature)?;
        Ok(member)
    }

    /// The member whose certificate it is: one of the authority's for a member, valid `now`.
    ///
    /// # Errors
    /// If it is none.
    pub fn verify_certificate(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<Identity, VerifyError> {
        let member = identity(certificate)?;
        let parsed = EndEntityCert::try_from(certificate).map_err(IdentityError::from)?;
        parsed
            .verify_for_usage(
                self.provider.signature_verification_algorithms.all,
                std::slice::from_ref(&self.anchor),
                &[],
                now,
                KeyUsage::client_auth(),
                None,
                None,
            )
            .map_err(VerifyError::Chain)?;
        Ok(member)
    }
}

/// What is signed for `message`: behind a prefix that no TLS transcript begins with (RFC 8446 §4.4.3), so that neither kind of
/// signature can stand for the other.
fn in_context(message: &[u8]) -> Vec<u8> {
    [b"tributary LAN message 1\0", message].concat()
}

pub(super) fn roots(authority_pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate("authority's certificate", authority_pem)?)?;
    Ok(roots)
}

/// The first certificate in `pem`; `what` names it in the error.
///
/// # Errors
/// [`TlsError::Pem`] if there is none.
pub fn certificate(what: &'static str, pem: &str) -> Result<CertificateDer<'static>, TlsError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|source| TlsError::Pem { what, source })
}

fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|source| TlsError::Pem { what: "private key", source })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ED25519};

    use super::*;
    use crate::{community::member::Role, ids::LanId};

    #[test]
    fn a_signed_message_says_who_signed_it() {
        let (authority, ann) = (Authority::new(), member("ann"));
        let signer = Signer::from_profile(&authority.profile(&ann)).expect("a usable profile");
        let signature = signer.sign(b"hello");
        let verified = authority.verifier().verify(signer.certificate_der(), b"hello", &signature, now());
        assert_eq!(verified.expect("a good signature"), ann);
    }

    #[test]
    fn a_changed_message_or_signature_is_refused() {
        let authority = Authority::new();
        let signer = Signer::from_profile(&authority.profile(&member("ann"))).expect("a usable profile");
        let signature = signer.sign(b"hello");
        let verify = |message: &[u8], signature: &[u8]| authority.verifier().verify(signer.certificate_der(), message, signature, now());
        assert!(matches!(verify(b"hallo", &signature), Err(VerifyError::Signature(_))));
        assert!(matches!(verify(b"hello", &signature[1..]), Err(VerifyError::Signature(_))));
        assert!(matches!(verify(b"hello", &[]), Err(VerifyError::Signature(_))));
    }

    #[test]
    fn a_stranger_of_the_same_name_is_refused() {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let signer = Signer::from_profile(&stranger.profile(&member("ann"))).expect("a usable profile");
        let verified = authority.verifier().verify(signer.certificate_der(), b"hello", &signer.sign(b"hello"), now());
        assert!(matches!(verified, Err(VerifyError::Chain(_))));
    }

    #[test]
    fn a_certificate_out_of_its_time_is_refused() {
        let authority = Authority::new();
        let signer = Signer::from_profile(&authority.profile(&member("ann"))).expect("a usable profile");
        let verify = |now| authority.verifier().verify(signer.certificate_der(), b"hello", &signer.sign(b"hello"), now);
        assert!(matches!(verify(UnixTime::since_unix_epoch(Duration::ZERO)), Err(VerifyError::Chain(_))));
    }

    #[test]
    fn garbage_is_refused_wherever_it_stands() {
        let authority = Authority::new();
        assert!(authority.verifier().verify(&[0x30, 0x82], b"", b"", now()).is_err());
        assert!(identity(&CertificateDer::from(&b""[..])).is_err());
        assert!(MemberVerifier::new("no PEM").is_err());
        let mut profile = authority.profile(&member("ann"));
        profile.key_pem = "no PEM".into();
        assert!(client_crypto(&profile, PATH_ALPN).is_err());
    }

    #[test]
    fn a_certificate_without_the_name_of_a_member_is_refused() {
        let authority = Authority::new();
        for names in [vec![], vec!["example.org".into()], vec![member("ann").dns_name(), member("bob").dns_name()]] {
            let (certificate, _) = authority.issue(names, ExtendedKeyUsagePurpose::ClientAuth);
            assert!(identity(&super::certificate("certificate", &certificate).expect("PEM")).is_err());
        }
    }

    #[tokio::test]
    async fn two_ends_meet_and_know_each_other() {
        let (authority, ann) = (Authority::new(), member("ann"));
        let (client, server) = connect(&authority, &authority.profile(&ann), PATH_ALPN).await;
        let client = client.expect("the client trusts the server");
        let server = server.expect("the server trusts the client");
        assert_eq!(identity(&peer_certificate(&server).expect("mutual TLS")).expect("a member"), ann);
        assert!(peer_certificate(&client).is_some());
    }

    #[tokio::test]
    async fn a_server_of_another_authority_is_refused() {
        let (authority, other) = (Authority::new(), Authority::new());
        let mut profile = authority.profile(&member("ann"));
        profile.authority_pem = other.certificate_pem.clone();
        assert!(connect(&authority, &profile, PATH_ALPN).await.0.is_err());
    }

    #[tokio::test]
    async fn a_client_of_another_authority_is_refused() {
        let (authority, other) = (Authority::new(), Authority::new());
        let mut profile = other.profile(&member("ann"));
        profile.authority_pem = authority.certificate_pem.clone();
        assert!(connect(&authority, &profile, PATH_ALPN).await.1.is_err());
    }

    #[tokio::test]
    async fn another_protocol_is_refused() {
        let authority = Authority::new();
        assert!(connect(&authority, &authority.profile(&member("ann")), LOGIN_ALPN).await.1.is_err());
    }

    #[tokio::test]
    async fn a_member_can_not_pose_as_reconst() {
        let authority = Authority::new();
        let (certificate, key) = authority.issue(vec![RECONST_NAME.into()], ExtendedKeyUsagePurpose::ClientAuth);
        let server = server_crypto(&authority.certificate_pem, &certificate, &key, PATH_ALPN).expect("a usable certificate");
        assert!(connect_to(server, &authority.profile(&member("ann")), PATH_ALPN).await.0.is_err());
    }

    type Ends = (Result<quinn::Connection, quinn::ConnectionError>, Result<quinn::Connection, quinn::ConnectionError>);

    async fn connect(authority: &Authority, profile: &Profile, alpn: &[u8]) -> Ends {
        let (certificate, key) = authority.issue(vec![RECONST_NAME.into()], ExtendedKeyUsagePurpose::ServerAuth);
        let server = server_crypto(&authority.certificate_pem, &certificate, &key, PATH_ALPN).expect("a usable certificate");
        connect_to(server, profile, alpn).await
    }

    async fn connect_to(server: Arc<dyn quinn_proto::crypto::ServerConfig>, profile: &Profile, alpn: &[u8]) -> Ends {
        let loopback = "127.0.0.1:0".parse().expect("an address");
        let config = quinn::ServerConfig::with_crypto(server);
        let server = quinn::Endpoint::server(config, loopback).expect("a loopback port");
        let client = quinn::Endpoint::client(loopback).expect("a loopback port");
        let config = quinn::ClientConfig::new(client_crypto(profile, alpn).expect("a usable profile"));
        let connecting = client.connect_with(config, server.local_addr().expect("bound"), SERVER_NAME).expect("a valid configuration");
        let accepting = async { server.accept().await.expect("an open endpoint").await };
        tokio::join!(connecting, accepting)
    }

    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        certificate_pem: String,
    }

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::new(vec![]).expect("no names");
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
            let certificate_pem = params.self_signed(&key).expect("a certificate").pem();
            Self { issuer: Issuer::new(params, key), certificate_pem }
        }

        fn issue(&self, names: Vec<String>, usage: ExtendedKeyUsagePurpose) -> (String, String) {
            let mut params = CertificateParams::new(names).expect("names");
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
            (params.signed_by(&key, &self.issuer).expect("a certificate").pem(), key.serialize_pem())
        }

        fn profile(&self, member: &Identity) -> Profile {
            let (certificate_pem, key_pem) = self.issue(vec![member.dns_name()], ExtendedKeyUsagePurpose::ClientAuth);
            Profile {
                identity: member.clone(),
                lan_name: "elm".parse().expect("a name"),
                reconst: vec!["127.0.0.1:10000".parse().expect("a target")],
                certificate_pem,
                key_pem,
                authority_pem: self.certificate_pem.clone(),
            }
        }

        fn verifier(&self) -> MemberVerifier {
            MemberVerifier::new(&self.certificate_pem).expect("a usable authority")
        }
    }

    fn member(name: &str) -> Identity {
        Identity { name: name.parse().expect("a name"), role: Role::User, lan: LanId(15) }
    }

    fn now() -> UnixTime {
        UnixTime::now()
    }
}
