//! What the demo shows: a picture of the lines, drawn in a terminal or written as plain lines.

use std::{
    io,
    time::{Duration, Instant},
};

use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event, KeyEvent, KeyEventKind},
    layout::{Constraint, Layout},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Paragraph},
};
use tokio::sync::mpsc;

/// What is to be seen at one moment. Rates are in bit/s.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Picture {
    /// The lines.
    pub(crate) rows: Vec<Row>,
    /// The index of the best.
    pub(crate) best: usize,
    /// What the download gets now.
    pub(crate) goodput: f64,
    /// What it would get if every line were full.
    pub(crate) limit: f64,
    /// What it got over the best line alone, once measured.
    pub(crate) alone: Option<f64>,
    /// What it got over all lines, once measured.
    pub(crate) all: Option<f64>,
    /// What goes on.
    pub(crate) doing: String,
    /// What there is to try.
    pub(crate) hints: Vec<String>,
}

/// A line in the picture.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Row {
    /// The line's own rate to the user.
    pub(crate) down_limit: f64,
    /// The line's own rate from the user.
    pub(crate) up_limit: f64,
    /// There and back without waiting.
    pub(crate) round_trip: Duration,
    /// Carried now.
    pub(crate) down: f64,
    /// Carried now.
    pub(crate) up: f64,
    /// Of what all lines carry to the user now.
    pub(crate) share: f64,
    /// Whether it is silent.
    pub(crate) is_out: bool,
}

/// Where pictures go. A terminal is given back when it is dropped.
pub(crate) enum View {
    /// The whole terminal.
    Terminal(Box<DefaultTerminal>),
    /// A line of text now and then.
    Plain {
        /// When the last line was written, and what was going on then.
        last: Option<(Instant, String)>,
        /// When the first picture came.
        start: Instant,
    },
}

impl View {
    pub(crate) fn terminal() -> Self {
        Self::Terminal(Box::new(ratatui::init()))
    }

    pub(crate) fn plain() -> Self {
        Self::Plain { last: None, start: Instant::now() }
    }

    /// The keys pressed; none without a terminal.
    pub(crate) fn keys(&self) -> Option<mpsc::Receiver<KeyEvent>> {
        let Self::Terminal(_) = self else { return None };
        let (sender, receiver) = mpsc::channel(KEYS_AHEAD);
        std::thread::spawn(move || read_keys(&sender));
        Some(receiver)
    }

