//! A session and the connections that carry its datagrams.

use std::time::{Duration, Instant};

use shared::{
    community::weight::LineWeight,
    ids::PathId,
    transfer::{
        path::PathInfo,
        schedule::Policy,
        session::{Limits, Session, Side},
    },
};

#[test]
fn a_carrier_is_given_no_more_than_it_takes_and_asked_again_soon() {
    let now = Instant::now();
    let mut session = Session::new(now, Side::Proxy, Policy::Adaptive, Limits::default());
    let info = PathInfo { weight: LineWeight::default(), max_datagram_bytes: 1000, rtt: Duration::from_millis(10) };
    session.add_path(now, PATH, info);
    session.set_carrier_room(PATH, 3500);
    let flow = session.open().expect("room for a flow");
    session.write(flow, &[7; 100_000]).expect("the flow is open");

    assert_eq!(drain(&mut session, now), 3);
    assert_eq!(session.short_of_room(None), Some(PATH));
    assert_eq!(session.short_of_room(Some(PATH)), None);
    let again = session.poll_timeout().expect("something waits");
    assert!(again > now && again <= now + Duration::from_millis(2), "{:?}", again - now);
    assert_eq!(drain(&mut session, again), 0);

    session.set_carrier_room(PATH, 1 << 20);
    assert!(drain(&mut session, again) > 3);
    assert_eq!(session.short_of_room(None), None);
}

/// The datagrams that leave.
fn drain(session: &mut Session, now: Instant) -> usize {
    session.handle_timeout(now);
    std::iter::from_fn(|| session.poll_transmit(now)).count()
}

const PATH: PathId = PathId(1);
