//! A perceptual colour map: dark violet over red and orange to pale yellow.
//!
//! Made in OKLCH (Ottosson, "A perceptual color space for image processing", 2020): lightness rises linearly, the hue
//! turns from 285 through 360 to 465 degrees, and chroma is as large as sRGB allows up to 0.17. Equal steps look
//! equally large, and the map stays readable in grey.

use std::sync::LazyLock;

use image::{Rgb, RgbImage};

use super::reconstruction::View;

static TABLE: LazyLock<[[u8; 3]; 256]> = LazyLock::new(|| std::array::from_fn(|i| color(i as f64 / 255.0)));

/// The colour of a value from 0 (dark) to 1 (bright); outside values clamp.
pub fn map(value: f64) -> [u8; 3] {
    TABLE[(value.clamp(0.0, 1.0) * 255.0).round() as usize]
}

/// The depths that [`depth_image`] spreads the map over: the 2nd and the 98th percentile of all pixels of the views
/// that have depth; `None` if there are none.
pub fn depth_range<'a>(views: impl IntoIterator<Item = &'a View>) -> Option<[f32; 2]> {
    let mut depths: Vec<f32> = views.into_iter().flat_map(|v| v.depth.iter().copied().filter(|d| *d > 0.0)).collect();
    let last = depths.len().checked_sub(1)?;
    let mut at = |part: f64| *depths.select_nth_unstable_by((part * last as f64).round() as usize, f32::total_cmp).1;
    Some([at(0.02), at(0.98)])
}

/// Depth as colour, near bright and far dark, on a logarithmic scale over `range`; pixels without depth are black.
pub fn depth_image(view: &View, range: [f32; 2]) -> RgbImage {
    let [near, far] = range.map(|d| (d as f64).ln());
    let span = (far - near).max(1e-9);
    value_image(view, |_, depth| Some(1.0 - (depth.ln() - near) / span))
}

/// The relative error |scale d - t| / t against true depths, black to bright over 0 to `limit`; pixels without depth or
/// truth are black.
pub fn error_image(view: &View, truth: &[f32], scale: f64, limit: f64) -> RgbImage {
    value_image(view, |i, depth| {
        let t = truth[i] as f64;
        (t > 0.0).then(|| (scale * depth - t).abs() / t / limit)
    })
}

/// The map of a value for every pixel with depth, black elsewhere. `value` is given the index and the depth.
fn value_image(view: &View, value: impl Fn(usize, f64) -> Option<f64>) -> RgbImage {
    let width = view.image.width();
    RgbImage::from_fn(width, view.image.height(), |x, y| {
        let i = (y * width + x) as usize;
        let depth = view.depth[i];
        let value = if depth > 0.0 { value(i, depth as f64) } else { None };
        Rgb(value.map_or([0; 3], map))
    })
}

fn color(t: f64) -> [u8; 3] {
    let lightness = lightness(t);
    let hue = (285.0 + 180.0 * t).to_radians();
    let at = |chroma: f64| oklab_to_linear([lightness, chroma * hue.cos(), chroma * hue.sin()]);
    let in_gamut = |chroma: f64| at(chroma).iter().all(|v| (0.0..=1.0).contains(v));
    // Bisection; grey (no chroma) is always within sRGB.
    let (mut low, mut high) = (0.0, 0.17);
    if in_gamut(high) {
        low = high;
    }
    while high - low > 1e-6 {
        let middle = (low + high) / 2.0;
        *(if in_gamut(middle) { &mut low } else { &mut high }) = middle;
    }
    at(low).map(|v| {
        let v = v.clamp(0.0, 1.0);
        let encoded = if v <= 0.003_130_8 { 12.92 * v } else { 1.055 * v.powf(1.0 / 2.4) - 0.055 };
        (encoded * 255.0).round() as u8
    })
}

fn lightness(t: f64) -> f64 {
    0.16 + 0.80 * t
}

/// Oklab to linear sRGB.
fn oklab_to_linear([l, a, b]: [f64; 3]) -> [f64; 3] {
    let cube = |v: f64| v * v * v;
    let long = cube(l + 0.396_337_777_4 * a + 0.215_803_757_3 * b);
    let medium = cube(l - 0.105_561_345_8 * a - 0.063_854_172_8 * b);
    let short = cube(l - 0.089_484_177_5 * a - 1.291_485_548 * b);
    [
        4.076_741_662_1 * long - 3.307_711_591_3 * medium + 0.230_969_929_2 * short,
        -1.268_438_004_6 * long + 2.609_757_401_1 * medium - 0.341_319_396_5 * short,
        -0.004_196_086_3 * long - 0.703_418_614_7 * medium + 1.707_614_701 * short,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recon::testing::scene;

    /// Oklab lightness of an sRGB colour: the published forward matrices.
    fn oklab_lightness(rgb: [u8; 3]) -> f64 {
        let [r, g, b] = rgb.map(|v| {
            let v = v as f64 / 255.0;
            if v <= 0.04045 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) }
        });
        let l = (0.412_221_470_8 * r + 0.536_332_536_3 * g + 0.051_445_992_9 * b).cbrt();
        let m = (0.211_903_498_2 * r + 0.680_699_545_1 * g + 0.107_396_956_6 * b).cbrt();
        let s = (0.088_302_461_9 * r + 0.281_718_837_6 * g + 0.629_978_700_5 * b).cbrt();
        0.210_454_255_3 * l + 0.793_617_785_0 * m - 0.004_072_046_8 * s
    }

    #[test]
    fn lightness_rises_linearly() {
        for i in 0..=255 {
            let t = i as f64 / 255.0;
            assert!((oklab_lightness(map(t)) - lightness(t)).abs() < 6e-3, "{t}: {:?}", map(t));
        }
        assert_eq!((map(-1.0), map(2.0)), (map(0.0), map(1.0)));
    }

    #[test]
    fn near_is_bright_and_nothing_is_black() {
        let scene = scene();
        let range = depth_range(&scene.views).unwrap();
        let image = depth_image(&scene.views[0], [1.0, 3.0]);
        assert!(range[0] < range[1]);
        // The first row has no depth, the rest lies at depth 3.
        assert_eq!((image.get_pixel(0, 0).0, image.get_pixel(0, 1).0), ([0; 3], map(0.0)));
        assert_eq!(depth_image(&scene.views[0], [3.0, 9.0]).get_pixel(0, 1).0, map(1.0));
        assert_eq!(depth_range(&[]), None);
    }

    #[test]
    fn errors_are_relative_to_the_truth_after_scaling() {
        let view = &scene().views[0];
        let mut truth = vec![6.0; view.depth.len()];
        truth[12] = 0.0;
        truth[13] = 6.6;
        let image = error_image(view, &truth, 2.0, 0.2);
        let row: Vec<_> = (0..3).map(|x| image.get_pixel(x, 1).0).collect();
        assert_eq!(row, [[0; 3], map(0.6 / 6.6 / 0.2), map(0.0)]);
    }
}
