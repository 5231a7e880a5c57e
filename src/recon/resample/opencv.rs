//! OpenCV's `resize` for 8-bit RGB: `INTER_AREA` for shrinking and `INTER_CUBIC` for growing.
//!
//! What is followed is OpenCV's own code, at its baseline vector width of eight 16-bit lanes. Builds that hand
//! `INTER_CUBIC` to Intel IPP differ from it by at most one level in a few percent of the values.

use image::RgbImage;
use rayon::prelude::*;

use super::row_len;

/// Fixed point of the cubic weights: 11 fractional bits a side.
const COEFFICIENT_BITS: u32 = 11;
/// Values that the vector path of the vertical cubic pass takes at a time; what is left of a row goes the integer way.
const LANES: usize = 8;

/// `INTER_AREA`: every output averages the inputs under it.
///
/// # Panics
/// If a side would grow or is zero: a defect of the caller.
pub fn area(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    assert!((1..=image.width()).contains(&width) && (1..=image.height()).contains(&height), "area resampling shrinks");
    let scale = [image.width(), image.height()].map(f64::from);
    let scale = [1.0 / (width as f64 / scale[0]), 1.0 / (height as f64 / scale[1])];
    let whole = scale.map(f64::round_ties_even);
    if scale.iter().zip(whole).all(|(s, w)| (s - w).abs() < f64::EPSILON) {
        return area_whole(image, width, height, whole.map(|w| w as usize));
    }
    let (from, to, source) = (row_len(image), width as usize * 3, image.as_raw());
    let across = cells(image.width() as usize, width as usize, scale[0]);
    let down = cells(image.height() as usize, height as usize, scale[1]);
    let mut out = RgbImage::new(width, height);
    out.par_chunks_exact_mut(to).zip(&down).for_each(|(out, rows)| {
        let mut sum = vec![0f32; to];
        let mut line = vec![0f32; to];
        for (n, &(y, beta)) in rows.iter().enumerate() {
            let row = &source[y * from..(y + 1) * from];
            for (cell, pixel) in across.iter().zip(line.chunks_exact_mut(3)) {
                pixel.fill(0.0);
                for &(x, alpha) in cell {
                    pixel.iter_mut().zip(&row[x * 3..]).for_each(|(s, v)| *s += *v as f32 * alpha);
                }
            }
            match n {
                0 => sum.iter_mut().zip(&line).for_each(|(s, v)| *s = beta * v),
                _ => sum.iter_mut().zip(&line).for_each(|(s, v)| *s += beta * v),
            }
        }
        out.iter_mut().zip(sum).for_each(|(o, s)| *o = s.round_ties_even() as u8);
    });
    out
}

/// Blocks of whole pixels: exact sums, one multiplication. Blocks of 2x2 round halves up, others to even.
fn area_whole(image: &RgbImage, width: u32, height: u32, block: [usize; 2]) -> RgbImage {
    let (from, to, source) = (row_len(image), width as usize * 3, image.as_raw());
    let scale = 1.0 / (block[0] * block[1]) as f32;
    let mut out = RgbImage::new(width, height);
    out.par_chunks_exact_mut(to).enumerate().for_each(|(y, out)| {
        for (i, o) in out.iter_mut().enumerate() {
            let corner = y * block[1] * from + i / 3 * block[0] * 3 + i % 3;
            let rows = (0..block[1]).map(|r| corner + r * from);
            let sum: u32 = rows.flat_map(|r| (0..block[0]).map(move |c| r + c * 3)).map(|i| source[i] as u32).sum();
            *o = if block == [2, 2] { (sum + 2) >> 2 } else { (sum as f32 * scale).round_ties_even() as u32 } as u8;
        }
    });
    out
}

/// For every output cell the inputs that it covers, with their shares.
fn cells(input: usize, output: usize, scale: f64) -> Vec<Vec<(usize, f32)>> {
    // Slivers below a thousandth of a pixel are left out.
    const SLIVER: f64 = 1e-3;
    (0..output)
        .map(|i| {
            let start = i as f64 * scale;
            let end = start + scale;
            let width = scale.min(input as f64 - start);
            let last = (end.floor() as usize).min(input - 1);
            let first = (start.ceil() as usize).min(last);
            let mut cell = Vec::with_capacity(last - first + 2);
            if first as f64 - start > SLIVER {
                cell.push((first - 1, ((first as f64 - start) / width) as f32));
            }
            cell.extend((first..last).map(|x| (x, (1.0 / width) as f32)));
            if end - last as f64 > SLIVER {
                cell.push((last, ((end - last as f64).min(1.0).min(width) / width) as f32));
            }
            cell
        })
        .collect()
}

