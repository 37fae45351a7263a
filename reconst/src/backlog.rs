//! Connections of an endpoint that nobody knows yet: how many there may be, and which give way once there are too many.
//!
//! Beyond half of them a newcomer must show that its address is its own (RFC 9000 §8.1.2). Once all places are taken, the source that holds
//! most loses its oldest to one that would still hold fewer (longest queue drop), so that a few addresses that open connections and say
//! nothing keep out nobody but their like.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::oneshot;

/// The places for connections that are not let in yet; clones share them.
#[derive(Clone)]
pub(crate) struct Backlog {
    places: Arc<Mutex<Places>>,
    max: usize,
}

#[derive(Default)]
struct Places {
    /// The oldest first; dropped, each tells its connection to give way.
    held_by_source: HashMap<Source, BTreeMap<u64, oneshot::Sender<()>>>,
    count: usize,
    next: u64,
}

/// What counts as one: an IPv4 address, or the /56 of an IPv6 address, which is what a home is given (RIPE-690 §4.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Source(IpAddr);

/// A place in the backlog, until dropped.
pub(crate) struct Place {
    backlog: Backlog,
    source: Source,
    number: u64,
    gives_way: oneshot::Receiver<()>,
}

impl Backlog {
    /// Of `max` places.
    pub(crate) fn new(max: usize) -> Self {
        Self { places: Arc::default(), max }
    }

    /// A place for `incoming`; `None` once it was turned away, or asked to come again with a token.
    pub(crate) fn admit(&self, incoming: quinn::Incoming) -> Option<(quinn::Incoming, Place)> {
        let is_loaded = self.lock().count > self.max / 2;
        if is_loaded && !incoming.remote_address_validated() && incoming.may_retry() {
            let _ = incoming.retry();
            return None;
        }
        match self.enter(Source::of(incoming.remote_address().ip())) {
            Some(place) => Some((incoming, place)),
            None => {
                incoming.refuse();
                None
            }
        }
    }

    fn enter(&self, source: Source) -> Option<Place> {
        let mut places = self.lock();
        if places.count >= self.max {
            let own = places.held_by_source.get(&source).map_or(0, BTreeMap::len);
            let (&fullest, held) = places.held_by_source.iter().max_by_key(|(_, held)| held.len())?;
            let oldest = held.first_key_value().map(|(&number, _)| number).filter(|_| held.len() > own + 1)?;
            places.leave(fullest, oldest);
        }
        let (gives_way_sender, gives_way) = oneshot::channel();
        let number = places.next;
        places.next += 1;
        places.count += 1;
        places.held_by_source.entry(source).or_default().insert(number, gives_way_sender);
        Some(Place { backlog: self.clone(), source, number, gives_way })
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().expect("nothing panics under the lock")
    }
}

impl Places {
    fn leave(&mut self, source: Source, number: u64) {
        let Some(held) = self.held_by_source.get_mut(&source) else { return };
        if held.remove(&number).is_some() {
            self.count -= 1;
        }
        if held.is_empty() {
            self.held_by_source.remove(&source);
        }
    }
}

impl Place {
    /// Waits until the place is another's.
    pub(crate) async fn given_up(&mut self) {
        let _ = (&mut self.gives_way).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.backlog.lock().leave(self.source, self.number);
    }
}

impl Source {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !(u128::MAX >> 56))),
            IpAddr::V4(address) => IpAddr::V4(address),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_source_that_holds_most_gives_way_and_no_other() {
        let backlog = Backlog::new(4);
        let [many, few, new] = [1, 2, 3].map(source);
        let mut held: Vec<_> = [many, few, many, many].into_iter().map(|source| backlog.enter(source).expect("room")).collect();
        assert!(backlog.enter(many).is_none());
        let mut newcomer = backlog.enter(new).expect("the first gives way");
        assert_eq!(gone(&mut held), [true, false, false, false]);
        // One that would hold as many as the fullest gets nothing, however often it asks.
        assert!(backlog.enter(few).is_none() && backlog.enter(new).is_none() && backlog.enter(source(4)).is_some());
        assert_eq!(gone(&mut held), [true, false, true, false]);
        assert!(newcomer.gives_way.try_recv() == Err(oneshot::error::TryRecvError::Empty));
    }

    #[test]
    fn what_is_dropped_makes_room_once() {
        let backlog = Backlog::new(2);
        let held: Vec<_> = [1, 1].map(|number| backlog.enter(source(number)).expect("room")).into();
        let newcomer = backlog.enter(source(2)).expect("the first gives way");
        drop(held);
        assert_eq!(backlog.lock().count, 1);
        drop(newcomer);
        assert!(backlog.lock().held_by_source.is_empty());
    }

    #[test]
    fn a_home_is_one_source() {
        let [one, same, other] =
            ["2001:db8:1:200::1", "2001:db8:1:2ff::2", "2001:db8:1:300::1"].map(|text| text.parse().expect("an address"));
        assert_eq!(Source::of(one), Source::of(same));
        assert_ne!(Source::of(one), Source::of(other));
        assert_eq!(Source::of("::ffff:192.0.2.1".parse().expect("an address")), Source(Ipv4Addr::new(192, 0, 2, 1).into()));
    }

    fn source(number: u8) -> Source {
        Source(Ipv4Addr::new(192, 0, 2, number).into())
    }

    fn gone(held: &mut [Place]) -> Vec<bool> {
        held.iter_mut().map(|place| place.gives_way.try_recv() == Err(oneshot::error::TryRecvError::Closed)).collect()
    }
}
