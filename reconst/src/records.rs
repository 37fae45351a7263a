//! Accounting records: a line of JSON for each flow that is over, for operators who must answer whose a port was.
//!
//! Enters: flows that end, by [`Records::note`], which never waits. Leaves: a file a day (UTC), its owner's alone, named
//! `flows-2026-11-24.jsonl`; files older than the time that they are to be kept are removed. Where a flow went is in them only if the operator
//! switched that on. What the disk takes too slowly is dropped, and how much is logged.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError, SyncSender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde::Serialize;
use time::{Date, OffsetDateTime};

use crate::dedicated::FlowReport;

/// What is recorded, and for how long.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordsConfig {
    /// The directory of the files.
    pub directory: PathBuf,
    /// How many days a file is kept beyond its own. Fewer than the law asks for is an offence in many places, more than it allows in many too.
    pub days: u16,
    /// Whether a record says where the flow went.
    pub has_destinations: bool,
}

/// Where flows that are over are noted; clones share it.
#[derive(Clone, Debug)]
pub struct Records {
    messages: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
    has_destinations: bool,
}

/// The thread that writes, until [`Writer::end`].
#[derive(Debug)]
pub struct Writer {
    thread: JoinHandle<()>,
    messages: SyncSender<Message>,
}

#[derive(Debug)]
enum Message {
    Record(Box<Record>),
    End,
}

/// A flow that is over.
#[derive(Debug, Serialize)]
struct Record {
    /// When it ended, milliseconds since 1970, UTC.
    closed_ms: u64,
    #[serde(flatten)]
    flow: FlowReport,
}

impl Records {
    /// Begins to write.
    ///
    /// # Errors
    /// If the directory can't be made or written.
    pub fn start(config: &RecordsConfig) -> io::Result<(Self, Writer)> {
        if !config.directory.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.directory)?;
        }
        let mut files = Files { directory: config.directory.clone(), days: config.days, open: None, flushed_at: Instant::now() };
        files.of_day(today())?;
        let (messages, received) = mpsc::sync_channel(WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let thread = std::thread::Builder::new().name("records".into()).spawn({
            let dropped = dropped.clone();
            move || write(&received, &mut files, &dropped)
        })?;
        let writer = Writer { thread, messages: messages.clone() };
        Ok((Self { messages, dropped, has_destinations: config.has_destinations }, writer))
    }

    /// Records that were dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Notes a flow that is over by now.
    pub(crate) fn note(&self, mut flow: FlowReport, closed_ms: u64) {
        if !self.has_destinations {
            flow.content_server = None;
        }
        if self.messages.try_send(Message::Record(Box::new(Record { closed_ms, flow }))).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Writer {
    /// Waits until all that was noted so far is written.
    pub fn end(self) {
        let _ = self.messages.send(Message::End);
        let _ = self.thread.join();
    }
}

/// The day's file.
struct Files {
    directory: PathBuf,
    days: u16,
    open: Option<(Date, BufWriter<File>)>,
    flushed_at: Instant,
}

impl Files {
    fn of_day(&mut self, day: Date) -> io::Result<&mut BufWriter<File>> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != day) {
            let path = self.directory.join(format!("{PREFIX}{day}{SUFFIX}"));
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
            self.remove_old(day);
            self.open = Some((day, BufWriter::new(file)));
        }
        Ok(&mut self.open.as_mut().expect("opened above").1)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushed_at = Instant::now();
        self.open.as_mut().map_or(Ok(()), |(_, file)| file.flush())
    }

    fn remove_old(&self, today: Date) {
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let is_old = day_of(&path).is_some_and(|day| (today - day).whole_days() > i64::from(self.days));
            if is_old && let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "an old accounting record can't be removed");
            }
        }
    }
}

