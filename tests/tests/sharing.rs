//! Several users at a line of which its owner shares a part, in virtual time: fair to each, short for all.

use std::time::Duration;

use neighbourhood::{
    line::Conditions,
    scene::Way,
    simulation::shared_line::{Got, SharedLine, Use, User},
};
use shared::units::Rate;

#[test]
fn users_who_come_one_after_another_get_equal_parts_and_short_queues() {
    for (share, rtt_ms, queue_ms) in [("20M", 20, 15), ("20M", 200, 100), ("4M", 20, 60), ("4M", 100, 70), ("500k", 40, 400)] {
        let users = (0..4).map(|place| User { does: Use::Bulk(Way::Up), from: Duration::from_secs(place) }).collect();
        let got = run(share, rtt_ms, users);
        let shown = shown(share, rtt_ms, &got);
        for got in &got {
            let part = got.goodput_bits / rate(share).bits_per_second as f64;
            assert!((0.22..0.28).contains(&part), "{shown}");
            assert!(queue(got, 0.5, rtt_ms) <= Duration::from_millis(queue_ms), "{shown}");
            assert!(got.dropped * 12 <= got.packets, "{shown}");
        }
    }
}

#[test]
fn one_user_alone_fills_the_share_and_loses_nothing() {
    for (share, rtt_ms) in [("20M", 20), ("20M", 200), ("4M", 100), ("500k", 40)] {
        for way in [Way::Up, Way::Down] {
            let got = run(share, rtt_ms, vec![User { does: Use::Bulk(way), from: Duration::ZERO }]);
            let shown = shown(share, rtt_ms, &got);
            assert!(got[0].goodput_bits > 0.93 * rate(share).bits_per_second as f64, "{shown}");
            assert!(got[0].dropped * 200 <= got[0].packets, "{shown}");
        }
    }
}

#[test]
fn a_call_does_not_notice_a_neighbours_upload() {
    for (share, rtt_ms) in [("20M", 20), ("4M", 100), ("500k", 40)] {
        let users = vec![User { does: Use::Bulk(Way::Up), from: Duration::ZERO }, User { does: Use::Call, from: Duration::from_secs(1) }];
        let got = run(share, rtt_ms, users);
        let shown = shown(share, rtt_ms, &got);
        let packet = Duration::from_secs_f64(1500.0 * 8.0 / rate(share).bits_per_second as f64);
        assert_eq!(got[1].dropped, 0, "{shown}");
        assert!(queue(&got[1], 0.95, rtt_ms) <= packet + Duration::from_millis(2), "{shown}");
    }
}

fn run(share: &str, rtt_ms: u64, users: Vec<User>) -> Vec<Got> {
    let line = Conditions::steady(Rate { bits_per_second: 50_000_000 }, Duration::from_millis(rtt_ms / 2));
    let shared = SharedLine {
        line,
        share: rate(share),
        users,
        warm_up: Duration::from_secs(5),
        span: Duration::from_secs(10),
        relay_tick: Duration::from_millis(1),
    };
    shared.run()
}

fn rate(text: &str) -> Rate {
    text.parse().expect("a rate")
}

/// What this part of the packets waited at most.
fn queue(got: &Got, quantile: f64, rtt_ms: u64) -> Duration {
    got.delay_quantile(quantile).saturating_sub(Duration::from_millis(rtt_ms / 2))
}

fn shown(share: &str, rtt_ms: u64, got: &[Got]) -> String {
    let shown = |got: &Got| {
        let part = got.goodput_bits / rate(share).bits_per_second as f64;
        let (median, most) = (queue(got, 0.5, rtt_ms), queue(got, 0.95, rtt_ms));
        format!("{part:.3} of the share, queues {median:.1?} and {most:.1?}, {} of {} dropped", got.dropped, got.packets)
    };
    let shown = format!("{share}, {rtt_ms} ms: {}", got.iter().map(shown).collect::<Vec<_>>().join(" | "));
    println!("{shown}");
    shown
}
