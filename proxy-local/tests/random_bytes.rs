//! Whatever bytes an application sends, the proxy neither panics nor hangs, and serves the next one.

mod support;

use std::{
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;
use support::{Origin, Proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_neither_panic_nor_hang(start in start(), bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let panics_before = count_panics();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let proxy = Proxy::start_with(|config| {
                config.limits.handshake = Duration::from_secs(1);
                config.limits.idle = Duration::from_secs(1);
                config.limits.open = Duration::from_millis(100);
            })
            .await;
            let mut application = proxy.connect().await;
            let _ = application.0.write_all(&[start, bytes].concat()).await;
            let _ = application.0.shutdown().await;
            let mut answer = Vec::new();
            let _ = within(application.0.read_to_end(&mut answer)).await;
            let origin = Origin::new().await;
            assert_eq!(proxy.socks5("content.test", origin.address.port()).await.1, 0);
            proxy.shutdown.request();
            proxy.shutdown.request();
            within(proxy.running.wait()).await.expect("a clean end");
        });
        assert_eq!(PANICS.load(Ordering::SeqCst), panics_before, "a task panicked");
    }
}

/// Panics in tasks do not reach the test by themselves.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() -> usize {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            print(panic);
        }));
    });
    PANICS.load(Ordering::SeqCst)
}

/// Beginnings that lead past the first checks.
fn start() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![
        &b""[..],
        b"\x05",
        b"\x05\x01\x00",
        b"\x05\x01\x00\x05\x01\x00\x03",
        b"\x04\x01\x00\x50",
        b"\x04\x01\x00\x50\x00\x00\x00\x01",
        b"GET ",
        b"CONNECT 1.refused:1",
        b"GET http://1.refused/",
        b"POST http://1.refused/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n",
    ])
    .prop_map(<[u8]>::to_vec)
}
