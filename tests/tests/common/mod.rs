//! What the end-to-end tests share: small lines, deadlines.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{future::Future, sync::atomic::Ordering, time::Duration};

use neighbourhood::{
    load::Client,
    neighbourhood::{Neighbourhood, Plan},
    scene::Scene,
};

/// Unequal in rate and delay, and slow enough that a small machine's processor is no bottleneck.
const UNEQUAL: &str = "
description = 'Three unequal lines.'
[[line]]
down = '16M'
up = '8M'
rtt-ms = 8
[[line]]
down = '8M'
up = '6M'
rtt-ms = 20
[[line]]
down = '4M'
up = '3M'
rtt-ms = 40
jitter-ms = 2
";

/// Three unequal lines.
pub(crate) fn unequal_scene() -> Scene {
    Scene::parse("unequal", UNEQUAL).expect("a scene")
}

/// The lines of this text.
pub(crate) fn scene_of(lines: &str) -> Scene {
    Scene::parse("lines", &format!("description = 'Lines.'\n{lines}")).expect("a scene")
}

/// A neighbourhood of three unequal lines, of which the first `relays` have a relay that runs.
pub(crate) async fn unequal_with_relays(relays: usize) -> Neighbourhood {
    let plan = Plan { relays_at_start: relays, ..Plan::new(unequal_scene()) };
    within(Neighbourhood::start(plan)).await.expect("a neighbourhood")
}

/// A neighbourhood of three unequal lines.
pub(crate) async fn unequal() -> Neighbourhood {
    unequal_with_relays(3).await
}

/// The result of `future`, which must come within the deadline of every wait here.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("done by the deadline")
}

/// Waits for something that has no event of its own.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waits = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waits).await.unwrap_or_else(|_| panic!("{what} by the deadline"));
}

/// Waits until `client` has got so many bytes.
pub(crate) async fn progress(client: &Client, bytes: u64) {
    until("progress", || client.progress.load(Ordering::Relaxed) >= bytes).await;
}

/// Far more than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);
