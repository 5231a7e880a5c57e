//! Pillow's `Image.resize(size, BICUBIC)` for 8-bit RGB.
//!
//! Separable convolution, columns first, then rows (Pillow 13 picks the order by cost; the models were published before
//! it), with an 8-bit image between the two. The kernel is Keys' cubic with
//! a = -0.5, stretched by the scale when shrinking (so it antialiases). Weights are normalised in f64 and rounded to
//! fixed point with 22 fractional bits; sums start at one half and are shifted and clamped.

use image::RgbImage;
use rayon::prelude::*;

use super::row_len;

const PRECISION_BITS: u32 = 32 - 8 - 2;
const ROUND: i32 = 1 << (PRECISION_BITS - 1);

/// `image` resized to `width` x `height`. A side that keeps its length is not touched.
///
/// # Panics
/// If a side is zero: a defect of the caller.
pub fn bicubic(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    assert!(width > 0 && height > 0 && image.width() > 0 && image.height() > 0, "sides are positive");
    let wide = if width == image.width() { image.clone() } else { columns(image, width) };
    if height == image.height() { wide } else { rows(&wide, height) }
}

/// The inputs of one output: the first one, and a weight for each.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

fn taps(input: u32, output: u32) -> Vec<Taps> {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    (0..output)
        .map(|i| {
            let center = (i as f64 + 0.5) * scale;
            // Truncation after adding one half, as C does it; negative values clamp to zero.
            let first = ((center - support + 0.5) as i64).max(0);
            let end = ((center + support + 0.5) as i64).min(input as i64);
            let raw: Vec<f64> = (first..end).map(|x| cubic((x as f64 - center + 0.5) * (1.0 / stretch))).collect();
            // Summed in order from zero, since the last bit matters.
            let sum = raw.iter().fold(0.0, |s, w| s + w);
            let weights = raw.iter().map(|w| fixed(if sum != 0.0 { w / sum } else { *w })).collect();
            Taps { first: first as usize, weights }
        })
        .collect()
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn fixed(weight: f64) -> i32 {
    (weight * (1 << PRECISION_BITS) as f64 + if weight < 0.0 { -0.5 } else { 0.5 }) as i32
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

fn columns(image: &RgbImage, width: u32) -> RgbImage {
    let taps = taps(image.width(), width);
    let (from, to) = (row_len(image), width as usize * 3);
    let mut out = RgbImage::new(width, image.height());
    out.par_chunks_exact_mut(to).zip(image.par_chunks_exact(from)).for_each(|(out, row)| {
        for (pixel, t) in out.chunks_exact_mut(3).zip(&taps) {
            let mut sum = [ROUND; 3];
            for (p, w) in row[t.first * 3..].chunks_exact(3).zip(&t.weights) {
                sum.iter_mut().zip(p).for_each(|(s, v)| *s += *v as i32 * w);
            }
            pixel.iter_mut().zip(sum).for_each(|(o, s)| *o = clip(s));
        }
    });
    out
}

fn rows(image: &RgbImage, height: u32) -> RgbImage {
    let taps = taps(image.height(), height);
    let (len, source) = (row_len(image), image.as_raw());
    let mut out = RgbImage::new(image.width(), height);
    out.par_chunks_exact_mut(len).zip(&taps).for_each(|(out, t)| {
        let mut sum = vec![ROUND; len];
        for (row, w) in source[t.first * len..].chunks_exact(len).zip(&t.weights) {
            sum.iter_mut().zip(row).for_each(|(s, v)| *s += *v as i32 * w);
        }
        out.iter_mut().zip(sum).for_each(|(o, s)| *o = clip(s));
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_every_output_sum_to_one() {
        for (input, output) in [(1, 1), (1, 63), (63, 1), (64, 65), (1374, 518), (3, 518)] {
            for t in taps(input, output) {
                let sum: i64 = t.weights.iter().map(|w| *w as i64).sum();
                assert!((sum - (1 << PRECISION_BITS)).abs() <= t.weights.len() as i64, "{input} to {output}: {sum}");
                assert!(t.first + t.weights.len() <= input as usize);
            }
        }
    }

    #[test]
    fn a_constant_stays_constant_and_the_same_size_is_the_same_image() {
        let image = RgbImage::from_pixel(65, 63, image::Rgb([7, 130, 255]));
        assert!(bicubic(&image, 518, 14).pixels().all(|p| p.0 == [7, 130, 255]));
        let noisy = RgbImage::from_fn(9, 5, |x, y| image::Rgb([(x * 37 + y * 91) as u8, x as u8, y as u8]));
        assert_eq!(bicubic(&noisy, 9, 5), noisy);
    }
}
