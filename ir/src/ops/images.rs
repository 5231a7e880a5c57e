//! How images lie in memory.

use crate::dim::Dim;

crate::word_enum! {
    /// The order of the dimensions of images and, likewise, of the weights that are convolved with them.
    pub enum ImageLayout {
        /// Channel by channel: [N, C, H, W], weights [O, I, kh, kw].
        Planes = "nchw",
        /// Pixel by pixel: [N, H, W, C], weights [O, kh, kw, I].
        Pixels = "nhwc",
    }
}

impl ImageLayout {
    /// Images, channels, rows, columns of a shape in this layout; `None` for anything but four dimensions.
    pub fn planes<T: Clone>(self, shape: &[T]) -> Option<[T; 4]> {
        let [a, b, c, d] = shape else { return None };
        Some(match self {
            Self::Planes => [a, b, c, d],
            Self::Pixels => [a, d, b, c],
        })
        .map(|dims| dims.map(T::clone))
    }

    /// The shape in this layout of images, channels, rows, columns.
    pub fn shape(self, [n, c, h, w]: [Dim; 4]) -> [Dim; 4] {
        match self {
            Self::Planes => [n, c, h, w],
            Self::Pixels => [n, h, w, c],
        }
    }

    /// The axes of images, rows and columns.
    pub fn beside_channels(self) -> [usize; 3] {
        match self {
            Self::Planes => [0, 2, 3],
            Self::Pixels => [0, 1, 2],
        }
    }

    /// Values in this layout, with images, channels, rows and columns as given, put plane by plane.
    pub fn to_planes(self, values: Vec<f64>, [n, c, h, w]: [usize; 4]) -> Vec<f64> {
        match self {
            Self::Planes => values,
            Self::Pixels => moved(&values, n, h * w, c),
        }
    }

    /// Values plane by plane, put into this layout.
    pub fn of_planes(self, values: Vec<f64>, [n, c, h, w]: [usize; 4]) -> Vec<f64> {
        match self {
            Self::Planes => values,
            Self::Pixels => moved(&values, n, c, h * w),
        }
    }
}

/// [n, rows, columns] → [n, columns, rows].
fn moved(values: &[f64], n: usize, rows: usize, columns: usize) -> Vec<f64> {
    let at = |i: usize| {
        let (image, column, row) = (i / (rows * columns), i / rows % columns, i % rows);
        values[(image * rows + row) * columns + column]
    };
    (0..n * rows * columns).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_inverse() {
        let size = [2, 3, 4, 5];
        let planes: Vec<f64> = (0..120).map(f64::from).collect();
        let pixels = ImageLayout::Pixels.of_planes(planes.clone(), size);
        assert_eq!(pixels[..4], [0.0, 20.0, 40.0, 1.0], "channels lie side by side");
        assert_eq!(ImageLayout::Pixels.to_planes(pixels, size), planes);
        assert_eq!(ImageLayout::Pixels.planes(&[2, 4, 5, 3]), Some(size));
        assert_eq!(ImageLayout::Pixels.shape(size.map(Dim::from)), [2usize, 4, 5, 3].map(Dim::from));
    }
}
