//! What Prometheus reads: the state of this `reconst` in figures, in the text format (version 0.0.4). No member is named in it.

use std::fmt::Write;

/// The figures of a `reconst`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Figures {
    /// LANs that are served.
    pub(crate) lans: usize,
    /// Relays' lines that are logged in.
    pub(crate) lines: usize,
    /// Users' sessions.
    pub(crate) sessions: usize,
    /// Their paths.
    pub(crate) paths: usize,
    /// Flows open now, TCP and UDP.
    pub(crate) flows: usize,
    /// Those of them that are UDP.
    pub(crate) udp_flows: usize,
    /// Users who have sessions.
    pub(crate) users: usize,
    /// Those of them whose quota is used up.
    pub(crate) users_beyond_quota: usize,
    /// LANs whose users are here and whose quota is used up.
    pub(crate) lans_beyond_quota: usize,
    /// Bytes of payload towards content servers since the start.
    pub(crate) up_bytes: u64,
    /// From content servers.
    pub(crate) down_bytes: u64,
    /// Flows refused since the start because of quotas or limits.
    pub(crate) refused_flows: u64,
    /// Accounting records dropped since the start.
    pub(crate) dropped_records: u64,
    /// Servers that share the database and are alive, this one included; 1 if it is alone.
    pub(crate) nodes: usize,
    /// Seconds since the store last took the counts, 0 if it does.
    pub(crate) behind_seconds: u64,
}

impl Figures {
    /// The figures as Prometheus reads them.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let mut put = |name: &str, kind: &str, help: &str, value: u64| {
            let _ = writeln!(out, "# HELP tributary_{name} {help}\n# TYPE tributary_{name} {kind}\ntributary_{name} {value}");
        };
        put("lans", "gauge", "LANs that are served.", self.lans as u64);
        put("lines", "gauge", "Lines whose relays are logged in.", self.lines as u64);
        put("sessions", "gauge", "Sessions of users.", self.sessions as u64);
        put("paths", "gauge", "Paths of the sessions.", self.paths as u64);
        put("flows", "gauge", "Flows open now.", self.flows as u64);
        put("udp_flows", "gauge", "Flows open now that are UDP.", self.udp_flows as u64);
        put("users", "gauge", "Users who have sessions.", self.users as u64);
        put("users_beyond_quota", "gauge", "Users who have sessions and a quota that is used up.", self.users_beyond_quota as u64);
        put("lans_beyond_quota", "gauge", "LANs with sessions and a quota that is used up.", self.lans_beyond_quota as u64);
        put("up_bytes_total", "counter", "Payload bytes towards content servers.", self.up_bytes);
        put("down_bytes_total", "counter", "Payload bytes from content servers.", self.down_bytes);
        put("refused_flows_total", "counter", "Flows refused for a quota or a number of flows.", self.refused_flows);
        put("dropped_records_total", "counter", "Accounting records that the disk was too slow for.", self.dropped_records);
        put("nodes", "gauge", "Servers that share the member database and are alive.", self.nodes as u64);
        put(
            "store_behind_seconds",
            "gauge",
            "Seconds since the member database last took the counts, 0 while it does.",
            self.behind_seconds,
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_has_its_help_its_type_and_its_value() {
        let text = Figures { sessions: 3, down_bytes: 12_345_678_901, ..Figures::default() }.text();
        assert!(text.contains("\n# TYPE tributary_sessions gauge\ntributary_sessions 3\n"), "{text}");
        assert!(text.contains("\n# TYPE tributary_down_bytes_total counter\ntributary_down_bytes_total 12345678901\n"), "{text}");
        for lines in text.lines().collect::<Vec<_>>().chunks(3) {
            let [help, kind, value] = lines else { panic!("three lines a figure: {lines:?}") };
            let name = value.split(' ').next().expect("a name");
            assert!(help.starts_with(&format!("# HELP {name} ")) && kind.starts_with(&format!("# TYPE {name} ")), "{lines:?}");
        }
    }
}
