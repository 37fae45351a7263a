//! Draws what `bench --json` has measured: a panel a figure, a group of bars a scene, a bar a system.

use std::{collections::BTreeMap, fs, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use serde::Deserialize;
use shared::service::Failure;

/// Draw the figures of `bench --json`
#[derive(Parser, Debug)]
#[command(name = "plot")]
struct Arguments {
    /// What `bench --json` has printed
    #[arg(value_name = "FIGURES")]
    figures: PathBuf,
    /// The SVG file to write
    #[arg(value_name = "PICTURE")]
    picture: PathBuf,
}

/// A line of `bench --json`, as far as it is drawn.
#[derive(Deserialize, Debug)]
struct Line {
    scene: String,
    system: String,
    figure: String,
    median: f64,
}

/// What a panel shows.
#[derive(Debug)]
struct Panel {
    title: &'static str,
    /// The value of each system in each scene.
    bars: BTreeMap<(usize, usize), f64>,
}

/// What is drawn, in this order.
const PANELS: [(&str, &str); 4] = [
    ("down", "one download, of the lines' limit"),
    ("up", "one upload, of the lines' limit"),
    ("idle p50", "16 KB request, ms"),
    ("load p50", "16 KB request beside a download, ms"),
];

const PANEL_SIZE: (u32, u32) = (460, 260);
const LEGEND_HEIGHT: u32 = 36;
/// The part of a group's width that its bars take.
const GROUP_WIDTH: f64 = 0.8;
/// Room above the highest bar, for its value.
const HEADROOM: f64 = 1.15;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    shared::service::conclude(run(&arguments))
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let text =
        fs::read_to_string(&arguments.figures).map_err(|error| Failure::usage(format!("{}: {error}", arguments.figures.display())))?;
    let picture = draw(&lines(&text)?)?;
    fs::write(&arguments.picture, picture).with_context(|| format!("cannot write {}", arguments.picture.display()))
}

fn lines(text: &str) -> anyhow::Result<Vec<Line>> {
    let of_text = |(place, line): (usize, &str)| {
        serde_json::from_str(line)
            .map_err(|error| Failure::usage(format!("line {}: {error}; this wants what `bench --json` prints", place + 1)).into())
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(of_text).collect()
}

/// The picture as SVG.
fn draw(lines: &[Line]) -> anyhow::Result<String> {
    let scenes = distinct(lines, |line| &line.scene);
    let systems = distinct(lines, |line| &line.system);
    let place = |of: &[&str], name: &str| of.iter().position(|known| *known == name);
    let panels: Vec<Panel> = PANELS
        .iter()
        .map(|&(figure, title)| {
            let of_figure = lines.iter().filter(|line| line.figure == figure);
            let bars = of_figure.filter_map(|line| Some(((place(&scenes, &line.scene)?, place(&systems, &line.system)?), line.median)));
            Panel { title, bars: bars.collect() }
        })
        .filter(|panel| !panel.bars.is_empty())
        .collect();
    if panels.is_empty() {
        return Err(Failure::usage("there is nothing to draw: measure `--op down,up,idle,load`").into());
    }
    let rows = panels.len().div_ceil(2);
    let size = (2 * PANEL_SIZE.0, rows as u32 * PANEL_SIZE.1 + LEGEND_HEIGHT);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (legend, charts) = root.split_vertically(LEGEND_HEIGHT);
        draw_legend(&legend, &systems)?;
        for (panel, area) in panels.iter().zip(charts.split_evenly((rows, 2))) {
            draw_panel(&area, panel, &scenes, systems.len())?;
        }
        root.present()?;
    }
    Ok(svg)
}

/// The names that occur, in the order in which they do.
fn distinct<'a>(lines: &'a [Line], name: impl Fn(&'a Line) -> &'a String) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for line in lines {
        let name = name(line).as_str();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn draw_legend(area: &DrawingArea<SVGBackend, Shift>, systems: &[&str]) -> anyhow::Result<()> {
    let width = 2 * PANEL_SIZE.0 as i32 / systems.len().max(1) as i32;
    for (place, system) in systems.iter().enumerate() {
        let x = 20 + place as i32 * width;
        area.draw(&Rectangle::new([(x, 12), (x + 14, 26)], colour(place).filled()))?;
        area.draw(&Text::new(*system, (x + 20, 12), ("sans-serif", 15)))?;
    }
    Ok(())
}

fn draw_panel(area: &DrawingArea<SVGBackend, Shift>, panel: &Panel, scenes: &[&str], systems: usize) -> anyhow::Result<()> {
    let top = panel.bars.values().copied().fold(0.0, f64::max) * HEADROOM;
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(24)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..scenes.len() as f64, 0.0..top)?;
    // A label in the middle of each group: the axis is marked at every half.
    let scene_at = |x: &f64| if x.fract() == 0.5 { scenes[*x as usize].to_owned() } else { String::new() };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(2 * scenes.len() + 1)
        .x_label_formatter(&scene_at)
        .draw()?;
    let width = GROUP_WIDTH / systems as f64;
    let value_style = ("sans-serif", 11).into_text_style(area).pos(Pos::new(HPos::Center, VPos::Bottom));
    for (&(scene, system), &value) in &panel.bars {
        let left = scene as f64 + (1.0 - GROUP_WIDTH) / 2.0 + system as f64 * width;
        let bar = Rectangle::new([(left, 0.0), (left + width, value)], colour(system).filled());
        let label = Text::new(shown(value), (left + width / 2.0, value), value_style.clone());
        chart.plotting_area().draw(&bar)?;
        chart.plotting_area().draw(&label)?;
    }
    Ok(())
}

/// Colours that people with any colour vision tell apart (Okabe and Ito, 2008).
fn colour(place: usize) -> RGBColor {
    const COLOURS: [RGBColor; 4] = [RGBColor(0, 114, 178), RGBColor(230, 159, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];
    COLOURS[place % COLOURS.len()]
}

fn shown(value: f64) -> String {
    let digits = if value < 10.0 { 2 } else { 0 };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEASURED: &str = r#"
{"scene":"equal","system":"Tributary","figure":"down","unit":"of the limit","median":0.99,"runs":[0.99]}
{"scene":"equal","system":"kernel MPTCP","figure":"down","unit":"of the limit","median":0.5,"runs":[0.5]}
{"scene":"dsl","system":"Tributary","figure":"idle p50","unit":"ms","median":36.2,"runs":[36.2]}
"#;

    #[test]
    fn each_value_scene_and_system_is_in_the_picture() {
        let svg = draw(&lines(MEASURED).unwrap()).unwrap();
        for text in ["0.99", "0.50", "36", "equal", "dsl", "Tributary", "kernel MPTCP", "one download", "16 KB request, ms"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
        assert!(!svg.contains("upload"), "a figure that was not measured");
    }

    #[test]
    fn what_bench_did_not_print_is_told_with_its_line() {
        let error = lines("\nTributary 0.99\n").unwrap_err().to_string();
        assert!(error.starts_with("line 2:"), "{error}");
        assert!(draw(&[]).is_err());
    }
}
