//! The owner's say over a line: pauses, hours, the monthly cap, put into practice.
//!
//! Enters: commands, the clock, what the line has carried. Leaves: whether and why the line is held back, watched by whoever announces
//! and admits, and closed lanes. Always holds: a line that is held back says so first and stops [`GRACE`] later, so that its paths
//! have drained by then; what counts is kept once a second while it changes. When a line is held back is decided in
//! [`shared::share::allowance`].

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use jiff::{Timestamp, ZonedDateTime, tz::TimeZone};
use shared::{
    community::hello::LineNumber,
    share::allowance::{Allowance, Clock, Hold, Kept, Pause, Terms},
};
use tokio::sync::{Notify, watch};

use crate::{client::Common, store::Store};

/// The owner's say over one line.
#[derive(Debug)]
pub(crate) struct Owner {
    number: LineNumber,
    allowance: Mutex<Allowance>,
    hold: watch::Sender<Option<Hold>>,
    common: Arc<Common>,
    store: Option<Arc<Store>>,
    /// Rung when the owner has said something.
    bell: Notify,
}

impl Owner {
    /// The say over the line of this number, with what was kept in `store` of before.
    pub(crate) fn new(number: LineNumber, terms: Terms, common: Arc<Common>, store: Option<Arc<Store>>) -> Self {
        let kept = store.as_ref().map_or_else(Kept::default, |store| store.kept(number));
        let mut allowance = Allowance::new(terms, kept);
        let held = allowance.hold(clock());
        set_closed(&common, held.is_some());
        let (hold, _) = watch::channel(held);
        Self { number, allowance: Mutex::new(allowance), hold, common, store, bell: Notify::new() }
    }

    /// The line's number.
    pub(crate) fn number(&self) -> LineNumber {
        self.number
    }

    /// Why the line is held back, now and as it changes.
    pub(crate) fn hold(&self) -> watch::Receiver<Option<Hold>> {
        self.hold.subscribe()
    }

    /// Takes the line back, for so long if it is not for good.
    pub(crate) fn pause(&self, span: Option<Duration>) {
        let until = span.map(|span| clock().unix_secs.saturating_add(span.as_secs().max(1)));
        self.set_pause(Some(Pause { until }));
    }

    /// Shares the line again.
    pub(crate) fn resume(&self) {
        self.set_pause(None);
    }

    fn set_pause(&self, pause: Option<Pause>) {
        let held = {
            let mut allowance = self.lock();
            allowance.set_pause(pause);
            allowance.hold(clock())
        };
        self.hold.send_replace(held);
        self.bell.notify_one();
    }

    /// What the line has carried in this month of the cap, headers included.
    pub(crate) fn month_bytes(&self) -> u64 {
        self.lock().kept().bytes
    }

    /// On what terms it is shared.
    pub(crate) fn terms(&self) -> Terms {
        self.lock().terms().clone()
    }

    /// Watches over the line until the future is dropped.
    pub(crate) async fn run(&self) {
        let mut counted = self.common.totals.line_bytes();
        let mut closes_at = self.hold.borrow().is_some().then(Instant::now);
        let mut kept_last = None;
        loop {
            let now = Instant::now();
            let carried = self.common.totals.line_bytes();
            let (held, kept) = {
                let (mut allowance, clock) = (self.lock(), clock());
                allowance.on_carried(clock, carried - counted);
                (allowance.hold(clock), allowance.kept())
            };
            counted = carried;
            self.hold.send_if_modified(|before| std::mem::replace(before, held) != held);
            closes_at = match held {
                Some(_) => closes_at.or(Some(now + GRACE)),
                None => None,
            };
            set_closed(&self.common, closes_at.is_some_and(|at| now >= at));
            self.keep(kept, &mut kept_last).await;
            self.until_next_look(closes_at.filter(|at| *at > now)).await;
        }
    }

    async fn until_next_look(&self, closes_at: Option<Instant>) {
        let changes_by_itself = {
            let allowance = self.lock();
            *allowance.terms() != Terms::default() || allowance.kept().pause.is_some()
        };
        let look = async {
            match (closes_at, changes_by_itself) {
                (Some(at), _) => tokio::time::sleep_until(at.into()).await,
                (None, true) => tokio::time::sleep(LOOK_INTERVAL).await,
                (None, false) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = look => (),
            () = self.bell.notified() => (),
        }
    }

    /// Keeps what has changed, not more often than [`KEEP_INTERVAL`] unless the owner has said something.
    async fn keep(&self, kept: Kept, last: &mut Option<(Kept, Instant)>) {
        let Some(store) = &self.store else { return };
        let is_counting = self.lock().terms().cap.is_some();
        let is_due = match last {
            None => is_counting || kept.pause.is_some(),
            Some((before, _)) if before.pause != kept.pause => true,
            Some((before, at)) => is_counting && *before != kept && at.elapsed() >= KEEP_INTERVAL,
        };
        if last.is_none() && !is_due {
            *last = Some((kept, Instant::now()));
        }
        if is_due {
            *last = Some((kept, Instant::now()));
            let (store, number) = (Arc::clone(store), self.number);
            let saved = tokio::task::spawn_blocking(move || store.save(number, kept)).await;
            if let Ok(Err(error)) = saved {
                tracing::warn!("what the line has carried can't be kept: {error}");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Allowance> {
        self.allowance.lock().expect("nothing panics while it is held")
    }
}

/// Why a line is held back, as `status` says it.
pub(crate) fn describe(hold: Hold) -> String {
    match hold {
        Hold::Paused(Pause { until: None }) => "paused until it is resumed".into(),
        Hold::Paused(Pause { until: Some(until) }) => {
            let until = i64::try_from(until).ok().and_then(|secs| Timestamp::from_second(secs).ok());
            let shown = until.map(|until| ZonedDateTime::new(until, TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string());
            shown.map_or_else(|| "paused for ages".into(), |shown| format!("paused until {shown}"))
        }
        hold => hold.to_string(),
    }
}

fn set_closed(common: &Common, is_closed: bool) {
    let now = Instant::now();
    common.share.up.set_closed(now, is_closed);
    common.share.down.set_closed(now, is_closed);
}

/// What this PC's clock says, in its own time zone.
fn clock() -> Clock {
    let now = ZonedDateTime::now();
    let unsigned = |number: i8| u8::try_from(number).unwrap_or(1);
    Clock {
        unix_secs: u64::try_from(now.timestamp().as_second()).unwrap_or(0),
        year: now.year(),
        month: unsigned(now.month()),
        day: unsigned(now.day()),
        days_in_month: unsigned(now.days_in_month()),
        minute: u16::from(unsigned(now.hour())) * 60 + u16::from(unsigned(now.minute())),
    }
}

/// How long a line that is held back goes on: its paths' last packets and the news of their end, within the second in which the owner
/// wants the line.
pub(crate) const GRACE: Duration = Duration::from_millis(500);

/// How often clock and count are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How often the count is kept: what a crash may lose.
const KEEP_INTERVAL: Duration = Duration::from_millis(900);
