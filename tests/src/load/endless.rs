//! Flows that go on until something breaks them: a quota, or the end of a server.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::stream::CounterStream;

/// What asks the content server for bytes without end, and what says that bytes follow.
pub const DOWNLOAD: &str = "D 0\n";
/// See [`DOWNLOAD`].
pub const UPLOAD: &str = "U\n";

/// Moves bytes over a connection on which one of the two was said, down or both ways, until it is broken. What comes down is added to `down`
/// as it comes; gives how much that was.
///
/// # Panics
/// If a byte of a download is wrong.
pub async fn move_until_broken(socket: TcpStream, is_download: bool, down: &AtomicU64) -> u64 {
    let (mut reads, mut writes) = socket.into_split();
    let reading = async {
        let mut all = 0;
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut stream = CounterStream::new(0);
        while let Ok(len @ 1..) = reads.read(&mut buffer).await {
            if is_download {
                stream.check(&buffer[..len]).expect("bytes as they were sent");
            }
            down.fetch_add(len as u64, Ordering::Relaxed);
            all += len as u64;
        }
        all
    };
    if is_download {
        return reading.await;
    }
    let writing = async {
        let mut stream = CounterStream::new(0);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            stream.fill(&mut buffer);
            if writes.write_all(&buffer).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing).0
}

const BUFFER_BYTES: usize = 64 << 10;
