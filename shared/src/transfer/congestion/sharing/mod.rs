//! Several senders on one line, in virtual time: what each gets and how long the queue stands.
//!
//! The line is a queue that drops its tail. Its senders are paths, and a TCP Cubic (RFC 9438 with the slow start of RFC 9406) to share with.

mod cubic;
mod line;

use std::time::Duration;

use line::{Line, Report};

use super::PACKET_BYTES;

#[test]
fn a_path_alone_fills_its_line_and_keeps_the_queue_short() {
    let lines = [
        (25.0, 20, 100),
        (10.0, 20, 500),
        (2.0, 100, 2000),
        (0.5, 60, 1000),
        (200.0, 10, 50),
        (30.0, 160, 100),
        (0.4, 40, 2000),
        (0.3, 20, 2000),
        (0.056, 150, 2000),
    ];
    for (rate, rtt, queue) in lines {
        let mut line = Line::new(rate, rtt, queue);
        let path = line.add_path(0.0);
        // A modem needs some seconds to pass on what slow start sends.
        let report = line.run(10.0, 40.0);
        assert!(report.shares[path] > 0.97, "{rate} Mbit/s, {rtt} ms: {report:?}");
        assert!(!report.competed, "{rate} Mbit/s, {rtt} ms: {report:?}");
        let packets = Duration::from_secs_f64(3.0 * PACKET_BYTES / line.rate);
        assert!(report.queue < Duration::from_millis(25).max(packets), "{rate} Mbit/s, {rtt} ms: {report:?}");
    }
}

#[test]
fn paths_share_a_line_equally_whoever_came_first() {
    let lines =
        [(25.0, 20), (10.0, 20), (4.0, 40), (15.0, 40), (5.0, 20), (2.0, 30), (100.0, 10), (200.0, 10), (50.0, 20), (10.0, 80), (25.0, 80)];
    for (rate, rtt) in lines {
        for late in [0.0, 3.0, 7.0] {
            let report = two_paths(rate, rtt, late);
            assert!(report.least() > 0.45, "{rate} Mbit/s, {rtt} ms, {late} s late: {report:?}");
        }
    }
}

#[test]
fn paths_over_a_long_way_become_equal_soon() {
    for (rate, rtt) in [(10.0, 160), (30.0, 160), (30.0, 300)] {
        let reports = [0.0, 3.0, 4.3, 7.0, 9.1, 12.0].map(|late| two_paths(rate, rtt, late));
        let mean = reports.iter().map(Report::least).sum::<f64>() / reports.len() as f64;
        assert!(mean > 0.43, "{rate} Mbit/s, {rtt} ms: {reports:?}");
    }
}

#[test]
fn paths_that_are_told_share_also_a_line_that_jitters_and_a_long_one() {
    for (rate, rtt, jitter_ms) in
        [(40.0, 20, 3), (40.0, 20, 10), (10.0, 20, 10), (20.0, 80, 10), (100.0, 20, 10), (30.0, 160, 0), (5.0, 160, 0)]
    {
        for late in [0.0, 3.0, 7.0] {
            let mut line = Line::new(rate, rtt, 100);
            line.jitter = f64::from(jitter_ms) / 1e3;
            line.told = Some(1.0);
            line.add_path(0.0);
            line.add_path(late);
            let report = line.run(late + 5.0, late + 30.0);
            assert!(
                report.least() > 0.45 && report.sum() > 0.97,
                "{rate} Mbit/s, {rtt} ms, jitter {jitter_ms} ms, {late} s late: {report:?}"
            );
        }
    }
}

#[test]
fn a_path_that_is_told_of_more_or_less_than_its_share_fills_its_line_all_the_same() {
    for (rate, rtt) in [(40.0, 20), (2.0, 40), (100.0, 10), (20.0, 160)] {
        for factor in [0.01, 0.5, 2.0, 100.0] {
            let mut line = Line::new(rate, rtt, 100);
            line.told = Some(factor);
            line.add_path(0.0);
            let report = line.run(5.0, 20.0);
            let packets = Duration::from_secs_f64(8.0 * PACKET_BYTES / line.rate);
            let queue = Duration::from_millis(25).max(Duration::from_millis(rtt) / 5).max(packets);
            assert!(report.sum() > 0.95 && report.queue < queue, "{rate} Mbit/s, {rtt} ms, told {factor} of it: {report:?}");
        }
    }
}

/// Two paths on a line, for the 25 seconds that begin 5 after the second came.
fn two_paths(rate: f64, rtt: u64, late: f64) -> Report {
    let mut line = Line::new(rate, rtt, 100);
    line.add_path(0.0);
    line.add_path(late);
    let report = line.run(late + 5.0, late + 30.0);
    assert!(report.sum() > 0.97, "{rate} Mbit/s, {rtt} ms, {late} s late: {report:?}");
    let packets = Duration::from_secs_f64(8.0 * PACKET_BYTES / line.rate);
    assert!(report.queue < Duration::from_millis(25).max(packets), "{rate} Mbit/s, {rtt} ms, {late} s late: {report:?}");
    report
}

