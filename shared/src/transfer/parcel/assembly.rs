//! Parcels that are put together from fragments, of all flows of a session.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    ids::FlowId,
    transfer::{packet::Fragment, ranges::RangeSet},
};

/// The parcels that lack fragments.
#[derive(Debug, Default)]
pub(in crate::transfer) struct Assembly {
    partial_by_parcel: BTreeMap<(FlowId, u64), Partial>,
    /// In the order in which they began; those that are no more among them.
    began: VecDeque<(Instant, FlowId, u64)>,
    /// What each flow's parcels cost, and all of them.
    bytes_by_flow: BTreeMap<FlowId, usize>,
    bytes: usize,
}

#[derive(Debug)]
struct Partial {
    began: Instant,
    bytes: Vec<u8>,
    arrived: RangeSet,
}

/// How long a parcel may lack fragments: the difference of two paths' delays and what a fragment waits for its path. IP gives 30 s (RFC 8200
/// §4.5); nobody waits that long for a datagram.
const KEPT_FOR: Duration = Duration::from_secs(3);

/// Bytes of parcels that lack fragments, of one flow: the oldest give way. What 40 Mbit/s of them are in 200 ms, the difference of two
/// paths' delays.
pub const FLOW_ASSEMBLY_BYTES: usize = 1 << 20;

/// And of all flows of a session.
pub const SESSION_ASSEMBLY_BYTES: usize = 4 << 20;

/// What a parcel costs besides its bytes, and each run of bytes that it holds.
const PARTIAL_BYTES: usize = 512;
const RUN_BYTES: usize = 32;

/// Runs of bytes of one parcel with gaps between them: fragments are of 1,000 bytes and more but the last.
const RUNS_MAX: usize = 128;

impl Assembly {
    /// Takes a fragment in; gives the parcel that it completes.
    pub(in crate::transfer) fn insert(&mut self, now: Instant, fragment: Fragment) -> Option<Bytes> {
        self.expire(now);
        let key = (fragment.flow, fragment.number);
        if !self.partial_by_parcel.contains_key(&key) {
            self.make_room(fragment.flow, fragment.total as usize + PARTIAL_BYTES);
            let partial = Partial { began: now, bytes: vec![0; fragment.total as usize], arrived: RangeSet::default() };
            self.spend(fragment.flow, partial.cost());
            self.partial_by_parcel.insert(key, partial);
            self.began.push_back((now, fragment.flow, fragment.number));
            self.shed_settled();
        }
        let partial = self.partial_by_parcel.get_mut(&key).expect("is there or was inserted");
        let (start, end) = (fragment.offset as usize, fragment.offset as usize + fragment.bytes.len());
        if partial.bytes.len() != fragment.total as usize || partial.arrived.len() >= RUNS_MAX {
            self.remove(key);
            return None;
        }
        let before = partial.cost();
        partial.bytes[start..end].copy_from_slice(&fragment.bytes);
        partial.arrived.insert(start as u64..end as u64);
        let (after, is_whole) = (partial.cost(), partial.arrived.first() == Some(0..u64::from(fragment.total)));
        self.give_back(fragment.flow, before);
        self.spend(fragment.flow, after);
        if is_whole {
            return self.remove(key).map(|partial| partial.bytes.into());
        }
        self.make_room(fragment.flow, 0);
        None
    }

    /// When [`Assembly::expire`] has something to do.
    pub(in crate::transfer) fn expires_at(&self) -> Option<Instant> {
        self.began.front().map(|(began, ..)| *began + KEPT_FOR)
    }

    /// Gives up what has lacked fragments for too long.
    pub(in crate::transfer) fn expire(&mut self, now: Instant) {
        while let Some(&(began, flow, number)) = self.began.front()
            && (began + KEPT_FOR <= now || !self.is_current(began, flow, number))
        {
            self.began.pop_front();
            if self.is_current(began, flow, number) {
                self.remove((flow, number));
            }
        }
    }

    /// Forgets a flow's.
    pub(in crate::transfer) fn forget(&mut self, flow: FlowId) {
        while let Some(key) = self.oldest_of(flow) {
            self.remove(key);
        }
        if self.partial_by_parcel.is_empty() {
            self.began.clear();
        }
    }

    /// The memory taken.
    pub(in crate::transfer) fn memory_bytes(&self) -> usize {
        self.bytes
    }

    fn make_room(&mut self, flow: FlowId, bytes: usize) {
        while self.bytes_by_flow.get(&flow).is_some_and(|of_flow| of_flow + bytes > FLOW_ASSEMBLY_BYTES)
            && let Some(key) = self.oldest_of(flow)
        {
            self.remove(key);
        }
        while self.bytes + bytes > SESSION_ASSEMBLY_BYTES
            && let Some((began, flow, number)) = self.began.pop_front()
        {
            if self.is_current(began, flow, number) {
                self.remove((flow, number));
            }
        }
    }

    /// Keeps what is remembered of parcels that are no more in proportion to those that are.
    fn shed_settled(&mut self) {
        if self.began.len() > 64 + 4 * self.partial_by_parcel.len() {
            let partial_by_parcel = &self.partial_by_parcel;
            let is_current = |(began, flow, number): &(Instant, FlowId, u64)| {
                partial_by_parcel.get(&(*flow, *number)).is_some_and(|partial| partial.began == *began)
            };
            self.began.retain(is_current);
        }
    }

