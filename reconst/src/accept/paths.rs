//! Paths in: connections that join their sessions, until they end, move, or lose what they were let in for.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use quinn::VarInt;
use rustls::pki_types::CertificateDer;
use shared::{
    community::{hello::LineNumber, member::Role},
    ids::LanId,
    link::{CLOSE_DENIED, CLOSE_LEAVING, CLOSE_MOVED, CLOSE_OVER, CLOSE_PROTOCOL, join, tls, transport::path_transport},
    service::Shutdown,
    transfer::{
        control::{AbortCode, Leaving},
        join::{JoinReply, JoinRequest},
    },
};
use tokio::{sync::watch, time::timeout};

use super::{Entry, Inner, SessionKey, Sessions, seats::Seat};
use crate::{
    accounts::{Denied, MemberId, changes::Changes, lan_accounts::LanKey},
    backlog::Backlog,
};

/// Takes the paths of `lan` in on `endpoint`, by `config`, until `shutdown`. The flows that are open then go on until the caller closes the
/// sessions.
/// Once the LAN has `moved` away from this endpoint, its paths are asked to be made anew.
pub async fn serve(
    endpoint: quinn::Endpoint,
    config: quinn::ServerConfig,
    lan: LanId,
    sessions: Sessions,
    shutdown: Shutdown,
    moved: watch::Receiver<bool>,
) {
    let backlog = Backlog::new(JOINING_MAX);
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = shutdown.draining() => break,
        };
        let Some(incoming) = incoming else { return };
        let Some((incoming, mut place)) = backlog.admit(incoming) else { continue };
        let (inner, moved) = (sessions.inner.clone(), moved.clone());
        let config = config.clone();
        tokio::spawn(async move {
            let remote = incoming.remote_address();
            let joined = tokio::select! {
                joined = timeout(JOIN_TIME, inner.join(incoming, config, lan)) => joined.unwrap_or_else(|_| Err(anyhow!("joining took too long"))),
                () = place.given_up() => Err(anyhow!("its place went to another's")),
            };
            match joined {
                Ok(Some(path)) => {
                    drop(place);
                    path.run(remote, moved).await;
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(%remote, "no path: {error:#}"),
            }
        });
    }
}

/// A connection that has joined its session.
struct Path {
    inner: Arc<Inner>,
    certificate: CertificateDer<'static>,
    key: SessionKey,
    member: (MemberId, LanKey),
    /// Its relay, if the store has answered.
    relay: Option<MemberId>,
    /// Since before those were looked up.
    changes: Changes,
    entry: Entry,
    connection: quinn::Connection,
    request: JoinRequest,
    _seat: Seat,
}

impl Inner {
    /// Makes a path of a connection; `None` if it was turned away with an answer.
    async fn join(self: Arc<Self>, incoming: quinn::Incoming, mut config: quinn::ServerConfig, lan: LanId) -> anyhow::Result<Option<Path>> {
        config.transport_config(path_transport(incoming.remote_address()));
        let connection = incoming.accept_with(Arc::new(config))?.await?;
        let certificate = tls::peer_certificate(&connection).context("the connection has no certificate")?;
        let (request, mut answer) = match join::receive(&connection).await {
            Ok(received) => received,
            Err(error) => {
                connection.close(VarInt::from_u32(CLOSE_PROTOCOL), error.to_string().as_bytes());
                return Err(error.into());
            }
        };
        let changes = self.accounts.changes();
        let authorised = self.accounts.authorise(&certificate, Role::User).await.map_err(|denied| denied.to_string());
        let member = authorised
            .and_then(|member| if member.identity.lan == lan { Ok(member) } else { Err(format!("this port serves LAN {lan}, not yours")) });
        let member = match member {
            Ok(member) => member,
            Err(reason) => {
                tracing::info!(remote = %connection.remote_address(), %reason, "path refused");
                join::turn_away(&connection, answer, CLOSE_DENIED, &JoinReply::Refused { reason }).await;
                return Ok(None);
            }
        };
        let relay = match self.check_relay(lan, &request.relay).await {
            Ok(relay) => relay,
            Err(reason) => {
                tracing::info!(remote = %connection.remote_address(), %reason, "path refused");
                join::turn_away(&connection, answer, CLOSE_DENIED, &JoinReply::Refused { reason }).await;
                return Ok(None);
            }
        };
        let account = match self.keeper.spending(&member).await {
            Ok(account) => account,
            Err(error) => {
                tracing::error!(user = %member.identity, %error, "path refused");
                let reason = "reconst can't look up what you have used: try again in a moment".into();
                join::turn_away(&connection, answer, CLOSE_DENIED, &JoinReply::Refused { reason }).await;
                return Ok(None);
            }
        };
        let (key, member) = ((member.identity, request.session), (member.id, member.lan_key));
        let (entry, seat) = match self.find_or_begin(&key, &request, account) {
            Ok(found) => found,
            Err(reply) => {
                join::turn_away(&connection, answer, CLOSE_DENIED, &reply).await;
                return Ok(None);
            }
        };
        join::answer(&mut answer, &JoinReply::Joined { incarnation: entry.incarnation }).await?;
        Ok(Some(Path { inner: self, certificate, key, member, relay, changes, entry, connection, request, _seat: seat }))
    }

