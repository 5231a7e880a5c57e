//! Resampling of 8-bit RGB, bit for bit as the Python libraries that the models were trained with do it.

pub mod opencv;
pub mod pillow;

use image::RgbImage;

/// How many values a row of `image` holds.
fn row_len(image: &RgbImage) -> usize {
    image.width() as usize * 3
}
