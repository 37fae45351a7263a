//! A UDP flow's way out: its parcels as datagrams from one dedicated port, and answers back.
//!
//! Each target is resolved and checked once a flow, by the rules for TCP; who may answer is [`UdpPort`]'s to say. A flow whose port is
//! not used either way for [`IDLE_TIME`] is over. Where the user's rate makes a datagram wait, the next ones wait in the core or in the
//! socket, which drop what is too many, as a line would.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use bytes::Bytes;
use shared::{
    community::quota::Refused,
    link::{parcels::ParcelPort, stream::FlowStream, udp_port::UdpPort},
    target::{Host, Target},
};
use tokio::{io::AsyncReadExt, task::JoinSet, time::Instant};

use super::Egress;
use crate::{dedicated::DedicatedPort, quota::meter::ParcelMeter};

/// How long a dedicated port is kept without use: the patent's 5 minutes, which RFC 4787 (REQ-5) recommends as well.
pub(crate) const IDLE_TIME: Duration = Duration::from_secs(300);

/// Targets remembered by a flow; beyond it all are looked up anew. And lookups of names under way at once, the bytes that wait for them, and
/// what a lookup costs besides.
const TARGETS_MAX: usize = 256;
const LOOKUPS_MAX: usize = 16;
const WAITING_BYTES_MAX: usize = 128 << 10;

/// Why a UDP flow is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// The proxy let go of it.
    ByProxy,
    /// Nobody used it.
    Idle,
    /// The user's quota is used up.
    UsedUp,
}

/// Where a target's datagrams go.
#[derive(Debug)]
enum Route {
    To(SocketAddr),
    /// Nowhere: it does not resolve, or is denied.
    Nowhere,
    /// It is being looked up; these datagrams wait.
    LookedUp(Vec<Bytes>),
}

struct UdpFlow<'a> {
    egress: &'a Egress,
    port: UdpPort,
    parcels: ParcelPort,
    usage: &'a DedicatedPort,
    routes: HashMap<Target, Route>,
    lookups: JoinSet<(Target, Option<SocketAddr>)>,
    waiting_bytes: usize,
}

/// Carries the parcels of a flow until its `stream` ends, it is idle, or one of its `meters`, up and down, lets nothing more pass.
///
/// # Errors
/// If the port is of no use any more.
pub(crate) async fn carry(
    egress: &Egress,
    stream: &mut FlowStream,
    parcels: ParcelPort,
    port: UdpPort,
    usage: &DedicatedPort,
    meters: (ParcelMeter, ParcelMeter),
    idle_time: Duration,
) -> std::io::Result<Ended> {
    let mut flow = UdpFlow { egress, port, parcels, usage, routes: HashMap::new(), lookups: JoinSet::new(), waiting_bytes: 0 };
    let (mut up, mut down) = meters;
    let mut waiting_up = None;
    let mut waiting_down = None;
    let mut idle_from = Instant::now();
    let mut ignored = [0; 64];
    loop {
        tokio::select! {
            parcel = flow.parcels.receive(), if waiting_up.is_none() => {
                let Ok((target, payload)) = parcel else { return Ok(Ended::ByProxy) };
                match up.take(payload.len()) {
                    Ok(()) => waiting_up = Some((target, payload)),
                    // It is lost, as one that comes faster than the rate is.
                    Err(Refused::NotYet) => {}
                    Err(_) => return Ok(Ended::UsedUp),
                }
            }
            arrived = flow.port.receive(), if waiting_down.is_none() => {
                let (from, payload) = arrived?;
                if !flow.parcels.has_path() {
                    // It would be counted and lost.
                    continue;
                }
                match down.take(payload.len()) {
                    Ok(()) => waiting_down = Some((from, payload)),
                    // It is lost, as one that comes faster than the rate is.
                    Err(Refused::NotYet) => {}
                    Err(_) => return Ok(Ended::UsedUp),
                }
            }
            () = up.turn(), if waiting_up.is_some() => {}
            () = down.turn(), if waiting_down.is_some() => {}
            Some(Ok((target, address))) = flow.lookups.join_next() => {
                flow.settle(target, address).await;
                continue;
            }
            read = stream.read(&mut ignored) => match read {
                Ok(1..) => continue,
                Ok(0) | Err(_) => return Ok(Ended::ByProxy),
            },
            () = tokio::time::sleep_until(idle_from + idle_time) => return Ok(Ended::Idle),
        }
        if up.is_due()
            && let Some((target, payload)) = waiting_up.take()
        {
            flow.forward(target, payload).await;
        }
        if down.is_due()
            && let Some((from, payload)) = waiting_down.take()
        {
            flow.usage.on_down(payload.len());
            if flow.parcels.send(&from.into(), &payload).is_err() {
                return Ok(Ended::ByProxy);
            }
        }
        idle_from = Instant::now();
    }
}

