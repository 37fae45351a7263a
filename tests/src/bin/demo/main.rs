//! The demo: a neighbourhood of emulated lines in this process, a download over its best line alone, the same over all, and
//! then a proxy at `localhost:1080` to try with a browser.
//!
//! Lines die and come back at a key press. Nothing outside this machine is contacted but what the proxy is asked for.

mod meter;
mod view;

use std::{
    io::IsTerminal,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use neighbourhood::{
    load::{Bulk, Client, LoadError, Span, Via},
    neighbourhood::{Neighbourhood, Plan, Proxy},
    scene::{Scene, Way},
};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use tokio::{sync::mpsc, task::JoinHandle};

use meter::Meter;
use view::{Picture, Row, View};

/// A whole neighbourhood on this machine: four unequal lines, one download over all of them
#[derive(Parser, Debug)]
#[command(name = "demo")]
struct Arguments {
    /// Where the proxy listens
    #[arg(long, value_name = "IP:PORT", default_value_t = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1080))]
    listen: SocketAddr,
    /// The lines: the name of a scene, or a TOML file
    #[arg(long, value_name = "NAME|FILE", default_value = "street")]
    scene: String,
    /// Seconds that each of the two first downloads takes
    #[arg(long, value_name = "SECONDS", default_value_t = 8, value_parser = clap::value_parser!(u64).range(2..=3600))]
    seconds: u64,
    /// Plain lines of text even if this is a terminal
    #[arg(long)]
    plain: bool,
    /// End after the two downloads
    #[arg(long)]
    once: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("demo: no threads to run on: {error}");
            return ExitCode::from(EXIT_UNAVAILABLE);
        }
    };
    let result = runtime.block_on(run(arguments));
    runtime.shutdown_background();
    shared::service::conclude(result)
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let scene = Scene::load(&arguments.scene).map_err(|error| shared::service::Failure::usage(error.to_string()))?;
    let is_plain = arguments.plain || !std::io::stdout().is_terminal();
    eprintln!("Building a neighbourhood of {} lines…", scene.lines.len());
    let plan = Plan { listen: arguments.listen, ..Plan::new(scene) };
    let neighbourhood = Neighbourhood::start(plan).await?;
    let best = neighbourhood.scene().best_line(Way::Down);
    let alone = neighbourhood.add_proxy(neighbourhood.user(), &[best]).await?;
    alone.wait_for_paths(1).await?;
    let mut demo = Demo::new(neighbourhood, best, alone, Duration::from_secs(arguments.seconds));
    let mut view = if is_plain { View::plain() } else { View::terminal() };
    let result = demo.run(&mut view, arguments.once).await;
    drop(view);
    result?;
    if let Some(summary) = demo.summary() {
        println!("{summary}");
    }
    demo.stop().await
}

struct Demo {
    neighbourhood: Neighbourhood,
    best: usize,
    alone: Proxy,
    seconds: Duration,
    stage: Stage,
    /// Both downloads' client, for its count of bytes.
    client: Client,
    transfer: Option<JoinHandle<Result<Bulk, LoadError>>>,
    meter: Meter,
    alone_goodput: Option<f64>,
    all_goodput: Option<f64>,
    trouble: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    BestAlone,
    AllLines,
    Free,
}

impl Demo {
    fn new(neighbourhood: Neighbourhood, best: usize, alone: Proxy, seconds: Duration) -> Self {
        let client = neighbourhood.client();
        let meter = Meter::new(neighbourhood.lines().to_vec(), client.progress.clone());
        Self {
            neighbourhood,
            best,
            alone,
            seconds,
            stage: Stage::BestAlone,
            client,
            transfer: None,
            meter,
            alone_goodput: None,
            all_goodput: None,
            trouble: None,
        }
    }

