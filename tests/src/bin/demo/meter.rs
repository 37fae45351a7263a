//! From counts to rates: what each line and the download carried over the last second.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use neighbourhood::line::LineHandle;

/// Watches the lines and a client's progress; sampled at every tick.
pub(crate) struct Meter {
    lines: Vec<LineHandle>,
    progress: Arc<AtomicU64>,
    samples: VecDeque<Sample>,
}

/// Rates over the last second.
#[derive(Clone, PartialEq, Default, Debug)]
pub(crate) struct Rates {
    /// Of each line.
    pub(crate) lines: Vec<LineRates>,
    /// Payload that the download got, in bit/s.
    pub(crate) goodput: f64,
}

/// A line's rates in bits of IP packets per second.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub(crate) struct LineRates {
    /// To the user.
    pub(crate) down: f64,
    /// From the user.
    pub(crate) up: f64,
}

struct Sample {
    at: Instant,
    payload_bytes: u64,
    /// Up and down of each line.
    line_bytes: Vec<(u64, u64)>,
}

impl Meter {
    pub(crate) fn new(lines: Vec<LineHandle>, progress: Arc<AtomicU64>) -> Self {
        let mut meter = Self { lines, progress, samples: VecDeque::new() };
        meter.sample();
        meter
    }

    pub(crate) fn sample(&mut self) {
        let at = Instant::now();
        let counted = |handle: &LineHandle| {
            let (up, down) = handle.counters();
            (up.delivered_bytes, down.delivered_bytes)
        };
        let line_bytes = self.lines.iter().map(counted).collect();
        self.samples.push_back(Sample { at, payload_bytes: self.progress.load(Ordering::Relaxed), line_bytes });
        while self.samples.len() > 2 && at - self.samples[1].at >= WINDOW {
            self.samples.pop_front();
        }
    }

    pub(crate) fn rates(&self) -> Rates {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else { return Rates::default() };
        let seconds = (last.at - first.at).as_secs_f64();
        let rate = |from: u64, to: u64| if seconds > 0.0 { to.saturating_sub(from) as f64 * 8.0 / seconds } else { 0.0 };
        let lines = first.line_bytes.iter().zip(&last.line_bytes);
        Rates {
            lines: lines.map(|(from, to)| LineRates { up: rate(from.0, to.0), down: rate(from.1, to.1) }).collect(),
            goodput: rate(first.payload_bytes, last.payload_bytes),
        }
    }
}

/// Long enough to read, short enough to see a line die.
const WINDOW: Duration = Duration::from_secs(1);
