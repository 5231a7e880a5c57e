//! Frames against what Pillow and OpenCV made of the same pictures (`tools/record_preprocessing.py`).

use image::{GrayImage, Luma, Rgb};
use lite3r_ir::DType;
use npyz::npz::NpzArchive;

use super::*;
use crate::recon::resample::{opencv, pillow};

struct Recorded(NpzArchive<std::io::BufReader<std::fs::File>>);

impl Recorded {
    fn open(name: &str) -> Self {
        let path = format!("{}/tests/fixtures/preprocess/{name}.npz", env!("CARGO_MANIFEST_DIR"));
        Self(NpzArchive::open(path).unwrap())
    }

    fn names(&self) -> Vec<String> {
        self.0.array_names().map(String::from).collect()
    }

    fn get(&mut self, name: &str) -> Option<(Vec<usize>, Vec<u8>)> {
        let file = self.0.by_name(name).unwrap()?;
        let shape = file.shape().iter().map(|d| *d as usize).collect();
        Some((shape, file.into_vec().unwrap()))
    }

    fn shape(&mut self, name: &str) -> Vec<usize> {
        let values: Vec<i64> = self.0.by_name(name).unwrap().unwrap().into_vec().unwrap();
        values.into_iter().map(|d| d as usize).collect()
    }

    fn pictures(&mut self) -> Vec<Picture> {
        let inputs = (0..).map_while(|i| self.get(&format!("in_{i}")));
        inputs.enumerate().map(|(i, (shape, values))| picture(&format!("{i}.png"), &shape, &values)).collect()
    }
}

fn picture(name: &str, shape: &[usize], values: &[u8]) -> Picture {
    let (height, width, channels) = (shape[0] as u32, shape[1] as u32, shape[2]);
    let pixels: Vec<&[u8]> = values.chunks_exact(channels).collect();
    let at = |x: u32, y: u32| pixels[(y * width + x) as usize];
    let mut p =
        Picture::new(name, RgbImage::from_fn(width, height, |x, y| Rgb([at(x, y)[0], at(x, y)[1], at(x, y)[2]])));
    p.alpha = (channels == 4).then(|| GrayImage::from_fn(width, height, |x, y| Luma([at(x, y)[3]])));
    p
}

/// The tensor's values as the bytes of [S,H,W,3], undoing the division by 255 exactly.
fn frame_bytes(prepared: &Prepared) -> (Vec<usize>, Vec<u8>) {
    let s = prepared.tensor.shape();
    let (views, height, width) = (s[1], s[3], s[4]);
    let values = prepared.tensor.as_f32().unwrap();
    let plane = height * width;
    let bytes = (0..views * plane * 3).map(|i| {
        let (view, pixel, c) = (i / 3 / plane, i / 3 % plane, i % 3);
        (values[(view * 3 + c) * plane + pixel] * 255.0).round() as u8
    });
    (vec![views, height, width, 3], bytes.collect())
}

fn check_pipeline(file: &str, how: impl Fn(&str, u32) -> Method) {
    let mut recorded = Recorded::open(file);
    let pictures = recorded.pictures();
    assert_eq!(pictures.len(), 3);
    let mut checked = 0;
    for name in recorded.names() {
        let Some((method, size)) = name.trim_end_matches("_sample").rsplit_once('_') else { continue };
        let (Ok(size), false) = (size.parse(), method == "in") else { continue };
        let prepared = preprocess(&pictures, &Preprocess { method: how(method, size), normalise: false }).unwrap();
        let (shape, bytes) = frame_bytes(&prepared);
        let (want_shape, want) = recorded.get(&name).unwrap();
        if name.ends_with("_sample") {
            assert_eq!(shape, recorded.shape(&name.replace("_sample", "_shape")), "{name}");
            assert!(bytes.iter().step_by(1999).eq(&want), "{name}");
        } else {
            assert_eq!((shape, bytes == want), (want_shape, true), "{name}");
        }
        checked += 1;
    }
    assert!(checked >= 4, "{checked} cases of {file}");
}

#[test]
fn resampling_is_bit_exact() {
    let mut recorded = Recorded::open("resize");
    let mut checked = 0;
    for name in recorded.names() {
        let parts: Vec<&str> = name.split('_').collect();
        let [method, source, size] = parts[..] else { continue };
        let (width, height) = size.split_once('x').unwrap();
        let (width, height) = (width.parse().unwrap(), height.parse().unwrap());
        let (shape, values) = recorded.get(source).unwrap();
        let image = picture("", &shape, &values).rgb;
        let out = match method {
            "pillow" => pillow::bicubic(&image, width, height),
            "cubic" => opencv::cubic(&image, width, height),
            _ => opencv::area(&image, width, height),
        };
        let (_, want) = recorded.get(&name).unwrap();
        let wrong = out.as_raw().iter().zip(&want).filter(|(a, b)| a != b).count();
        assert_eq!((wrong, out.as_raw().len()), (0, want.len()), "{name}");
        checked += 1;
    }
    assert_eq!(checked, 44);
}

