use std::{fs, path::Path};

use image::ImageFormat;

use super::*;
use crate::{
    data::{
        Broken, Loader, Options, Sample, Sampler, Set, Source, Split, Synthetic,
        check::{check, recognise},
    },
    geometry::Vec3,
    recon::pose::decode_vggt,
    scenes::Recipe,
};

const SMALL: Synthetic =
    Synthetic { recipe: Recipe::Varied, split: Split::Train, seed: 3, scenes: 3, views: 6, size: [72, 54] };

fn source(root: &Path) -> Source {
    Source::BlendedMvs(root.into())
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    SMALL.write(folder.path(), ImageFormat::Png, |_| {}).unwrap();
    Synthetic { split: Split::Test, scenes: 2, ..SMALL }.write(folder.path(), ImageFormat::Jpeg, |_| {}).unwrap();
    let set = Set::open(source(folder.path()), Some(Split::Train)).unwrap().complete().unwrap();
    assert_eq!(set.scenes, ["train-3-000000", "train-3-000001", "train-3-000002"]);
    for index in 0..3 {
        let read = set.scene(index, Broken::Refuse).unwrap();
        let drawn = SMALL.scene(index as u64).unwrap();
        assert_eq!(read.views.len(), 6);
        for (a, b) in read.views.iter().zip(&drawn.views) {
            assert_eq!((a.id, a.size, &a.neighbours), (b.id, b.size, &b.neighbours));
            assert_eq!(a.camera.extrinsic, b.camera.extrinsic);
            let (k, l) = (a.camera.intrinsic.concat(), b.camera.intrinsic.concat());
            assert!(k.iter().zip(&l).all(|(a, b)| (a - b).abs() < 1e-12));
            let (a, b) = (a.load().unwrap(), b.load().unwrap());
            assert_eq!((&a.depth, &a.valid), (&b.depth, &b.valid), "depth is exact");
            assert_eq!(a.picture.rgb, b.picture.rgb, "PNG loses nothing");
        }
        let [near, far] = read.views[0].range.unwrap();
        let depth = read.views[0].load().unwrap().depth.unwrap();
        assert!(depth.iter().all(|d| *d == 0.0 || (near..=far).contains(&f64::from(*d))));
    }
    let test = Set::open(source(folder.path()), Some(Split::Test)).unwrap();
    assert!(test.scene(1, Broken::LeaveOut).unwrap().left_out.is_empty());
    assert_eq!(Set::open(source(folder.path()), Some(Split::Val)).unwrap_err().code, "data.set");
}

#[test]
fn splits_share_no_scene() {
    let of = |split, seed, index| Synthetic { split, seed, ..SMALL }.draw(index, 0..2);
    for recipe in [Recipe::Arc, Recipe::Varied] {
        for (seed, index) in [(0, 0), (0, 1), (1, 0), (1, 5)] {
            let a = Synthetic { recipe, seed, ..SMALL }.draw(index, 0..2);
            for split in [Split::Val, Split::Test] {
                let b = Synthetic { recipe, seed, split, ..SMALL }.draw(index, 0..2);
                assert!(a.objects != b.objects && a.views != b.views && a.room != b.room && a.lights != b.lights);
            }
        }
    }
    assert_eq!(of(Split::Val, 1, 2), of(Split::Val, 1, 2));
}

#[test]
fn lists_that_contradict_each_other_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let val = "5a6400933d809f1d8200af15";
    let cams = |name: &str| fs::create_dir_all(folder.path().join(name).join("cams")).unwrap();
    for name in ["a", "b", "c", val] {
        cams(name);
    }
    put(&folder.path().join("training_list.txt"), "a\nmissing\n");
    put(&folder.path().join("test_list.txt"), "b\r\n");
    let open = |split| Set::open(source(folder.path()), split);
    let train = open(Some(Split::Train)).unwrap();
    // One official scene makes the official lists count.
    assert_eq!((train.scenes.len(), train.missing.len()), (1, 107));
    let error = train.complete().unwrap_err();
    assert_eq!((error.code, error.problems.len()), ("data.set", 107));
    assert!(error.problems.iter().any(|p| p.contains("the scene missing is missing")));
    assert_eq!(open(Some(Split::Val)).unwrap().scenes, [val]);
    let all = open(None).unwrap();
    assert_eq!((all.scenes.len(), all.purpose(2), all.purpose(3)), (4, Some(Split::Test), None));
    put(&folder.path().join("training_list.txt"), format!("a\nb\n{val}\n"));
    let error = open(Some(Split::Test)).unwrap_err();
    assert_eq!((error.code, error.problems.len()), ("data.split", 2), "{error}");
}

#[test]
fn sources_are_read_from_text() {
    for text in ["blendedmvs:a/b", "dtu:x", "dtu64:x", "synthetic:varied", "synthetic:arc"] {
        assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
    }
    assert_eq!("synthetic".parse::<Source>().unwrap(), Source::Synthetic(Synthetic::default()));
    for text in ["", "dtu", "dtu:", "blended:x", "synthetic:real"] {
        assert_eq!(text.parse::<Source>().unwrap_err().exit_code(), 2, "{text}");
    }
    let dtu64 = Set::open(Source::Dtu64("x".into()), Some(Split::Train));
    assert_eq!(dtu64.unwrap_err().code, "data.split");
}

