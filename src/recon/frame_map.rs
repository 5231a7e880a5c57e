//! Where the pixels of an original image went in the processed one, and back.

use super::pose::Intrinsics;

/// An axis-aligned map from an original image to its processed frame.
///
/// Positions are counted from the outer corner of the first pixel (so pixel `i` spans `i..i + 1`):
/// `processed = scale * original + offset`, per axis, x first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FrameMap {
    /// Width and height of the original image.
    pub original: [u32; 2],
    /// Width and height of the processed frame, padding included.
    pub processed: [u32; 2],
    /// Processed pixels per original pixel.
    pub scale: [f64; 2],
    /// Where the original's first corner lies in the frame; negative where it was cropped.
    pub offset: [f64; 2],
}

impl FrameMap {
    /// An image as it is.
    pub fn identity(width: u32, height: u32) -> Self {
        Self { original: [width, height], processed: [width, height], scale: [1.0; 2], offset: [0.0; 2] }
    }

    /// After the frame was resized to `width` x `height`.
    pub fn resized(mut self, width: u32, height: u32) -> Self {
        for (axis, to) in [width, height].into_iter().enumerate() {
            let ratio = to as f64 / self.processed[axis] as f64;
            self.scale[axis] *= ratio;
            self.offset[axis] *= ratio;
            self.processed[axis] = to;
        }
        self
    }

    /// After a window of the frame was taken; a negative corner or a larger window pads.
    pub fn window(mut self, left: i64, top: i64, width: u32, height: u32) -> Self {
        self.offset[0] -= left as f64;
        self.offset[1] -= top as f64;
        self.processed = [width, height];
        self
    }

    /// The sample position (pixel centres at whole numbers) in the frame of the original pixel `index` of an axis;
    /// `None` where the frame does not show that pixel.
    pub fn sample(&self, axis: usize, index: u32) -> Option<f64> {
        let position = (index as f64 + 0.5) * self.scale[axis] + self.offset[axis];
        (0.0..=self.processed[axis] as f64).contains(&position).then_some(position - 0.5)
    }

    /// Intrinsics of the frame as intrinsics of the original: focal lengths and principal point divided by the scale,
    /// the corner moved, as both models' own tools do.
    pub fn to_original(&self, k: Intrinsics) -> Intrinsics {
        Intrinsics {
            fx: k.fx / self.scale[0],
            fy: k.fy / self.scale[1],
            cx: (k.cx - self.offset[0]) / self.scale[0],
            cy: (k.cy - self.offset[1]) / self.scale[1],
        }
    }

    /// The inverse of [`Self::to_original`].
    pub fn to_processed(&self, k: Intrinsics) -> Intrinsics {
        Intrinsics {
            fx: k.fx * self.scale[0],
            fy: k.fy * self.scale[1],
            cx: k.cx * self.scale[0] + self.offset[0],
            cy: k.cy * self.scale[1] + self.offset[1],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resize_crop_and_pad_compose() {
        let map = FrameMap::identity(100, 300).resized(50, 150).window(0, 25, 50, 100);
        assert_eq!((map.scale, map.offset, map.processed), ([0.5; 2], [0.0, -25.0], [50, 100]));
        // Rows 0..50 and 250..300 of the original are cropped.
        assert_eq!((map.sample(1, 49), map.sample(1, 50)), (None, Some(-0.25)));
        assert_eq!((map.sample(1, 249), map.sample(1, 250)), (Some(99.25), None));
        let padded = map.window(-10, 0, 70, 100);
        assert_eq!((padded.offset, padded.sample(0, 0)), ([10.0, -25.0], Some(9.75)));
        let doubled = padded.resized(140, 200);
        assert_eq!((doubled.scale, doubled.offset), ([1.0; 2], [20.0, -50.0]));
    }

    #[test]
    fn intrinsics_go_there_and_back() {
        let map = FrameMap::identity(1920, 1080).resized(518, 294).window(-3, 7, 518, 280);
        let k = Intrinsics { fx: 400.0, fy: 410.0, cx: 259.0, cy: 140.0 };
        let back = map.to_processed(map.to_original(k));
        for (a, b) in [(k.fx, back.fx), (k.fy, back.fy), (k.cx, back.cx), (k.cy, back.cy)] {
            assert!((a - b).abs() < 1e-9);
        }
        // An uncropped frame keeps the principal point in the middle.
        let centred =
            FrameMap::identity(1920, 1080).resized(518, 294).to_original(Intrinsics { cx: 259.0, cy: 147.0, ..k });
        assert!((centred.cx - 960.0).abs() < 1e-9 && (centred.cy - 540.0).abs() < 1e-9);
    }
}
