use lite3r_ir::DType;

use super::*;
use crate::recon::{Preprocess, preprocess};

fn outputs(entries: Vec<(&str, Tensor)>) -> BTreeMap<String, Tensor> {
    entries.into_iter().map(|(n, t)| (n.to_string(), t)).collect()
}

fn pose_enc(views: usize) -> Tensor {
    let one = [0., 0., 0., 0., 0., 0., 1., 1., 1.2];
    Tensor::from_f64(DType::F32, &[1, views, 9], &vec![one; views].concat())
}

fn pictures(sizes: &[[u32; 2]]) -> Vec<Picture> {
    let picture = |(i, s): (usize, &[u32; 2])| Picture::new(format!("{i}.png"), RgbImage::new(s[0], s[1]));
    sizes.iter().enumerate().map(picture).collect()
}

/// A depth that is linear over the frame comes back linear at the original resolution, where the frame shows it.
#[test]
fn linear_depth_is_resampled_exactly() {
    let pictures = pictures(&[[120, 60], [90, 130]]);
    let prepared = preprocess(&pictures, &Preprocess::plain(56, 28, false)).unwrap();
    let plane: Vec<f64> = (0..28 * 56).map(|i| 40.0 + 0.05 * (i % 56) as f64 + 0.02 * (i / 56) as f64).collect();
    let depth = Tensor::from_f64(DType::F32, &[1, 2, 28, 56, 1], &[plane.clone(), plane].concat());
    let all = outputs(vec![("pose_enc", pose_enc(2)), ("depth", depth)]);
    let r = Reconstruction::from_outputs(&all, &prepared, &pictures, Family::detect(&all).unwrap()).unwrap();
    assert_eq!(r.dropped, 0);
    for (view, map) in r.views.iter().zip(&prepared.frames) {
        let [width, height] = view.size();
        let mut seen = 0;
        for (i, d) in view.depth.iter().enumerate() {
            let (u, v) = (i as u32 % width, i as u32 / width);
            match (map.sample(0, u), map.sample(1, v)) {
                (Some(x), Some(y)) => {
                    let want = 40.0 + 0.05 * x.clamp(0.0, 55.0) + 0.02 * y.clamp(0.0, 27.0);
                    assert!((*d as f64 - want).abs() < 1e-4, "{u} {v}: {d} against {want}");
                    seen += 1;
                }
                _ => assert_eq!(*d, 0.0),
            }
        }
        // A centre crop loses only what sticks out of the frame's shape.
        let ratio = (width as f64 / 2.0).min(height as f64);
        assert!((seen as f64 - 2.0 * ratio * ratio).abs() < 3.0 * width as f64, "{seen} of {width}x{height}");
        assert!((view.intrinsics.cx - width as f64 / 2.0).abs() < 1.5);
        // The field of view of the frame, over the original pixels it shows.
        let shown = 56.0 / map.scale[0];
        assert!((view.intrinsics.fx - shown / 2.0 / 0.6f64.tan()).abs() < 1e-3);
    }
}

#[test]
fn surfaces_do_not_blend_across_an_edge() {
    let map = FrameMap::identity(40, 1).resized(4, 1);
    let out = to_original(&[1.0, 1.0, 5.0, 5.0], &map, true);
    assert!(out[..20].iter().all(|d| *d == 1.0) && out[20..].iter().all(|d| *d == 5.0), "{out:?}");
    let smooth = to_original(&[1.0, 1.0, 5.0, 5.0], &map, false);
    assert!(smooth.iter().any(|d| *d > 2.0 && *d < 4.0));
    // What is no depth stays none and does not spread.
    let holes = to_original(&[2.0, f32::NAN, -1.0, f32::INFINITY], &map, true);
    assert!(holes[..10].iter().all(|d| *d == 2.0) && holes[10..].iter().all(|d| *d == 0.0), "{holes:?}");
}

#[test]
fn world_points_stand_in_for_depth() {
    let pictures = pictures(&[[14, 14]]);
    let prepared = preprocess(&pictures, &Preprocess::plain(14, 14, false)).unwrap();
    let points = Tensor::from_f64(DType::F32, &[1, 1, 14, 14, 3], &[[7.0, 8.0, 2.5]; 196].concat());
    let all = outputs(vec![("pose_enc", pose_enc(1)), ("world_points", points)]);
    let r = Reconstruction::from_outputs(&all, &prepared, &pictures, Family::Vggt).unwrap();
    assert!(r.views[0].depth.iter().all(|d| *d == 2.5) && r.views[0].confidence.iter().all(|c| *c == 1.0));
}

#[test]
fn da3_outputs_without_a_leading_dimension() {
    let pictures = pictures(&[[28, 28]]);
    let prepared = preprocess(&pictures, &Preprocess::plain(14, 14, true)).unwrap();
    let e = Tensor::from_f64(DType::F32, &[1, 3, 4], &[1., 0., 0., 4., 0., 1., 0., 5., 0., 0., 1., 6.]);
    let k = Tensor::from_f64(DType::F32, &[1, 3, 3], &[10., 0., 7., 0., 12., 7., 0., 0., 1.]);
    let depth = Tensor::from_f64(DType::F16, &[1, 14, 14], &[2.0; 196]);
    let conf = Tensor::from_f64(DType::F32, &[1, 14, 14], &[f64::NAN; 196]);
    let all = outputs(vec![("extrinsics", e), ("intrinsics", k), ("depth", depth), ("depth_conf", conf)]);
    assert_eq!(Family::detect(&all).unwrap(), Family::Da3);
    let r = Reconstruction::from_outputs(&all, &prepared, &pictures, Family::Da3).unwrap();
    let view = &r.views[0];
    assert_eq!(view.intrinsics, Intrinsics { fx: 20.0, fy: 24.0, cx: 14.0, cy: 14.0 });
    assert_eq!((view.pose.translation, r.dropped), ([4., 5., 6.], 196));
    assert!(view.confidence.iter().all(|c| *c == 0.0));
    assert_eq!(r.in_first_camera().views[0].pose, Pose { translation: [0.0; 3], ..view.pose });
}

#[test]
fn what_is_missing_or_does_not_fit_is_named() {
    let pictures = pictures(&[[14, 14]]);
    let prepared = preprocess(&pictures, &Preprocess::plain(14, 14, false)).unwrap();
    let error = |entries| {
        let all = outputs(entries);
        Family::detect(&all).and_then(|f| Reconstruction::from_outputs(&all, &prepared, &pictures, f)).unwrap_err()
    };
    let depth = |shape: &[usize]| Tensor::from_f64(DType::F32, shape, &vec![1.0; shape.iter().product()]);
    let e = error(vec![("depth", depth(&[1, 1, 14, 14]))]);
    assert!(
        e.code == "recon.outputs" && e.to_string().contains("pose_enc") && e.to_string().contains("outputs are depth"),
        "{e}"
    );
    let e = error(vec![("pose_enc", pose_enc(1))]);
    assert!(e.code == "recon.outputs" && e.to_string().contains("world_points"), "{e}");
    let e = error(vec![("pose_enc", pose_enc(1)), ("depth", depth(&[1, 1, 14, 28]))]);
    assert!(e.code == "recon.shape" && e.to_string().contains("[1, 1, 14, 28]"), "{e}");
    let e = error(vec![("pose_enc", pose_enc(2)), ("depth", depth(&[1, 1, 14, 14]))]);
    assert!(e.code == "recon.shape" && e.to_string().contains("2 views"), "{e}");
}
