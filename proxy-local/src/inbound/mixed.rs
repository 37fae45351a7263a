//! One port for all protocols: a connection's first byte tells which it speaks.
//!
//! 5 is SOCKS5, 4 is SOCKS4; anything else is left to HTTP, whose parser refuses what it can't read.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use shared::service::Shutdown;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Front, http, socks4, socks5};
use crate::outbound::Outbound;

/// Accepts on `listeners` until the program is to drain, then lets connections finish for as long as the limits say.
/// What is left then is reset.
pub async fn serve<O: Outbound>(listeners: Vec<TcpListener>, front: Arc<Front<O>>) {
    let connections = TaskTracker::new();
    let abort = CancellationToken::new();
    let slots = Arc::new(Semaphore::new(front.limits.connections));
    let accepting = TaskTracker::new();
    for listener in listeners {
        accepting.spawn(accept(listener, Arc::clone(&front), Arc::clone(&slots), connections.clone(), abort.clone()));
    }
    accepting.close();
    accepting.wait().await;

    connections.close();
    tokio::select! {
        () = connections.wait() => (),
        () = wait_out(front.limits.drain, &front.shutdown) => {
            tracing::info!(connections = connections.len(), "resetting the connections that have not finished");
        }
    }
    abort.cancel();
    connections.wait().await;
}

async fn accept<O: Outbound>(
    listener: TcpListener,
    front: Arc<Front<O>>,
    slots: Arc<Semaphore>,
    connections: TaskTracker,
    abort: CancellationToken,
) {
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            next = next => next,
            () = front.shutdown.draining() => return,
        };
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (front, abort) = (Arc::clone(&front), abort.clone());
        connections.spawn(async move {
            let _slot = slot;
            let _counted = Counted::new(&front);
            tokio::select! {
                () = connection(tcp, Arc::clone(&front)) => (),
                () = abort.cancelled() => (),
            }
        });
    }
}

async fn connection<O: Outbound>(tcp: TcpStream, front: Arc<Front<O>>) {
    let _ = prepare(&tcp);
    let mut first = [0];
    let peeked = tokio::select! {
        peeked = tokio::time::timeout(front.limits.handshake, tcp.peek(&mut first)) => peeked,
        () = front.shutdown.draining() => return,
    };
    if !matches!(peeked, Ok(Ok(1))) {
        return;
    }
    match first[0] {
        5 => socks5::serve(tcp, &front).await,
        4 => socks4::serve(tcp, &front).await,
        _ => http::serve(tcp, front).await,
    }
}

fn prepare(tcp: &TcpStream) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_RETRIES);
    SockRef::from(tcp).set_tcp_keepalive(&keepalive)
}

/// Closes a connection whose application was just told no. Closing with bytes unread would reset it, and the
/// application might never see the answer.
pub(super) async fn close_after_answer(mut tcp: TcpStream) {
    let drain = async {
        tcp.shutdown().await.ok()?;
        let mut discarded = [0; 1024];
        for _ in 0..DISCARDED_READS_MAX {
            if tcp.read(&mut discarded).await.ok()? == 0 {
                break;
            }
        }
        Some(())
    };
    let _ = tokio::time::timeout(CLOSE_TIME, drain).await;
}

async fn wait_out(drain: Duration, shutdown: &Shutdown) {
    tokio::select! {
        () = tokio::time::sleep(drain) => (),
        () = shutdown.stopping() => (),
    }
}

struct Counted<'a, O>(&'a Front<O>);

impl<'a, O> Counted<'a, O> {
    fn new(front: &'a Front<O>) -> Self {
        front.counts.connections.fetch_add(1, Ordering::Relaxed);
        Self(front)
    }
}

impl<O> Drop for Counted<'_, O> {
    fn drop(&mut self) {
        self.0.counts.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Out of file descriptors is the usual reason that accepting fails, and it does not end by asking again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// For an application on this machine to read an answer of a few bytes and close.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// At most 64 KiB are read from an application that has its answer.
const DISCARDED_READS_MAX: usize = 64;

/// An application's PC that vanished without a word is noticed within 6 minutes, so that its flow does not stay for ever.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(240);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_RETRIES: u32 = 4;
