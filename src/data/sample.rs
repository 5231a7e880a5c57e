//! What a training step takes: views of one scene at one size, in the coordinates that VGGT is trained in.

use lite3r_ir::Tensor;

use super::{
    overlap::{Coarse, turned_away},
    scene::Frame,
};
use crate::{
    Error, Kind, Result,
    geometry::{Camera, rotation, translation},
    recon::{FrameMap, Intrinsics, Picture, Pose, Preprocess, pose::encode_vggt, preprocess},
    scenes::{Posed, normalise_posed},
};

/// V views of one scene, at H x W pixels.
///
/// The first camera is the world, and the mean distance of all valid points from it is one. Pictures are fitted as
/// [`Preprocess::plain`] does it: scaled until they cover the frame, the middle cropped; depth is taken from the nearest
/// pixel, intrinsics follow.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The scene.
    pub scene: String,
    /// The numbers of the views in it.
    pub views: Vec<u32>,
    /// f32 [V, 3, H, W], red, green, blue in 0..=1.
    pub images: Tensor,
    /// f32 [V, 3, 4], camera from world; the first is the identity.
    pub extrinsics: Tensor,
    /// f32 [V, 3, 3], in pixels from the corner of the frame.
    pub intrinsics: Tensor,
    /// f32 [V, 9]: translation, quaternion x y z w, vertical and horizontal field of view, of camera from world
    /// (absT_quaR_FoV). The principal point is taken to be the middle of the frame.
    pub pose_encoding: Tensor,
    /// f32 [V, H, W], along the z axis of the camera; 0 where there is none.
    pub depth: Tensor,
    /// f32 [V, H, W]: 1 where depth may be used, else 0.
    pub mask: Tensor,
    /// Units of the data set that became one.
    pub scale: f64,
}

impl Sample {
    /// Fits loaded views of a scene to frames of `width` x `height`. Every view needs depth.
    ///
    /// # Errors
    /// `data.sample` for views without depth, cameras that have what all others see behind them, and views of which
    /// nothing is left.
    pub fn new(scene: &str, ids: &[u32], frames: Vec<Frame>, [width, height]: [u32; 2]) -> Result<Self> {
        let bare = ids.iter().zip(&frames).filter(|(_, f)| f.depth.is_none());
        let problems: Vec<String> =
            bare.map(|(id, _)| format!("{scene}: view {id} has no depth to learn from")).collect();
        if !problems.is_empty() {
            return Err(Error::all(Kind::BadFile, "data.sample", problems));
        }
        check_cameras(scene, ids, &frames)?;
        let pictures: Vec<Picture> = frames.iter().map(|f| f.picture.clone()).collect();
        let prepared = preprocess(&pictures, &Preprocess::plain(width, height, false))?;
        let views = frames.len();
        let (w, h) = (width as usize, height as usize);
        let fitted = frames.iter().zip(&prepared.frames).map(|(frame, map)| (camera(frame, map), depth(frame, map)));
        let (cameras, depths): (Vec<Camera>, Vec<Vec<f32>>) = fitted.unzip();
        let posed = cameras.iter().zip(&depths).map(|(c, d)| Posed { camera: *c, width: w, height: h, depth: d });
        let normal = normalise_posed(&posed.collect::<Vec<_>>(), 1).map_err(|_| {
            Error::bad_file("data.sample", format!("{scene}: nothing with a depth is left in views {ids:?}"))
        })?;
        let flat = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect::<Vec<f32>>();
        let tensor = |shape: &[usize], values: Vec<f32>| Tensor::from_f32(&[&[views], shape].concat(), values);
        let extrinsics = normal.cameras.iter().flat_map(|c| c.extrinsic[..3].concat()).collect();
        let intrinsics = normal.cameras.iter().flat_map(|c| c.intrinsic.concat()).collect();
        let encoding = normal.cameras.iter().flat_map(|c| {
            let pose = Pose { rotation: rotation(&c.extrinsic), translation: translation(&c.extrinsic) };
            encode_vggt(&pose, &inner(c), width, height)
        });
        let depth: Vec<f32> = normal.depths.concat();
        let mask = depth.iter().map(|d| if *d > 0.0 { 1.0 } else { 0.0 }).collect();
        Ok(Self {
            scene: scene.into(),
            views: ids.to_vec(),
            images: prepared.tensor.reshaped(&[views, 3, h, w]).expect("one batch of views"),
            extrinsics: tensor(&[3, 4], flat(extrinsics)),
            intrinsics: tensor(&[3, 3], flat(intrinsics)),
            pose_encoding: tensor(&[9], flat(encoding.collect())),
            depth: tensor(&[h, w], depth),
            mask: tensor(&[h, w], mask),
            scale: normal.scale,
        })
    }
}

fn check_cameras(scene: &str, ids: &[u32], frames: &[Frame]) -> Result<()> {
    let coarse = frames.iter().filter_map(|f| Coarse::of(&f.picture, f.camera, f.depth.as_deref()));
    let away = turned_away(&coarse.collect::<Vec<_>>(), |_| (0..frames.len()).collect());
    let say = |v: &usize| {
        format!(
            "{scene}: all that the other views see lies behind the camera of view {}; extrinsics go from world to camera",
            ids[*v]
        )
    };
    let problems: Vec<String> = away.iter().map(say).collect();
    if problems.is_empty() { Ok(()) } else { Err(Error::all(Kind::BadFile, "data.sample", problems)) }
}

fn inner(camera: &Camera) -> Intrinsics {
    let k = &camera.intrinsic;
    Intrinsics { fx: k[0][0], fy: k[1][1], cx: k[0][2], cy: k[1][2] }
}

/// The camera of a frame. Both count from the corner of the image, so the map applies as it is.
fn camera(frame: &Frame, map: &FrameMap) -> Camera {
    Camera { intrinsic: map.to_processed(inner(&frame.camera)).matrix(), ..frame.camera }
}

/// Depth at the pixels of a frame: of the pixel of the image that the middle of each lies in.
fn depth(frame: &Frame, map: &FrameMap) -> Vec<f32> {
    let [width, height] = map.processed;
    let source = |axis: usize, i: u32| {
        let at = ((f64::from(i) + 0.5 - map.offset[axis]) / map.scale[axis]).floor();
        (0.0..f64::from(map.original[axis])).contains(&at).then_some(at as usize)
    };
    let columns: Vec<Option<usize>> = (0..width).map(|x| source(0, x)).collect();
    let values = frame.depth.as_deref().unwrap_or_default();
    let row = |y: u32| {
        let row = source(1, y);
        columns.iter().map(move |column| {
            let at = row? * map.original[0] as usize + (*column)?;
            frame.valid[at].then(|| values[at])
        })
    };
    (0..height).flat_map(row).map(Option::unwrap_or_default).collect()
}
