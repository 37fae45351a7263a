//! The fork between the session and the machine's own way.

use std::sync::{Arc, RwLock};

use shared::target::{Refusal, Target};
use tokio_util::either::Either;

use super::{
    Outbound,
    direct::{Direct, DirectStream},
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

    async fn open(&self, target: Target) -> Result<Self::Stream, Refusal> {
        if self.bypass().goes_direct(&target.host) {
            return Direct.open(target).await.map(Either::Left);
        }
        self.session.open(target).await.map(Either::Right)
    }
}
