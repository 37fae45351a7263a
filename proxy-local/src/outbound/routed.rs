//! The fork between the session and the machine's own way.

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
    bypass: Bypass,
}

impl<S: Outbound> Routed<S> {
    /// The fork that `bypass` decides.
    pub fn new(session: S, bypass: Bypass) -> Self {
        Self { session, bypass }
    }
}

impl<S: Outbound> Outbound for Routed<S> {
    type Stream = Either<DirectStream, S::Stream>;

    async fn open(&self, target: Target) -> Result<Self::Stream, Refusal> {
        if self.bypass.goes_direct(&target.host) {
            return Direct.open(target).await.map(Either::Left);
        }
        self.session.open(target).await.map(Either::Right)
    }
}
