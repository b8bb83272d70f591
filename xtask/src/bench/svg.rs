//! The picture: horizontal bars of the medians, a group a row of work.
//!
//! Each group has its own scale, whose end is its longest bar. Colours are told apart by eyes of
//! every kind and on light and dark pages alike (the palette of Okabe and Ito); text follows the
//! page by `prefers-color-scheme`.

use std::fmt::Write;

use super::report::{Report, Row, figure};

const WIDTH: u32 = 760;
const MARGIN: u32 = 12;
/// Where bars begin; names stand to their left.
const BARS: u32 = 130;
/// The longest bar; its number stands to its right.
const LONGEST: u32 = 500;
const BAR: u32 = 14;
const STEP: u32 = 18;
const TITLE: u32 = 26;

/// A bar's colour, by contender.
const COLOURS: &[(&str, &str)] = &[
    ("cnet", "#d55e00"),
    ("host", "#999999"),
    ("rootful", "#0072b2"),
    ("slirp4netns", "#e69f00"),
    ("pasta", "#009e73"),
    ("vde", "#cc79a7"),
];

const STYLE: &str = "<style>\
    text{font:12px sans-serif;fill:#1f2328}.title{font-weight:bold}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}}\
    </style>";

/// Draws the pictured rows of a report.
pub fn draw(report: &Report) -> String {
    let mut body = String::new();
    let mut y = MARGIN;
    for row in report.rows.iter().filter(|row| row.pictured) {
        y = group(&mut body, y, row, &report.contenders);
    }
    let height = y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"cnet and its peers\">\n\
         {STYLE}\n{body}</svg>\n"
    )
}

/// Draws one row from `y` down, and returns where the next may begin.
fn group(body: &mut String, mut y: u32, row: &Row, contenders: &[&str]) -> u32 {
    let bars = contenders.iter().zip(&row.cells);
    let bars: Vec<(&str, f64)> = bars
        .filter_map(|(name, cell)| Some((*name, cell.as_ref()?.median)))
        .collect();
    let longest = bars.iter().map(|(_, median)| *median).fold(0.0, f64::max);
    let better = if row.lower_is_better {
        ", less is better"
    } else {
        ""
    };
    let title = format!("{}: {}, {}{better}", row.work, row.metric, row.unit);
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(
        body,
        "<text class=\"title\" x=\"{MARGIN}\" y=\"{}\">{}</text>",
        y + 14,
        escape(&title)
    );
    y += TITLE;
    for (name, median) in bars {
        let part = if longest > 0.0 { median / longest } else { 0.0 };
        let length = (part * f64::from(LONGEST)).max(1.0);
        let colour = COLOURS.iter().find(|(known, _)| *known == name);
        let colour = colour.map_or("#56b4e9", |(_, colour)| colour);
        let baseline = y + 11;
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{baseline}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{BARS}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{baseline}\">{}</text>",
            BARS - 8,
            escape(name),
            f64::from(BARS) + length + 6.0,
            figure(median)
        );
        y += STEP;
    }
    y + MARGIN
}

fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;");
    text.replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::report::Cell;
    use super::*;

    fn row(metric: &'static str, medians: &[Option<f64>]) -> Row {
        let cell = |median: f64| Cell {
            median,
            samples: vec![median],
            collapses: 0,
        };
        Row {
            work: "udp".to_owned(),
            metric,
            unit: "kpkt/s",
            lower_is_better: false,
            cells: medians.iter().map(|median| median.map(cell)).collect(),
            baseline: "rootful",
            ratio_to_kernel: None,
            ratio_to_best_peer: None,
            pictured: true,
        }
    }

    #[test]
    fn bars_are_in_proportion_and_text_is_escaped() {
        let mut body = String::new();
        let row = row("loss < 0.1 %", &[Some(50.0), None, Some(100.0)]);
        let end = group(&mut body, 0, &row, &["rootful", "cnet", "pasta"]);
        assert!(
            body.contains("width=\"250.0\"") && body.contains("width=\"500.0\""),
            "{body}"
        );
        assert!(body.contains("loss &lt; 0.1 %"), "{body}");
        assert!(!body.contains("cnet"), "{body}");
        assert_eq!(end, TITLE + 2 * STEP + MARGIN);
    }

    #[test]
    fn nothing_measured_is_a_bar_of_no_length() {
        let mut body = String::new();
        group(&mut body, 0, &row("rate", &[Some(0.0)]), &["cnet"]);
        assert!(body.contains("width=\"1.0\""), "{body}");
    }
}
