//! Whose turn is next, by start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996, §2), which, unlike rounds of a fixed quantum, is fair for
//! turns of any size.
//!
//! Each who waits has a start tag, how much it has had. Always holds: the least is next. Who comes anew begins where the others are; who has wanted
//! less than its share since its last turn is behind them, by the slack at most, and so goes before those that always want more.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub(super) struct Turns<K> {
    /// Where newcomers begin: the start tag of what passed last, or its finish tag if nobody waited then, and beyond it by what newcomers have had.
    virtual_time: u128,
    known: BTreeMap<K, Known>,
    waiting: BTreeSet<(u128, K)>,
    /// How many have had a first turn.
    newcomers: u16,
    /// How many were known after the last were forgotten.
    kept: usize,
}

#[derive(Debug)]
struct Known {
    /// Of who waits, where its turn starts; of others, where their last one ended.
    tag: u128,
    is_new: bool,
}

impl<K: Copy + Ord> Turns<K> {
    /// Has `who` wait, if it does not; its tag may be behind by so much.
    pub(super) fn enter(&mut self, who: K, slack: u128) {
        let earliest = self.virtual_time.saturating_sub(slack);
        let known = self.known.entry(who).or_insert(Known { tag: self.virtual_time, is_new: true });
        if !self.waiting.contains(&(known.tag, who)) {
            known.tag = known.tag.max(earliest);
            self.waiting.insert((known.tag, who));
        }
    }

    /// Has `who` wait no more.
    pub(super) fn leave(&mut self, who: K) {
        if let Some(known) = self.known.get(&who) {
            self.waiting.remove(&(known.tag, who));
        }
    }

    /// Whose turn it is.
    pub(super) fn first(&self) -> Option<K> {
        self.waiting.first().map(|(_, who)| *who)
    }

    /// Lets the first pass `amount`; it waits on if it has more.
    pub(super) fn pass_first(&mut self, amount: u128, has_more: bool) {
        let Some((tag, who)) = self.waiting.pop_first() else { return };
        self.virtual_time = self.virtual_time.max(tag);
        let Some(known) = self.known.get_mut(&who) else { return };
        if known.is_new {
            known.is_new = false;
            self.newcomers = self.newcomers.wrapping_add(1);
            known.tag = tag + first_charge(self.newcomers, amount);
            // Who has always another newcomer beside it would wait for ever otherwise. By the least that one is charged: no tag falls behind by it.
            self.virtual_time += amount / 2 / self.waiting.len().max(1) as u128;
        } else {
            known.tag = tag + amount;
        }
        if has_more {
            self.waiting.insert((known.tag, who));
        } else if self.waiting.is_empty() {
            self.virtual_time = self.virtual_time.max(known.tag);
        }
    }

    /// Those whose turns come before that of `who`, which waits.
    pub(super) fn before(&self, who: K) -> impl Iterator<Item = K> {
        let tag = self.known.get(&who).map_or(0, |known| known.tag);
        self.waiting.range(..(tag, who)).map(|(_, other)| *other)
    }

    /// Lets go of those whose past makes no difference any more, once twice as many are known as were kept the last time; whether it did.
    pub(super) fn forget_idle(&mut self, slack: u128) -> bool {
        let are_many = self.known.len() > 2 * self.kept + IDLE_MAX;
        if are_many {
            let earliest = self.virtual_time.saturating_sub(slack);
            let waiting = &self.waiting;
            self.known.retain(|who, known| known.tag > earliest || waiting.contains(&(known.tag, *who)));
            self.kept = self.known.len();
        }
        are_many
    }

    /// Whether anything is known of `who`.
    pub(super) fn knows(&self, who: K) -> bool {
        self.known.contains_key(&who)
    }
}

/// What the first turn of a newcomer is charged: between a half and one and a half of it, so that the tags are spread over a turn. Were they all the
/// same, virtual time would stand still for a round, and who came back within it would wait for its end.
fn first_charge(newcomer: u16, amount: u128) -> u128 {
    amount / 2 + ((amount * u128::from(newcomer.wrapping_mul(GOLDEN))) >> u16::BITS)
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { virtual_time: 0, known: BTreeMap::new(), waiting: BTreeSet::new(), newcomers: 0, kept: 0 }
    }
}

/// The golden part of 2¹⁶: its multiples are spread evenly, however many they are.
const GOLDEN: u16 = 40_503;

/// How many are kept at least.
const IDLE_MAX: usize = 64;
