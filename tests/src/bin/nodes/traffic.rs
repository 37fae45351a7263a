//! Flows over all LANs of a cluster that go on until they are told to stop, and what of them has arrived.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::ValueEnum;
use neighbourhood::{
    cluster::Cluster,
    load::{
        Client,
        associate::Association,
        endless::{DOWNLOAD, UPLOAD, move_until_broken},
    },
};
use shared::{target::Target, units::Rate};
use tokio::{net::UdpSocket, task::JoinSet, time::MissedTickBehavior};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub(crate) enum Way {
    Down,
    Up,
    /// One flow down, the next up
    Both,
}

/// So many flows of a kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traffic {
    pub(crate) transport: Transport,
    pub(crate) way: Way,
    pub(crate) flows: usize,
}

/// Traffic that runs.
pub(crate) struct Load {
    arrived: Arc<Arrived>,
    tasks: JoinSet<()>,
    /// What the content server had before.
    received_before: u64,
}

/// What has arrived, but for what the content server's TCP has got.
#[derive(Default)]
struct Arrived {
    bytes: AtomicU64,
    is_over: AtomicBool,
}

impl Traffic {
    /// In a table.
    pub(crate) fn name(self) -> String {
        let transport = if self.transport == Transport::Tcp { "TCP" } else { "UDP" };
        format!("{} {transport}", self.flows())
    }

    /// How many LANs they are in.
    pub(crate) fn lans(self) -> usize {
        self.flows.clamp(1, LANS)
    }

    /// Both ways takes two.
    fn flows(self) -> usize {
        self.flows.max(if self.way == Way::Both { 2 } else { 1 })
    }

    fn is_down(self, number: usize) -> bool {
        self.way == Way::Down || self.way == Way::Both && number.is_multiple_of(2)
    }

    /// Starts it; datagrams come at little less than `rate` in each LAN, each way.
    pub(crate) async fn start(self, cluster: &Cluster, rate: Rate) -> anyhow::Result<Load> {
        let received_before = cluster.content().received_bytes();
        let mut load = Load { arrived: Arc::default(), tasks: JoinSet::new(), received_before };
        match self.transport {
            Transport::Tcp => self.start_streams(cluster, &mut load),
            Transport::Udp => self.start_datagrams(cluster, rate, &mut load).await?,
        }
        Ok(load)
    }

    fn start_streams(self, cluster: &Cluster, load: &mut Load) {
        for number in 0..self.flows() {
            let client = cluster.client_on(number % self.lans());
            load.tasks.spawn(stream(client, self.is_down(number), load.arrived.clone()));
        }
    }

    async fn start_datagrams(self, cluster: &Cluster, rate: Rate, load: &mut Load) -> anyhow::Result<()> {
        let server = Arc::new(UdpSocket::bind((cluster.content().address().ip(), 0)).await?);
        // As much as the system gives: what is lost here was counted and did not arrive.
        let _ = socket2::SockRef::from(&*server).set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
        let target: Target = server.local_addr()?.into();
        let ports: Arc<Mutex<Vec<Option<SocketAddr>>>> = Arc::new(Mutex::new(vec![None; self.flows()]));
        load.tasks.spawn(receive(server.clone(), ports.clone(), load.arrived.clone()));
        let mut associations_by_lan: Vec<Vec<(usize, Arc<Association>)>> = vec![Vec::new(); self.lans()];
        for number in 0..self.flows() {
            let lan = number % self.lans();
            let association = Arc::new(Association::begin(cluster.proxies()[lan].address()).await?);
            associations_by_lan[lan].push((number, association.clone()));
            let arrived = load.arrived.clone();
            load.tasks.spawn(async move {
                while let Ok((_, datagram)) = association.receive().await {
                    arrived.add(datagram.len());
                }
            });
        }
        for associations in associations_by_lan {
            let (arrived, target) = (load.arrived.clone(), target.clone());
            let (down, up): (Vec<_>, Vec<_>) = associations.iter().cloned().partition(|(number, _)| self.is_down(*number));
            // All of them say where they are, as some are moved to another node.
            let (told, telling) = (associations, target.clone());
            load.tasks.spawn(say_hello(arrived.clone(), told, telling));
            let (server, ports) = (server.clone(), ports.clone());
            let down: Vec<usize> = down.into_iter().map(|(number, _)| number).collect();
            load.tasks.spawn(paced(arrived.clone(), rate, down, move |number| {
                let port = ports.lock().expect("nothing panics under the lock")[number];
                let server = server.clone();
                async move {
                    if let Some(port) = port {
                        let _ = server.send_to(&[7; DATAGRAM_BYTES], port).await;
                    }
                }
            }));
            load.tasks.spawn(paced(arrived, rate, up, move |(number, association)| {
                let target = target.clone();
                async move { drop(association.send(&target, &datagram(number)).await) }
            }));
        }
        Ok(())
    }
}

