//! The contact sheet: a column for every view; rows for the pictures, the depth of every run and of the truth, and the
//! errors.

use std::fmt::Write;

use image::{RgbImage, codecs::jpeg::JpegEncoder, imageops};

use super::{Report, base64, escape};
use crate::{
    Error, Result,
    recon::{Reconstruction, colormap},
};

/// The longer side of a picture in the page.
const LONGEST: u32 = 320;
/// The relative error that is shown brightest.
const ERROR_LIMIT: f64 = 0.3;

pub(super) fn html(report: &Report<'_>) -> Result<String> {
    let mut rows = String::new();
    let first = report.runs[0].reconstruction;
    row(&mut rows, "Input", "", first.views.iter().map(|v| v.image.clone()))?;
    for run in &report.runs {
        depth_row(&mut rows, &run.name, run.reconstruction)?;
    }
    if let Some(truth) = report.truth {
        depth_row(&mut rows, "ground truth", truth)?;
        for run in &report.runs {
            let scale = median_scale(run.reconstruction, truth);
            let views = run.reconstruction.views.iter().zip(&truth.views);
            let images = views.map(|(v, t)| colormap::error_image(v, &t.depth, scale, ERROR_LIMIT));
            row(&mut rows, "Error", &run.name, images)?;
        }
    }
    let head: String = first.views.iter().map(|v| format!("<th>{}</th>", escape(&v.name))).collect();
    let errors = match report.truth {
        Some(_) => format!(
            "<span>error 0 <i style=\"background:{}\"></i> {:.0} % and more, after one median scale a run</span>",
            gradient(|t| t),
            ERROR_LIMIT * 100.0
        ),
        None => String::new(),
    };
    let depths = gradient(|t| 1.0 - t);
    Ok(format!(
        "<section><h2>Views</h2><div class=\"scroll\"><table class=\"sheet\"><thead><tr><th></th>{head}</tr></thead>\
         <tbody>{rows}</tbody></table></div><div class=\"legend\"><span>depth near <i style=\"background:{depths}\"></i> \
         far, one logarithmic range a row</span>{errors}</div></section>"
    ))
}

fn depth_row(rows: &mut String, name: &str, reconstruction: &Reconstruction) -> Result<()> {
    // Without any depth every pixel is black, whatever the range.
    let range = colormap::depth_range(&reconstruction.views).unwrap_or([1.0, 1.0]);
    row(rows, "Depth", name, reconstruction.views.iter().map(|v| colormap::depth_image(v, range)))
}

fn row(rows: &mut String, what: &str, name: &str, images: impl Iterator<Item = RgbImage>) -> Result<()> {
    let mut cells = String::new();
    for image in images {
        let fail = |e: &dyn std::fmt::Display| Error::bad_file("recon.report", format!("a picture of the report: {e}"));
        let source = base64(&jpeg(&image).map_err(|e| fail(&e))?);
        let alt = escape(&format!("{what} {name}"));
        write!(cells, "<td><img loading=\"lazy\" alt=\"{alt}\" src=\"data:image/jpeg;base64,{source}\"></td>")
            .map_err(|e| fail(&e))?;
    }
    rows.push_str(&format!("<tr><th><b>{}</b>{}</th>{cells}</tr>", escape(what), escape(name)));
    Ok(())
}

fn jpeg(image: &RgbImage) -> image::ImageResult<Vec<u8>> {
    let scale = LONGEST as f64 / image.width().max(image.height()) as f64;
    let to = |side: u32| ((side as f64 * scale).round() as u32).max(1);
    let small = match scale < 1.0 {
        true => imageops::resize(image, to(image.width()), to(image.height()), imageops::FilterType::Triangle),
        false => image.clone(),
    };
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 90).encode_image(&small)?;
    Ok(bytes)
}

/// The median over all views of true depth by depth, where both exist; one if they never do.
fn median_scale(run: &Reconstruction, truth: &Reconstruction) -> f64 {
    let pixels = run.views.iter().zip(&truth.views).flat_map(|(v, t)| v.depth.iter().zip(&t.depth));
    let mut ratios: Vec<f32> = pixels.filter(|(d, t)| **d > 0.0 && **t > 0.0).map(|(d, t)| t / d).collect();
    let middle = ratios.len() / 2;
    if ratios.is_empty() { 1.0 } else { *ratios.select_nth_unstable_by(middle, f32::total_cmp).1 as f64 }
}

fn gradient(value: impl Fn(f64) -> f64) -> String {
    let stops = (0..=8).map(|i| {
        let [r, g, b] = colormap::map(value(i as f64 / 8.0));
        format!("rgb({r} {g} {b})")
    });
    format!("linear-gradient(90deg,{})", stops.collect::<Vec<_>>().join(","))
}
