//! PCs become members here, and members renew their certificates.
//!
//! Enters: connections of strangers with an invite, and requests on connections of members. Leaves: certificates of the authority, which
//! are on the accounts. Always holds: a request is signed by the key it is for; strangers are looked at so and so many a second, whatever
//! they show.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use quinn::VarInt;
use rustls::pki_types::CertificateDer;
use shared::{
    community::{
        enrol::{EnrolReply, Issued, Title},
        gate::Gate,
        member::Identity,
    },
    link::{
        CLOSE_LEAVING, CLOSE_PROTOCOL,
        enrol::{self, EnrolError},
    },
    service::Failure,
    target::Target,
};
use tokio::time::timeout;

use crate::{
    accounts::{
        Accounts,
        invites::{Certified, EnrolDenied, Enrolled, Redeeming},
    },
    authority::Authority,
    provision,
};

/// Issues certificates to those who are entitled to them; clones share it.
#[derive(Clone)]
pub(crate) struct Enroller {
    inner: Arc<Inner>,
}

struct Inner {
    accounts: Accounts,
    authority: Authority,
    gates: Mutex<Gates>,
}

/// How often strangers may show an invite.
struct Gates {
    all: Gate,
    by_source: [Gate; SOURCE_SLOTS],
}

impl Enroller {
    /// An enroller for the members of `accounts`.
    pub(crate) fn new(accounts: Accounts, authority: Authority) -> Self {
        let gates = Mutex::new(Gates { all: Gate::default(), by_source: [Gate::default(); SOURCE_SLOTS] });
        Self { inner: Arc::new(Inner { accounts, authority, gates }) }
    }

    /// Answers the one request of a stranger.
    pub(crate) async fn serve_stranger(&self, connection: quinn::Connection) -> Result<(), EnrolError> {
        let remote = connection.remote_address();
        let (request, send) = match timeout(REQUEST_TIME, enrol::receive(&connection)).await.unwrap_or(Err(EnrolError::Silent(remote))) {
            Ok(received) => received,
            Err(error) => {
                connection.close(VarInt::from_u32(CLOSE_PROTOCOL), error.to_string().as_bytes());
                return Err(error);
            }
        };
        let reply = match request.title {
            Title::Certificate => EnrolReply::Refused("who renews a certificate shows it: this connection came without".into()),
            Title::Invite { .. } if !self.inner.may_look(Instant::now(), remote) => {
                EnrolReply::Busy("too many ask at once: try again in a minute".into())
            }
            Title::Invite { number, secret } => {
                let redeeming = Redeeming { number, secret, public_key: request.public_key };
                self.inner.redeem(redeeming, remote).await
            }
        };
        enrol::answer(send, &reply).await;
        connection.close(VarInt::from_u32(CLOSE_LEAVING), b"done");
        Ok(())
    }
}

impl Enroller {
    /// Renews the certificate that `connection`, a member's, was authenticated with, whenever its other end asks; until that has ended.
    pub(crate) async fn serve_member(&self, connection: &quinn::Connection, certificate: &CertificateDer<'_>) {
        loop {
            match enrol::receive(connection).await {
                Ok((request, send)) => {
                    let reply = match request.title {
                        Title::Certificate => self.inner.renew(certificate, request.public_key, connection.remote_address()).await,
                        Title::Invite { .. } => EnrolReply::Refused("an invite is not shown on a member's connection".into()),
                    };
                    enrol::answer(send, &reply).await;
                }
                Err(error) if connection.close_reason().is_none() => tracing::debug!(%error, "no request for renewal"),
                Err(_) => return,
            }
            tokio::time::sleep(RENEWAL_PAUSE).await;
        }
    }
}

impl Inner {
    fn may_look(&self, now: Instant, remote: SocketAddr) -> bool {
        let mut gates = self.gates.lock().expect("nothing panics while it is held");
        let slot = slot_of(remote.ip());
        gates.by_source[slot].take(now, SOURCE_INTERVAL, SOURCE_BURST) && gates.all.take(now, INTERVAL, BURST)
    }

