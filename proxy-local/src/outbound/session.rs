//! The way through the session, over the neighbours' lines.

use shared::{
    link::{open, stream::FlowStream},
    target::{Refusal, Target},
};

use super::Outbound;
use crate::paths::Paths;

/// Opens flows in the session of [`Paths`].
#[derive(Clone)]
pub struct SessionOutbound {
    paths: Paths,
}

impl SessionOutbound {
    /// The way through the session of `paths`, whichever that is when a flow is opened.
    pub fn new(paths: Paths) -> Self {
        Self { paths }
    }
}

impl Outbound for SessionOutbound {
    type Stream = FlowStream;

    async fn open(&self, target: Target) -> Result<Self::Stream, Refusal> {
        open::open_tcp(&self.paths.session(), &target).await
    }
}
