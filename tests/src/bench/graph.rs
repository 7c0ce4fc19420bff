//! Line graphs as SVG, for the documentation.

use std::path::Path;

use plotters::prelude::{
    ChartBuilder, Circle, Color as _, EmptyElement, IntoDrawingArea as _, IntoFont as _, LineSeries,
    PathElement, PointSeries, RGBColor, SVGBackend, WHITE,
};

/// One line.
#[derive(Debug, Clone)]
pub struct Line {
    /// What it shows.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// A graph whose lines have points at the same places, as far from each other, whatever their values are.
#[derive(Debug, Clone)]
pub struct Graph {
    /// Above it.
    pub title: &'static str,
    /// Along the horizontal axis.
    pub x: &'static str,
    /// Along the vertical axis, which starts at 0.
    pub y: &'static str,
    /// Its lines.
    pub lines: Vec<Line>,
}

const COLOURS: [RGBColor; 3] = [
    RGBColor(0x1f, 0x5f, 0xa8),
    RGBColor(0xc0, 0x56, 0x1e),
    RGBColor(0x3c, 0x80, 0x3c),
];

impl Graph {
    /// Writes it to `path`.
    pub fn write(&self, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let places: Vec<String> = self
            .lines
            .first()
            .into_iter()
            .flat_map(|line| &line.points)
            .map(|point| format!("{:.0}", point.0))
            .collect();
        let count = i32::try_from(places.len())?;
        let values = self.lines.iter().flat_map(|line| &line.points);
        let top = values.map(|point| point.1).fold(1.0, f64::max);
        let root = SVGBackend::new(path, (640, 360)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(self.title, ("sans-serif", 16).into_font())
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(-1..count, 0.0..top * 1.2)?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .x_labels(places.len() + 2)
            .x_label_formatter(&|place| {
                let name = usize::try_from(*place).ok().and_then(|place| places.get(place));
                name.cloned().unwrap_or_default()
            })
            .y_label_formatter(&|value| format!("{value:.0}"))
            .light_line_style(WHITE)
            .draw()?;
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let colour = *colour;
            let points = || (0..).zip(line.points.iter().map(|point| point.1));
            chart
                .draw_series(LineSeries::new(points(), colour.stroke_width(2)))?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
            chart.draw_series(PointSeries::of_element(
                points(),
                3,
                colour.filled(),
                &|at, size, style| EmptyElement::at(at) + Circle::new((0, 0), size, style),
            ))?;
        }
        if self.lines.len() > 1 {
            chart.configure_series_labels().border_style(WHITE).draw()?;
        }
        root.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_shows_its_lines_and_their_names() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let line = |name: &str, factor: f64| Line {
            name: name.to_owned(),
            points: [1.0, 10.0, 100.0].map(|x| (x, x * factor)).to_vec(),
        };
        let graph = Graph {
            title: "A title",
            x: "ports",
            y: "ns",
            lines: vec![line("rising", 2.0), line("rising more", 3.0)],
        };
        graph.write(file.path()).expect("a graph");
        let text = std::fs::read_to_string(file.path()).expect("SVG");
        for part in ["<svg", "A title", "ports", "rising more", "<polyline", "<circle"] {
            assert!(text.contains(part), "{part}");
        }
    }
}
