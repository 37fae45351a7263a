//! Figures of systems on hosts of their own, all in turn on the same lines.

use std::sync::Arc;

use anyhow::Context;

use super::{Effort, Figure, Ground, Operation, Reading, Trouble, figures};
use crate::{
    hosts::{
        street::{Street, line_address},
        systems::{Running, System},
    },
    load::{Client, CongestionControl, Span, Via},
    scene::{Scene, Way},
};

/// What is measured on hosts.
#[derive(Clone, Debug)]
pub struct HostsPlan {
    /// The lines.
    pub scene: Scene,
    /// The seed of the first run's lines.
    pub seed: u64,
    /// What plain TCP and MPTCP send with.
    pub congestion_control: CongestionControl,
    /// More arguments for `proxy-local run`.
    pub proxy_arguments: Vec<String>,
}

/// Measures operations on a system; one start of it serves all operations of a run, in order.
///
/// # Errors
/// If the hosts or the system do not come up, or a transfer breaks or arrives changed.
pub fn measure(plan: &HostsPlan, system: System, operations: &[Operation], effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let mut runs = Vec::new();
    for run in 0..effort.runs {
        let street = plan.build(1, run)?;
        let running = system.start(&street, plan.congestion_control, &plan.proxy_arguments)?;
        let ground = ground(&street, &running);
        let mut readings: Vec<Reading> = Vec::new();
        for &operation in operations {
            if system == System::Tcp && operation.ends_one_line() {
                continue;
            }
            let ground = ground.clone();
            let read = running.at_home(async move { operation.run(&ground, effort).await });
            readings.extend(read.with_context(|| format!("{} on {}: {operation:?}", system.name(), plan.scene.name))?);
        }
        runs.push(readings);
    }
    Ok(figures(&plan.scene.name, system.name(), &runs))
}

/// How two homes that download at once through Tributary share the lines: the lesser's part of the greater's goodput, and both of the limit.
///
/// # Errors
/// As [`measure`].
pub fn measure_two_users(plan: &HostsPlan, effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let mut runs = Vec::new();
    for run in 0..effort.runs {
        let street = plan.build(2, run)?;
        let running = System::Tributary.start(&street, plan.congestion_control, &plan.proxy_arguments)?;
        let mut readings = Vec::new();
        for way in [Way::Down, Way::Up] {
            let span = effort.span;
            let bulks = running.at_homes(|clients| transfer(if way == Way::Down { clients.down } else { clients.up }, way, span))?;
            let [one, other] = bulks[..] else { anyhow::bail!("two homes were asked for") };
            let [lesser, both] = match way {
                Way::Down => ["two users down", "two users' sum down"],
                Way::Up => ["two users up", "two users' sum up"],
            };
            readings.push(Reading { figure: lesser, unit: "lesser / greater", value: one.min(other) / one.max(other) });
            readings.push(Reading { figure: both, unit: "of the limit", value: (one + other) / plan.scene.limit(way) });
        }
        runs.push(readings);
    }
    Ok(figures(&plan.scene.name, System::Tributary.name(), &runs))
}

/// How a transfer through Tributary and one by plain TCP share the scene's first line, which should be its only one.
///
/// # Errors
/// As [`measure`].
pub fn measure_beside_tcp(plan: &HostsPlan, effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let mut runs = Vec::new();
    for run in 0..effort.runs {
        let street = plan.build(1, run)?;
        let running = System::Tributary.start(&street, plan.congestion_control, &plan.proxy_arguments)?;
        let clients = running.clients()[0].clone();
        let mut readings = Vec::new();
        for way in [Way::Down, Way::Up] {
            let ours = if way == Way::Down { clients.down.clone() } else { clients.up.clone() };
            let tcp = Client::new(Via::From(line_address(0), plan.congestion_control), ours.content.clone());
            let span = effort.span;
            let (ours, tcp) = running.at_home(async move { tokio::try_join!(transfer(ours, way, span), transfer(tcp, way, span)) })?;
            let figure = match way {
                Way::Down => "beside TCP down",
                Way::Up => "beside TCP up",
            };
            readings.push(Reading { figure, unit: "Tributary's part", value: ours / (ours + tcp) });
        }
        runs.push(readings);
    }
    Ok(figures(&format!("{}, {}", plan.scene.name, plan.congestion_control.name()), System::Tributary.name(), &runs))
}

async fn transfer(client: Client, way: Way, span: Span) -> anyhow::Result<f64> {
    let bulk = match way {
        Way::Down => client.download_for(span).await?,
        Way::Up => client.upload_for(span).await?,
    };
    Ok(bulk.goodput)
}

fn ground(street: &Street, running: &Running) -> Ground {
    let scene = street.scene().clone();
    let clients = running.clients()[0].clone();
    let lines: Vec<_> = (0..scene.lines.len()).map(|index| street.line(index)).collect();
    let afflict = {
        let scene = scene.clone();
        move |index: usize, trouble: Trouble| lines[index].change(|up, down| (*up, *down) = trouble.on(&scene.lines[index]))
    };
    Ground { down: clients.down, up: clients.up, quick: clients.quick, scene, afflict: Arc::new(afflict) }
}

impl HostsPlan {
    fn build(&self, homes: usize, run: usize) -> anyhow::Result<Street> {
        Street::build(self.scene.clone(), homes, self.seed.wrapping_add(run as u64))
    }
}

impl Operation {
    /// Whether it is about the loss of a line, which who has only one does not survive.
    fn ends_one_line(self) -> bool {
        matches!(self, Self::Kill | Self::Kills)
    }
}