#[test]
fn tcp_cubic_and_a_path_leave_each_other_a_good_part() {
    let lines = [
        (25.0, 20, 100),
        (10.0, 20, 100),
        (25.0, 20, 500),
        (25.0, 20, 25),
        (8.0, 80, 200),
        (50.0, 40, 60),
        (25.0, 80, 100),
        (15.0, 160, 100),
    ];
    for (rate, rtt, queue) in lines {
        let [mean, least] = beside_cubic((rate, rtt, queue), (5.0, 25.0));
        assert!(mean > 0.33 && least > 0.15, "{rate} Mbit/s, {rtt} ms, {queue} ms: {mean}, {least}");
    }
}

#[test]
fn a_path_that_was_idle_takes_its_part_beside_tcp_cubic() {
    for (rate, rtt, queue) in [(10.0, 20, 100), (25.0, 20, 100), (5.0, 20, 100), (10.0, 40, 200), (2.0, 40, 300), (10.0, 80, 100)] {
        for jitter in [0.0, 0.005] {
            // One beginning is a lottery.
            let begins = [3.0, 3.7, 4.3, 5.1, 6.0, 7.7, 9.0];
            let part = |begin| {
                let mut line = Line::new(rate, rtt, queue);
                line.jitter = jitter;
                line.add_cubic(0.0);
                let path = line.add_warm_path(begin);
                let report = line.run(begin + 5.0, begin + 35.0);
                report.shares[path] / report.sum()
            };
            let mean = begins.map(part).iter().sum::<f64>() / begins.len() as f64;
            assert!((0.33..0.67).contains(&mean), "{rate} Mbit/s, {rtt} ms, {queue} ms, jitter {jitter} s: {mean:.3}");
        }
    }
}

#[test]
fn beside_tcp_cubic_a_path_holds_its_part_of_a_deep_queue() {
    for (rate, rtt, queue) in [(25.0, 20, 2000), (10.0, 20, 2000), (25.0, 20, 500)] {
        // A round trip takes two seconds.
        let [mean, least] = beside_cubic((rate, rtt, queue), (45.0, 105.0));
        assert!(mean > 0.36 && least > 0.15, "{rate} Mbit/s, {rtt} ms, {queue} ms: {mean}, {least}");
    }
}

/// The lesser part, of the path or the Cubic, on a line of so many Mbit/s, ms and ms of queue, between two times: its mean over some beginnings, since
/// small things decide how they meet, and the least.
fn beside_cubic((rate, rtt, queue): (f64, u64, u64), (from, until): (f64, f64)) -> [f64; 2] {
    let beginnings = [(0.0, 0.0), (0.0, 2.3), (0.0, 3.6), (0.0, 5.0), (2.3, 0.0), (3.6, 0.0), (5.0, 0.0)];
    let parts = beginnings.map(|(path_at, cubic_at)| {
        let mut line = Line::new(rate, rtt, queue);
        line.add_path(path_at);
        line.add_cubic(cubic_at);
        line.run(from, until).least()
    });
    [parts.iter().sum::<f64>() / parts.len() as f64, parts.into_iter().fold(1.0, f64::min)]
}

#[test]
fn paths_empty_a_deep_queue_that_tcp_cubic_has_left() {
    let mut line = Line::new(10.0, 20, 2000);
    line.add_path(0.0);
    line.add_path(1.0);
    let cubic = line.add_cubic(3.0);
    line.stop(cubic, 30.0);
    let report = line.run(45.0, 60.0);
    assert!(report.queue < Duration::from_millis(25), "{report:?}");
}

#[test]
fn a_path_takes_the_line_back_when_tcp_cubic_has_gone() {
    let mut line = Line::new(25.0, 20, 100);
    let path = line.add_path(0.0);
    let cubic = line.add_cubic(3.0);
    line.stop(cubic, 15.0);
    let report = line.run(20.0, 30.0);
    assert!(report.shares[path] > 0.95, "{report:?}");
    assert!(report.queue < Duration::from_millis(16), "{report:?}");
}

#[test]
fn a_longer_way_is_no_competitor() {
    let mut line = Line::new(25.0, 20, 200);
    let path = line.add_path(0.0);
    line.longer_at = Some((10.0, 0.040));
    let report = line.run(13.0, 30.0);
    assert!(report.shares[path] > 0.95, "{report:?}");
    assert!(report.queue < Duration::from_millis(16), "{report:?}");
}

#[test]
fn a_line_that_slows_down_is_followed_without_competing() {
    let mut line = Line::new(25.0, 20, 300);
    let path = line.add_path(0.0);
    line.slower_at = Some((10.0, 0.5));
    let report = line.run(11.0, 20.0);
    assert!(report.shares[path] > 0.47, "{report:?}");
    assert!(report.queue < Duration::from_millis(22), "{report:?}");
}
