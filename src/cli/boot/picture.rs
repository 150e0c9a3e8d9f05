//! Draws boots as an SVG: a dot for each boot and phase, a line at the median.

use std::fmt::Write as _;

use super::statistics::{Series, summary};

/// Readable on light and on dark backgrounds.
const COLOURS: [&str; 3] = ["#2f6fde", "#e0742c", "#14803c"];
const LEFT: f64 = 110.0;
const WIDTH: f64 = 720.0;
const ROW: f64 = 26.0;

/// Returns the SVG document.
pub fn svg(series: &[Series]) -> String {
    let times = || series.iter().flat_map(|one| &one.phases);
    let end = times()
        .flat_map(|(_, all)| all)
        .fold(1.0, |end: f64, ms| end.max(*ms));
    let x = |ms: f64| LEFT + ms / end * WIDTH;
    let mut out = String::new();
    let mut y = 10.0;
    for (one, colour) in series.iter().zip(COLOURS.iter().cycle()) {
        y += ROW;
        text(&mut out, 8.0, y, "start", &one.name, colour);
        for (phase, all) in &one.phases {
            let Some((median, ..)) = summary(all) else {
                continue;
            };
            y += ROW;
            text(&mut out, LEFT - 12.0, y, "end", phase, "#8a93a3");
            text(
                &mut out,
                LEFT + WIDTH + 14.0,
                y,
                "start",
                &format!("{median:.0} ms"),
                colour,
            );
            for ms in all {
                // Writing to a string cannot fail.
                let _ = writeln!(
                    out,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\" fill-opacity=\"0.45\"/>",
                    x(*ms),
                    y - 4.0
                );
            }
            let at = x(median);
            let _ = writeln!(
                out,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                y - 14.0,
                y + 6.0
            );
        }
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"13\">\n{out}</svg>\n",
        LEFT + WIDTH + 110.0,
        y + ROW
    )
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, text: &str, colour: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        out,
        "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>"
    );
}
