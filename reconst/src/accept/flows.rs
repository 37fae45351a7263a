//! Flows out: each to its content server and back.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use shared::{
    community::{member::Identity, quota::Way},
    ids::SessionId,
    link::{open, pipe::metered_pipe, stream::FlowStream, udp_port::UdpPort},
    target::{Refusal, RefusalKind, Target},
    transfer::{open::RequestKind, schedule::Policy},
};
use tokio::io::AsyncWriteExt;

use super::{Entry, Inner, SessionKey};
use crate::{
    dedicated::{Holder, Noted, Protocol},
    egress::udp,
    quota::{
        Spending,
        meter::{FlowMeter, ParcelMeter},
    },
};

impl Inner {
    /// Takes the flows of a session until it is closed.
    pub(super) async fn serve_flows(self: Arc<Self>, entry: Entry, key: SessionKey) {
        while let Some(stream) = entry.handle.accept().await {
            let inner = self.clone();
            let ((user, session), account) = (key.clone(), entry.account());
            tokio::spawn(async move {
                let _counted = Counted::in_all(&inner.open_flows);
                if let Err(error) = inner.serve_flow(stream, &user, session, &account).await {
                    tracing::debug!(%user, "flow ended: {error:#}");
                }
            });
        }
    }

    /// Carries one flow to its content server and back.
    async fn serve_flow(&self, mut stream: FlowStream, user: &Identity, session: SessionId, account: &Arc<Spending>) -> anyhow::Result<()> {
        let request = tokio::time::timeout(REQUEST_TIME, open::read_request(&mut stream)).await??;
        let _counted = match account.open_flow() {
            Ok(counted) => counted,
            Err(refusal) => return refuse(stream, refusal).await,
        };
        let lan_name = account.lan_name().clone();
        let holder = Holder { user: user.clone(), lan_name, session, flow: stream.id(), origin: request.origin };
        match request.kind {
            RequestKind::Tcp(target) => self.serve_tcp(stream, target, holder, account).await,
            RequestKind::Udp(policy) => self.serve_udp(stream, policy, holder, account).await,
        }
    }

    async fn serve_tcp(&self, mut stream: FlowStream, target: Target, holder: Holder, account: &Arc<Spending>) -> anyhow::Result<()> {
        let socket = match self.egress.of_user(&holder.user).connect(&target).await {
            Ok(socket) => socket,
            Err(refusal) => return refuse(stream, refusal).await,
        };
        open::write_answer(&mut stream, &Ok(())).await?;
        let id = stream.id();
        let port = self.dedicated.hold(holder, Protocol::Tcp, socket.local_addr()?.port(), Some(target.clone()));
        let (up, down) = FlowMeter::pair(account, &stream.watch());
        let aborted = stream.aborted();
        // The pipe's socket is the content server's, so that what it reads there goes down.
        let carried = metered_pipe(socket, Noted::new(stream, port), down, up, aborted).await?;
        tracing::debug!(%target, %id, up = carried.down, down = carried.up, "flow over");
        Ok(())
    }

    async fn serve_udp(&self, mut stream: FlowStream, policy: Policy, holder: Holder, account: &Arc<Spending>) -> anyhow::Result<()> {
        let counted = Counted::in_all(&self.open_udp_flows);
        self.carry_udp(&mut stream, policy, holder, account).await?;
        drop(counted);
        read_to_end(&mut stream).await;
        Ok(())
    }

    async fn carry_udp(&self, stream: &mut FlowStream, policy: Policy, holder: Holder, account: &Arc<Spending>) -> anyhow::Result<()> {
        let parcels = stream.carry_parcels(policy);
        let opened = UdpPort::open().and_then(|port| Ok((port.number()?, port)));
        let answer = match &opened {
            Ok(_) => Ok(()),
            Err(error) => Err(Refusal::new(RefusalKind::General, format!("reconst has no UDP port left: {error}"))),
        };
        open::write_answer(stream, &answer).await?;
        if let Ok((number, port)) = opened {
            let egress = self.egress.of_user(&holder.user);
            let usage = self.dedicated.hold(holder, Protocol::Udp, number, None);
            let meters = (ParcelMeter::new(account.clone(), Way::Up), ParcelMeter::new(account.clone(), Way::Down));
            let ended = udp::carry(&egress, stream, parcels, port, &usage, meters, self.udp_idle).await?;
            tracing::debug!(id = %stream.id(), port = number, ?ended, "UDP flow over");
            stream.shutdown().await?;
        }
        Ok(())
    }
}

/// One among all of its kind, until dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn in_all(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers a flow with a refusal.
async fn refuse(mut stream: FlowStream, refusal: Refusal) -> anyhow::Result<()> {
    open::write_answer(&mut stream, &Err(refusal)).await?;
    read_to_end(&mut stream).await;
    Ok(())
}

/// Reads a refused flow to its end, so that it ends in order; what it says is of no interest.
async fn read_to_end(stream: &mut FlowStream) {
    let mut sink = tokio::io::sink();
    let _: Result<io::Result<u64>, _> = tokio::time::timeout(REQUEST_TIME, tokio::io::copy(stream, &mut sink)).await;
}

/// How long a flow may take to say where it goes.
const REQUEST_TIME: Duration = Duration::from_secs(60);
