//! The authority: signs `reconst`'s own certificate and those of all members.
//!
//! Enters: identities, and the public keys of those who made theirs themselves. Leaves: certificates, with their keys where those are made
//! here. Always holds: what the authority signs
//! is a leaf, for one end of TLS alone, with a name below `tributary.internal`. Where keys are kept is left to
//! [`StateDir`](crate::state::StateDir) and to the profiles; who is a member, to [`Accounts`](crate::accounts::Accounts).

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ED25519, PublicKeyData, SignatureAlgorithm,
};
use shared::community::member::{Identity, RECONST_NAME};
use time::{Duration, OffsetDateTime};

use crate::accounts::invites::Certified;

/// The authority with its key. Prints without it.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

/// A certificate and its key, new.
pub struct Issued {
    /// The certificate, DER.
    pub certificate_der: Vec<u8>,
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// The key, PKCS#8 PEM. A secret.
    pub key_pem: String,
    /// When the certificate ends.
    pub expires_at: OffsetDateTime,
}

impl Authority {
    /// A new authority whose certificate says whose it is; `key_pem` of the result is to be kept.
    ///
    /// # Errors
    /// If the system gives no randomness.
    pub fn create(public_host: &str) -> Result<(Self, Issued), rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&format!("Tributary authority of {public_host}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.name_constraints =
            Some(NameConstraints { permitted_subtrees: vec![GeneralSubtree::DnsName(NAMES.into())], excluded_subtrees: Vec::new() });
        set_validity(&mut params, AUTHORITY_VALIDITY);
        let certificate = params.self_signed(&key)?;
        let issued = Issued {
            certificate_der: certificate.der().to_vec(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            expires_at: params.not_after,
        };
        Ok((Self { issuer: Issuer::new(params, key), certificate_pem: certificate.pem() }, issued))
    }

    /// The authority whose certificate and key were kept.
    ///
    /// # Errors
    /// If either can't be read.
    pub fn from_pem(certificate_pem: String, key_pem: &str) -> Result<Self, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, KeyPair::from_pem(key_pem)?)?;
        Ok(Self { issuer, certificate_pem })
    }

    /// The authority's own certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A certificate for `reconst` itself.
    ///
    /// # Errors
    /// If the system gives no randomness.
    pub fn issue_server(&self) -> Result<Issued, rcgen::Error> {
        self.issue(RECONST_NAME.into(), "Tributary reconst", ExtendedKeyUsagePurpose::ServerAuth, SERVER_VALIDITY)
    }

    /// A certificate for a member, with a key made here.
    ///
    /// # Errors
    /// If the system gives no randomness.
    pub fn issue_member(&self, member: &Identity, validity: Duration) -> Result<Issued, rcgen::Error> {
        self.issue(member.dns_name(), &member.to_string(), ExtendedKeyUsagePurpose::ClientAuth, validity)
    }

    /// A certificate for a member who has made this Ed25519 key.
    ///
    /// # Errors
    /// If the system gives no randomness.
    pub fn certify_member(&self, member: &Identity, public_key: [u8; 32], validity: Duration) -> Result<Certified, rcgen::Error> {
        let purpose = ExtendedKeyUsagePurpose::ClientAuth;
        let (certificate, expires_at) =
            self.sign(member.dns_name(), &member.to_string(), purpose, validity, &Ed25519PublicKey(public_key))?;
        Ok(Certified { der: certificate.der().to_vec(), expires_at })
    }

    fn issue(&self, dns_name: String, title: &str, purpose: ExtendedKeyUsagePurpose, validity: Duration) -> Result<Issued, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let (certificate, expires_at) = self.sign(dns_name, title, purpose, validity, &key)?;
        Ok(Issued {
            certificate_der: certificate.der().to_vec(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            expires_at,
        })
    }

    fn sign(
        &self,
        dns_name: String,
        title: &str,
        purpose: ExtendedKeyUsagePurpose,
        validity: Duration,
        key: &impl PublicKeyData,
    ) -> Result<(Certificate, OffsetDateTime), rcgen::Error> {
        let mut params = CertificateParams::new(vec![dns_name])?;
        params.distinguished_name = common_name(title);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, validity);
        Ok((params.signed_by(key, &self.issuer)?, params.not_after))
    }
}

