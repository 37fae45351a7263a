//! Datagrams through the session, over the neighbours' lines.

use std::{fmt, future::Future, net::SocketAddr, pin::Pin};

use bytes::Bytes;
use shared::{
    link::{open, parcels::ParcelPort, stream::FlowStream},
    target::{Refusal, Target},
    transfer::{
        open::{Request, RequestKind},
        schedule::Policy,
    },
};
use tokio::io::AsyncReadExt;

use super::Association;
use crate::paths::Paths;

/// One application's datagrams in a UDP flow. It is opened for the first of them, and again if `reconst` let it go while it was idle.
pub struct SessionAssociation {
    paths: Paths,
    policy: Policy,
    origin: Option<SocketAddr>,
    flow: Option<UdpFlow>,
}

struct UdpFlow {
    parcels: ParcelPort,
    /// Holds the flow open; done when it is over, with the refusal if it was refused.
    control: Pin<Box<dyn Future<Output = Result<(), Refusal>> + Send>>,
}

impl SessionAssociation {
    pub(super) fn new(paths: Paths, policy: Policy, origin: Option<SocketAddr>) -> Self {
        Self { paths, policy, origin, flow: None }
    }

    /// Opens the flow without waiting for anything: datagrams go out behind the request, and a path that is not there yet loses them.
    async fn open(&mut self) -> Option<UdpFlow> {
        let session = self.paths.session();
        if session.path_count().borrow().active == 0 {
            return None;
        }
        let request = Request { kind: RequestKind::Udp(self.policy), origin: self.origin };
        match open::request(&session, &request).await {
            Ok(stream) => Some(UdpFlow { parcels: stream.carry_parcels(self.policy), control: Box::pin(control(stream)) }),
            Err(refusal) => {
                tracing::debug!(%refusal, "no UDP flow");
                None
            }
        }
    }
}

/// Waits for the end of a UDP flow, however it comes.
///
/// # Errors
/// If `reconst` refused it.
async fn control(mut stream: FlowStream) -> Result<(), Refusal> {
    open::read_answer(&mut stream).await?;
    let _ = stream.read(&mut [0]).await;
    Ok(())
}

impl Association for SessionAssociation {
    async fn send(&mut self, target: Target, payload: Bytes) {
        if self.flow.is_none() {
            self.flow = self.open().await;
        }
        if let Some(flow) = &self.flow
            && flow.parcels.send(&target, &payload).is_err()
        {
            // The flow is over; `receive` may not have noticed yet.
            self.flow = self.open().await;
            if let Some(flow) = &self.flow {
                let _ = flow.parcels.send(&target, &payload);
            }
        }
    }

    async fn receive(&mut self) -> Result<(SocketAddr, Bytes), Refusal> {
        loop {
            let Some(flow) = &mut self.flow else { return std::future::pending().await };
            tokio::select! {
                parcel = flow.parcels.receive() => match parcel {
                    Ok((from, payload)) => {
                        if let Some(from) = from.address() {
                            return Ok((from, payload));
                        }
                    }
                    Err(_) => self.flow = None,
                },
                ended = &mut flow.control => {
                    self.flow = None;
                    ended?;
                }
            }
        }
    }
}

impl fmt::Debug for SessionAssociation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionAssociation").field("is_open", &self.flow.is_some()).finish_non_exhaustive()
    }
}
