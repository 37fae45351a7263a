//! A program that runs as a process of its own, and what it costs: processor time and memory.

use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;

/// A running program; dropping it ends it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program. What it prints goes to `log`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let output = File::create(log).with_context(|| format!("no log {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("{} does not start", command.get_program().display()))?;
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).insert(child.id());
        Ok(Self { name: name.into(), child, log: log.into() })
    }

    /// What it is called in tables.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The processor time that it took so far, its own and the kernel's for it.
    ///
    /// # Errors
    /// If it has ended.
    pub fn processor_time(&self) -> anyhow::Result<Duration> {
        processor_time(&self.child.id().to_string()).with_context(|| format!("{} has ended", self.name))
    }

    /// The bytes of memory that it has now.
    ///
    /// # Errors
    /// If it has ended.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }

    /// Asks it to stop, by SIGTERM.
    ///
    /// # Errors
    /// If it has ended.
    pub fn terminate(&self) -> anyhow::Result<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        Ok(rustix::process::kill_process(id.context("no process id")?, rustix::process::Signal::TERM)?)
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// The last lines of what it printed.
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    fn proc(&self, file: &str) -> anyhow::Result<String> {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).with_context(|| format!("{} has ended", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.child.id());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processor time that a process took so far, by its number or as `self`.
///
/// # Errors
/// If it has ended.
pub fn processor_time(process: &str) -> anyhow::Result<Duration> {
    // utime and stime, the 14th and 15th field; the second is a name in parentheses.
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
    Ok(Duration::from_millis(ticks * MILLISECONDS_A_TICK))
}

/// From now on, SIGTERM and Ctrl-C end the programs that this one started, and then this one.
///
/// # Errors
/// If the system has no thread or signal for it.
pub fn end_with_programs() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut terminated = {
        let _guard = runtime.enter();
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?
    };
    let ends = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        });
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        for pid in running.iter().filter_map(|&id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        std::process::exit(INTERRUPTED)
    };
    std::thread::Builder::new().name("signals".into()).spawn(ends)?;
    Ok(())
}

/// Where this program was built, the others are.
pub fn programs_dir() -> PathBuf {
    std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default()
}

/// What this build lacks of the three programs, as a sentence; `None` if it lacks nothing.
pub fn missing_program() -> Option<String> {
    ["reconst", "peer-relay", "proxy-local"].iter().map(|program| programs_dir().join(program)).find_map(|path| {
        let is_built = path.exists();
        (!is_built).then(|| format!("{} is not built: cargo build --release", path.display()))
    })
}

/// The program of this name that a shell would run.
pub fn find_on_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|directory| directory.join(program)).find(|path| path.is_file())
}

/// The programs that run now.
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// What shells give a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;
const LAST_LINES: usize = 8;
/// Of `/proc/*/stat`: USER_HZ is 100 wherever Linux runs.
const MILLISECONDS_A_TICK: u64 = 10;
