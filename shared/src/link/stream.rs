//! A flow as an application of this crate sees it: a byte stream.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One flow, in order and complete, whatever lines its chunks take.
///
/// `poll_shutdown` half-closes; end of file is the other end's half-close; [`io::ErrorKind::ConnectionReset`] is the other
/// end's abort. Dropping a stream that has not been shut down and read to its end aborts the flow.
#[derive(Debug)]
pub struct FlowStream {}

impl AsyncRead for FlowStream {
    fn poll_read(self: Pin<&mut Self>, _cx: &mut Context<'_>, _buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        unimplemented!()
    }
}

impl AsyncWrite for FlowStream {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, _buf: &[u8]) -> Poll<io::Result<usize>> {
        unimplemented!()
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        unimplemented!()
    }
}
