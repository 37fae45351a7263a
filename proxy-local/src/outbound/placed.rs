//! The choice among the LANs that this PC is a member of.
//!
//! A rule that fits a flow's destination decides; else the LAN that is the least loaded, of those that have a path. Open flows stay where
//! they are.

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, RwLock},
    task::Poll,
};

use bytes::Bytes;
use shared::{
    community::member::Name,
    target::{Refusal, RefusalKind, Target},
};

use super::{Association, Outbound, session::SessionOutbound, session_udp::SessionAssociation};
use crate::{bypass::Exception, paths::Paths};

/// Which LAN takes the flows to some destinations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// The destinations; `None` is all.
    pub to: Option<Exception>,
    /// Their port; `None` is all.
    pub port: Option<u16>,
    /// The LAN's name.
    pub lan: Name,
}

/// The sessions of all LANs, of which each flow takes one.
pub struct Placed {
    lans: Vec<PlacedLan>,
    rules: RwLock<Arc<Vec<Rule>>>,
}

/// A LAN's session.
pub struct PlacedLan {
    /// The LAN's name.
    pub name: Name,
    /// Its paths, which say how loaded it is.
    pub paths: Paths,
    /// The way through its session.
    pub session: SessionOutbound,
}

impl Placed {
    /// The choice among `lans`, at least one, by `rules`: the first that fits.
    pub fn new(lans: Vec<PlacedLan>, rules: Vec<Rule>) -> Self {
        Self { lans, rules: RwLock::new(Arc::new(rules)) }
    }

    fn lan_for(&self, target: &Target) -> &PlacedLan {
        let rules = Arc::clone(&self.rules.read().unwrap_or_else(|poisoned| poisoned.into_inner()));
        let named = rules.iter().find(|rule| rule.fits(target)).and_then(|rule| self.lans.iter().find(|lan| lan.name == rule.lan));
        named.unwrap_or_else(|| &self.lans[least_loaded(self.lans.iter().map(|lan| lan.paths.load()))])
    }
}

impl Rule {
    fn fits(&self, target: &Target) -> bool {
        self.port.is_none_or(|port| port == target.port) && self.to.as_ref().is_none_or(|to| to.has(&target.host))
    }
}

/// The place of the least load; the first if none has any path.
fn least_loaded(loads: impl Iterator<Item = Option<f64>>) -> usize {
    let known = loads.enumerate().filter_map(|(place, load)| Some((place, load?)));
    known.min_by(|(_, a), (_, b)| a.total_cmp(b)).map_or(0, |(place, _)| place)
}

impl Outbound for Placed {
    type Stream = <SessionOutbound as Outbound>::Stream;
    type Association = PlacedAssociation;

    async fn open(&self, target: Target, application: SocketAddr) -> Result<Self::Stream, Refusal> {
        self.lan_for(&target).session.open(target, application).await
    }

    fn associate(&self, application: SocketAddr) -> Result<PlacedAssociation, Refusal> {
        let mut refusal = Refusal::new(RefusalKind::NoPath, "no LAN takes datagrams");
        let (mut ways, mut loads) = (Vec::new(), Vec::new());
        for lan in &self.lans {
            match lan.session.associate(application) {
                Ok(association) => {
                    ways.push((lan.name.clone(), association));
                    loads.push(lan.paths.load());
                }
                Err(refused) => refusal = refused,
            }
        }
        if ways.is_empty() {
            return Err(refusal);
        }
        let rules = Arc::clone(&self.rules.read().unwrap_or_else(|poisoned| poisoned.into_inner()));
        Ok(PlacedAssociation { ways, rules, usual: least_loaded(loads.into_iter()) })
    }
}

/// The datagrams of one application: each by the first rule that fits, else through the LAN that was the least loaded at first.
#[derive(Debug)]
pub struct PlacedAssociation {
    ways: Vec<(Name, SessionAssociation)>,
    rules: Arc<Vec<Rule>>,
    usual: usize,
}

impl Association for PlacedAssociation {
    async fn send(&mut self, target: Target, payload: Bytes) {
        let rule = self.rules.iter().find(|rule| rule.fits(&target));
        let place = rule.and_then(|rule| self.ways.iter().position(|(name, _)| *name == rule.lan)).unwrap_or(self.usual);
        self.ways[place].1.send(target, payload).await;
    }

    async fn receive(&mut self) -> Result<(SocketAddr, Bytes), Refusal> {
        type Receiving<'a> = Pin<Box<dyn Future<Output = Result<(SocketAddr, Bytes), Refusal>> + Send + 'a>>;
        let mut receiving: Vec<Receiving<'_>> = self.ways.iter_mut().map(|(_, way)| Box::pin(way.receive()) as Receiving<'_>).collect();
        std::future::poll_fn(|context| {
            let ready = receiving.iter_mut().find_map(|way| match way.as_mut().poll(context) {
                Poll::Ready(received) => Some(received),
                Poll::Pending => None,
            });
            ready.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_fits_its_hosts_and_port() {
        let rule = |to: Option<&str>, port| Rule { to: to.map(|to| to.parse().expect("hosts")), port, lan: "elm".parse().expect("a name") };
        let target = |text: &str| text.parse().expect("a target");
        assert!(rule(Some("example.org"), None).fits(&target("www.example.org:80")));
        assert!(!rule(Some("example.org"), Some(443)).fits(&target("www.example.org:80")));
        assert!(rule(Some("192.0.2.0/24"), Some(80)).fits(&target("192.0.2.9:80")));
        assert!(rule(None, Some(80)).fits(&target("example.net:80")) && !rule(None, Some(80)).fits(&target("example.net:81")));
    }

    #[test]
    fn the_least_loaded_lan_with_a_path_is_taken() {
        assert_eq!(least_loaded([None, Some(2.0), Some(1.0)].into_iter()), 2);
        assert_eq!(least_loaded([None, None].into_iter()), 0);
    }
}