    pub(crate) fn show(&mut self, picture: &Picture) -> io::Result<()> {
        match self {
            Self::Terminal(terminal) => terminal.draw(|frame| draw(frame, picture)).map(|_| ()),
            Self::Plain { last, start } => {
                let is_new = last.as_ref().is_none_or(|(_, doing)| *doing != picture.doing);
                if is_new {
                    println!("{}", picture.doing);
                    if picture.all.is_some() {
                        picture.hints.iter().for_each(|hint| println!("  {hint}"));
                    }
                } else if last.as_ref().is_some_and(|(at, _)| at.elapsed() < PLAIN_EVERY) || picture.goodput == 0.0 {
                    return Ok(());
                } else {
                    println!("{}", plain(picture, start.elapsed()));
                }
                *last = Some((Instant::now(), picture.doing.clone()));
                Ok(())
            }
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Self::Terminal(_) = self {
            ratatui::restore();
        }
    }
}

fn read_keys(sender: &mpsc::Sender<KeyEvent>) {
    while !sender.is_closed() {
        match event::poll(Duration::from_millis(100)) {
            Ok(false) => {}
            Ok(true) => match event::read() {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => {
                    if sender.blocking_send(key).is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(_) => return,
            },
            Err(_) => return,
        }
    }
}

fn plain(picture: &Picture, time: Duration) -> String {
    let mut text = format!("{:>4} s  download {:>6.1} Mbit/s", time.as_secs(), picture.goodput / 1e6);
    for (index, row) in picture.rows.iter().enumerate() {
        let state = if row.is_out { " out".into() } else { format!("{:>5.1}", row.down / 1e6) };
        text += &format!("   line {} {state} ({:>2.0} %)", index + 1, row.share * 100.0);
    }
    text
}

fn draw(frame: &mut Frame<'_>, picture: &Picture) {
    let lines = u16::try_from(picture.rows.len()).unwrap_or(u16::MAX);
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(lines.saturating_add(3)),
        Constraint::Length(5),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .split(frame.area());
    frame.render_widget(Line::from(format!(" {}", picture.doing)).bold(), areas[0]);

    let bar_cells = usize::from(areas[1].width).saturating_sub(ROW_TEXT_CELLS).clamp(4, 60);
    let most = picture.rows.iter().map(|row| row.down_limit).fold(1.0, f64::max);
    let mut rows = vec![Line::from(format!("{:<9}{:>18}{:>8}{:>10}{:>7}", "", "down / up Mbit/s", "RTT ms", "now", "share")).dim()];
    rows.extend(picture.rows.iter().enumerate().map(|(index, row)| line_row(index, row, index == picture.best, most, bar_cells)));
    frame.render_widget(Paragraph::new(rows).block(Block::bordered().title(" the neighbours' lines ")), areas[1]);

    let most = picture.limit.max(1.0);
    let total = |name: &str, value: Option<f64>, colour| {
        let Some(value) = value else { return Line::from(format!("{name:<22}       –")).dim() };
        let ratio = match picture.alone {
            Some(alone) if alone > 0.0 && name != BEST_ALONE => format!("  {:.2} × the best line alone", value / alone),
            _ => String::new(),
        };
        let text = format!("{name:<22}{:>8.1} Mbit/s {:>4.0} % of the sum ", value / 1e6, value / picture.limit * 100.0);
        Line::from(vec![Span::raw(text), bar(value / most, bar_cells / 2, colour), Span::raw(ratio).bold()])
    };
    let totals = vec![
        total("download now", Some(picture.goodput), Color::Green),
        total(BEST_ALONE, picture.alone, Color::Yellow),
        total("measured over all", picture.all, Color::Green),
    ];
    frame.render_widget(Paragraph::new(totals).block(Block::bordered().title(" one download ")), areas[2]);
    let hints: Vec<Line<'_>> = picture.hints.iter().map(|hint| Line::from(format!("  {hint}"))).collect();
    frame.render_widget(Paragraph::new(hints), areas[3]);
    let count = picture.rows.len().min(9);
    let keys = format!(" 1-{count} cut a line or bring it back   d start or stop a download   q end");
    frame.render_widget(Line::from(keys).style(Style::new().add_modifier(Modifier::REVERSED)), areas[4]);
}

fn line_row(index: usize, row: &Row, is_best: bool, most: f64, bar_cells: usize) -> Line<'static> {
    let name = format!("line {}{}", index + 1, if is_best { " *" } else { "" });
    let rates = format!("{:.1} / {:.1}", row.down_limit / 1e6, row.up_limit / 1e6);
    let text = format!("{name:<9}{rates:>18}{:>8}", row.round_trip.as_millis());
    if row.is_out {
        return Line::from(vec![Span::raw(text).dim(), Span::raw("      silent").fg(Color::Red).bold()]);
    }
    let now = format!("{:>10.1}{:>5.0} % ", row.down / 1e6, row.share * 100.0);
    let left = ((row.down_limit - row.down) / most).max(0.0);
    let full = bar(row.down / most, bar_cells, Color::Green);
    Line::from(vec![Span::raw(text), Span::raw(now), full, Span::raw("·".repeat((left * bar_cells as f64) as usize)).dim()])
}

fn bar(part: f64, cells: usize, colour: Color) -> Span<'static> {
    Span::raw("█".repeat((part.clamp(0.0, 1.0) * cells as f64).round() as usize)).fg(colour)
}

const BEST_ALONE: &str = "the best line alone";
/// What stands before a row's bar, and the frame.
const ROW_TEXT_CELLS: usize = 54;
const PLAIN_EVERY: Duration = Duration::from_secs(1);
/// More keys than that are not waited for.
const KEYS_AHEAD: usize = 16;

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    #[test]
    fn the_picture_has_every_line_its_share_the_sum_and_the_ratio() {
        let text = drawn(&picture(), 110, 20);
        for part in
            ["line 1 *", "24.0 / 6.0", "75 %", "silent", "download now", "28.0 Mbit/s", "2.00 × the best line alone", "127.0.0.1:1080"]
        {
            assert!(text.contains(part), "`{part}` in\n{text}");
        }
    }

    #[test]
    fn any_size_of_terminal_will_do() {
        for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 100)] {
            drawn(&picture(), width, height);
        }
    }

    #[test]
    fn a_plain_line_has_the_same_figures() {
        let text = plain(&picture(), Duration::from_secs(3));
        assert_eq!(text, "   3 s  download   28.0 Mbit/s   line 1  24.0 (75 %)   line 2  out ( 0 %)");
    }

    fn drawn(picture: &Picture, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, picture)).unwrap();
        terminal.backend().to_string()
    }

    fn picture() -> Picture {
        let row = Row {
            down_limit: 24e6,
            up_limit: 6e6,
            round_trip: Duration::from_millis(16),
            down: 24e6,
            up: 0.1e6,
            share: 0.75,
            is_out: false,
        };
        let silent = Row { is_out: true, down: 0.0, share: 0.0, ..row.clone() };
        Picture {
            rows: vec![row, silent],
            best: 0,
            goodput: 28e6,
            limit: 46e6,
            alone: Some(14e6),
            all: None,
            doing: "Ready".into(),
            hints: vec!["Your browser's proxy: 127.0.0.1:1080".into()],
        }
    }
}
