//! Figures and their bounds, as a table.

use std::{fmt, time::Duration};

/// The lines of a table.
#[derive(Default)]
pub struct Report {
    notes: Vec<String>,
    lines: Vec<Line>,
}

struct Line {
    what: String,
    unit: &'static str,
    values: Vec<f64>,
    bound: f64,
    at_most: bool,
}

impl Report {
    /// Something to know when reading the figures.
    pub fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        println!("  {text}");
        self.notes.push(text);
    }

    /// A figure, taken several times, of which the least must not exceed the bound.
    pub fn at_most(&mut self, what: impl Into<String>, unit: &'static str, values: &[f64], bound: f64) {
        self.lines.push(Line { what: what.into(), unit, values: values.to_vec(), bound, at_most: true });
    }

    /// A figure, taken several times, of which the greatest must reach the bound.
    pub fn at_least(&mut self, what: impl Into<String>, unit: &'static str, values: &[f64], bound: f64) {
        self.lines.push(Line { what: what.into(), unit, values: values.to_vec(), bound, at_most: false });
    }
}

impl Line {
    fn best(&self) -> f64 {
        let values = self.values.iter().copied();
        if self.at_most { values.fold(f64::INFINITY, f64::min) } else { values.fold(f64::NEG_INFINITY, f64::max) }
    }

    fn holds(&self) -> bool {
        if self.at_most { self.best() <= self.bound } else { self.best() >= self.bound }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, [what, measured, bound, ok]: [&str; 4]| {
            writeln!(f, "{what:<52} | {measured:>12} | {bound:>14} | {ok}")
        };
        writeln!(f)?;
        row(f, ["what", "measured", "bound", "ok"])?;
        writeln!(f, "{:-<53}+{:->14}+{:->16}+-------", "", "", "")?;
        for line in &self.lines {
            let sign = if line.at_most { "<=" } else { ">=" };
            let measured = format!("{:.3} {}", line.best(), line.unit);
            let bound = format!("{sign} {:.3} {}", line.bound, line.unit);
            row(f, [&line.what, &measured, &bound, if line.holds() { "ok" } else { "MISSED" }])?;
        }
        for line in self.lines.iter().filter(|line| line.values.len() > 1) {
            let all: Vec<_> = line.values.iter().map(|value| format!("{value:.3}")).collect();
            writeln!(f, "  {}: {}", line.what, all.join(" "))?;
        }
        Ok(())
    }
}

/// A duration in milliseconds.
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Bytes in megabytes.
#[expect(clippy::cast_precision_loss, reason = "megabytes")]
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The value below which this part of all lies.
pub fn quantile(values: &[Duration], part: f64) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a list")]
    let place = (sorted.len() as f64 * part) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// The middle value.
pub fn median(values: &[Duration]) -> Duration {
    quantile(values, 0.5)
}
