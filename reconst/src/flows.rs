//! `reconst flows`: the table of dedicated ports, for people.

use std::fmt::Write;

use serde_json::Value;
use shared::{community::member::Name, units::Size};

/// The rows of the running `reconst`'s answer: of `lan` alone if it is given.
pub(crate) fn rows(answer: &str, lan: Option<&Name>) -> serde_json::Result<Vec<Value>> {
    let mut rows: Vec<Value> = serde_json::from_str(answer)?;
    rows.retain(|row| lan.is_none_or(|lan| row["lan_name"] == lan.as_str()));
    Ok(rows)
}

/// Those rows as text, one for each port; `now_ms` is the time in milliseconds since 1970.
pub(crate) fn text(rows: &[Value], now_ms: u64) -> String {
    let mut out = String::new();
    if rows.is_empty() {
        return "no flow is open\n".into();
    }
    let _ = writeln!(
        out,
        "{:<5} {:<5} {:<22} {:<10} {:<12} {:>6} {:<28} {:>8} {:>8} {:>10} {:>10}",
        "port", "proto", "origin", "LAN", "user", "flow", "content server", "open/s", "idle/s", "up", "down"
    );
    for row in rows {
        let text = |name: &str| row[name].as_str().unwrap_or("?").to_owned();
        let number = |name: &str| row[name].as_u64().unwrap_or(0);
        let seconds = |name: &str| now_ms.saturating_sub(number(name)) / 1000;
        let size = |name: &str| Size { bytes: number(name) }.to_string();
        let _ = writeln!(
            out,
            "{:<5} {:<5} {:<22} {:<10} {:<12} {:>6} {:<28} {:>8} {:>8} {:>10} {:>10}",
            number("port"),
            text("protocol"),
            text("origin"),
            text("lan_name"),
            text("user"),
            number("flow"),
            text("content_server"),
            seconds("opened_ms"),
            seconds("last_used_ms"),
            size("up_bytes"),
            size("down_bytes")
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_port_has_its_row() {
        let flows = json!([{
            "port": 20001, "protocol": "udp", "origin": "10.0.1.1:8111", "lan": 15, "lan_name": "elm", "user": "ann", "session": "abababab", "flow": 1,
            "content_server": "132.146.15.101:7111", "opened_ms": 1_000, "last_used_ms": 61_000, "up_bytes": 5, "down_bytes": 12_000
        }, {"port": 20002, "protocol": "tcp", "origin": null, "lan": 16, "lan_name": "oak"}])
        .to_string();
        let text = text(&rows(&flows, None).expect("JSON"), 71_999);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        for part in ["20001", "udp", "10.0.1.1:8111", " elm ", "ann", "132.146.15.101:7111", " 70 ", " 10 ", "12.0 kB"] {
            assert!(lines[1].contains(part), "{part} in {}", lines[1]);
        }
        let of_oak = rows(&flows, Some(&"oak".parse().expect("a name"))).expect("JSON");
        assert_eq!(of_oak.iter().map(|row| row["port"].as_u64()).collect::<Vec<_>>(), [Some(20_002)]);
        assert_eq!(super::text(&[], 0), "no flow is open\n");
    }
}
