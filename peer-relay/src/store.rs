//! What a relay keeps across restarts: how much of its cap each line has used, and whether it is paused.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Mutex,
};

use serde::{Deserialize, Serialize};
use shared::{
    community::{hello::LineNumber, member::Identity},
    service::{Exit, Failure, replace_secret},
    share::allowance::{Kept, Month, Pause},
};

/// The file, and what it holds.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    kept_by_line: Mutex<BTreeMap<u8, Kept>>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    line: Vec<LineRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LineRecord {
    number: u8,
    year: i16,
    month: u8,
    bytes: u64,
    #[serde(default)]
    paused: bool,
    /// Seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paused_until: Option<u64>,
}

impl Store {
    /// What is kept in `directory` of the relay `identity`.
    ///
    /// # Errors
    /// If the file is there and can't be read, or is no such file.
    pub(crate) fn open(directory: &Path, identity: &Identity) -> Result<Self, Failure> {
        let path = directory.join(format!("relay-{}-{}.toml", identity.lan.0, identity.name));
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(Failure::new(
                    Exit::Config,
                    format!("can't read {}: {error}; choose another directory with --state", path.display()),
                ));
            }
        };
        let file: File = toml::from_str(&text).map_err(|error| {
            Failure::new(
                Exit::Data,
                format!("{} is damaged ({}): delete it, and the count of its month begins anew", path.display(), error.message()),
            )
        })?;
        let kept_by_line = file.line.into_iter().map(|line| (line.number, line.kept())).collect();
        Ok(Self { path, kept_by_line: Mutex::new(kept_by_line) })
    }

    /// What is kept of a line.
    pub(crate) fn kept(&self, line: LineNumber) -> Kept {
        self.kept_by_line.lock().expect("nothing panics while it is held").get(&line.0).copied().unwrap_or_default()
    }

    /// Keeps this of a line.
    ///
    /// # Errors
    /// If the file can't be written.
    pub(crate) fn save(&self, line: LineNumber, kept: Kept) -> io::Result<()> {
        let mut kept_by_line = self.kept_by_line.lock().expect("nothing panics while it is held");
        kept_by_line.insert(line.0, kept);
        let file = File { line: kept_by_line.iter().map(|(&number, kept)| LineRecord::new(number, kept)).collect() };
        let text = toml::to_string(&file).map_err(io::Error::other)?;
        replace_secret(&self.path, &text)
    }
}

impl LineRecord {
    fn new(number: u8, kept: &Kept) -> Self {
        let Kept { month: Month { year, month }, bytes, pause } = *kept;
        Self { number, year, month, bytes, paused: pause.is_some(), paused_until: pause.and_then(|pause| pause.until) }
    }

    fn kept(self) -> Kept {
        let pause = self.paused.then_some(Pause { until: self.paused_until });
        Kept { month: Month { year: self.year, month: self.month }, bytes: self.bytes, pause }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use shared::{community::member::Role, ids::LanId};

    use super::*;

    #[test]
    fn what_is_kept_outlives_a_restart_and_is_the_owners_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = directory.path().join("state");
        let identity = Identity { role: Role::Relay, lan: LanId(15), name: "ann-pc".parse().expect("a name") };
        let kept = Kept { month: Month { year: 2026, month: 6 }, bytes: 7, pause: Some(Pause { until: Some(9) }) };
        Store::open(&state, &identity).expect("nothing yet").save(LineNumber(2), kept).expect("kept");
        let store = Store::open(&state, &identity).expect("the same again");
        assert_eq!(store.kept(LineNumber(2)), kept);
        assert_eq!(store.kept(LineNumber(1)), Kept::default());
        let mode = std::fs::metadata(&store.path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_told_of_and_not_overwritten() {
        let directory = tempfile::tempdir().expect("a directory");
        let identity = Identity { role: Role::Relay, lan: LanId(15), name: "ann-pc".parse().expect("a name") };
        std::fs::write(directory.path().join("relay-15-ann-pc.toml"), "bytes = ").expect("written");
        assert!(Store::open(directory.path(), &identity).expect_err("damaged").to_string().contains("damaged"));
    }
}