#[test]
fn a_check_says_what_is_there_and_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(recognise(folder.path()).unwrap_err().code, "data.set");
    SMALL.write(folder.path(), ImageFormat::Jpeg, |_| {}).unwrap();
    let source = recognise(folder.path()).unwrap();
    let report = check(source.clone(), true, |_| {}).unwrap();
    assert_eq!((report.scenes.len(), report.problems()), (3, Vec::new()));
    let scene = &report.scenes[1];
    assert_eq!((scene.split, scene.views, scene.with_depth, scene.sizes["72x54"]), (Some(Split::Train), 6, 6, 6));
    assert!(scene.covered.unwrap() > 0.3);
    // Camera to world instead of world to camera: the view looks away from all others.
    let first = folder.path().join("train-3-000000");
    let path = first.join("cams/00000002_cam.txt");
    let mut cam = crate::data::Cam::parse(&fs::read_to_string(&path).unwrap()).unwrap();
    let m = &mut cam.camera.extrinsic;
    (0..3).for_each(|j| {
        m[0][j] = -m[0][j];
        m[2][j] = -m[2][j];
    });
    (m[0][3], m[2][3]) = (-m[0][3], -m[2][3]);
    put(&path, cam.text());
    put(&first.join("rendered_depth_maps/00000004.pfm"), "");
    let report = check(source.clone(), true, |_| {}).unwrap();
    let problems = report.problems();
    assert!(problems.iter().any(|p| p.contains("view 2 see lies behind its camera")), "{problems:?}");
    assert!(problems.iter().any(|p| p.contains("00000004.pfm: the file is empty")), "{problems:?}");
    assert_eq!((problems.len(), report.scenes[0].views), (2, 5));
    assert_eq!(check(source, false, |_| {}).unwrap().problems().len(), 1, "headers show the empty file alone");
}

fn options(threads: usize) -> Options {
    Options { views: vec![2, 3, 4], sizes: vec![[42, 28], [28, 28]], batch: 2, seed: 5, threads, ..Options::default() }
}

fn bytes(sample: &Sample) -> Vec<u8> {
    let tensors = [&sample.images, &sample.extrinsics, &sample.intrinsics, &sample.pose_encoding, &sample.depth];
    let mut all: Vec<u8> = tensors.into_iter().chain([&sample.mask]).flat_map(|t| t.bytes().to_vec()).collect();
    all.extend(sample.scene.as_bytes());
    all.extend(sample.views.iter().map(|v| *v as u8));
    all
}

#[test]
fn samples_depend_on_seed_and_step_alone() {
    let folder = tempfile::tempdir().unwrap();
    SMALL.write(folder.path(), ImageFormat::Png, |_| {}).unwrap();
    for source in [source(folder.path()), Source::Synthetic(SMALL)] {
        let take = |threads, first, n| -> Vec<Vec<u8>> {
            let loader = Loader::new(source.clone(), Split::Train, options(threads), first).unwrap();
            loader.take(n).map(|s| bytes(&s.unwrap())).collect()
        };
        let one = take(1, 0, 10);
        assert_eq!(one, take(3, 0, 10));
        assert_eq!(one[4..], take(4, 4, 6), "from any step on");
        assert!((1..10).all(|i| one[i] != one[i - 1]));
        let sampler = Sampler::new(source.clone(), Split::Train, options(1)).unwrap();
        let epoch: std::collections::BTreeSet<String> = (3..6).map(|i| sampler.sample(i).unwrap().scene).collect();
        assert_eq!(epoch.len(), 3, "every scene once an epoch");
        let other = Sampler::new(source.clone(), Split::Train, Options { seed: 6, ..options(1) }).unwrap();
        assert!((0..9).any(|i| bytes(&other.sample(i).unwrap()) != bytes(&sampler.sample(i).unwrap())));
    }
}