    /// Goes through the stages until a key, a signal, or the end of the second one if that is all.
    async fn run(&mut self, view: &mut View, once: bool) -> anyhow::Result<()> {
        let mut keys = view.keys();
        let mut ticks = tokio::time::interval(TICK);
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        self.download(Via::Socks5(self.alone.address()), self.seconds);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    self.meter.sample();
                    view.show(&self.picture())?;
                }
                ended = ended(&mut self.transfer) => {
                    self.transfer = None;
                    self.handle_end(ended);
                    if once && self.stage == Stage::Free {
                        return Ok(());
                    }
                }
                Some(key) = next_key(&mut keys) => if !self.handle_key(key) { return Ok(()) },
                _ = tokio::signal::ctrl_c() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
            }
        }
    }

    /// Ends the neighbourhood, at once at a second Ctrl-C.
    async fn stop(self) -> anyhow::Result<()> {
        if let Some(transfer) = self.transfer {
            transfer.abort();
        }
        let stop = async {
            self.alone.stop().await?;
            self.neighbourhood.stop().await
        };
        tokio::select! {
            stopped = stop => stopped,
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    }

    fn handle_end(&mut self, ended: Result<Bulk, LoadError>) {
        let goodput = match ended {
            Ok(bulk) => Some(bulk.goodput),
            Err(error) => {
                self.trouble = Some(format!("The download broke: {error}"));
                None
            }
        };
        match self.stage {
            Stage::BestAlone => {
                self.alone_goodput = goodput;
                self.stage = Stage::AllLines;
                self.download(Via::Socks5(self.neighbourhood.proxy().address()), self.seconds);
            }
            Stage::AllLines => {
                self.all_goodput = goodput;
                self.stage = Stage::Free;
            }
            Stage::Free => {}
        }
    }

    /// Whether the demo goes on.
    fn handle_key(&mut self, key: KeyEvent) -> bool {
        match key.code {
            KeyCode::Char('q') => return false,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Char('d') if self.stage == Stage::Free => match self.transfer.take() {
                Some(transfer) => transfer.abort(),
                None => self.download(Via::Socks5(self.neighbourhood.proxy().address()), FREE_DOWNLOAD),
            },
            KeyCode::Char(digit) => {
                let index = digit.to_digit(10).and_then(|digit| (digit as usize).checked_sub(1));
                if let Some(line) = index.and_then(|index| self.neighbourhood.lines().get(index)) {
                    line.set_out(!line.conditions().0.is_out);
                }
            }
            _ => {}
        }
        true
    }

    fn download(&mut self, via: Via, total: Duration) {
        self.trouble = None;
        let client = Client { via, ..self.client.clone() };
        let span = Span { total, warm_up: WARM_UP.min(total / 2) };
        self.transfer = Some(tokio::spawn(async move { client.download_for(span).await }));
    }

    fn picture(&self) -> Picture {
        let rates = self.meter.rates();
        let sum: f64 = rates.lines.iter().map(|line| line.down).sum();
        let scene = self.neighbourhood.scene();
        let rows = self.neighbourhood.lines().iter().zip(&scene.lines).zip(&rates.lines).map(|((handle, line), now)| Row {
            down_limit: line.down.rate.bits_per_second as f64,
            up_limit: line.up.rate.bits_per_second as f64,
            round_trip: line.up.delay + line.down.delay,
            down: now.down,
            up: now.up,
            share: if sum > 0.0 { now.down / sum } else { 0.0 },
            is_out: handle.conditions().0.is_out,
        });
        Picture {
            rows: rows.collect(),
            best: self.best,
            goodput: rates.goodput,
            limit: scene.limit(Way::Down),
            alone: self.alone_goodput,
            all: self.all_goodput,
            doing: self.doing(),
            hints: self.hints(),
        }
    }

    fn doing(&self) -> String {
        if let Some(trouble) = &self.trouble {
            return trouble.clone();
        }
        match (self.stage, self.transfer.is_some()) {
            (Stage::BestAlone, _) => format!("1 of 2: a download over the best line alone, line {}", self.best + 1),
            (Stage::AllLines, _) => "2 of 2: the same download over all lines".into(),
            (Stage::Free, true) => "A download over all lines".into(),
            (Stage::Free, false) => "Ready".into(),
        }
    }

    fn hints(&self) -> Vec<String> {
        let proxy = self.neighbourhood.proxy().address();
        let content = self.neighbourhood.content().address();
        vec![
            format!("Your browser's proxy: {proxy} (SOCKS5 or HTTP)"),
            format!("curl -x socks5h://{proxy} http://{content}/bytes/50000000 -o /dev/null"),
        ]
    }

    fn summary(&self) -> Option<String> {
        let (alone, all) = (self.alone_goodput?, self.all_goodput?);
        let of_limit = all / self.neighbourhood.scene().limit(Way::Down);
        Some(format!(
            "The best line alone: {:.1} Mbit/s. All {} lines: {:.1} Mbit/s, {:.2} times as much, {:.0} % of their sum.",
            alone / 1e6,
            self.neighbourhood.lines().len(),
            all / 1e6,
            all / alone,
            of_limit * 100.0
        ))
    }
}

/// The end of the transfer under way; never, without one or when it was aborted.
async fn ended(transfer: &mut Option<JoinHandle<Result<Bulk, LoadError>>>) -> Result<Bulk, LoadError> {
    match transfer {
        Some(task) => match task.await {
            Ok(ended) => ended,
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn next_key(keys: &mut Option<mpsc::Receiver<KeyEvent>>) -> Option<KeyEvent> {
    match keys {
        Some(keys) => keys.recv().await,
        None => std::future::pending().await,
    }
}

/// Smooth for the eye, cheap for the machine.
const TICK: Duration = Duration::from_millis(250);
/// Start-up is not counted.
const WARM_UP: Duration = Duration::from_secs(2);
/// Until someone stops it.
const FREE_DOWNLOAD: Duration = Duration::from_secs(24 * 3600);
/// As in sysexits.h.
const EXIT_UNAVAILABLE: u8 = 69;
