//! A TCP Cubic: RFC 9438 with the slow start of RFC 9406, without a retransmission timeout.

/// In packets.
pub(super) struct Cubic {
    pub(super) window: f64,
    threshold: f64,
    window_max: f64,
    grows_since: f64,
    /// When growth reaches `window_max` again, in seconds from then.
    origin: f64,
    reno: f64,
    least_rtt: f64,
    recovery_until: u64,
}

impl Cubic {
    pub(super) fn new() -> Self {
        Self {
            window: 10.0,
            threshold: f64::MAX,
            window_max: 0.0,
            grows_since: 0.0,
            origin: 0.0,
            reno: 0.0,
            least_rtt: f64::MAX,
            recovery_until: 0,
        }
    }

    /// Of packets up to `number`, sent `rtt` ago, `acked` arrived and `lost` did not; `next` is the next to send.
    pub(super) fn on_ack(&mut self, now: f64, (acked, lost): (u64, u64), number: u64, next: u64, (rtt, srtt): (f64, f64)) {
        let acked = acked as f64;
        self.least_rtt = self.least_rtt.min(rtt);
        if lost > 0 && number >= self.recovery_until {
            self.recovery_until = next;
            self.window_max = self.window;
            self.window = (self.window * 0.7).max(2.0);
            self.threshold = self.window;
            self.reno = self.window;
            self.grows_since = now;
            self.origin = ((self.window_max - self.window) / 0.4).cbrt();
            return;
        }
        if self.window < self.threshold {
            self.window += acked;
            if rtt > self.least_rtt + (self.least_rtt / 8.0).clamp(0.004, 0.016) {
                self.threshold = self.window;
                self.window_max = self.window;
                self.reno = self.window;
                self.grows_since = now;
                self.origin = 0.0;
            }
            return;
        }
        let time = now - self.grows_since + srtt;
        let target = (0.4 * (time - self.origin).powi(3) + self.window_max).clamp(self.window, 1.5 * self.window);
        self.window += (target - self.window) / self.window * acked;
        self.reno += 0.53 * acked / self.window;
        self.window = self.window.max(self.reno);
    }
}
