//! Scenes as a training step takes them: images, and the truth that losses compare with.

use std::{collections::BTreeMap, sync::Arc};

use lite3r_ir::{DType, Tensor, ValueType};

use crate::{
    Error, Result,
    backbones::PATCH,
    data,
    geometry::{Camera, rigid, sub},
    plan::{Entry, Port},
    recon::{
        IMAGENET_MEAN, IMAGENET_STD,
        pose::{decode_vggt, encode_da3},
    },
    scenes::Posed,
};

/// Images and targets by the names of the inputs of a gradients entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// How many scenes there are, B.
    pub scenes: usize,
    /// How many views each has, S.
    pub views: usize,
    /// Their cameras, in pixels of the images, scene by scene. The first of a scene is its world.
    pub cameras: Vec<Camera>,
    /// `images` f32 [B, S, 3, H, W] in 0..=1, `target.pose_enc` [B, S, 9] (camera from world), `target.pose` [B, S, 9] (world
    /// from camera), `target.depth` [B, S, H, W, 1], `target.mask` [B, S, H, W], `target.points` [B, S, H, W, 3],
    /// `target.match` [B, S, patches, 3]: where in the next view, in patches, lies what the middle of a patch shows, and
    /// whether it is seen there.
    pub tensors: BTreeMap<String, Tensor>,
}

impl TryFrom<&data::Sample> for Sample {
    type Error = Error;

    /// One scene, with the world points of all pixels that have a depth. Errors: `data.sample` for tensors that do not fit
    /// each other; `recon.pose` for encodings that are no cameras.
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
        let planes = depth.chunks(height * width).zip(&cameras);
        let seen: Vec<Posed<'_>> =
            planes.map(|(depth, camera)| Posed { camera: *camera, width, height, depth }).collect();
        let mut points = Vec::with_capacity(3 * depth.len());
        for view in &seen {
            let lift = view.lift();
            points.extend((0..height * width).flat_map(|at| lift(at).unwrap_or_default().map(|x| x as f32)));
        }
        let image = [1, views, height, width];
        let misfit = || Error::bad_file("data.sample", format!("{}: tensors do not fit each other", sample.scene));
        let shaped = |tensor: &Tensor, shape: &[usize]| tensor.reshaped(shape).ok_or_else(misfit);
        let mut tensors = vec![
            ("images", shaped(&sample.images, &[1, views, 3, height, width])?),
            ("target.pose_enc", shaped(&sample.pose_encoding, &[1, views, 9])?),
            ("target.pose", pose),
            ("target.depth", shaped(&sample.depth, &[&image[..], &[1]].concat())?),
            ("target.mask", shaped(&sample.mask, &image)?),
            ("target.points", Tensor::from_f32(&[&image[..], &[3]].concat(), points)),
        ];
        if height % PATCH == 0 && width % PATCH == 0 {
            tensors.push(("target.match", matches(&seen)));
        }
        let tensors = tensors.into_iter().map(|(name, tensor)| (name.to_string(), tensor)).collect();
        Ok(Self { scenes: 1, views, cameras, tensors })
    }
}

/// Where the middles of patches lie in the next view: [1, S, patches, 3].
fn matches(seen: &[Posed<'_>]) -> Tensor {
    let mut values = Vec::new();
    for (view, next) in seen.iter().zip(seen.iter().cycle().skip(1)) {
        let lift = view.lift();
        let (rows, columns) = (view.height / PATCH, view.width / PATCH);
        for patch in 0..rows * columns {
            let middle = |i: usize| i * PATCH + PATCH / 2;
            let point = lift(middle(patch / columns) * view.width + middle(patch % columns));
            let place = point.and_then(|p| next.sees(p)).map(|at| at.map(|x| (x / PATCH as f64) as f32));
            values.extend(place.map_or([0.0; 3], |[x, y]| [x, y, 1.0]));
        }
    }
    let patches = values.len() / (3 * seen.len().max(1));
    Tensor::from_f32(&[1, seen.len(), patches, 3], values)
}

impl Sample {
    /// Scenes of the same shapes, one after the other. Errors: `data.sample` for none, and for shapes that differ.
    pub fn join(samples: Vec<Self>) -> Result<Self> {
        let misfit = || Error::bad_file("data.sample", "scenes of a sample must have the same views and sizes");
        let Some(first) = samples.first() else { return Err(misfit()) };
        if samples.len() == 1 {
            return Ok(samples.into_iter().next().expect("there is one"));
        }
        let mut tensors = BTreeMap::new();
        for (name, like) in &first.tensors {
            let mut values: Arc<[f32]> = std::iter::repeat_n(0.0, samples.len() * like.len()).collect();
            let all = Arc::get_mut(&mut values).expect("nobody else has it yet");
            for (sample, to) in samples.iter().zip(all.chunks_mut(like.len().max(1))) {
                let one = sample.tensors.get(name).filter(|t| t.value_type() == like.value_type());
                let one = one.filter(|t| t.dtype() == DType::F32).ok_or_else(misfit)?;
                bytemuck::cast_slice_mut(to).copy_from_slice(one.bytes());
            }
            let shape = [&[like.shape()[0] * samples.len()], &like.shape()[1..]].concat();
            tensors.insert(name.clone(), Tensor::from_f32(&shape, values));
        }
        let cameras = samples.iter().flat_map(|s| s.cameras.iter().copied()).collect();
        Ok(Self { scenes: samples.iter().map(|s| s.scenes).sum(), views: first.views, cameras, tensors })
    }

    /// What an entry takes of the scenes, by name.
    pub fn inputs(&self, entry: &Entry) -> BTreeMap<String, Tensor> {
        let ty = |port: &Port| &entry.buffers[port.buffer as usize].ty;
        entry.inputs.iter().filter_map(|p| Some((p.name.clone(), self.input(&p.name, ty(p))?))).collect()
    }

    /// What an input of that name and type takes of the scenes: as it is, in the shape that is asked for; for `image` the
    /// images after ImageNet normalisation; for `target.ray` [1, S, h, w, 6] the rays of h x w parts of every image. None
    /// where they have nothing of the kind.
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
        // Where the middle of a patch is seen again is where its point projects to in the next view.
        let matches = sample.tensors["target.match"].to_f64();
        let (columns, n) = (width / PATCH, width / PATCH * (height / PATCH));
        let mut seen = 0;
        for (i, place) in matches.chunks(3).enumerate().filter(|(_, place)| place[2] > 0.0) {
            let (view, patch) = (i / n, i % n);
            let at = (patch / columns * PATCH + PATCH / 2) * width + patch % columns * PATCH + PATCH / 2;
            let point = &points[3 * (view * height * width + at)..][..3];
            let (pose, k) = &cameras[(view + 1) % 3];
            let [u, v] = k.project(pose.apply([point[0], point[1], point[2]]));
            let off = (u / PATCH as f64 - place[0]).abs() + (v / PATCH as f64 - place[1]).abs();
            assert!(off < 1e-3 && place[0] < columns as f64, "{off}");
            seen += 1;
        }
        assert!(seen > n, "{seen} of {}", 3 * n);
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
