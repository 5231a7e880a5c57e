//! One scene as a training step takes it: images, and the truth that losses compare with.

use std::collections::BTreeMap;

use lite3r_ir::{Tensor, ValueType};

use crate::{
    geometry::Camera,
    recon::{IMAGENET_MEAN, IMAGENET_STD, Pose},
};

/// Images and targets by the names of the inputs of a gradients entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// How many views there are.
    pub views: usize,
    /// `images` f32 [1, S, 3, H, W] in 0..=1, `target.pose_enc` [1, S, 9], `target.depth` [1, S, H, W, 1], `target.mask` [1, S,
    /// H, W], `target.points` [1, S, H, W, 3].
    pub tensors: BTreeMap<String, Tensor>,
}

impl Sample {
    /// From images in planes (RGB, 0..=1), cameras and depths of views in normalised coordinates; a depth of 0 is not
    /// known.
    pub fn new(images: Vec<f32>, cameras: &[Camera], depths: &[&[f32]], (height, width): (usize, usize)) -> Self {
        let views = cameras.len();
        let mut encodings = Vec::with_capacity(9 * views);
        let mut points = Vec::with_capacity(3 * views * height * width);
        for (camera, depth) in cameras.iter().zip(depths) {
            encodings.extend(encode(camera, height, width));
            for (at, z) in depth.iter().enumerate() {
                let (u, v) = ((at % width) as f64 + 0.5, (at / width) as f64 + 0.5);
                let point = if *z > 0.0 { camera.unproject(u, v, f64::from(*z)) } else { [0.0; 3] };
                points.extend(point.map(|x| x as f32));
            }
        }
        let depth: Vec<f32> = depths.concat();
        let mask: Vec<f32> = depth.iter().map(|z| f32::from(u8::from(*z > 0.0))).collect();
        let image = [1, views, height, width];
        let tensors = [
            ("images", Tensor::from_f32(&[1, views, 3, height, width], images)),
            ("target.pose_enc", Tensor::from_f32(&[1, views, 9], encodings)),
            ("target.depth", Tensor::from_f32(&[&image[..], &[1]].concat(), depth)),
            ("target.mask", Tensor::from_f32(&image, mask)),
            ("target.points", Tensor::from_f32(&[&image[..], &[3]].concat(), points)),
        ];
        Self { views, tensors: tensors.into_iter().map(|(name, tensor)| (name.to_string(), tensor)).collect() }
    }
}

impl Sample {
    /// What an input of that name and type takes of the scene: as it is, in the shape that is asked for, or, for `image`,
    /// the images after ImageNet normalisation. None where the scene has nothing of the kind.
    pub fn input(&self, name: &str, ty: &ValueType) -> Option<Tensor> {
        if name == "image" {
            let images = self.tensors.get("images")?;
            let plane: usize = images.shape()[3..].iter().product();
            let normal = |(i, v): (usize, f32)| (v - IMAGENET_MEAN[i / plane % 3]) / IMAGENET_STD[i / plane % 3];
            let values: Vec<f32> = images.to_f32().into_iter().enumerate().map(normal).collect();
            return Some(Tensor::from_f32(images.shape(), values));
        }
        let tensor = self.tensors.get(name)?;
        let shape = ty.dims()?;
        if tensor.shape() == shape { Some(tensor.clone()) } else { tensor.reshaped(&shape) }
    }
}

/// Translation, quaternion x y z w, vertical and horizontal field of view, camera from world.
fn encode(camera: &Camera, height: usize, width: usize) -> [f32; 9] {
    let e = &camera.extrinsic;
    let pose =
        Pose { rotation: [0, 1, 2].map(|i| [e[i][0], e[i][1], e[i][2]]), translation: [0, 1, 2].map(|i| e[i][3]) };
    let [x, y, z, w] = pose.quaternion();
    let fov = |size: usize, focal: f64| 2.0 * libm::atan(size as f64 / 2.0 / focal);
    let (vertical, horizontal) = (fov(height, camera.intrinsic[1][1]), fov(width, camera.intrinsic[0][0]));
    let [a, b, c] = pose.translation;
    [a, b, c, x, y, z, w, vertical, horizontal].map(|v| v as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{recon::pose::decode_vggt, scenes};

    #[test]
    fn encodings_are_decoded_to_the_cameras_and_points_project_back() {
        let scene = scenes::Scene::sample(5, 0, 3);
        let views: Vec<_> = (0..3).map(|v| scene.render(v, 28, 42)).collect();
        let truth = scenes::normalise(&views, 1).unwrap();
        let images = views.iter().flat_map(scenes::Rendered::planes).collect();
        let depths: Vec<&[f32]> = truth.depths.iter().map(Vec::as_slice).collect();
        let sample = Sample::new(images, &truth.cameras, &depths, (views[0].height, views[0].width));
        let (height, width) = (views[0].height, views[0].width);
        let decoded = decode_vggt(&sample.tensors["target.pose_enc"], width as u32, height as u32).unwrap();
        for ((pose, k), camera) in decoded.iter().zip(&truth.cameras) {
            assert!((k.fx - camera.intrinsic[0][0]).abs() < 1e-3 && (k.fy - camera.intrinsic[1][1]).abs() < 1e-3);
            for (row, own) in pose.matrix().iter().zip(&camera.extrinsic) {
                assert!(row.iter().zip(own).all(|(a, b)| (a - b).abs() < 1e-5));
            }
        }
        let points = sample.tensors["target.points"].to_f64();
        for (view, camera) in truth.cameras.iter().enumerate() {
            for at in (0..height * width).filter(|at| truth.depths[view][*at] > 0.0) {
                let p = &points[3 * (view * height * width + at)..][..3];
                let (u, v, z) = camera.project([p[0], p[1], p[2]]);
                assert!((u - (at % width) as f64 - 0.5).abs() < 1e-3 && (v - (at / width) as f64 - 0.5).abs() < 1e-3);
                assert!((z - f64::from(truth.depths[view][at])).abs() < 1e-5);
            }
        }
        let mask = sample.tensors["target.mask"].to_f64();
        assert_eq!(
            mask.iter().filter(|m| **m == 1.0).count(),
            truth.depths.iter().flatten().filter(|z| **z > 0.0).count()
        );
    }
}