impl Load {
    /// The bytes that have arrived at applications and content servers.
    pub(crate) fn arrived(&self, cluster: &Cluster) -> u64 {
        self.arrived.bytes.load(Ordering::Relaxed) + cluster.content().received_bytes() - self.received_before
    }

    /// Ends what would go on; what is under way may still arrive.
    pub(crate) async fn stop(&self) -> anyhow::Result<()> {
        self.arrived.is_over.store(true, Ordering::Relaxed);
        tokio::time::sleep(STOPPED_WITHIN).await;
        Ok(())
    }
}

impl Arrived {
    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// One flow after another, each until it is broken.
async fn stream(client: Client, is_down: bool, arrived: Arc<Arrived>) {
    while !arrived.is_over() {
        let asked = tokio::time::timeout(ASKED_WITHIN, client.ask(if is_down { DOWNLOAD } else { UPLOAD })).await;
        if let Ok(Ok(socket)) = asked {
            let over = async {
                while !arrived.is_over() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            tokio::select! {
                () = over => {}
                _ = move_until_broken(socket, is_down, &arrived.bytes) => {}
            }
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Counts datagrams at their content server, and notes from where each flow's come.
async fn receive(server: Arc<UdpSocket>, ports: Arc<Mutex<Vec<Option<SocketAddr>>>>, arrived: Arc<Arrived>) {
    let mut buffer = [0; 2048];
    while let Ok((len, from)) = server.recv_from(&mut buffer).await {
        arrived.add(len);
        if let [a, b, c, d, ..] = buffer
            && let Some(port) = ports.lock().expect("nothing panics under the lock").get_mut(u32::from_be_bytes([a, b, c, d]) as usize)
        {
            *port = Some(from);
        }
    }
}

async fn say_hello(arrived: Arc<Arrived>, associations: Vec<(usize, Arc<Association>)>, target: Target) {
    while !arrived.is_over() {
        for (number, association) in &associations {
            let _ = association.send(&target, &(*number as u32).to_be_bytes()).await;
        }
        tokio::time::sleep(HELLO_EVERY).await;
    }
}

/// Sends datagrams over all of `flows` in turn, at little less than `rate`, so that none has to wait for long.
async fn paced<T: Clone, F: Future<Output = ()>>(arrived: Arc<Arrived>, rate: Rate, flows: Vec<T>, send: impl Fn(T) -> F) {
    if flows.is_empty() {
        return;
    }
    let mut ticks = tokio::time::interval(Duration::from_millis(2));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let bytes_per_second = rate.bits_per_second as f64 / 8.0 * PART_OF_RATE;
    let (mut budget, mut last, mut next) = (0.0_f64, Instant::now(), 0);
    while !arrived.is_over() {
        ticks.tick().await;
        let now = Instant::now();
        budget = (budget + (now - last).as_secs_f64() * bytes_per_second).min(BURST_BYTES);
        last = now;
        while budget >= DATAGRAM_BYTES as f64 {
            send(flows[next % flows.len()].clone()).await;
            budget -= DATAGRAM_BYTES as f64;
            next += 1;
        }
    }
}

fn datagram(number: usize) -> [u8; DATAGRAM_BYTES] {
    let mut datagram = [7; DATAGRAM_BYTES];
    datagram[..4].copy_from_slice(&(number as u32).to_be_bytes());
    datagram
}

const LANS: usize = 3;
const DATAGRAM_BYTES: usize = 1000;
const PART_OF_RATE: f64 = 0.9;
/// What a pause of the sender's makes up for.
const BURST_BYTES: f64 = 20_000.0;
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// A dead node's flow comes back this much later at most, as far as it is the application's to do.
const HELLO_EVERY: Duration = Duration::from_millis(300);
const AGAIN_AFTER: Duration = Duration::from_millis(300);
const ASKED_WITHIN: Duration = Duration::from_secs(2);

/// Longer than any of the pauses above.
const STOPPED_WITHIN: Duration = Duration::from_secs(1);
