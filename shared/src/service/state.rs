//! What a program remembers from one run to the next: hints, never needed and never secret.
//!
//! A file that is missing, damaged or can't be written costs what it would have saved, and stops nothing.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

/// A file that is remembered in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// The file `name` in `folder`, or else in [`default_folder`]; none if there is neither.
    pub fn new(folder: Option<&Path>, name: &str) -> Option<Self> {
        let folder = folder.map(Path::to_owned).or_else(default_folder)?;
        Some(Self { path: folder.join(name) })
    }

    /// What was remembered last, if anything.
    pub fn load<T: DeserializeOwned>(&self) -> Option<T> {
        let metadata = fs::metadata(&self.path).ok()?;
        if metadata.len() > FILE_BYTES_MAX {
            return None;
        }
        let text = fs::read_to_string(&self.path).ok()?;
        toml::from_str(&text).inspect_err(|error| tracing::debug!(path = %self.path.display(), %error, "not remembered")).ok()
    }

    /// Remembers `value` in place of what was remembered before.
    pub fn save<T: Serialize>(&self, value: &T) {
        if let Err(error) = self.try_save(value) {
            tracing::debug!(path = %self.path.display(), %error, "can't remember");
        }
    }

    fn try_save<T: Serialize>(&self, value: &T) -> io::Result<()> {
        let text = toml::to_string(value).map_err(io::Error::other)?;
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        // A crash leaves the old file or the new one, never half of it.
        let new = self.path.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(&new, &self.path)
    }
}

/// Where programs of this user remember things: systemd's `STATE_DIRECTORY`, or else `tributary` in `XDG_STATE_HOME`, which is
/// `~/.local/state` if it is not set.
pub fn default_folder() -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // Several are separated by colons; the first is meant.
    let of_service = env::var("STATE_DIRECTORY").ok().and_then(|paths| paths.split(':').next().map(PathBuf::from));
    of_service
        .filter(|path| path.is_absolute())
        .or_else(|| absolute("XDG_STATE_HOME").map(|path| path.join("tributary")))
        .or_else(|| absolute("HOME").map(|path| path.join(".local/state/tributary")))
}

/// Far more than anything remembered takes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_comes_back_and_damage_is_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = StateFile::new(Some(&folder.path().join("deeper")), "numbers.toml").expect("a file");
        assert_eq!(file.load::<std::collections::BTreeMap<String, u32>>(), None);
        let value = std::collections::BTreeMap::from([("one".to_owned(), 1)]);
        file.save(&value);
        assert_eq!(file.load(), Some(value));
        fs::write(&file.path, "one = ").expect("written");
        assert_eq!(file.load::<std::collections::BTreeMap<String, u32>>(), None);
    }
}