fn write(messages: &mpsc::Receiver<Message>, files: &mut Files, dropped: &AtomicU64) {
    let mut is_failing = false;
    let mut told_dropped = 0;
    loop {
        let (written, is_over) = match messages.recv_timeout(FLUSHED_EVERY) {
            Ok(Message::Record(record)) => (write_one(files, &record), false),
            Err(RecvTimeoutError::Timeout) => (files.flush(), false),
            Ok(Message::End) | Err(RecvTimeoutError::Disconnected) => (files.flush(), true),
        };
        match written {
            Err(error) if !is_failing => {
                tracing::error!(directory = %files.directory.display(), %error, "accounting records can't be written");
                is_failing = true;
            }
            Ok(()) if is_failing => {
                tracing::info!("accounting records are written again");
                is_failing = false;
            }
            _ => {}
        }
        let dropped = dropped.load(Ordering::Relaxed);
        if dropped > told_dropped {
            tracing::error!(lost = dropped - told_dropped, "accounting records were dropped: the disk is too slow for them");
            told_dropped = dropped;
        }
        if is_over {
            return;
        }
    }
}

fn write_one(files: &mut Files, record: &Record) -> io::Result<()> {
    let file = files.of_day(today())?;
    serde_json::to_writer(&mut *file, record)?;
    file.write_all(b"\n")?;
    if files.flushed_at.elapsed() >= FLUSHED_EVERY { files.flush() } else { Ok(()) }
}

fn day_of(path: &Path) -> Option<Date> {
    let day = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let mut parts = day.split('-');
    let (year, month, day) = (parts.next()?.parse().ok()?, parts.next()?.parse::<u8>().ok()?, parts.next()?.parse().ok()?);
    if parts.next().is_some() {
        return None;
    }
    Date::from_calendar_date(year, month.try_into().ok()?, day).ok()
}

fn today() -> Date {
    OffsetDateTime::now_utc().date()
}

const PREFIX: &str = "flows-";
const SUFFIX: &str = ".jsonl";

/// Records that wait for the disk, about 400 bytes each: some seconds of thousands of flows that end at once.
const WAITING_MAX: usize = 65_536;

/// What a crash loses at most, and how old the file's end is.
const FLUSHED_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use shared::ids::LanId;

    use super::*;
    use crate::dedicated::Protocol;

    #[test]
    fn a_flow_is_one_line_and_says_where_it_went_only_if_asked() {
        for has_destinations in [false, true] {
            let scratch = tempfile::tempdir().expect("a directory");
            let directory = scratch.path().join("records");
            let config = RecordsConfig { directory: directory.clone(), days: 1, has_destinations };
            let (records, writer) = Records::start(&config).expect("a place to write");
            records.note(flow(20_001), 5000);
            records.note(flow(20_002), 6000);
            writer.end();
            let text = fs::read_to_string(directory.join(format!("flows-{}.jsonl", today()))).expect("today's file");
            let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
            assert_eq!(lines.len(), 2);
            assert_eq!((&lines[0]["port"], &lines[1]["closed_ms"], &lines[0]["user"]), (&20_001.into(), &6000.into(), &"ann".into()));
            assert_eq!(lines[0]["content_server"].is_string(), has_destinations);
        }
    }

    #[test]
    fn files_are_kept_as_long_as_was_asked_and_others_are_left_alone() {
        let scratch = tempfile::tempdir().expect("a directory");
        let name = |days: i64| format!("flows-{}.jsonl", today() - time::Duration::days(days));
        for file in [name(1), name(7), name(8), "flows-1999-13-40.jsonl".into(), "thesis.tex".into()] {
            fs::write(scratch.path().join(file), "").expect("a file");
        }
        let config = RecordsConfig { directory: scratch.path().into(), days: 7, has_destinations: false };
        Records::start(&config).expect("a place to write").1.end();
        let is_there = |file: String| scratch.path().join(file).exists();
        assert!(is_there(name(0)) && is_there(name(1)) && is_there(name(7)) && !is_there(name(8)));
        assert!(is_there("flows-1999-13-40.jsonl".into()) && is_there("thesis.tex".into()));
    }

    fn flow(port: u16) -> FlowReport {
        FlowReport {
            port,
            protocol: Protocol::Tcp,
            origin: None,
            lan: LanId(15),
            lan_name: "elm".into(),
            user: "ann".into(),
            session: "abababab".into(),
            flow: 1,
            content_server: Some("example.org:443".into()),
            opened_ms: 1000,
            last_used_ms: 4000,
            up_bytes: 5,
            down_bytes: 10,
        }
    }
}
