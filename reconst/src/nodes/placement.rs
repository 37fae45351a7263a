//! Which node serves which LAN: rendezvous hashing (Thaler and Ravishankar, 1998), weighted by what each node has room for.
//!
//! Enters: a [`View`] of the nodes. Leaves: the order in which nodes are a LAN's, and the LANs that have to be placed. Always holds: all nodes
//! reckon alike from the same view; a LAN stays where it is while its node is alive and not drained, unless the operator wants it elsewhere,
//! since moving costs its users a moment.

use shared::ids::LanId;

use crate::accounts::nodes::{Node, NodeKey, Placed, View};

/// A LAN that is to be served by another node than the view says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// The LAN.
    pub lan: LanId,
    /// Where it is.
    pub from: Option<NodeKey>,
    /// Where it is to be.
    pub to: NodeKey,
}

/// The nodes that may serve a LAN, the best first: those that are alive and not drained; if there is none, those that are drained.
pub fn ranked<'a>(lan: LanId, nodes: &'a [Node]) -> Vec<&'a Node> {
    let alive = || nodes.iter().filter(|node| node.is_alive());
    let mut ranked: Vec<&'a Node> = alive().filter(|node| node.drain.is_none()).collect();
    if ranked.is_empty() {
        ranked = alive().collect();
    }
    let score = |node: &Node| score(lan, node);
    ranked.sort_by(|a, b| score(b).total_cmp(&score(a)).then_with(|| a.name.cmp(&b.name)));
    ranked
}

/// The LANs that have to move.
pub fn moves(view: &View) -> Vec<Move> {
    let to_move = |placed: &Placed| {
        let ranked = ranked(placed.lan, &view.nodes);
        let by_key = |key: NodeKey| ranked.iter().find(|node| node.key == key);
        let to = placed.wanted.and_then(by_key).or_else(|| placed.node.and_then(by_key)).or(ranked.first())?.key;
        (placed.node != Some(to)).then_some(Move { lan: placed.lan, from: placed.node, to })
    };
    view.placements.iter().filter_map(to_move).collect()
}

/// The logarithmic method (Schindelhauer and Schomaker, 2005): a node is a LAN's with a probability in proportion to its weight.
fn score(lan: LanId, node: &Node) -> f64 {
    // From the upper 53 bits: never 0 nor 1, so that the logarithm is finite and not 0.
    let unit = ((hash(node.name.as_str(), lan) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -weight(node) / unit.ln()
}

/// What the node has room for.
fn weight(node: &Node) -> f64 {
    let capacity = node.capacity_bits_per_second.max(1) as f64;
    let free = 1.0 - node.load.bits_per_second as f64 / capacity;
    capacity * free.max(LEAST_FREE)
}

/// FNV-1a and a finalizer (that of SplitMix64), written out since all versions of all nodes have to agree.
fn hash(node: &str, lan: LanId) -> u64 {
    let bytes = node.bytes().chain(lan.0.to_be_bytes());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// A node that is full still takes LANs if the others are full as well.
const LEAST_FREE: f64 = 0.05;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::accounts::nodes::{DEAD_AFTER, Load};

    #[test]
    fn lans_are_spread_by_capacity() {
        let mut nodes = nodes();
        nodes[2].capacity_bits_per_second *= 2;
        let mut lans_by_node = [0; 3];
        for lan in 1..=4000 {
            lans_by_node[ranked(LanId(lan), &nodes)[0].key.0 as usize] += 1;
        }
        let near = |lans: i32, of: i32| (lans - of).abs() < of / 8;
        assert!(near(lans_by_node[0], 1000) && near(lans_by_node[1], 1000) && near(lans_by_node[2], 2000), "{lans_by_node:?}");
    }

    #[test]
    fn a_node_that_is_busy_gets_fewer_lans() {
        let mut nodes = nodes();
        nodes[0].load.bits_per_second = nodes[0].capacity_bits_per_second;
        let first = (1..=1000).filter(|&lan| ranked(LanId(lan), &nodes)[0].key == NodeKey(0)).count();
        assert!(first > 0 && first < 60, "{first}");
    }

    #[test]
    fn only_the_lans_of_a_node_that_dies_move() {
        let mut view = View { nodes: nodes(), placements: Vec::new() };
        view.placements = (1..=300).map(|lan| placed(lan, Some(ranked(LanId(lan), &view.nodes)[0].key))).collect();
        assert_eq!(moves(&view), []);
        view.nodes[1].heard_ago = Some(DEAD_AFTER);
        let moved = moves(&view);
        assert!(moved.iter().all(|moved| moved.from == Some(NodeKey(1)) && moved.to != NodeKey(1)));
        assert_eq!(moved.len(), view.placements.iter().filter(|placed| placed.node == Some(NodeKey(1))).count());
        let next = moved.iter().map(|moved| ranked(moved.lan, &nodes())[1].key).collect::<Vec<_>>();
        assert_eq!(moved.iter().map(|moved| moved.to).collect::<Vec<_>>(), next, "to the next in the order, which relays know already");
    }

    #[test]
    fn a_node_that_drains_serves_nothing_unless_it_is_the_last() {
        let mut view = View { nodes: nodes(), placements: vec![placed(7, Some(NodeKey(0)))] };
        view.nodes[0].drain = Some(Duration::ZERO);
        assert!(moves(&view).iter().all(|moved| moved.to != NodeKey(0)) && moves(&view).len() == 1);
        view.nodes[1].heard_ago = None;
        view.nodes[2].heard_ago = None;
        assert_eq!(moves(&view), []);
    }

    #[test]
    fn a_lan_goes_where_the_operator_wants_it_and_elsewhere_while_that_is_dead() {
        let mut view = View { nodes: nodes(), placements: vec![Placed { wanted: Some(NodeKey(2)), ..placed(7, Some(NodeKey(1))) }] };
        assert_eq!(moves(&view), [Move { lan: LanId(7), from: Some(NodeKey(1)), to: NodeKey(2) }]);
        view.nodes[2].heard_ago = None;
        assert_eq!(moves(&view), []);
    }

    #[test]
    fn a_view_without_a_live_node_moves_nothing() {
        assert_eq!(moves(&View { nodes: Vec::new(), placements: vec![placed(7, None)] }), []);
    }

    fn nodes() -> Vec<Node> {
        let node = |key: i64| Node {
            key: NodeKey(key),
            name: format!("node-{key}").parse().expect("a name"),
            public: format!("192.0.2.{key}:10000").parse().expect("a target"),
            heard_ago: Some(Duration::ZERO),
            capacity_bits_per_second: 1_000_000_000,
            load: Load::default(),
            drain: None,
        };
        (0..3).map(node).collect()
    }

    fn placed(lan: u16, node: Option<NodeKey>) -> Placed {
        let name = format!("lan-{lan}").parse().expect("a name");
        Placed { lan: LanId(lan), lan_name: name, data_port: 10_000 + lan, node, previous: None, wanted: None }
    }
}
