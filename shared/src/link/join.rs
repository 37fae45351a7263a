//! Joining a path to its session: the request and reply on the connection's first stream.

use quinn::{Connection, SendStream, VarInt};
use thiserror::Error;

use crate::{
    transfer::join::{self, JoinReply, JoinRequest},
    wire::WireError,
};

/// A path that did not join.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The connection ended first.
    #[error("the connection ended while joining: {0}")]
    Connection(#[from] quinn::ConnectionError),
    /// The request or reply did not get through.
    #[error("the path's first stream broke: {0}")]
    Write(#[from] quinn::WriteError),
    /// The request or reply did not come whole.
    #[error("the path's first stream broke: {0}")]
    Read(#[from] quinn::ReadExactError),
    /// The other end sent what can't be.
    #[error("the other end sent a malformed join message: {0}")]
    Malformed(#[from] WireError),
    /// `reconst` refused.
    #[error("reconst refused the path: {0}")]
    Refused(String),
    /// `reconst` does not know the session any more.
    #[error("reconst does not know the session any more")]
    UnknownSession,
}

/// Asks over `connection` to join; gives the session's incarnation.
///
/// # Errors
/// [`JoinError::Refused`] with `reconst`'s sentence, or what broke on the way.
pub async fn request(connection: &Connection, request: &JoinRequest) -> Result<u64, JoinError> {
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(&request.encode()).await?;
    let _ = send.finish();
    match JoinReply::decode(&read_message(&mut receive).await?)? {
        JoinReply::Joined { incarnation } => Ok(incarnation),
        JoinReply::Refused { reason } => Err(JoinError::Refused(reason)),
        JoinReply::Unknown => Err(JoinError::UnknownSession),
    }
}

/// Waits for the other end's request to join; gives it and the stream for the answer.
///
/// # Errors
/// What broke on the way, or a malformed request.
pub async fn receive(connection: &Connection) -> Result<(JoinRequest, SendStream), JoinError> {
    let (send, mut receive) = connection.accept_bi().await?;
    let request = JoinRequest::decode(&read_message(&mut receive).await?)?;
    Ok((request, send))
}

/// Answers a request that was received.
///
/// # Errors
/// If the connection has ended.
pub async fn answer(send: &mut SendStream, reply: &JoinReply) -> Result<(), JoinError> {
    send.write_all(&reply.encode()).await?;
    let _ = send.finish();
    Ok(())
}

/// Answers a request with `reply`, which lets nobody in, and closes the connection once the other end has read it, or after a while.
pub async fn turn_away(connection: &Connection, mut send: SendStream, close_code: u32, reply: &JoinReply) {
    if answer(&mut send, reply).await.is_ok() {
        let _ = tokio::time::timeout(REFUSAL_GRACE, send.stopped()).await;
    }
    let reason = if let JoinReply::Refused { reason } = reply { reason.as_str() } else { "" };
    connection.close(VarInt::from_u32(close_code), reason.as_bytes());
}

async fn read_message(receive: &mut quinn::RecvStream) -> Result<Vec<u8>, JoinError> {
    let mut first = [0; 2];
    receive.read_exact(&mut first).await?;
    let mut message = vec![0; join::message_len(&first)?];
    receive.read_exact(&mut message).await?;
    Ok(message)
}

/// How long a refused end may take to read why.
const REFUSAL_GRACE: std::time::Duration = std::time::Duration::from_secs(5);
