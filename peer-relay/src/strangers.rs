//! Those who want to become members, carried to `reconst`'s login port.
//!
//! Enters: `ENROL`s, and the packets of addresses that are no client's. Leaves: those of the few that [`Carriage`] grants it, to the login
//! port alone, and what comes back. Each has a socket of its own over the line, for as long as the grant lasts.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use shared::community::hello::{
    HelloRefusal,
    carry::{Allowance, Carriage, CarryAnswer, LIFETIME},
};
use tokio::{net::UdpSocket, task::AbortHandle, time::timeout};

use crate::{batch::Packets, client::Common};

/// The strangers on one line.
pub(crate) struct Strangers {
    common: Arc<Common>,
    is_on: bool,
    carriage: Carriage,
    ways: BTreeMap<SocketAddr, Way>,
}

/// A stranger's way to the login port.
struct Way {
    wan: Arc<UdpSocket>,
    downward: AbortHandle,
}

impl Strangers {
    /// Nobody carried yet, and nobody ever unless `is_on`; `secret` is 32 random bytes.
    pub(crate) fn new(common: Arc<Common>, is_on: bool, secret: &[u8; 32]) -> Self {
        Self { common, is_on, carriage: Carriage::new(secret, Instant::now()), ways: BTreeMap::new() }
    }

    /// Answers an `ENROL` sent `from` there `to` the relay's address, to be carried to `login`, which may not be known; gives whether that
    /// made one more who is carried.
    pub(crate) fn handle_enrol(
        &mut self,
        now: Instant,
        from: SocketAddr,
        to: IpAddr,
        packet: &[u8],
        login: Result<SocketAddr, HelloRefusal>,
    ) -> bool {
        let login = if self.is_on { login } else { Err(HelloRefusal::NotCarried) };
        let (answer, is_new) = match (self.carriage.handle_enrol(now, from, packet, login.err()), login) {
            (CarryAnswer::Open(answer), Ok(login)) => match self.open(from, to, login) {
                Ok(way) => {
                    self.ways.insert(from, way);
                    tracing::info!(%from, "carrying somebody who wants to join");
                    (answer, true)
                }
                Err(error) => {
                    tracing::warn!(%from, %error, "no socket over the line for somebody who wants to join");
                    self.carriage.release(from);
                    return false;
                }
            },
            (CarryAnswer::Send(answer), _) => (answer, false),
            (CarryAnswer::Open(_) | CarryAnswer::Nothing, _) => return false,
        };
        self.common.lan.send(from, Some(to), Packets::one(&answer));
        is_new
    }

    /// Carries the packets that may pass; gives how many may not.
    pub(crate) fn carry_up(&mut self, now: Instant, from: SocketAddr, packets: Packets<'_>) -> u64 {
        let Some(way) = self.ways.get(&from) else { return packets.count() };
        let mut dropped = 0;
        for packet in packets.contents.chunks(packets.stride) {
            let is_sent = self.carriage.may_pass(now, from, packet.len()) && way.wan.try_send(packet).is_ok();
            dropped += u64::from(!is_sent);
        }
        dropped
    }

    /// Lets go of those whose time is over.
    pub(crate) fn expire(&mut self, now: Instant) {
        for from in self.carriage.expire(now) {
            self.ways.remove(&from);
        }
    }

    fn open(&self, from: SocketAddr, to: IpAddr, login: SocketAddr) -> io::Result<Way> {
        let socket = self.common.binding.open(login.ip())?;
        socket.connect(login)?;
        let wan = Arc::new(UdpSocket::from_std(socket)?);
        let downward = tokio::spawn(carry_down(Arc::clone(&self.common), Arc::clone(&wan), from, to)).abort_handle();
        Ok(Way { wan, downward })
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.downward.abort();
    }
}

async fn carry_down(common: Arc<Common>, wan: Arc<UdpSocket>, from: SocketAddr, to: IpAddr) {
    let mut allowance = Allowance::default();
    let carry = async {
        let mut packet = [0; PACKET_MAX_BYTES];
        // An error is one packet's (ICMP): the next may come, and the time is short anyway.
        let mut errors = 0;
        while errors < ERRORS_MAX {
            match wan.recv(&mut packet).await {
                Ok(len) if allowance.take(len) => {
                    common.lan.send(from, Some(to), Packets::one(&packet[..len]));
                }
                Ok(_) => return,
                Err(_) => errors += 1,
            }
        }
    };
    let _ = timeout(LIFETIME, carry).await;
}

/// The login port sends no larger ones.
const PACKET_MAX_BYTES: usize = 2048;

/// As many as packets may be sent.
const ERRORS_MAX: u32 = 40;
