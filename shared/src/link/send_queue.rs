//! What has been written into a TCP socket and its peer has not acknowledged: an RST would throw it away.

use std::time::Duration;

use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

/// Waits until the peer has all that was written, as long as it takes some of it now and then, and not beyond `over_at`; gives what it never
/// gets.
pub(super) async fn drained(socket: &TcpStream, over_at: Instant) -> u64 {
    let (mut least, mut moved_at) = (u64::MAX, Instant::now());
    loop {
        let unacked = unacked_bytes(socket);
        if unacked < least {
            (least, moved_at) = (unacked, Instant::now());
        }
        // A connection that its peer has reset has no peer any more.
        if unacked == 0 || moved_at.elapsed() > DRAIN_TIME || Instant::now() >= over_at || socket.peer_addr().is_err() {
            return unacked;
        }
        sleep(DRAIN_LOOK).await;
    }
}

/// Bytes that the peer has not acknowledged; none where the system does not tell.
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "x86", target_arch = "arm", target_arch = "riscv64")
))]
#[expect(unsafe_code, reason = "no crate in the tree asks for it")]
fn unacked_bytes(socket: &TcpStream) -> u64 {
    /// `TIOCOUTQ` in `asm-generic/ioctls.h`, by the name of `linux/sockios.h`.
    const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;
    // SAFETY: `SIOCOUTQ` writes an int, see tcp(7).
    let asked = unsafe { rustix::ioctl::ioctl(socket, rustix::ioctl::Getter::<SIOCOUTQ, std::ffi::c_int>::new()) };
    asked.ok().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0)
}

#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "x86", target_arch = "arm", target_arch = "riscv64")
)))]
fn unacked_bytes(_socket: &TcpStream) -> u64 {
    0
}

/// How long a peer may take nothing: as long as a path may be silent that comes back.
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// How long what an abort leaves may take altogether: 4 MiB, the most that Linux buffers, at 70 KB/s. The flow's place in its session is free by then, so
/// that without a bound a peer that takes a byte every few seconds would let its user hold any number of sockets.
pub(super) const DRAIN_TIME_MAX: Duration = Duration::from_secs(60);

/// How often that is looked at.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

#[cfg(test)]
pub(super) mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn a_peer_that_reads_gets_all_of_it() {
        let (mut socket, mut peer) = pair().await;
        let written = fill(&mut socket).await;
        assert!(unacked_bytes(&socket) > 0, "more than the peer's buffer takes");
        let reading = tokio::spawn(async move {
            let mut read = 0;
            let mut buffer = vec![0; 1 << 16];
            while read < written {
                read += peer.read(&mut buffer).await.expect("no reset");
            }
        });
        assert_eq!(drained(&socket, Instant::now() + DRAIN_TIME_MAX).await, 0);
        drop(socket);
        reading.await.expect("all of it");
    }

    #[tokio::test]
    async fn what_a_peer_that_resets_has_not_got_is_told_at_once() {
        let (mut socket, peer) = pair().await;
        fill(&mut socket).await;
        let unacked = unacked_bytes(&socket);
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("a socket");
        drop(peer);
        while socket.write(&[0]).await.is_ok() {}
        assert!((1..=unacked).contains(&drained(&socket, Instant::now() + DRAIN_TIME_MAX).await), "{unacked}");
    }

    #[tokio::test]
    async fn a_peer_that_takes_little_at_a_time_is_not_waited_for_for_ever() {
        let (mut socket, mut peer) = pair().await;
        fill(&mut socket).await;
        let reading = tokio::spawn(async move {
            let mut some = vec![0; 1 << 16];
            while peer.read_exact(&mut some).await.is_ok() {
                sleep(DRAIN_LOOK).await;
            }
        });
        assert!(drained(&socket, Instant::now() + 10 * DRAIN_LOOK).await > 0);
        drop(socket);
        reading.await.expect("no panic");
    }

    /// Writes until nothing more fits.
    pub(in crate::link) async fn fill(socket: &mut TcpStream) -> usize {
        let (piece, mut written) = (vec![7; 1 << 16], 0);
        while let Ok(result) = tokio::time::timeout(Duration::from_millis(100), socket.write(&piece)).await {
            written += result.expect("a peer");
        }
        written
    }

    pub(in crate::link) async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let connecting = TcpStream::connect(listener.local_addr().expect("bound"));
        let (connected, accepted) = tokio::join!(connecting, listener.accept());
        (connected.expect("a listener"), accepted.expect("a connection").0)
    }
}