/// A public key as it came over the network.
struct Ed25519PublicKey([u8; 32]);

impl PublicKeyData for Ed25519PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished_name = DistinguishedName::new();
    let short = &name[..name.floor_char_boundary(COMMON_NAME_BYTES_MAX)];
    distinguished_name.push(DnType::CommonName, short);
    distinguished_name
}

fn set_validity(params: &mut CertificateParams, validity: Duration) {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).expect("0 ns is a time of any second");
    params.not_before = now - BACKDATED.min(validity / 10);
    params.not_after = now + validity;
}

/// Below what the authority's names are; its own certificate confines it to them (RFC 5280 §4.2.1.10).
const NAMES: &str = "tributary.internal";

/// Members hold the authority's certificate in their profiles, so that replacing it means new profiles for all.
const AUTHORITY_VALIDITY: Duration = Duration::days(20 * 365);

/// `reconst` renews its own when it starts.
const SERVER_VALIDITY: Duration = Duration::days(2 * 365);

/// A PC whose clock is behind by less than this, or than a tenth of the certificate's time, takes a new certificate at once.
const BACKDATED: Duration = Duration::days(1);

/// RFC 5280 appendix A: `ub-common-name`.
const COMMON_NAME_BYTES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use shared::{
        community::{member::Role, profile::Profile},
        ids::LanId,
        link::tls,
    };

    use super::*;

    #[test]
    fn a_kept_authority_signs_as_before() {
        let (_, issued) = Authority::create("isp.example").expect("an authority");
        let kept = Authority::from_pem(issued.certificate_pem.clone(), &issued.key_pem).expect("the same authority");
        assert_signs_for_members(&kept);
    }

    #[test]
    fn the_longest_public_name_fits_the_certificate() {
        let (authority, _) = Authority::create(&"é".repeat(126)).expect("an authority");
        assert_signs_for_members(&authority);
    }

    #[test]
    fn a_certificate_for_another_domain_is_worth_nothing() {
        let (authority, _) = Authority::create("isp.example").expect("an authority");
        let issued =
            authority.issue("ann.user.lan15.example.org".into(), "ann", ExtendedKeyUsagePurpose::ClientAuth, YEAR).expect("a certificate");
        let verifier = tls::MemberVerifier::new(authority.certificate_pem()).expect("an authority");
        assert!(verifier.verify(&issued.certificate_der, b"", b"", rustls::pki_types::UnixTime::now()).is_err());
    }

    #[test]
    fn the_server_certificate_serves() {
        let (authority, _) = Authority::create("isp.example").expect("an authority");
        let server = authority.issue_server().expect("a certificate");
        tls::server_crypto(authority.certificate_pem(), &server.certificate_pem, &server.key_pem, tls::PATH_ALPN)
            .expect("a usable certificate");
    }

    const YEAR: Duration = Duration::days(365);

    fn assert_signs_for_members(authority: &Authority) {
        let ann = Identity { name: "ann".parse().expect("a name"), role: Role::User, lan: LanId(15) };
        let issued = authority.issue_member(&ann, YEAR).expect("a certificate");
        let profile = Profile {
            identity: ann.clone(),
            lan_name: "elm".parse().expect("a name"),
            reconst: vec!["isp.example:10000".parse().expect("a target")],
            certificate_pem: issued.certificate_pem,
            key_pem: issued.key_pem,
            authority_pem: authority.certificate_pem().into(),
        };
        let signer = tls::Signer::from_profile(&profile).expect("a usable profile");
        let verifier = tls::MemberVerifier::new(authority.certificate_pem()).expect("an authority");
        let verified = verifier.verify(signer.certificate_der(), b"hello", &signer.sign(b"hello"), rustls::pki_types::UnixTime::now());
        assert_eq!(verified.expect("one of the authority's"), ann);
    }
}
