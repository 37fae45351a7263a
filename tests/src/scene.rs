//! Scenes: sets of lines, read from TOML.
//!
//! ```toml
//! description = "Two DSL lines and a 4G one."
//!
//! [[line]]
//! count = 2            # so many lines like this one; 1 when left out
//! down = "16M"         # rate of IP packets, bit/s
//! up = "2M"            # as `down` when left out
//! rtt-ms = 30
//!
//! [[line]]
//! down = "20M"
//! up = "5M"
//! rtt-ms = 50
//! jitter-ms = 10       # each way, up to this much late
//! reorder = true       # a late packet may be overtaken
//! loss-percent = 1.0   # each way
//! burst-packets = 3.0  # mean length of a run of losses
//! queue-ms = 500       # of the line's own rate each way; or queue-bytes
//! mtu-bytes = 1420
//! ```

use std::{path::Path, time::Duration};

use serde::Deserialize;
use shared::units::{Rate, UnitError};
use thiserror::Error;

use crate::line::{Conditions, Loss};

/// A set of lines with a name.
#[derive(Clone, PartialEq, Debug)]
pub struct Scene {
    /// The name, as given on a command line.
    pub name: String,
    /// One sentence for people.
    pub description: String,
    /// The lines; never empty.
    pub lines: Vec<SceneLine>,
}

/// What a line of a scene is like both ways.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SceneLine {
    /// From the relay to `reconst`.
    pub up: Conditions,
    /// From `reconst` to the relay.
    pub down: Conditions,
}

/// The direction of a transfer as the user sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// To the user.
    Down,
    /// From the user.
    Up,
}

/// A scene that can't be had.
#[derive(Debug, Error)]
pub enum SceneError {
    /// Neither a scene of this name nor a file.
    #[error("there is no scene `{name}`: name one of {known}, or a TOML file", known = names().join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// A file that can't be read.
    #[error("the scene file `{0}` can't be read: {1}")]
    Unreadable(String, std::io::Error),
    /// Not TOML, a key missing, misspelt or of the wrong kind.
    #[error("in scene `{0}`: {1}")]
    Toml(String, toml::de::Error),
    /// A rate that is none.
    #[error("in scene `{0}`, line {1}: {2}")]
    Rate(String, usize, UnitError),
    /// A value outside its range.
    #[error("in scene `{0}`, line {1}: {2}")]
    Range(String, usize, &'static str),
    /// No line, or more than there are addresses for.
    #[error("scene `{0}` has {1} lines: give it 1 to {LINES_MAX}")]
    Count(String, usize),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SceneFile {
    description: String,
    line: Vec<LineFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LineFile {
    #[serde(default = "one")]
    count: usize,
    down: String,
    up: Option<String>,
    rtt_ms: f64,
    #[serde(default)]
    jitter_ms: f64,
    #[serde(default)]
    reorder: bool,
    #[serde(default)]
    loss_percent: f64,
    #[serde(default = "one_packet")]
    burst_packets: f64,
    queue_ms: Option<f64>,
    queue_bytes: Option<u64>,
    #[serde(default = "mtu_bytes")]
    mtu_bytes: usize,
}

impl Scene {
    /// The scene of a name, or else the one in the file of that path.
    ///
    /// # Errors
    /// If there is neither, or the file holds no scene.
    pub fn load(name_or_path: &str) -> Result<Self, SceneError> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(name, _)| *name == name_or_path) {
            return Self::parse(name, text);
        }
        let path = Path::new(name_or_path);
        if !path.exists() {
            return Err(SceneError::Unknown { name: name_or_path.into() });
        }
        let text = std::fs::read_to_string(path).map_err(|error| SceneError::Unreadable(name_or_path.into(), error))?;
        let name = path.file_stem().map_or_else(|| name_or_path.into(), |stem| stem.to_string_lossy());
        Self::parse(&name, &text)
    }

    /// Reads a scene from the text of its file.
    ///
    /// # Errors
    /// If the text is no TOML with a scene's keys, or a value is outside its range.
    pub fn parse(name: &str, text: &str) -> Result<Self, SceneError> {
        let file: SceneFile = toml::from_str(text).map_err(|error| SceneError::Toml(name.into(), error))?;
        let mut lines = Vec::new();
        for (index, line) in file.line.iter().enumerate() {
            lines.extend(std::iter::repeat_n(line.parse(name, index + 1)?, line.count.min(LINES_MAX + 1)));
            if lines.len() > LINES_MAX {
                break;
            }
        }
        if lines.is_empty() || lines.len() > LINES_MAX {
            return Err(SceneError::Count(name.into(), lines.len()));
        }
        Ok(Self { name: name.into(), description: file.description, lines })
    }

    /// The most goodput that TCP in full packets would get out of all lines together, in bit/s.
    pub fn limit(&self, way: Way) -> f64 {
        self.lines.iter().map(|line| line.limit(way)).sum()
    }

    /// The index of the line with the highest rate of this way.
    pub fn best_line(&self, way: Way) -> usize {
        (0..self.lines.len()).max_by_key(|&index| self.lines[index].conditions(way).rate).unwrap_or(0)
    }
}

impl SceneLine {
    /// What the line is like this way.
    pub fn conditions(&self, way: Way) -> Conditions {
        match way {
            Way::Down => self.down,
            Way::Up => self.up,
        }
    }