    /// The relay of that name, if paths may run through it, and if the store answers; if they may not, why.
    async fn check_relay(&self, lan: LanId, relay: &str) -> Result<Option<MemberId>, String> {
        match self.accounts.relay(lan, relay).await {
            Ok(None) => Err(format!("{relay} is no relay of LAN {lan} any more: ask its owner, or reconst's operator")),
            Ok(relay) => Ok(relay),
            // Not knowing is no reason to break what works.
            Err(error) => {
                tracing::warn!(%error, "relays can't be looked up");
                Ok(None)
            }
        }
    }
}

impl Path {
    async fn run(self, remote: SocketAddr, mut moved: watch::Receiver<bool>) {
        let id = self.request.path;
        if let Ok(name) = self.request.relay.parse() {
            let key = (self.key.0.lan, name, LineNumber(self.request.line));
            self.entry.note_line(id, Some((key, remote.ip().to_canonical())));
        }
        // Relays hear a moment later where the LAN is served now, and a path that is made anew is to find it.
        let leave_if_moved = async {
            if moved.wait_for(|moved| *moved).await.is_ok() {
                tokio::time::sleep(MOVE_TOLD_AFTER).await;
                self.entry.handle.leave_path(id, Leaving::Moves);
            }
        };
        tokio::select! {
            () = self.run_until_over(remote) => {}
            () = async { leave_if_moved.await; std::future::pending().await } => {}
            () = self.renewed() => {}
        }
        self.entry.note_line(id, None);
    }

    async fn run_until_over(&self, remote: SocketAddr) {
        let (user, relay, line) = (&self.key.0, &self.request.relay, self.request.line);
        tracing::info!(%user, %relay, line, %remote, "path up");
        let running = self.entry.handle.run_path(self.request.path, self.connection.clone(), self.request.weight_down);
        tokio::select! {
            ended = running => {
                tracing::info!(%user, %relay, line, %remote, "path ended: {ended}");
                if is_over(&ended) {
                    self.entry.handle.close(AbortCode::SessionLost, CLOSE_LEAVING, b"the proxy has ended the session");
                }
            }
            denied = self.denied() => {
                tracing::info!(%user, %relay, line, %remote, "session ended: {denied}");
                self.entry.handle.close(AbortCode::SessionLost, CLOSE_DENIED, denied.to_string().as_bytes());
            }
            reason = self.left_with_its_relay() => {
                tracing::info!(%user, %relay, line, %remote, "path closed: {reason}");
                self.connection.close(VarInt::from_u32(CLOSE_MOVED), reason.as_bytes());
            }
        }
    }

    /// Renews the user's certificate when asked to.
    async fn renewed(&self) {
        self.inner.enroller.serve_member(&self.connection, &self.certificate).await;
        // That the path has ended, and why, is another's to see.
        std::future::pending().await
    }

    /// Waits until the relay is none of the LAN any more, has the path left, and waits until that has had its time; gives why.
    async fn left_with_its_relay(&self) -> String {
        let (mut changes, mut relay, lan) = (self.changes.clone(), self.relay, self.member.1);
        let reason = loop {
            changes.due(relay.is_some(), |change| relay.is_some_and(|relay| change.touches_member(relay, lan))).await;
            match self.inner.check_relay(self.key.0.lan, &self.request.relay).await {
                Ok(known) => relay = known,
                Err(reason) => break reason,
            }
        };
        self.entry.handle.leave_path(self.request.path, Leaving::Ends);
        tokio::time::sleep(LEFT_WITHIN).await;
        reason
    }

    /// Waits until the user is none of the LAN any more.
    async fn denied(&self) -> Denied {
        let (mut changes, mut is_answered, (member, lan)) = (self.changes.clone(), true, self.member);
        loop {
            changes.due(is_answered, |change| change.touches_member(member, lan)).await;
            let account = match self.inner.accounts.authorise_again(&self.certificate, Role::User).await {
                Ok(member) => self.inner.keeper.spending(&member).await.ok(),
                Err(Denied::Unavailable(_)) => None,
                Err(denied) => return denied,
            };
            is_answered = account.is_some();
            if let Some(account) = account {
                self.entry.set_account(account);
            }
        }
    }
}

/// Whether the proxy has ended the session with this path: it has let go of its flows.
fn is_over(ended: &quinn::ConnectionError) -> bool {
    matches!(ended, quinn::ConnectionError::ApplicationClosed(close) if close.error_code == VarInt::from_u32(CLOSE_OVER))
}

/// How long a connection may take to become a path: ten round trips of a modem line.
const JOIN_TIME: Duration = Duration::from_secs(15);

/// How long after a move the paths are asked to be made anew.
const MOVE_TOLD_AFTER: Duration = Duration::from_secs(1);

/// How long a path through a relay that was removed may go on with what is under way, if the proxy does not close it before.
const LEFT_WITHIN: Duration = Duration::from_secs(3);

/// Connections of one data port that are not paths yet.
const JOINING_MAX: usize = 512;