#[test]
fn a_sample_is_consistent() {
    let sampler = Sampler::new(Source::Synthetic(SMALL), Split::Train, options(1)).unwrap();
    for step in 0..6 {
        let sample = sampler.sample(step).unwrap();
        let (views, [width, height]) = sampler.shape(step / 2);
        let (w, h) = (width as usize, height as usize);
        assert_eq!(sample.images.shape(), [views, 3, h, w]);
        assert_eq!((sample.depth.shape(), sample.mask.shape()), (&[views, h, w][..], &[views, h, w][..]));
        let images = sample.images.to_f64();
        assert!(images.iter().all(|v| (0.0..=1.0).contains(v)));
        let (e, k) = (sample.extrinsics.to_f64(), sample.intrinsics.to_f64());
        let first = [1., 0., 0., 0., 0., 1., 0., 0., 0., 0., 1., 0.];
        assert!(e[..12].iter().zip(first).all(|(a, b)| (a - b).abs() < 1e-6), "the first camera is the world");
        // The encoding says the same as the matrices.
        let decoded = decode_vggt(&sample.pose_encoding, width, height).unwrap();
        for (v, (pose, inner)) in decoded.iter().enumerate() {
            let matrix = pose.matrix().concat();
            assert!(matrix.iter().zip(&e[12 * v..]).all(|(a, b)| (a - b).abs() < 1e-5));
            assert!((inner.fx - k[9 * v]).abs() < 1e-4 * inner.fx && (inner.fy - k[9 * v + 4]).abs() < 1e-4 * inner.fy);
        }
        // Points have a mean distance of one from the first camera.
        let (depth, mask) = (sample.depth.to_f64(), sample.mask.to_f64());
        let mut distances = Vec::new();
        for i in (0..views * w * h).filter(|i| mask[*i] == 1.0) {
            let (view, column, row) = (i / (w * h), i % w, i / w % h);
            let (e, k) = (&e[12 * view..], &k[9 * view..]);
            let d = depth[i];
            let c = [
                (column as f64 + 0.5 - k[2]) / k[0] * d - e[3],
                (row as f64 + 0.5 - k[5]) / k[4] * d - e[7],
                d - e[11],
            ];
            let p: Vec3 = std::array::from_fn(|j| e[j] * c[0] + e[4 + j] * c[1] + e[8 + j] * c[2]);
            distances.push(crate::geometry::norm(p));
        }
        assert!((distances.iter().sum::<f64>() / distances.len() as f64 - 1.0).abs() < 1e-4);
        assert!(depth.iter().zip(&mask).all(|(d, m)| (*d > 0.0) == (*m == 1.0)));
    }
}

#[test]
fn crops_keep_pixels_where_cameras_see_them() {
    // A picture whose left half is near and whose right half is far, cropped from 12 x 4 to the middle 2 x 2 of 6 x 2.
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("scene");
    put_image(&root.join("blended_images/00000000.png"), 12, 4);
    let text = "extrinsic 1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1 intrinsic 8 0 5.5 0 8 1.5 0 0 1 1 1";
    put(&root.join("cams/00000000_cam.txt"), text);
    put(&root.join("cams/pair.txt"), "1\n0\n0\n");
    let row: Vec<f32> = (0..12).map(|x| if x < 6 { 2.0 } else { 4.0 }).collect();
    let mut pfm = b"Pf\n12 4\n-1\n".to_vec();
    (0..4).for_each(|_| row.iter().for_each(|v| pfm.extend(v.to_le_bytes())));
    put(&root.join("rendered_depth_maps/00000000.pfm"), pfm);
    let scene = crate::data::blendedmvs::scene(&root, Broken::Refuse).unwrap();
    let sample = Sample::new("scene", &[0], scene.load(&[0]).unwrap(), [2, 2]).unwrap();
    let k = sample.intrinsics.to_f64();
    assert_eq!([k[0], k[2], k[4], k[5]], [4.0, 1.0, 4.0, 1.0]);
    let depth: Vec<f64> = sample.depth.to_f64().iter().map(|d| d * sample.scale).collect();
    assert!(depth.iter().zip([2.0, 4.0, 2.0, 4.0]).all(|(a, b)| (a - b).abs() < 1e-6), "{depth:?}");
}

#[test]
fn what_makes_no_sample_is_refused_before_the_first() {
    let folder = tempfile::tempdir().unwrap();
    SMALL.write(folder.path(), ImageFormat::Png, |_| {}).unwrap();
    let open = |options| Sampler::new(source(folder.path()), Split::Train, options);
    let bad = Options { views: Vec::new(), sizes: Vec::new(), batch: 0, threads: 0, ..options(1) };
    let error = open(bad).unwrap_err();
    assert_eq!((error.code, error.problems.len()), ("data.usage", 4));
    let error = open(Options { views: vec![2, 7], ..options(1) }).unwrap_err();
    assert_eq!((error.code, error.problems.len()), ("data.scene", 3), "{error}");
    fs::remove_file(folder.path().join("train-3-000001/blended_images/00000003.png")).unwrap();
    let error = open(options(1)).unwrap_err();
    assert_eq!(error.problems, ["train-3-000001: view 3 has no image"]);
    let sampler = open(Options { broken: Broken::LeaveOut, ..options(1) }).unwrap();
    assert_eq!((sampler.scenes(), sampler.left_out()), (3, vec!["train-3-000001: view 3 has no image"]));
    // What only pixels show is an error of the sample; the stream goes on.
    for id in 0..6 {
        let path = folder.path().join(format!("train-3-000001/blended_images/{id:08}.png"));
        put_image(&path, 72, 54);
        let pfm = [b"Pf\n72 54\n-1\n".as_slice(), &[0; 72 * 54 * 4]].concat();
        put(&folder.path().join(format!("train-3-000001/rendered_depth_maps/{id:08}.pfm")), pfm);
    }
    let mut loader = Loader::new(source(folder.path()), Split::Train, options(2), 0).unwrap();
    let results: Vec<_> = loader.by_ref().take(3).collect();
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 2);
    assert!(results.iter().any(|r| r.as_ref().is_err_and(|e| e.to_string().contains("zero everywhere"))));
    assert_eq!(loader.step(), 3);
}