    /// The most goodput that TCP in full packets would get out of the line, in bit/s.
    pub fn limit(&self, way: Way) -> f64 {
        self.conditions(way).rate.bits_per_second as f64 * GOODPUT_PER_IP
    }
}

impl LineFile {
    fn parse(&self, scene: &str, number: usize) -> Result<SceneLine, SceneError> {
        let range = |holds: bool, what| if holds { Ok(()) } else { Err(SceneError::Range(scene.into(), number, what)) };
        range((0.0..=TIME_MAX_MS).contains(&self.rtt_ms), "rtt-ms is 0 to 60000")?;
        range((0.0..=TIME_MAX_MS).contains(&self.jitter_ms), "jitter-ms is 0 to 60000")?;
        range((0.0..=90.0).contains(&self.loss_percent), "loss-percent is 0 to 90")?;
        range((1.0..=1000.0).contains(&self.burst_packets), "burst-packets is 1 to 1000")?;
        range((68..=65_535).contains(&self.mtu_bytes), "mtu-bytes is 68 to 65535")?;
        range(self.queue_ms.is_none() || self.queue_bytes.is_none(), "give queue-ms or queue-bytes, not both")?;
        let queue_ms = self.queue_ms.unwrap_or(Conditions::QUEUE.as_secs_f64() * 1e3);
        range((0.0..=TIME_MAX_MS).contains(&queue_ms), "queue-ms is 0 to 60000")?;
        let conditions = |rate: &str| -> Result<Conditions, SceneError> {
            let rate = rate.parse::<Rate>().map_err(|error| SceneError::Rate(scene.into(), number, error))?;
            Ok(Conditions {
                jitter: milliseconds(self.jitter_ms),
                may_reorder: self.reorder,
                loss: Loss { fraction: self.loss_percent / 100.0, burst_packets: self.burst_packets },
                queue_bytes: self.queue_bytes.unwrap_or_else(|| Conditions::queue_bytes(rate, milliseconds(queue_ms))),
                mtu_bytes: self.mtu_bytes,
                ..Conditions::steady(rate, milliseconds(self.rtt_ms / 2.0))
            })
        };
        Ok(SceneLine { up: conditions(self.up.as_ref().unwrap_or(&self.down))?, down: conditions(&self.down)? })
    }
}

/// The names of the scenes that need no file.
pub fn names() -> Vec<&'static str> {
    BUILT_IN.iter().map(|(name, _)| *name).collect()
}

fn one() -> usize {
    1
}

fn one_packet() -> f64 {
    1.0
}

fn mtu_bytes() -> usize {
    Conditions::MTU_BYTES
}

fn milliseconds(milliseconds: f64) -> Duration {
    Duration::from_secs_f64(milliseconds / 1e3)
}

/// Of each 1,500-byte packet, TCP over IPv4 with timestamps carries 1,448 bytes.
pub const GOODPUT_PER_IP: f64 = 1448.0 / 1500.0;

/// Line N answers at 127.0.N.1.
const LINES_MAX: usize = 64;

const TIME_MAX_MS: f64 = 60_000.0;

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../scenes/", $name, ".toml")))),*]
    };
}

const BUILT_IN: &[(&str, &str)] =
    built_in!["street", "equal", "dsl", "rtt", "modems", "lossy", "bursty", "deep-queues", "mixed", "small-mtu"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_scene_is_one() {
        for name in names() {
            let scene = Scene::load(name).unwrap_or_else(|error| panic!("{error}"));
            assert!(scene.limit(Way::Down) >= scene.limit(Way::Up), "{name}");
        }
    }

    #[test]
    fn the_limit_is_the_sum_of_the_rates_less_tcp_headers() {
        let scene = Scene::load("equal").unwrap();
        assert_eq!(scene.limit(Way::Down).round(), 96_533_333.0);
        assert_eq!(scene.limit(Way::Up).round(), 38_613_333.0);
    }

    #[test]
    fn a_line_has_what_its_table_says_and_the_rest_by_default() {
        let text = "description = 'x'\n[[line]]\ndown = '8M'\nup = '80k'\nrtt-ms = 30\nloss-percent = 2\nburst-packets = 4\nqueue-ms = 50";
        let line = Scene::parse("x", text).unwrap().lines[0];
        assert_eq!((line.down.queue_bytes, line.up.queue_bytes), (50_000, Conditions::QUEUE_MIN_BYTES));
        assert_eq!(line.up.delay, Duration::from_millis(15));
        assert_eq!(line.down.loss, Loss { fraction: 0.02, burst_packets: 4.0 });
        assert_eq!((line.up.jitter, line.up.mtu_bytes), (Duration::ZERO, 1500));
    }

    #[test]
    fn what_is_wrong_with_a_scene_is_said() {
        let with = |line: &str| Scene::parse("x", &format!("description = 'x'\n[[line]]\n{line}")).unwrap_err().to_string();
        assert!(with("down = '8M'\nrtt-ms = 1\nrate = 3").contains("rate"));
        assert!(with("down = 'fast'\nrtt-ms = 1").contains("`fast` is not a rate"));
        assert!(with("down = '8M'\nrtt-ms = -1").contains("rtt-ms is"));
        assert!(with("down = '8M'\nrtt-ms = 1\ncount = 65").contains("1 to 64"));
        assert!(Scene::load("nowhere").unwrap_err().to_string().contains("equal"));
    }
}