impl UdpFlow<'_> {
    async fn forward(&mut self, target: Target, payload: Bytes) {
        self.usage.on_up(payload.len());
        let may_wait = self.may_wait(&payload);
        match self.routes.get_mut(&target) {
            Some(Route::To(address)) => {
                let address = *address;
                self.usage.set_content_server(&target);
                return self.port.send(address, &payload).await;
            }
            Some(Route::Nowhere) => return,
            Some(Route::LookedUp(waiting)) => {
                if may_wait {
                    self.waiting_bytes += payload.len() + ENTRY_BYTES;
                    waiting.push(payload);
                }
                return;
            }
            None => {}
        }
        if self.routes.len() >= TARGETS_MAX {
            self.routes.retain(|_, route| matches!(route, Route::LookedUp(_)));
        }
        if let Host::Ip(_) = target.host {
            let address = look_up(self.egress, &target, self.port_takes()).await;
            self.note(&target, address);
            if let Some(address) = address {
                self.usage.set_content_server(&target);
                self.port.send(address, &payload).await;
            }
            return;
        }
        if self.lookups.len() >= LOOKUPS_MAX || !may_wait {
            return;
        }
        self.waiting_bytes += payload.len() + ENTRY_BYTES;
        self.routes.insert(target.clone(), Route::LookedUp(vec![payload]));
        let (egress, takes_ipv6) = (self.egress.clone(), self.port_takes());
        self.lookups.spawn(async move {
            let address = look_up(&egress, &target, takes_ipv6).await;
            (target, address)
        });
    }

    /// Sends what waited for a lookup.
    async fn settle(&mut self, target: Target, address: Option<SocketAddr>) {
        let waited = match self.routes.remove(&target) {
            Some(Route::LookedUp(waiting)) => waiting,
            _ => Vec::new(),
        };
        self.note(&target, address);
        for payload in waited {
            self.waiting_bytes -= payload.len() + ENTRY_BYTES;
            if let Some(address) = address {
                self.usage.set_content_server(&target);
                self.port.send(address, &payload).await;
            }
        }
    }

    fn note(&mut self, target: &Target, address: Option<SocketAddr>) {
        self.routes.insert(target.clone(), address.map_or(Route::Nowhere, Route::To));
    }

    /// Whether there is room for a datagram that waits for a name.
    fn may_wait(&self, payload: &[u8]) -> bool {
        self.waiting_bytes + payload.len() + ENTRY_BYTES <= WAITING_BYTES_MAX
    }

    fn port_takes(&self) -> bool {
        self.port.takes(SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0)))
    }
}

/// The address for `target`'s datagrams: the best that the policy passes and the port can reach.
async fn look_up(egress: &Egress, target: &Target, takes_ipv6: bool) -> Option<SocketAddr> {
    match egress.resolve(target).await {
        Ok(addresses) => addresses.into_iter().find(|address| takes_ipv6 || address.is_ipv4()),
        Err(refusal) => {
            tracing::debug!(%target, %refusal, "datagrams dropped");
            None
        }
    }
}

/// What a datagram that waits costs besides its bytes.
const ENTRY_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use shared::{
        community::member::{Identity, Role},
        ids::{FlowId, LanId, SessionId},
        link::session::SessionHandle,
        transfer::{
            schedule::Policy,
            session::{Limits, Side},
        },
    };

    use super::*;
    use crate::dedicated::{DedicatedPorts, Holder, Protocol};

    #[tokio::test]
    async fn what_waits_for_names_is_bounded_whatever_it_waits_for() {
        let user = Identity { role: Role::User, lan: LanId(15), name: "ann".parse().expect("a name") };
        let holder = Holder { user, lan_name: "elm".parse().expect("a name"), session: SessionId([7; 16]), flow: FlowId(1), origin: None };
        let usage = DedicatedPorts::default().hold(holder, Protocol::Udp, 9, None);
        let stream = SessionHandle::new(Side::Proxy, Policy::Adaptive, Limits::default()).open().expect("a flow");
        let mut flow = UdpFlow {
            egress: &Egress::new(vec![], vec![]),
            port: UdpPort::open().expect("a port"),
            parcels: stream.carry_parcels(Policy::Adaptive),
            usage: &usage,
            routes: HashMap::new(),
            lookups: JoinSet::new(),
            waiting_bytes: 0,
        };
        for number in 0..LOOKUPS_MAX {
            let target: Target = format!("host-{number}.test:9").parse().expect("a target");
            flow.forward(target, vec![7; 60_000].into()).await;
            assert!(flow.waiting_bytes <= WAITING_BYTES_MAX, "{}", flow.waiting_bytes);
        }
        assert!(flow.waiting_bytes > 0);
    }
}
