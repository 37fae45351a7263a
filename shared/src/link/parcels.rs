//! A UDP flow's parcels as an application of this crate sees them.

use std::{fmt, io, task::Poll};

use bytes::{BufMut, Bytes, BytesMut};

use super::{session::SessionHandle, stream::aborted};
use crate::{ids::FlowId, target::Target, transfer::session::Read};

/// Where the parcels of one flow go in and come out, beside its [`FlowStream`](super::stream::FlowStream), which holds it open.
pub struct ParcelPort {
    session: SessionHandle,
    id: FlowId,
}

impl ParcelPort {
    pub(super) fn new(session: SessionHandle, id: FlowId) -> Self {
        Self { session, id }
    }

    /// Sends a datagram to `target`, or from it on the way back. It may be lost, like any datagram.
    ///
    /// # Errors
    /// If the flow is over.
    pub fn send(&self, target: &Target, payload: &[u8]) -> io::Result<()> {
        let mut parcel = BytesMut::with_capacity(TARGET_BYTES + payload.len());
        target.encode(&mut parcel);
        parcel.put_slice(payload);
        self.session.with(|state, now| state.core.send_parcel(now, self.id, parcel.freeze())).map_err(aborted)
    }

    /// Whether a path is in service: without one, what is sent is most likely lost.
    pub fn has_path(&self) -> bool {
        self.session.path_count().borrow().active > 0
    }

    /// Waits for the next datagram and where it goes to, or comes from. Safe to cancel.
    ///
    /// # Errors
    /// If the flow is over.
    pub async fn receive(&self) -> io::Result<(Target, Bytes)> {
        std::future::poll_fn(|context| {
            self.session.with(|state, _| {
                loop {
                    match state.core.read_parcel(self.id) {
                        Read::Bytes(mut parcel) => match Target::decode(&mut parcel) {
                            Ok(target) => return Poll::Ready(Ok((target, parcel))),
                            Err(error) => tracing::debug!(id = %self.id, %error, "a parcel without an address"),
                        },
                        Read::Aborted(code) => return Poll::Ready(Err(aborted(code))),
                        Read::Blocked | Read::End => {
                            state.wait_for_parcel(self.id, context);
                            return Poll::Pending;
                        }
                    }
                }
            })
        })
        .await
    }
}

impl fmt::Debug for ParcelPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParcelPort").field("id", &self.id).finish_non_exhaustive()
    }
}

/// An address and a port; names take more.
const TARGET_BYTES: usize = 19;
