//! What the programs cost: processor time per byte and memory per flow and session, without any lines in the way.
//!
//! The programs run as processes on this machine's loopback; the load and the content server are in this process, whose time does not
//! count. Other systems are measured likewise where they are installed.

pub mod many;
pub mod plain;
pub mod rival;
pub mod tributary;

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::{
    bench::Reading,
    load::{Client, Span},
    process::Process,
    scene::Way,
};

/// Processes that carry a client's bytes to the content server.
pub trait Carrier {
    /// The processes, in the order of the data path.
    fn processes(&self) -> &[Process];
    /// What loads them.
    fn client(&self) -> Client;
}

/// What carrying bytes took.
#[derive(Clone, PartialEq, Debug)]
pub struct Spent {
    /// By process: its name, and its processor seconds per 10⁹ bytes.
    pub seconds_per_gb: Vec<(String, f64)>,
    /// Payload, in bit/s.
    pub goodput: f64,
}

impl Spent {
    /// Of all processes together.
    pub fn total(&self) -> f64 {
        self.seconds_per_gb.iter().map(|(_, seconds)| seconds).sum()
    }

    /// As figures of a way.
    pub fn readings(&self, way: Way) -> Vec<(String, Reading)> {
        let (figure, rate) = match way {
            Way::Down => ("cpu down", "rate down"),
            Way::Up => ("cpu up", "rate up"),
        };
        let each = self.seconds_per_gb.iter().map(|(name, value)| (name.clone(), Reading { figure, unit: "s/GB", value: *value }));
        let total = ("total".to_owned(), Reading { figure, unit: "s/GB", value: self.total() });
        let rate = ("total".to_owned(), Reading { figure: rate, unit: "Mbit/s", value: self.goodput / 1e6 });
        each.chain([total, rate]).collect()
    }
}

/// Carries bytes by `flows` flows at once for `time`, and says what that took. The first part of it warms up and does not count.
///
/// # Errors
/// If a process ends, or a transfer breaks or arrives changed.
pub async fn spend(carrier: &impl Carrier, way: Way, flows: usize, time: Duration) -> anyhow::Result<Spent> {
    let client = carrier.client();
    let span = Span { total: WARM_UP + time + SLACK, warm_up: WARM_UP };
    let mut transfers = tokio::task::JoinSet::new();
    for _ in 0..flows {
        let client = client.clone();
        transfers.spawn(async move {
            match way {
                Way::Down => client.download_for(span).await,
                Way::Up => client.upload_for(span).await,
            }
        });
    }
    tokio::time::sleep(WARM_UP).await;
    let before = times(carrier.processes())?;
    let (start, bytes_before) = (Instant::now(), client.carried());
    tokio::time::sleep(time).await;
    let after = times(carrier.processes())?;
    let (seconds, bytes) = (start.elapsed().as_secs_f64(), client.carried() - bytes_before);
    while let Some(transfer) = transfers.join_next().await {
        transfer??;
    }
    ensure!(bytes > 0, "nothing arrived");
    let gigabytes = bytes as f64 / 1e9;
    let each = carrier.processes().iter().zip(before.iter().zip(after));
    let seconds_per_gb = each.map(|(process, (before, after))| (process.name().to_owned(), (after - *before).as_secs_f64() / gigabytes));
    Ok(Spent { seconds_per_gb: seconds_per_gb.collect(), goodput: bytes as f64 * 8.0 / seconds })
}

fn times(processes: &[Process]) -> anyhow::Result<Vec<Duration>> {
    processes.iter().map(Process::processor_time).collect()
}

const WARM_UP: Duration = Duration::from_secs(2);
/// Transfers end after the counted time, or their ends would count.
const SLACK: Duration = Duration::from_millis(300);
/// What a program may take to serve.
const START_TIME: Duration = Duration::from_secs(30);
