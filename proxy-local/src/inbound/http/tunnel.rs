//! A connection that has left HTTP: from here on its bytes are carried as they are.

use anyhow::{Context, anyhow};
use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Parts, Upgraded};
use hyper_util::rt::TokioIo;
use shared::link::pipe::pipe;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use super::{application::ApplicationIo, origins::AbortOnDrop};

/// Both ends of a tunnel, each perhaps still on its way out of hyper.
pub(super) struct Tunnel<S> {
    application: OnUpgrade,
    far: FarEnd<S>,
}

enum FarEnd<S> {
    Stream(S),
    Upgrade { upgrade: OnUpgrade, driver: AbortOnDrop },
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Tunnel<S> {
    /// The tunnel of a CONNECT.
    pub(super) fn to_stream(application: OnUpgrade, stream: S) -> Self {
        Self { application, far: FarEnd::Stream(stream) }
    }

    /// The tunnel after both ends have switched protocols. `driver` brings the far end out of hyper.
    pub(super) fn to_upgrade(application: OnUpgrade, upgrade: OnUpgrade, driver: AbortOnDrop) -> Self {
        Self { application, far: FarEnd::Upgrade { upgrade, driver } }
    }

    /// Carries the bytes that each end sent behind its last header, then all others, until both directions have ended.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let (tcp, early_up) = application_end(self.application.await.context("the application's end")?)?;
        let (stream, early_down) = match self.far {
            FarEnd::Stream(stream) => (stream, Bytes::new()),
            FarEnd::Upgrade { upgrade, driver } => {
                let upgraded = upgrade.await.context("the content server's end")?;
                drop(driver);
                let parts: Parts<TokioIo<S>> =
                    upgraded.downcast().map_err(|_| anyhow!("the content server's end is not the stream it was"))?;
                (parts.io.into_inner(), parts.read_buf)
            }
        };
        carry(tcp, early_up, stream, early_down).await?;
        Ok(())
    }
}

fn application_end(upgraded: Upgraded) -> anyhow::Result<(TcpStream, Bytes)> {
    let parts: Parts<TokioIo<ApplicationIo>> =
        upgraded.downcast().map_err(|_| anyhow!("the application's end is not the socket it was"))?;
    let tcp = parts.io.into_inner().into_tcp().context("the application's socket is still watched")?;
    Ok((tcp, parts.read_buf))
}

async fn carry<S>(mut tcp: TcpStream, early_up: Bytes, mut stream: S, early_down: Bytes) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    tokio::try_join!(stream.write_all(&early_up), tcp.write_all(&early_down))?;
    pipe(tcp, stream).await?;
    Ok(())
}
