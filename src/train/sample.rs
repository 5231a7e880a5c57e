//! One scene as a training step takes it: images, and the truth that losses compare with.

use std::collections::BTreeMap;

use lite3r_ir::{Tensor, ValueType};

use crate::{
    Error, Result, data,
    geometry::{Camera, rigid, sub},
    plan::{Entry, Port},
    recon::{
        IMAGENET_MEAN, IMAGENET_STD,
        pose::{decode_vggt, encode_da3},
    },
};

/// Images and targets by the names of the inputs of a gradients entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// How many views there are.
    pub views: usize,
    /// Their cameras, in pixels of the images. The first is the world.
    pub cameras: Vec<Camera>,
    /// `images` f32 [1, S, 3, H, W] in 0..=1, `target.pose_enc` [1, S, 9] (camera from world), `target.pose` [1, S, 9] (world
    /// from camera), `target.depth` [1, S, H, W, 1], `target.mask` [1, S, H, W], `target.points` [1, S, H, W, 3].
    pub tensors: BTreeMap<String, Tensor>,
}

impl TryFrom<&data::Sample> for Sample {
    type Error = Error;

    /// With the world points of all pixels that have a depth. Errors: `data.sample` for tensors that do not fit each
    /// other; `recon.pose` for encodings that are no cameras.
    fn try_from(sample: &data::Sample) -> Result<Self> {
        let &[views, height, width] = sample.depth.shape() else {
            return Err(Error::bad_file("data.sample", format!("{}: depth must be [V, H, W]", sample.scene)));
        };
        let (depth, extrinsics, intrinsics) =
            (sample.depth.to_f32(), sample.extrinsics.to_f64(), sample.intrinsics.to_f64());
        let row = |m: &[f64], i: usize, n: usize| -> [f64; 3] { [m[i * n], m[i * n + 1], m[i * n + 2]] };
        let camera = |(e, k): (&[f64], &[f64])| Camera {
            extrinsic: rigid(&[0, 1, 2].map(|i| row(e, i, 4)), [e[3], e[7], e[11]]),
            intrinsic: [0, 1, 2].map(|i| row(k, i, 3)),
        };
        let cameras: Vec<Camera> = extrinsics.chunks_exact(12).zip(intrinsics.chunks_exact(9)).map(camera).collect();
        let frame = (width as u32, height as u32);
        let encoded = decode_vggt(&sample.pose_encoding, frame.0, frame.1)?.into_iter();
        let pose = encoded.flat_map(|(pose, k)| encode_da3(&pose, &k, frame.0, frame.1).map(|x| x as f32));
        let pose = Tensor::from_f32(&[1, views, 9], pose.collect::<Vec<f32>>());
        let mut points = Vec::with_capacity(3 * depth.len());
        for (plane, camera) in depth.chunks(height * width).zip(&cameras) {
            for (at, z) in plane.iter().enumerate() {
                let (u, v) = ((at % width) as f64 + 0.5, (at / width) as f64 + 0.5);
                let point = if *z > 0.0 { camera.unproject(u, v, f64::from(*z)) } else { [0.0; 3] };
                points.extend(point.map(|x| x as f32));
            }
        }
        let image = [1, views, height, width];
        let misfit = || Error::bad_file("data.sample", format!("{}: tensors do not fit each other", sample.scene));
        let shaped = |tensor: &Tensor, shape: &[usize]| tensor.reshaped(shape).ok_or_else(misfit);
        let tensors = [
            ("images", shaped(&sample.images, &[1, views, 3, height, width])?),
            ("target.pose_enc", shaped(&sample.pose_encoding, &[1, views, 9])?),
            ("target.pose", pose),
            ("target.depth", shaped(&sample.depth, &[&image[..], &[1]].concat())?),
            ("target.mask", shaped(&sample.mask, &image)?),
            ("target.points", Tensor::from_f32(&[&image[..], &[3]].concat(), points)),
        ];
        let tensors = tensors.into_iter().map(|(name, tensor)| (name.to_string(), tensor)).collect();
        Ok(Self { views, cameras, tensors })
    }
}

impl Sample {
    /// What an entry takes of the scene, by name.
    pub fn inputs(&self, entry: &Entry) -> BTreeMap<String, Tensor> {
        let ty = |port: &Port| &entry.buffers[port.buffer as usize].ty;
        entry.inputs.iter().filter_map(|p| Some((p.name.clone(), self.input(&p.name, ty(p))?))).collect()
    }

    /// What an input of that name and type takes of the scene: as it is, in the shape that is asked for; for `image` the
    /// images after ImageNet normalisation; for `target.ray` [1, S, h, w, 6] the rays of h x w parts of every image. None
    /// where the scene has nothing of the kind.
    pub fn input(&self, name: &str, ty: &ValueType) -> Option<Tensor> {
        if name == "image" {
            let images = self.tensors.get("images")?;
            let plane: usize = images.shape()[3..].iter().product();
            let normal = |(i, v): (usize, f32)| (v - IMAGENET_MEAN[i / plane % 3]) / IMAGENET_STD[i / plane % 3];
            let values: Vec<f32> = images.to_f32().into_iter().enumerate().map(normal).collect();
            return Some(Tensor::from_f32(images.shape(), values));
        }
        let shape = ty.dims()?;
        if name == "target.ray" {
            return match shape[..] {
                [1, views, rows, columns, 6] if views == self.views => self.rays(rows, columns),
                _ => None,
            };
        }
        let tensor = self.tensors.get(name)?;
        if tensor.shape() == shape { Some(tensor.clone()) } else { tensor.reshaped(&shape) }
    }

