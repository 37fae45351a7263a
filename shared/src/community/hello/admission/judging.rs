//! Whether a `HELLO` is a member's: the two signatures, one verified and one made, away from the packets' way.

use std::net::SocketAddr;

use super::super::{Cookie, HelloRefusal, LineNumber, Nonce, Reply, Request, WelcomeMessage, signed_hello, signed_welcome};
use crate::community::{
    member::{CertificateMark, Identity, Role},
    weight::Weights,
};

/// A `HELLO` whose sender receives at its address: worth two signature verifications.
#[derive(Debug)]
pub struct PendingHello {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) request: Request,
    pub(super) line: LineNumber,
    pub(super) cookie: Cookie,
    pub(super) certificate: Vec<u8>,
    pub(super) signature: Vec<u8>,
}

/// What became of a [`PendingHello`].
#[derive(Debug)]
pub struct Judged {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) nonce: Nonce,
    pub(super) outcome: Result<(Identity, AdmittedProof), HelloRefusal>,
}

/// What a client was admitted by: the same again is a retransmission, which is answered without looking at it a second time.
#[derive(Debug)]
pub(super) struct AdmittedProof {
    pub(super) certificate: CertificateMark,
    pub(super) nonce: Nonce,
    pub(super) signature: Vec<u8>,
    pub(super) welcome: Vec<u8>,
}

impl PendingHello {
    /// Judges the `HELLO`: `verify` is given certificate, message and signature and says whose they are; `sign` signs the `WELCOME`
    /// with the key of `certificate`, the relay's.
    pub fn judge(
        self,
        weights: Weights,
        certificate: &[u8],
        verify: impl FnOnce(&[u8], &[u8], &[u8]) -> Option<Identity>,
        sign: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Judged {
        let Self { from, to, request, line, cookie, certificate: own_certificate, signature } = self;
        let message = signed_hello(&request, cookie, &own_certificate);
        let member = verify(&own_certificate, &message, &signature).filter(|member| member.role == Role::User && member.lan == request.lan);
        let outcome = member.ok_or(HelloRefusal::NotAMember).map(|member| {
            let welcome_signature = sign(&signed_welcome(request.nonce, request.lan, line, weights));
            let welcome = WelcomeMessage { line, weights, certificate: certificate.to_vec(), signature: welcome_signature };
            let welcome = Reply::Welcome(welcome).encode(request.nonce);
            (member, AdmittedProof { certificate: CertificateMark::of(&own_certificate), nonce: request.nonce, signature, welcome })
        });
        Judged { from, to, nonce: request.nonce, outcome }
    }

    /// What tells the certificate that it bears from others.
    pub fn certificate_mark(&self) -> CertificateMark {
        CertificateMark::of(&self.certificate)
    }

    /// Judges the `HELLO` without a look at its signature.
    pub fn refuse(self, refusal: HelloRefusal) -> Judged {
        Judged { from: self.from, to: self.to, nonce: self.request.nonce, outcome: Err(refusal) }
    }
}

impl Judged {
    /// The address that asked.
    pub fn from(&self) -> SocketAddr {
        self.from
    }

    /// The address of the relay's that was asked.
    pub fn to(&self) -> SocketAddr {
        self.to
    }

    /// The member to be admitted, if it is to be.
    pub fn member(&self) -> Option<&Identity> {
        self.outcome.as_ref().ok().map(|(member, _)| member)
    }
}