#[test]
fn vggt_frames_are_those_of_its_loader() {
    check_pipeline("vggt", |mode, size| {
        let mode = VggtMode::WORDS.iter().find(|w| w.0 == mode).unwrap().1;
        Method::Vggt { mode, size }
    });
}

#[test]
fn da3_frames_are_those_of_its_input_processor() {
    check_pipeline("da3", |method, resolution| {
        let method = Da3Method::WORDS.iter().find(|w| w.0 == method).unwrap().1;
        Method::Da3 { method, resolution }
    });
}

#[test]
fn normalisation_is_imagenets() {
    let pictures = [Picture::new("x", RgbImage::from_pixel(14, 14, Rgb([0, 128, 255])))];
    let how = Preprocess { normalise: true, ..Preprocess::plain(14, 14, false) };
    let values = preprocess(&pictures, &how).unwrap().tensor.to_f32();
    for (c, v) in [0.0f64, 128.0 / 255.0, 1.0].into_iter().enumerate() {
        let want = (v - [0.485, 0.456, 0.406][c]) / [0.229, 0.224, 0.225][c];
        assert!((values[c * 196] as f64 - want).abs() < 1e-6);
    }
}

#[test]
fn graphs_that_normalise_are_recognised_by_their_mean() {
    let mean = Tensor::from_f64(DType::F32, &[1, 3, 1, 1], &[0.485, 0.456, 0.406]);
    let other = Tensor::from_f64(DType::F32, &[3], &[0.5, 0.5, 0.5]);
    assert!(graph_normalises([&other, &mean]));
    assert!(!graph_normalises([&other, &Tensor::scalar(DType::F32, 0.485)]));
}

/// The map says where a pixel went: a white dot in the original is brightest where its map points.
#[test]
fn maps_point_where_pixels_went() {
    let methods = [
        Method::Vggt { mode: VggtMode::Crop, size: 112 },
        Method::Vggt { mode: VggtMode::Pad, size: 112 },
        Method::Da3 { method: Da3Method::UpperBoundResize, resolution: 112 },
        Method::Da3 { method: Da3Method::LowerBoundCrop, resolution: 56 },
        Method::Plain { fit: Fit::Crop, width: 84, height: 70 },
        Method::Plain { fit: Fit::Pad, width: 84, height: 70 },
        Method::Plain { fit: Fit::Stretch, width: 84, height: 70 },
    ];
    for method in methods {
        for (width, height) in [(60, 100), (203, 151)] {
            let (x, y) = (width / 2 - 9, height / 2 + 7);
            let near = |a: u32, b: u32| a.abs_diff(b) <= 2;
            let dot = RgbImage::from_fn(width, height, |u, v| Rgb([if near(u, x) && near(v, y) { 250 } else { 0 }; 3]));
            let prepared = preprocess(&[Picture::new("dot", dot)], &Preprocess { method, normalise: false }).unwrap();
            let map = prepared.frames[0];
            let (shape, bytes) = frame_bytes(&prepared);
            // Padding is white with 255, the dot at most about 250; weigh the pixels of the content by brightness.
            let mut sums = [0f64; 3];
            for (i, p) in bytes.chunks_exact(3).enumerate() {
                let at = [i % shape[2], i / shape[2]];
                let inside = (0..2).all(|a| {
                    let position = (at[a] as f64 + 0.5 - map.offset[a]) / map.scale[a];
                    position > 0.0 && position < map.original[a] as f64
                });
                if inside {
                    let w = p[0] as f64;
                    sums = [sums[0] + w, sums[1] + w * at[0] as f64, sums[2] + w * at[1] as f64];
                }
            }
            let found = [sums[1] / sums[0], sums[2] / sums[0]];
            let want = [map.sample(0, x).unwrap(), map.sample(1, y).unwrap()];
            for a in 0..2 {
                assert!((found[a] - want[a]).abs() < 0.25, "{method:?} {width}x{height}: {found:?} against {want:?}");
            }
        }
    }
}

#[test]
fn pictures_and_sizes_without_a_frame_are_errors() {
    let thin = Picture::new("thin.png", RgbImage::new(2000, 3));
    let good = Picture::new("good.png", RgbImage::new(20, 30));
    for how in [Preprocess::VGGT, Preprocess::DA3] {
        let error = preprocess(&[thin.clone(), good.clone(), thin.clone()], &how).unwrap_err();
        assert_eq!((error.code, error.exit_code(), error.problems.len()), ("recon.preprocess", 4, 2), "{error}");
        assert!(error.problems[0].contains("thin.png: 2000x3"), "{error}");
        assert_eq!(preprocess(&[], &how).unwrap_err().code, "recon.usage");
    }
    let vggt = |size| Preprocess { method: Method::Vggt { mode: VggtMode::Crop, size }, normalise: false };
    for how in [vggt(0), vggt(500), Preprocess::plain(0, 14, false)] {
        assert_eq!(preprocess(std::slice::from_ref(&good), &how).unwrap_err().code, "recon.usage");
    }
}
