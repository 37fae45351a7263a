//! Which addresses are globally reachable: the IANA special-purpose address registries (RFC 6890, RFC 8190), with what is not unicast
//! (RFC 5771, RFC 4291) and, for IPv6, what is not allotted yet.

use std::net::IpAddr;

use ipnet::{Ipv4Net, Ipv6Net};

/// A block of addresses with a purpose of its own.
struct Block {
    network: &'static str,
    is_global: bool,
    purpose: &'static str,
}

/// What `ip` is for, if it is not globally reachable unicast. The most specific block decides.
pub(super) fn purpose_unless_global(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => {
            let contains = |block: &&Block| v4(block).contains(&ip);
            let block = V4.iter().filter(contains).max_by_key(|block| v4(block).prefix_len());
            block.filter(|block| !block.is_global).map(|block| block.purpose)
        }
        IpAddr::V6(ip) => {
            let contains = |block: &&Block| v6(block).contains(&ip);
            let block = V6.iter().filter(contains).max_by_key(|block| v6(block).prefix_len());
            block.filter(|block| !block.is_global).map(|block| block.purpose)
        }
    }
}

fn v4(block: &Block) -> Ipv4Net {
    block.network.parse().expect("the table's own networks, each parsed by a test")
}

fn v6(block: &Block) -> Ipv6Net {
    block.network.parse().expect("the table's own networks, each parsed by a test")
}

const fn special(network: &'static str, purpose: &'static str) -> Block {
    Block { network, is_global: false, purpose }
}

const fn global(network: &'static str, purpose: &'static str) -> Block {
    Block { network, is_global: true, purpose }
}

const V4: [Block; 24] = [
    special("0.0.0.0/8", "this network (RFC 791)"),
    special("10.0.0.0/8", "a private address (RFC 1918)"),
    special("100.64.0.0/10", "an address inside a provider's network (RFC 6598)"),
    special("127.0.0.0/8", "a loopback address (RFC 1122)"),
    special("169.254.0.0/16", "a link-local address (RFC 3927)"),
    special("172.16.0.0/12", "a private address (RFC 1918)"),
    special("192.0.0.0/24", "a protocol's own address (RFC 6890)"),
    global("192.0.0.9/32", "port control anycast (RFC 7723)"),
    global("192.0.0.10/32", "TURN anycast (RFC 8155)"),
    special("192.0.2.0/24", "a documentation address (RFC 5737)"),
    global("192.31.196.0/24", "AS112 (RFC 7535)"),
    global("192.52.193.0/24", "AMT (RFC 7450)"),
    special("192.88.99.0/24", "a retired 6to4 relay (RFC 7526)"),
    special("192.168.0.0/16", "a private address (RFC 1918)"),
    global("192.175.48.0/24", "AS112 (RFC 7534)"),
    special("198.18.0.0/15", "a benchmarking address (RFC 2544)"),
    special("198.51.100.0/24", "a documentation address (RFC 5737)"),
    special("203.0.113.0/24", "a documentation address (RFC 5737)"),
    special("224.0.0.0/4", "a multicast address (RFC 5771)"),
    special("240.0.0.0/4", "a reserved address (RFC 1112)"),
    special("255.255.255.255/32", "the broadcast address (RFC 919)"),
    special("192.0.0.0/29", "inside an IPv4-over-IPv6 tunnel (RFC 7335)"),
    special("192.0.0.8/32", "the IPv4 dummy address (RFC 7600)"),
    special("192.0.0.170/31", "a NAT64 discovery address (RFC 8880)"),
];

const V6: [Block; 26] = [
    special("::/0", "not allotted to anyone (RFC 4291)"),
    global("2000::/3", "global unicast (RFC 4291)"),
    special("::/128", "the unspecified address (RFC 4291)"),
    special("::1/128", "the loopback address (RFC 4291)"),
    special("::ffff:0:0/96", "an IPv4 address in IPv6 form (RFC 4291)"),
    global("64:ff9b::/96", "NAT64, judged by the IPv4 address within (RFC 6052)"),
    special("64:ff9b:1::/48", "a network's own NAT64 (RFC 8215)"),
    special("100::/64", "the discard prefix (RFC 6666)"),
    special("100:0:0:1::/64", "a dummy prefix (RFC 9780)"),
    special("2001::/23", "a protocol's own address (RFC 2928)"),
    special("2001::/32", "a Teredo address (RFC 4380)"),
    global("2001:1::1/128", "port control anycast (RFC 7723)"),
    global("2001:1::2/128", "TURN anycast (RFC 8155)"),
    global("2001:1::3/128", "DNS-SD registration anycast (RFC 9665)"),
    special("2001:2::/48", "a benchmarking address (RFC 5180)"),
    global("2001:3::/32", "AMT (RFC 7450)"),
    global("2001:4:112::/48", "AS112 (RFC 7535)"),
    special("2001:10::/28", "a retired ORCHID (RFC 4843)"),
    global("2001:20::/28", "an ORCHID (RFC 7343)"),
    global("2001:30::/28", "a drone's remote id (RFC 9374)"),
    special("2001:db8::/32", "a documentation address (RFC 3849)"),
    special("3fff::/20", "a documentation address (RFC 9637)"),
    special("5f00::/16", "a segment routing id (RFC 9602)"),
    special("fc00::/7", "a private address (RFC 4193)"),
    special("fe80::/10", "a link-local address (RFC 4291)"),
    special("ff00::/8", "a multicast address (RFC 4291)"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_a_network_without_host_bits() {
        assert!(V4.iter().all(|block| v4(block) == v4(block).trunc()));
        assert!(V6.iter().all(|block| v6(block) == v6(block).trunc()));
    }

    #[test]
    fn the_ends_of_each_special_block_are_denied_and_what_lies_beside_is_not() {
        for denied in [
            "0.0.0.0",
            "0.255.255.255",
            "10.0.0.0",
            "10.255.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.0",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.255.255",
            "198.18.0.0",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.10",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7",
            "100::1",
            "64:ff9b:1::1",
            "2001::1",
            "2001:2::1",
            "2001:10::1",
            "2001:db8::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fdff::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
        ] {
            assert!(purpose_unless_global(denied.parse().expect("an address")).is_some(), "{denied}");
        }
        for allowed in [
            "1.0.0.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.0.9",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2001:1::1",
            "2001:20::1",
            "2001:200::1",
            "2606:4700::1111",
            "2a00::1",
            "3ffe::1",
            "64:ff9b::101:101",
        ] {
            assert_eq!(purpose_unless_global(allowed.parse().expect("an address")), None, "{allowed}");
        }
    }
}
