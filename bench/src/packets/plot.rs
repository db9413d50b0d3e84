//! Plots as SVG.
//!
//! In: lines of points. Out: a file that a browser shows. What always holds: both scales are logarithmic, for axes go over four decades and ratios
//! from one to hundreds; each line has its name at its end.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 520.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 330.0;
const COLORS: [&str; 6] = ["#1b6ca8", "#c1440e", "#2e7d32", "#7b1fa2", "#8a6d00", "#455a64"];

/// A line and its points.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Value and ratio, in order.
    pub points: Vec<(f64, f64)>,
}

/// Where values and ratios lie on the paper.
struct Scale {
    first: f64,
    last: f64,
    top: f64,
}

impl Scale {
    fn of(lines: &[Line]) -> Self {
        let values = || lines.iter().flat_map(|line| &line.points);
        let first = values().map(|point| point.0).fold(f64::MAX, f64::min);
        let last = values().map(|point| point.0).fold(first * 1.01, f64::max);
        let top = values().map(|point| point.1).fold(2.0, f64::max) * 1.1;
        Self { first, last, top }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * (value / self.first).ln() / (self.last / self.first).ln()
    }

    /// From 0.9 upwards.
    fn y(&self, ratio: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * (ratio.max(0.9) / 0.9).ln() / (self.top / 0.9).ln()
    }
}

/// The plot.
pub fn svg(title: &str, unit: &str, lines: &[Line]) -> String {
    let scale = Scale::of(lines);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"22\" font-size=\"14\">{title}</text>\n\
         <text x=\"{LEFT}\" y=\"{}\">{unit}</text>\n",
        HEIGHT - 8.0
    );
    for ratio in
        [1.0, 1.05, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0].into_iter().filter(|ratio| *ratio <= scale.top)
    {
        grid(&mut text, &scale, ratio);
    }
    let mut values: Vec<f64> = lines.iter().flat_map(|line| &line.points).map(|point| point.0).collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    for value in values {
        let (x, y) = (scale.x(value), BOTTOM + 16.0);
        let _ = writeln!(text, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{value}</text>");
    }
    let mut labels: Vec<f64> = Vec::new();
    for (line, color) in lines.iter().zip(COLORS.iter().cycle()) {
        draw(&mut text, &scale, line, color, &mut labels);
    }
    text + "</svg>\n"
}

fn grid(text: &mut String, scale: &Scale, ratio: f64) {
    let y = scale.y(ratio);
    let _ = writeln!(
        text,
        "<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{ratio}</text>",
        LEFT - 6.0,
        y + 4.0
    );
}

/// A line, its points, and its name where no other name stands.
fn draw(text: &mut String, scale: &Scale, line: &Line, color: &str, labels: &mut Vec<f64>) {
    let Some(end) = line.points.last() else { return };
    let points: Vec<String> =
        line.points.iter().map(|(value, ratio)| format!("{:.1},{:.1}", scale.x(*value), scale.y(*ratio))).collect();
    let _ = writeln!(
        text,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
        points.join(" ")
    );
    for (value, ratio) in &line.points {
        let (x, y) = (scale.x(*value), scale.y(*ratio));
        let _ = writeln!(text, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>");
    }
    let mut y = scale.y(end.1) + 4.0;
    while labels.iter().any(|label| (label - y).abs() < 13.0) {
        y -= 13.0;
    }
    labels.push(y);
    let _ = writeln!(text, "<text x=\"{}\" y=\"{y:.1}\" fill=\"{color}\">{}</text>", RIGHT + 10.0, line.name);
}