/// `INTER_CUBIC`: four taps a side (a = -0.75), no antialiasing, borders repeated.
///
/// # Panics
/// If a side is zero: a defect of the caller.
pub fn cubic(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    assert!(width > 0 && height > 0 && image.width() > 0 && image.height() > 0, "sides are positive");
    let (from, to) = (row_len(image), width as usize * 3);
    let across = taps(image.width() as usize, width as usize);
    let down = taps(image.height() as usize, height as usize);
    let mut wide = vec![0i32; to * image.height() as usize];
    wide.par_chunks_exact_mut(to).zip(image.par_chunks_exact(from)).for_each(|(wide, row)| {
        for (pixel, t) in wide.chunks_exact_mut(3).zip(&across) {
            for (c, v) in pixel.iter_mut().enumerate() {
                *v = (0..4).map(|k| row[t.index[k] * 3 + c] as i32 * t.weight[k]).sum();
            }
        }
    });
    let mut out = RgbImage::new(width, height);
    out.par_chunks_exact_mut(to).zip(&down).for_each(|(out, t)| {
        let lines = t.index.map(|y| &wide[y * to..(y + 1) * to]);
        let vector = to - to % LANES;
        let beta = t.weight.map(|w| w as f32 * (1.0 / (1u32 << (2 * COEFFICIENT_BITS)) as f32));
        for (i, o) in out[..vector].iter_mut().enumerate() {
            let s = lines.map(|l| l[i] as f32);
            let sum = s[0] * beta[0] + (s[1] * beta[1] + (s[2] * beta[2] + s[3] * beta[3]));
            *o = sum.round_ties_even().clamp(0.0, 255.0) as u8;
        }
        for (i, o) in out.iter_mut().enumerate().skip(vector) {
            let sum: i32 = (0..4).map(|k| lines[k][i] * t.weight[k]).sum();
            *o = ((sum + (1 << (2 * COEFFICIENT_BITS - 1))) >> (2 * COEFFICIENT_BITS)).clamp(0, 255) as u8;
        }
    });
    out
}

struct Taps {
    index: [usize; 4],
    weight: [i32; 4],
}

fn taps(input: usize, output: usize) -> Vec<Taps> {
    const A: f32 = -0.75;
    let scale = 1.0 / (output as f64 / input as f64);
    let near = |t: f32| ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0;
    (0..output)
        .map(|i| {
            let position = ((i as f64 + 0.5) * scale - 0.5) as f32;
            let floor = position.floor();
            let x = position - floor;
            let far = ((A * (x + 1.0) - 5.0 * A) * (x + 1.0) + 8.0 * A) * (x + 1.0) - 4.0 * A;
            let (near, next) = (near(x), near(1.0 - x));
            let weight = [far, near, next, 1.0 - far - near - next];
            let weight = weight.map(|w| (w * (1 << COEFFICIENT_BITS) as f32).round_ties_even() as i32);
            let index = [-1, 0, 1, 2].map(|k| (floor as i64 + k).clamp(0, input as i64 - 1) as usize);
            Taps { index, weight }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_every_cell_sum_to_one() {
        for (input, output) in [(1, 1), (63, 1), (65, 64), (1374, 504), (1000, 333)] {
            for cell in cells(input, output, 1.0 / (output as f64 / input as f64)) {
                let sum: f32 = cell.iter().map(|c| c.1).sum();
                assert!((sum - 1.0).abs() < 2e-3, "{input} to {output}: {sum}");
                assert!(cell.iter().all(|c| c.0 < input));
            }
        }
    }

    #[test]
    fn a_constant_stays_constant() {
        let image = RgbImage::from_pixel(65, 63, image::Rgb([7, 130, 255]));
        assert!(area(&image, 64, 13).pixels().all(|p| p.0 == [7, 130, 255]));
        assert!(cubic(&image, 504, 378).pixels().all(|p| p.0 == [7, 130, 255]));
    }

    #[test]
    fn whole_blocks_average_exactly() {
        let image = RgbImage::from_fn(4, 2, |x, y| image::Rgb([(x * 10 + y) as u8; 3]));
        // (0 + 10 + 1 + 11 + 2) / 4 = 6, (20 + 30 + 21 + 31 + 2) / 4 = 26.
        assert_eq!(area(&image, 2, 1).into_raw(), [6, 6, 6, 26, 26, 26]);
    }
}
