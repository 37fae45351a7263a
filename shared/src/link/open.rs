//! Opening a flow towards a target, and answering for it: what the first bytes of a flow say.

use std::{io, time::Duration};

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{session::SessionHandle, stream::FlowStream};
use crate::{
    target::{Refusal, RefusalKind},
    transfer::open::{self, Request},
    wire::WireError,
};

/// How long a flow waits for a path to come into service before it is refused: a laptop that wakes needs some seconds.
const PATH_WAIT: Duration = Duration::from_secs(10);

/// A request that can't be served.
#[derive(Debug, Error)]
pub enum RequestError {
    /// The flow ended or was aborted first.
    #[error("the flow ended within its request: {0}")]
    Io(#[from] io::Error),
    /// The request can't be one.
    #[error("the flow's request is malformed: {0}")]
    Malformed(#[from] WireError),
}

/// Opens a flow for `request` through `session`. What is written to it, or its parcels, go to the content server once `reconst` is
/// ready; what is read from it begins with the answer, for [`read_answer`].
///
/// # Errors
/// [`RefusalKind::NoPath`] if no path comes into service within 10 s, [`RefusalKind::OverQuota`] if too many flows are open.
pub async fn request(session: &SessionHandle, request: &Request) -> Result<FlowStream, Refusal> {
    let mut count = session.path_count();
    let has_path = match tokio::time::timeout(PATH_WAIT, count.wait_for(|count| count.active > 0 || count.is_closed)).await {
        Ok(Ok(count)) => count.active > 0,
        _ => false,
    };
    if !has_path {
        return Err(Refusal::new(RefusalKind::NoPath, "no relay of the LAN reaches reconst right now"));
    }
    let too_many = || Refusal::new(RefusalKind::OverQuota, "too many flows are open at once");
    let mut stream = session.open().ok_or_else(too_many)?;
    stream.write_all(&request.encode()).await.map_err(lost)?;
    Ok(stream)
}

/// Waits for `reconst`'s answer on a flow that [`request`] opened.
///
/// # Errors
/// `reconst`'s refusal, or that the session was lost.
pub async fn read_answer(stream: &mut FlowStream) -> Result<(), Refusal> {
    let kind = stream.read_u8().await.map_err(lost)?;
    if kind == 0 {
        return Ok(());
    }
    let mut reason = vec![0; usize::from(stream.read_u8().await.map_err(lost)?)];
    stream.read_exact(&mut reason).await.map_err(lost)?;
    let _ = stream.shutdown().await;
    Err(open::decode_refusal(kind, &reason))
}

/// Reads what a flow that the other end opened is for.
///
/// # Errors
/// If the flow ends first or its request can't be one.
pub async fn read_request(stream: &mut FlowStream) -> Result<Request, RequestError> {
    let mut first = [0; 2];
    stream.read_exact(&mut first).await?;
    let mut request = vec![0; open::request_len(&first)?];
    stream.read_exact(&mut request).await?;
    Ok(Request::decode(&request)?)
}

/// Answers a flow's request: the content server's bytes may follow, or nothing may.
///
/// # Errors
/// If the flow was aborted.
pub async fn write_answer(stream: &mut FlowStream, answer: &Result<(), Refusal>) -> io::Result<()> {
    stream.write_all(&open::encode_answer(answer)).await?;
    if answer.is_err() {
        stream.shutdown().await?;
    }
    Ok(())
}

fn lost(error: io::Error) -> Refusal {
    Refusal::new(RefusalKind::General, error.to_string())
}