    fn oldest_of(&self, flow: FlowId) -> Option<(FlowId, u64)> {
        self.partial_by_parcel.range((flow, 0)..=(flow, u64::MAX)).next().map(|(key, _)| *key)
    }

    fn is_current(&self, began: Instant, flow: FlowId, number: u64) -> bool {
        self.partial_by_parcel.get(&(flow, number)).is_some_and(|partial| partial.began == began)
    }

    fn remove(&mut self, key: (FlowId, u64)) -> Option<Partial> {
        let partial = self.partial_by_parcel.remove(&key)?;
        self.give_back(key.0, partial.cost());
        Some(partial)
    }

    fn spend(&mut self, flow: FlowId, bytes: usize) {
        self.bytes += bytes;
        *self.bytes_by_flow.entry(flow).or_default() += bytes;
    }

    fn give_back(&mut self, flow: FlowId, bytes: usize) {
        self.bytes -= bytes;
        if let Entry::Occupied(mut of_flow) = self.bytes_by_flow.entry(flow) {
            *of_flow.get_mut() -= bytes;
            if *of_flow.get() == 0 {
                of_flow.remove();
            }
        }
    }
}

impl Partial {
    fn cost(&self) -> usize {
        self.bytes.len() + PARTIAL_BYTES + self.arrived.len() * RUN_BYTES
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_parcel_comes_together_in_any_order_and_through_overlaps(len in 2usize..70_000, cuts in prop::collection::vec(any::<prop::sample::Index>(), 1..60), order in any::<u64>()) {
            let len = len.min(65_000);
            let whole: Bytes = (0..len).map(|place| (place * 7 + place / 251) as u8).collect::<Vec<_>>().into();
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(len)).chain([0, len]).collect();
            // What comes twice below is never all of a fragment, the last of them to arrive least of all.
            places.retain(|&place| place != 1);
            places.sort();
            places.dedup();
            let mut parts: Vec<_> = places.windows(2).map(|pair| (pair[0], pair[1])).collect();
            let count = parts.len();
            parts.rotate_left(order as usize % count);
            parts.insert(0, (0, 1));
            let mut assembly = Assembly::default();
            let now = Instant::now();
            let made: Vec<Bytes> = parts.iter().filter_map(|&(start, end)| assembly.insert(now, part(7, &whole, start..end))).collect();
            prop_assert_eq!(made, [whole]);
            prop_assert_eq!(assembly.memory_bytes(), 0);
        }
    }

    #[test]
    fn beginnings_without_an_end_stay_within_the_bounds_and_are_given_up() {
        let now = Instant::now();
        let mut assembly = Assembly::default();
        let whole = Bytes::from(vec![1; 60_000]);
        for number in 0..500 {
            for flow in 0..10 {
                assembly.insert(now, Fragment { flow: FlowId(flow), ..part(number, &whole, 0..1) });
                assert!(assembly.memory_bytes() <= SESSION_ASSEMBLY_BYTES);
            }
        }
        for number in 0..100 {
            assembly.insert(now, Fragment { flow: FlowId(99), ..part(number, &whole, 0..1) });
        }
        let of_one = assembly.partial_by_parcel.range((FlowId(99), 0)..).count();
        assert_eq!(of_one, FLOW_ASSEMBLY_BYTES / (60_000 + PARTIAL_BYTES));
        let expires_at = assembly.expires_at().expect("something to give up");
        assembly.expire(expires_at);
        assert_eq!((assembly.memory_bytes(), assembly.expires_at()), (0, None));
    }

    #[test]
    fn parcels_in_many_runs_are_fewer() {
        let now = Instant::now();
        let mut assembly = Assembly::default();
        let whole = Bytes::from(vec![1; 2 * RUNS_MAX]);
        for number in 0..2000 {
            for run in 0..RUNS_MAX {
                assembly.insert(now, part(number, &whole, 2 * run..2 * run + 1));
                assert!(assembly.memory_bytes() <= FLOW_ASSEMBLY_BYTES);
            }
        }
        assert!(assembly.partial_by_parcel.len() <= FLOW_ASSEMBLY_BYTES / (RUNS_MAX * RUN_BYTES));
    }

    /// Ends in no time that anybody waits for if each looks at all the others.
    #[test]
    fn a_flood_of_beginnings_costs_each_the_same() {
        let now = Instant::now();
        let mut assembly = Assembly::default();
        let whole = Bytes::from(vec![1; 2]);
        for number in 0..1_000_000 {
            assembly.insert(now, part(number, &whole, 0..1));
        }
        assert_eq!(assembly.bytes, assembly.partial_by_parcel.values().map(Partial::cost).sum::<usize>());
        assert_eq!(assembly.bytes_by_flow, BTreeMap::from([(FlowId(3), assembly.bytes)]));
    }

    #[test]
    fn fragments_that_tell_different_lengths_make_no_parcel() {
        let now = Instant::now();
        let mut assembly = Assembly::default();
        assembly.insert(now, part(1, &Bytes::from(vec![1; 100]), 0..50));
        assert_eq!(assembly.insert(now, part(1, &Bytes::from(vec![1; 120]), 50..120)), None);
        assert_eq!(assembly.memory_bytes(), 0);
    }

    fn part(number: u64, whole: &Bytes, range: std::ops::Range<usize>) -> Fragment {
        Fragment { flow: FlowId(3), number, total: whole.len() as u32, offset: range.start as u32, bytes: whole.slice(range) }
    }
}
