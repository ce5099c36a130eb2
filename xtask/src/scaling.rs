//! `cargo xtask bench --scale`: what exits cost as guests and memory grow, and the plots of it.

use std::fmt::Write as _;

use anyhow::Result;
use runner::{
    bench,
    budget::Budget,
    machine::Vendor,
    scaling::{self, Axis, FIGURES, Scaling, Series},
    suite::Assets,
};

use crate::{
    progress::{Spinner, say},
    report::grouped,
};

/// Measures, and writes down, what these vendors' exits cost at every point of both axes.
pub fn run(assets: &Assets, vendors: &[Vendor]) -> Result<Scaling> {
    let mut all = Scaling::read().unwrap_or_default();
    for (vendor, axis) in vendors.iter().flat_map(|vendor| Axis::ALL.map(|axis| (*vendor, axis))) {
        let accel = bench::platform(vendor).spec().accel;
        let mut series = Series::default();
        let spinner = Spinner::start("measuring");
        for point in axis.points(vendor) {
            spinner.set_text(format!("measuring {vendor} on {accel} with {}", at(axis, *point)));
            series.push(*point, &scaling::measure(assets, vendor, axis, *point)?);
        }
        drop(spinner);
        say(format_args!("\n{vendor} on {accel}: host instructions by {}", title(axis)));
        say(rows(&series, &FIGURES.map(str::to_owned)).join("\n"));
        all.set(axis, vendor, series);
    }
    all.write()?;
    Ok(all)
}

const fn title(axis: Axis) -> &'static str {
    match axis {
        Axis::Guests => "guests in the host",
        Axis::Memory => "memory of the guest in MiB",
    }
}

fn at(axis: Axis, point: u32) -> String {
    match axis {
        Axis::Guests => format!("{point} guests"),
        Axis::Memory => format!("{point} MiB"),
    }
}

/// A line for each figure, after one for the points.
fn rows(series: &Series, titles: &[String]) -> Vec<String> {
    let line = |title: &str, values: &mut dyn Iterator<Item = String>| {
        format!("{title:<46}{}", values.map(|v| format!("{v:>9}")).collect::<String>())
    };
    let mut lines = vec![line("figure", &mut series.at.iter().map(ToString::to_string))];
    for (name, title) in FIGURES.iter().zip(titles) {
        let values = series.figures.get(*name).into_iter().flatten();
        lines.push(line(title, &mut values.map(ToString::to_string)));
    }
    lines
}

/// The table of an axis and a vendor, for the documents.
pub fn table(scaling: &Scaling, budget: &Budget, axis: Axis, vendor: Vendor) -> String {
    let Some(series) = scaling.series(axis, vendor) else { return "Not measured.\n".to_owned() };
    let mut text = format!("| {vendor}, {} |", title(axis));
    text.extend(series.at.iter().map(|point| format!(" {} |", grouped(u64::from(*point)))));
    text.push_str("\n| --- |");
    text.extend(series.at.iter().map(|_| " ---: |"));
    text.push('\n');
    for name in FIGURES {
        let title = budget.figure(name).map_or(name, |figure| &figure.title);
        let _ = write!(text, "| {title} |");
        text.extend(series.figures.get(name).into_iter().flatten().map(|value| format!(" {} |", grouped(*value))));
        text.push('\n');
    }
    text
}

/// Geometry of a plot, in pixels.
mod size {
    pub const LEFT: f64 = 60.0;
    pub const STEP: f64 = 80.0;
    pub const TOP: f64 = 50.0;
    pub const DECADE: f64 = 110.0;
    pub const LEGEND: f64 = 270.0;
}

const COLOURS: [&str; FIGURES.len()] = ["#1f5fa8", "#d98a1f", "#2b8a3e", "#a61e4d", "#6741d9", "#5c5f66"];
/// Decades of instructions that a plot shows: from 100 to 100,000.
const DECADES: std::ops::RangeInclusive<u32> = 2..=5;

/// Both vendors' figures along an axis, both scales logarithmic: AMD-V's lines are whole, VT-x's dashed.
pub fn plot(scaling: &Scaling, budget: &Budget, axis: Axis) -> String {
    let points = axis.points(Vendor::Amd);
    let right = size::LEFT + size::STEP * (points.len() - 1) as f64;
    let bottom = size::TOP + size::DECADE * f64::from(DECADES.end() - DECADES.start());
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0}\" height=\"{:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"24\" font-size=\"16\">host instructions by {} (AMD-V: lines, VT-x: dashes)</text>\n",
        right + size::LEGEND,
        bottom + 40.0,
        title(axis)
    );
    // By the logarithm, so that a point between two of the first vendor's has its place, too.
    let x = |point: u32| size::LEFT + size::STEP * (f64::from(point) / f64::from(points[0])).log2();
    let y = |value: f64| bottom - size::DECADE * (value.max(1.0).log10() - f64::from(*DECADES.start()));
    for decade in DECADES {
        let (y, label) = (y(10f64.powf(f64::from(decade))), grouped(10u64.pow(decade)));
        let _ = writeln!(svg, "<line x1=\"{:.1}\" y1=\"{y:.1}\" x2=\"{right:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>", size::LEFT);
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{label}</text>",
            size::LEFT - 6.0,
            y + 4.0
        );
    }
    for point in points {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{point}</text>",
            x(*point),
            bottom + 20.0
        );
    }
    for (n, (name, colour)) in FIGURES.iter().zip(COLOURS).enumerate() {
        for (vendor, dashes) in [(Vendor::Amd, ""), (Vendor::Intel, " stroke-dasharray=\"6 4\"")] {
            let Some(series) = scaling.series(axis, vendor) else { continue };
            let values = series.figures.get(*name).into_iter().flatten();
            let line: Vec<_> = series.at.iter().zip(values).map(|(p, v)| format!("{:.1},{:.1}", x(*p), y(*v as f64))).collect();
            let line = line.join(" ");
            let _ = writeln!(svg, "<polyline points=\"{line}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/>");
        }
        let (left, top) = (right + 20.0, size::TOP + 20.0 * n as f64);
        let title = budget.figure(name).map_or(*name, |figure| &figure.title);
        let _ = writeln!(svg, "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>", top - 10.0);
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{top:.1}\">{title}</text>", left + 18.0);
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_row_for_each_figure() {
        let mut series = Series::default();
        series.push(1, &FIGURES.map(|name| (name.to_owned(), 1000)));
        let mut scaling = Scaling::default();
        scaling.set(Axis::Guests, Vendor::Amd, series);
        let budget = Budget::read().unwrap();
        let table = table(&scaling, &budget, Axis::Guests, Vendor::Amd);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 2 + FIGURES.len());
        assert_eq!([lines[0], lines[2]], ["| AMD-V, guests in the host | 1 |", "| CPUID | 1,000 |"]);
        assert!(plot(&scaling, &budget, Axis::Guests).contains("<polyline"));
    }
}