    /// Through the middle of every part, in the world: a direction that reaches as far as depth 1, and where the camera
    /// stands.
    fn rays(&self, rows: usize, columns: usize) -> Option<Tensor> {
        let &[.., height, width] = self.tensors.get("images")?.shape() else { return None };
        let (high, wide) = (height as f64 / rows as f64, width as f64 / columns as f64);
        let mut values = Vec::with_capacity(6 * self.views * rows * columns);
        for camera in &self.cameras {
            let centre = camera.centre();
            for at in 0..rows * columns {
                let (u, v) = (((at % columns) as f64 + 0.5) * wide, ((at / columns) as f64 + 0.5) * high);
                let direction = sub(camera.unproject(u, v, 1.0), centre);
                values.extend(direction.into_iter().chain(centre).map(|x| x as f32));
            }
        }
        Some(Tensor::from_f32(&[1, self.views, rows, columns, 6], values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        data::{Options, Sampler, Source, Split},
        recon::pose::decode_da3_encoding,
    };

    #[test]
    fn points_project_back_to_their_pixels() {
        let options = Options { views: vec![3], sizes: vec![[42, 28]], ..Options::default() };
        let source: Source = "synthetic".parse().unwrap();
        let drawn = Sampler::new(source, Split::Train, options).unwrap().sample(0).unwrap();
        let sample = Sample::try_from(&drawn).unwrap();
        let (width, height) = (42, 28);
        assert_eq!(sample.tensors["images"].shape(), [1, 3, 3, height, width]);
        let cameras = decode_vggt(&sample.tensors["target.pose_enc"], width as u32, height as u32).unwrap();
        let (points, depth) = (sample.tensors["target.points"].to_f64(), sample.tensors["target.depth"].to_f64());
        let mask = sample.tensors["target.mask"].to_f64();
        for (view, (pose, k)) in cameras.iter().enumerate() {
            for at in 0..height * width {
                let i = view * height * width + at;
                assert_eq!(mask[i] > 0.0, depth[i] > 0.0);
                if depth[i] > 0.0 {
                    let p = pose.apply([points[3 * i], points[3 * i + 1], points[3 * i + 2]]);
                    let [u, v] = k.project(p);
                    assert!((u - (at % width) as f64 - 0.5).abs() < 0.02, "{u}");
                    assert!((v - (at / width) as f64 - 0.5).abs() < 0.02, "{v}");
                    assert!((p[2] - depth[i]).abs() < 1e-4);
                }
            }
        }
        let poses = decode_da3_encoding(&sample.tensors["target.pose"], width as u32, height as u32).unwrap();
        for ((pose, _), (same, _)) in poses.iter().zip(&cameras) {
            let (pose, same) = (pose.matrix().concat(), same.matrix().concat());
            assert!(pose.iter().zip(same).all(|(a, b)| (a - b).abs() < 1e-5), "{pose:?}");
        }
        let ty = "f32[1,3,28,42]".parse().unwrap();
        assert_eq!(sample.input("target.depth", &ty).unwrap().shape(), [1, 3, 28, 42]);
        let image = sample.input("image", &"f32[1,3,3,28,42]".parse().unwrap()).unwrap();
        let first = sample.tensors["images"].to_f32()[0];
        assert!((image.to_f32()[0] - (first - 0.485) / 0.229).abs() < 1e-5);
    }

    #[test]
    fn rays_at_their_depth_are_the_world_points() {
        let options = Options { views: vec![2], sizes: vec![[42, 28]], ..Options::default() };
        let source: Source = "synthetic".parse().unwrap();
        let drawn = Sampler::new(source, Split::Train, options).unwrap().sample(1).unwrap();
        let sample = Sample::try_from(&drawn).unwrap();
        let rays = sample.input("target.ray", &"f32[1,2,28,42,6]".parse().unwrap()).unwrap().to_f64();
        let (points, depth) = (sample.tensors["target.points"].to_f64(), sample.tensors["target.depth"].to_f64());
        for ((ray, point), depth) in rays.chunks(6).zip(points.chunks(3)).zip(depth).filter(|(_, depth)| *depth > 0.0) {
            for i in 0..3 {
                assert!((ray[3 + i] + depth * ray[i] - point[i]).abs() < 1e-5, "{ray:?} at {depth} for {point:?}");
            }
        }
        // The middle of a part of 2 x 3 pixels is the mean of theirs.
        let parts = sample.input("target.ray", &"f32[1,2,14,14,6]".parse().unwrap()).unwrap().to_f64();
        let mean =
            |i: usize| (0..2).flat_map(move |y| (0..3).map(move |x| 6 * (42 * y + x) + i)).map(|at| rays[at] / 6.0);
        assert!((0..6).all(|i| (parts[i] - mean(i).sum::<f64>()).abs() < 1e-6), "{:?}", &parts[..6]);
        assert!(sample.input("target.ray", &"f32[1,3,14,14,6]".parse().unwrap()).is_none());
    }
}