    async fn redeem(&self, redeeming: Redeeming, remote: SocketAddr) -> EnrolReply {
        match self.enrolled(redeeming).await {
            Ok((reconst, enrolled)) => {
                tracing::info!(member = %enrolled.identity, invite = redeeming.number, %remote, "joined");
                EnrolReply::Issued(Issued { reconst, ..issued(enrolled) })
            }
            Err(denied) => refusal(denied, remote, "invite refused"),
        }
    }

    /// Who has joined, and where it reaches `reconst`: at all nodes there are now.
    async fn enrolled(&self, redeeming: Redeeming) -> Result<(Vec<Target>, Enrolled), EnrolDenied> {
        let unavailable = |failure: Failure| EnrolDenied::Unavailable(Box::new(failure));
        let validity = provision::member_validity(&self.accounts).await.map_err(unavailable)?;
        let public = provision::public(&self.accounts).await.map_err(unavailable)?;
        let certify = |identity: &_| self.certify(identity, redeeming.public_key, validity);
        Ok((public, self.accounts.redeem(redeeming, certify).await?))
    }

    async fn renew(&self, certificate: &CertificateDer<'_>, public_key: [u8; 32], remote: SocketAddr) -> EnrolReply {
        let renewed = match provision::member_validity(&self.accounts).await {
            Ok(validity) => {
                let certify = |identity: &_| self.certify(identity, public_key, validity);
                self.accounts.renew(certificate, public_key, certify).await
            }
            Err(failure) => Err(EnrolDenied::Unavailable(Box::new(failure))),
        };
        match renewed {
            Ok(enrolled) => {
                tracing::info!(member = %enrolled.identity, %remote, "certificate renewed");
                EnrolReply::Issued(issued(enrolled))
            }
            Err(denied) => refusal(denied, remote, "renewal refused"),
        }
    }

    fn certify(&self, identity: &Identity, public_key: [u8; 32], validity: time::Duration) -> Result<Certified, EnrolDenied> {
        let certified = self.authority.certify_member(identity, public_key, validity);
        certified.map_err(|error| EnrolDenied::Unavailable(Box::new(error)))
    }
}

/// What is issued, without a word of where `reconst` is reached: that is as before.
fn issued(enrolled: Enrolled) -> Issued {
    let Enrolled { identity, lan_name, certificate } = enrolled;
    Issued { identity, lan_name, reconst: Vec::new(), certificate }
}

fn refusal(denied: EnrolDenied, remote: SocketAddr, what: &str) -> EnrolReply {
    match &denied {
        EnrolDenied::Unavailable(error) => {
            tracing::error!(%error, %remote, "no certificate can be issued");
            EnrolReply::Busy(denied.to_string())
        }
        EnrolDenied::TooMany(_) => EnrolReply::Busy(denied.to_string()),
        _ => {
            tracing::info!(%remote, reason = %denied, "{what}");
            EnrolReply::Refused(denied.to_string())
        }
    }
}

/// One gate for each IPv4 address or IPv6 network of a household, as far as there are gates.
fn slot_of(ip: IpAddr) -> usize {
    let octets = match ip.to_canonical() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets()[..7].to_vec(),
    };
    octets.iter().fold(0usize, |slot, &octet| slot.wrapping_mul(31).wrapping_add(octet.into())) % SOURCE_SLOTS
}

/// How long a stranger may take with its request: as long as a login with its first message.
const REQUEST_TIME: Duration = Duration::from_secs(15);

/// How soon a member is heard again on the same connection: once in years is what it needs.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);

/// Invites looked at: a neighbourhood that joins in one evening, not a flood. A secret has 128 bits, so that this spares the store alone.
const INTERVAL: Duration = Duration::from_millis(100);
const BURST: u32 = 100;

/// The same for one address: a household behind one line, or the strangers that a relay carries.
const SOURCE_INTERVAL: Duration = Duration::from_secs(2);
const SOURCE_BURST: u32 = 20;

/// Addresses share this many gates: memory stays the same whoever asks.
const SOURCE_SLOTS: usize = 256;
