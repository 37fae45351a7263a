//! The fork between the session and the machine's own way.

use std::{
    net::SocketAddr,
    sync::{Arc, RwLock},
};

use bytes::Bytes;
use shared::target::{Refusal, Target};
use tokio_util::either::Either;

use super::{
    Association, Outbound,
    direct::{Direct, DirectStream},
    direct_udp::DirectAssociation,
};
use crate::bypass::Bypass;

/// Sends flows to bypassed destinations directly and all others through `session`.
#[derive(Debug)]
pub struct Routed<S> {
    session: S,
    bypass: RwLock<Arc<Bypass>>,
}

impl<S: Outbound> Routed<S> {
    /// The fork that `bypass` decides.
    pub fn new(session: S, bypass: Bypass) -> Self {
        Self { session, bypass: RwLock::new(Arc::new(bypass)) }
    }

    /// Decides by another bypass from now on; open flows stay.
    pub fn set_bypass(&self, bypass: Bypass) {
        *self.bypass.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(bypass);
    }

    fn bypass(&self) -> Arc<Bypass> {
        Arc::clone(&self.bypass.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

impl<S: Outbound> Outbound for Routed<S> {
    type Stream = Either<DirectStream, S::Stream>;
    type Association = RoutedAssociation<S::Association>;

    async fn open(&self, target: Target, application: SocketAddr) -> Result<Self::Stream, Refusal> {
        if self.bypass().goes_direct(&target.host) {
            return Direct.open(target, application).await.map(Either::Left);
        }
        self.session.open(target, application).await.map(Either::Right)
    }

    fn associate(&self, application: SocketAddr) -> Result<Self::Association, Refusal> {
        let session = self.session.associate(application)?;
        Ok(RoutedAssociation { session, direct: DirectAssociation::default(), bypass: self.bypass() })
    }
}

/// Both ways for the datagrams of one application; the bypass is that of its beginning.
#[derive(Debug)]
pub struct RoutedAssociation<S> {
    session: S,
    direct: DirectAssociation,
    bypass: Arc<Bypass>,
}

impl<S: Association> Association for RoutedAssociation<S> {
    async fn send(&mut self, target: Target, payload: Bytes) {
        if self.bypass.goes_direct(&target.host) {
            self.direct.send(target, payload).await;
        } else {
            self.session.send(target, payload).await;
        }
    }

    async fn receive(&mut self) -> Result<(SocketAddr, Bytes), Refusal> {
        tokio::select! {
            received = self.session.receive() => received,
            received = self.direct.receive() => received,
        }
    }
}
