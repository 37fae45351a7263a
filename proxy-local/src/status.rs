//! What `status` prints for people; `--json` prints the same for programs.

use std::fmt::Write;

use serde_json::Value;
use shared::units::{Rate, Size};

/// The running proxy's answer as text: where it listens, a row for each path, and what is wrong with which relay.
pub fn text(status: &Value) -> String {
    let mut out = String::new();
    let listen: Vec<&str> = list(&status["listen"]).iter().filter_map(Value::as_str).collect();
    let inbound = &status["inbound"];
    let _ = writeln!(
        out,
        "listening on {}; {} connections open, {} flows so far, {} refused",
        listen.join(" and "),
        count(&inbound["connections"]),
        count(&inbound["flows_opened"]),
        count(&inbound["flows_refused"])
    );
    if count(&inbound["datagrams_up"]) + count(&inbound["associations"]) > 0 {
        let _ = writeln!(
            out,
            "{} UDP associations open, {} datagrams sent so far, {} received, {} dropped",
            count(&inbound["associations"]),
            count(&inbound["datagrams_up"]),
            count(&inbound["datagrams_down"]),
            count(&inbound["datagrams_dropped"])
        );
    }
    let paths = list(&status["paths"]);
    let width = address_width(paths.iter().map(|path| &path["address"]));
    if paths.is_empty() {
        let _ = writeln!(out, "no path to reconst is up");
    } else {
        let _ = writeln!(
            out,
            "{:<16} {:<width$} {:>4} {:<8} {:>8} {:>14} {:>10} {:>10} {:>6}",
            "relay", "address", "line", "state", "rtt/ms", "rate up", "sent", "received", "lost"
        );
    }
    for path in paths {
        let rate = path["rate_up"].as_u64().map_or("unknown".into(), |bits_per_second| Rate { bits_per_second }.to_string());
        let size = |value: &Value| Size { bytes: count(value) }.to_string();
        let _ = writeln!(
            out,
            "{:<16} {:<width$} {:>4} {:<8} {:>8.1} {:>14} {:>10} {:>10} {:>6}",
            path["relay"].as_str().unwrap_or("?"),
            path["address"].as_str().unwrap_or("?"),
            count(&path["line"]),
            path["state"].as_str().unwrap_or("?"),
            path["rtt_ms"].as_f64().unwrap_or(0.0),
            rate,
            size(&path["up_bytes"]),
            size(&path["down_bytes"]),
            count(&path["lost_datagrams"])
        );
    }
    quotas(&mut out, status);
    relays(&mut out, status);
    for problem in list(&status["problems"]) {
        let field = |name: &str| problem[name].as_str().unwrap_or("?").to_owned();
        let _ = writeln!(out, "relay {}: {}", field("address"), field("problem"));
    }
    out
}

/// What the user may use and has.
fn quotas(out: &mut String, status: &Value) {
    for quota in list(&status["quotas"]) {
        let field = |name: &str| quota[name].as_str().unwrap_or("?").to_owned();
        let size = Size { bytes: count(&quota["quota_bytes"]) };
        let percent = count(&quota["used_percent"]);
        let _ = writeln!(
            out,
            "{percent} % of the {size} that {} may use are used; the count begins anew on {}",
            field("whose"),
            field("resets")
        );
    }
}

/// The relays that are known otherwise than by name, and what became of announcements that were none.
fn relays(out: &mut String, status: &Value) {
    let roster = list(&status["roster"]);
    let width = address_width(roster.iter().map(|line| &line["addresses"][0]));
    if !roster.is_empty() {
        let _ = writeln!(
            out,
            "{:<16} {:<width$} {:>4} {:<8} {:<8} {:>6} {:>16} {:>16}",
            "known relay", "address", "line", "state", "from", "missed", "weight up", "weight down"
        );
    }
    for line in roster {
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let weight = |value: &Value| format!("{} {}", count(&value["weight"]), text(&value["origin"]));
        let _ = writeln!(
            out,
            "{:<16} {:<width$} {:>4} {:<8} {:<8} {:>6} {:>16} {:>16}",
            text(&line["relay"]),
            text(&line["addresses"][0]),
            count(&line["line"]),
            text(&line["state"]),
            text(&line["source"]),
            count(&line["missed"]),
            weight(&line["weights"]["up"]),
            weight(&line["weights"]["down"])
        );
    }
    let ignored = |name: &str| count(&status["announcements"][name]);
    let reasons = ["forged", "stale", "foreign", "malformed", "excess"];
    if reasons.iter().any(|reason| ignored(reason) > 0) {
        let counts: Vec<String> =
            reasons.iter().filter(|reason| ignored(reason) > 0).map(|reason| format!("{} {reason}", ignored(reason))).collect();
        let _ = writeln!(out, "announcements ignored: {}", counts.join(", "));
    }
}

/// As wide as the longest, which may be a link-local IPv6 address with its interface, and at least as an IPv4 address with its port.
fn address_width<'a>(addresses: impl Iterator<Item = &'a Value>) -> usize {
    addresses.filter_map(Value::as_str).map(str::len).max().unwrap_or(0).max(22)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_path_and_problem_has_its_line() {
        let status = json!({
            "listen": ["127.0.0.1:1080"],
            "inbound": {"connections": 2, "flows_opened": 7, "flows_refused": 1},
            "paths": [{"relay": "ann-pc", "address": "10.0.1.3:7654", "line": 1, "state": "active", "rtt_ms": 23.45, "rate_up": 9_800_000, "up_bytes": 12_000, "down_bytes": 3_400_000, "lost_datagrams": 4}],
            "roster": [{"relay": "bob-pc", "line": 2, "addresses": ["10.0.1.4:7655"], "source": "lan", "missed": 1, "state": "serving",
                "weights": {"up": {"weight": 18, "origin": "measured"}, "down": {"weight": 4, "origin": "set"}}}],
            "announcements": {"accepted": 9, "forged": 2, "foreign": 0},
            "problems": [{"address": "10.0.1.4:7654", "problem": "relay 10.0.1.4:7654 does not answer"}],
        });
        let text = text(&status);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "listening on 127.0.0.1:1080; 2 connections open, 7 flows so far, 1 refused");
        for part in ["ann-pc", "10.0.1.3:7654", "active", "23.4", "9.8 Mbit/s", "12.0 kB", "3.4 MB"] {
            assert!(lines[2].contains(part), "{part} in {}", lines[2]);
        }
        for part in ["bob-pc", "10.0.1.4:7655", "lan", "18 measured", "4 set"] {
            assert!(lines[4].contains(part), "{part} in {}", lines[4]);
        }
        assert_eq!(lines[5], "announcements ignored: 2 forged");
        assert_eq!(lines[6], "relay 10.0.1.4:7654: relay 10.0.1.4:7654 does not answer");
    }

    #[test]
    fn columns_stay_below_their_heads_however_long_an_address_is() {
        let path = |address: &str| json!({"relay": "ann-pc", "address": address, "state": "active"});
        let text = text(&json!({"paths": [path("10.0.1.3:7654"), path("[fe80::9021:b6ff:fe22:9f1e%2]:7654")]}));
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert!(
            lines[0].find("state").is_some_and(|at| lines[1].find("active") == Some(at) && lines[2].find("active") == Some(at)),
            "{text}"
        );
    }

    #[test]
    fn an_answer_that_lacks_everything_is_still_text() {
        assert!(text(&Value::Null).contains("no path to reconst is up"));
    }
}
