//! A small scene with closed-form geometry for tests: two cameras before the plane z = 3 of the world.

use image::{GrayImage, Luma, Rgb, RgbImage};

use super::{
    pose::{Intrinsics, Pose},
    reconstruction::{Reconstruction, View},
};

/// Two views of different sizes. The first misses its top row; the second has its left column masked.
pub fn scene() -> Reconstruction {
    let poses = [Pose::IDENTITY, Pose::from_quaternion([0.02, -0.1, 0.03, 1.0], [0.4, -0.1, 0.2])];
    let views = poses.into_iter().zip([[12, 8], [9, 11]]).enumerate().map(|(n, (pose, [width, height]))| {
        let intrinsics = Intrinsics { fx: 10.0 + n as f64, fy: 11.0, cx: width as f64 / 2.0, cy: height as f64 / 2.0 };
        let world = pose.inverse();
        let depth = |i: u32| {
            let ray = intrinsics.unproject((i % width) as f64, (i / width) as f64, 1.0);
            let (near, far) = (world.apply([0.0; 3])[2], world.apply(ray)[2]);
            if n == 0 && i < width { 0.0 } else { ((3.0 - near) / (far - near)) as f32 }
        };
        View {
            name: format!("view{n}.png"),
            label: format!("view{n}"),
            image: RgbImage::from_fn(width, height, |x, y| Rgb([x as u8 * 20, y as u8 * 20, n as u8 * 200])),
            depth: (0..width * height).map(depth).collect(),
            confidence: (0..width * height).map(|i| 1.0 + (i * 37 % 101) as f32 / 10.0).collect(),
            intrinsics,
            pose,
            mask: (n == 1).then(|| GrayImage::from_fn(width, height, |x, _| Luma([if x == 0 { 0 } else { 255 }]))),
        }
    });
    Reconstruction { views: views.collect(), dropped: 0 }
}
