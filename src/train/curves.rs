//! Losses over steps as a picture: SVG without scripts.

use std::fmt::Write;

use super::run::Line;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const MARGIN: f64 = 48.0;

/// Colours that people with any colour sight tell apart (Okabe and Ito 2008).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// The weighted loss, every loss by itself and that of validation scenes, on a logarithmic axis.
pub fn svg(lines: &[Line]) -> String {
    let mut series: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    let mut put = |name: &str, step: u64, value: f64| {
        if !(value.is_finite() && value > 0.0) {
            return;
        }
        let point = (step as f64, value.log10());
        match series.iter_mut().find(|(n, _)| n == name) {
            Some((_, points)) => points.push(point),
            None => series.push((name.to_string(), vec![point])),
        }
    };
    for line in lines {
        put("loss", line.step, line.loss);
        if line.losses.len() > 1 {
            line.losses.iter().for_each(|(name, value)| put(name, line.step, *value));
        }
        line.validation.into_iter().for_each(|value| put("validation", line.step, value));
    }
    let points = || series.iter().flat_map(|(_, points)| points);
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low < high { (low, high) } else { (low - 0.5, low + 0.5) }
    };
    let (left, right) = bounds(&mut points().map(|p| p.0));
    let (low, high) = bounds(&mut points().map(|p| p.1));
    let x = |v: f64| MARGIN + (v - left) / (right - left) * (WIDTH - 2.0 * MARGIN);
    let y = |v: f64| HEIGHT - MARGIN - (v - low) / (high - low) * (HEIGHT - 2.0 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    if series.is_empty() {
        out.push_str("</svg>\n");
        return out;
    }
    for i in 0..=4 {
        let part = f64::from(i) / 4.0;
        let (step, value) = (left + part * (right - left), low + part * (high - low));
        let (at, bottom) = (y(value), HEIGHT - MARGIN);
        let _ = writeln!(
            out,
            "<line x1=\"{MARGIN}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.3}</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{step:.0}</text>",
            WIDTH - MARGIN,
            MARGIN - 4.0,
            at + 4.0,
            10f64.powf(value),
            x(step),
            bottom + 18.0
        );
    }
    for (i, (name, points)) in series.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let path: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" points=\"{}\"/><text x=\"{:.1}\" y=\"20\" fill=\"{colour}\">{name}</text>",
            path.join(" "),
            MARGIN + 110.0 * i as f64
        );
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_series_has_its_line_and_what_is_not_finite_is_left_out() {
        let line = |step, loss: f64| Line {
            step,
            loss,
            losses: BTreeMap::from([("camera".into(), loss / 2.0), ("depth".into(), loss / 3.0)]),
            norm: None,
            rate: 0.0,
            skipped: false,
            seconds: 0.0,
            validation: (step == 3).then_some(loss),
            validation_losses: BTreeMap::new(),
        };
        let text = svg(&[line(1, 4.0), line(2, f64::NAN), line(3, 1.0)]);
        assert_eq!(text.matches("<polyline").count(), 4, "{text}");
        assert!(text.contains(">validation</text>") && !text.contains("NaN"), "{text}");
        assert!(svg(&[]).ends_with("</svg>\n"));
    }
}
