//! What procedural scenes must hold: exact depth, cameras that agree with each other, the same bytes everywhere.

use std::path::PathBuf;

use lite3r::{
    geometry::{IDENTITY, Vec3, direction_angle, norm, sub},
    scenes::{Lights, Object, Pattern, Rendered, Room, Scene, Sensor, Shape, Texture, Viewpoint, normalise},
};

/// Level, one unit over the ground, looking along +x.
fn level_view() -> Viewpoint {
    let extrinsic = [[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 1.0], [1.0, 0.0, 0.0, 0.0], IDENTITY[3]];
    Viewpoint { extrinsic, fov: 90f64.to_radians() }
}

fn plain() -> Texture {
    Texture {
        pattern: Pattern::Checker,
        frequency: 1.0,
        phase: 0.5,
        seed: 0,
        colours: [[1.0; 3]; 2],
        direction: [1.0, 0.0, 0.0],
        waves: [([0.0; 3], 0.0); 3],
    }
}

/// Open ground under even light with one sphere of radius ½ at the eye level, three units ahead.
fn known_scene() -> Scene {
    let sphere = Object { shape: Shape::Sphere, centre: [3.0, 0.0, 1.0], half: [0.5; 3], yaw: 0.4, texture: plain() };
    Scene {
        objects: vec![sphere],
        room: Room { half: [7.0, 7.0], height: 4.0, closed: false, textures: std::array::from_fn(|_| plain()) },
        lights: Lights {
            sun: [0.0, 0.0, -1.0],
            lamp: [0.0, 0.0, 1.0],
            tint: [1.0; 3],
            ambient: 0.5,
            sun_power: 0.0,
            lamp_power: 0.0,
        },
        views: vec![level_view()],
        sensor: Sensor::IDEAL,
    }
}

/// The world point behind a pixel, from its depth.
fn point(view: &Rendered, column: usize, row: usize) -> Vec3 {
    let depth = f64::from(view.depth[row * view.width + column]);
    view.camera.unproject(column as f64 + 0.5, row as f64 + 0.5, depth)
}

#[test]
fn depth_of_sphere_ground_and_sky_has_closed_forms() {
    let image = known_scene().render(0, 65, 65);
    let focal = image.camera.intrinsic[0][0];
    assert!((focal - 32.5).abs() < 1e-12);
    let centre = 32 * 65 + 32;
    assert!((image.depth[centre] - 2.5).abs() < 1e-6, "the middle ray meets the sphere head on");
    for row in 0..65 {
        for column in 0..65 {
            let (x, y) = ((column as f64 - 32.0) / focal, (row as f64 - 32.0) / focal);
            // |t d − c|² = r² with d = (x, y, 1), c = (0, 0, 3).
            let a = x * x + y * y + 1.0;
            let discriminant = 9.0 - a * (9.0 - 0.25);
            let expect = if discriminant > 0.0 {
                (3.0 - discriminant.sqrt()) / a
            } else if y > 1.0 / 30.0 {
                1.0 / y
            } else {
                0.0
            };
            let depth = f64::from(image.depth[row * 65 + column]);
            assert!((depth - expect).abs() < 1e-5 * expect.max(1.0), "({row}, {column}): {depth} and not {expect}");
            assert_eq!(image.valid[row * 65 + column], expect > 0.0);
        }
    }
    // White under half light, and the sky at the horizon.
    assert_eq!(image.rgb[centre * 3..][..3], [128; 3]);
    assert_eq!(image.rgb[(32 * 65) * 3..][..3], [140, 179, 230]);
}

#[test]
fn a_closed_room_ends_at_its_walls() {
    let mut scene = known_scene();
    scene.objects.clear();
    scene.room.closed = true;
    let image = scene.render(0, 64, 48);
    assert!(image.valid.iter().all(|v| *v));
    for (column, row) in [(0, 0), (63, 47), (31, 24), (5, 40), (60, 3)] {
        let [x, y, z] = point(&image, column, row);
        let inside = x.abs() < 7.00001 && y.abs() < 7.00001 && (-1e-5..4.00001).contains(&z);
        let on = [x.abs() - 7.0, y.abs() - 7.0, z, z - 4.0].iter().any(|d| d.abs() < 1e-4);
        assert!(inside && on, "{x} {y} {z}");
    }
}

#[test]
fn views_agree_about_every_point_that_both_see() {
    for index in 0..3 {
        let scene = Scene::sample(11, index, 3);
        let views: Vec<Rendered> = (0..3).map(|v| scene.render(v, 96, 72)).collect();
        for (a, b) in [(0, 1), (1, 2), (2, 0)] {
            let (mut agree, mut seen) = (0, 0);
            for i in (0..96 * 72).filter(|i| views[a].valid[*i]) {
                let p = point(&views[a], i % 96, i / 96);
                let (u, v, depth) = views[b].camera.project(p);
                if depth > 0.05 && (1.0..95.0).contains(&u) && (1.0..71.0).contains(&v) {
                    // Not in front of what the other view sees there, but for the width of a pixel.
                    let patch = (-1..=1).flat_map(|dy| (-1..=1).map(move |dx| (u as i64 + dx, v as i64 + dy)));
                    let depths = patch.map(|(x, y)| f64::from(views[b].depth[y as usize * 96 + x as usize]));
                    let (near, far) = depths.fold((f64::MAX, 0f64), |(n, f), d| (n.min(d), f.max(d)));
                    let hidden = depth > far * 1.01;
                    agree += usize::from(hidden || depth > near * 0.97);
                    seen += 1;
                }
            }
            assert!(seen > 300, "scene {index}: views {a} and {b} share {seen} points");
            assert!(agree as f64 > 0.99 * seen as f64, "scene {index}, {a} to {b}: {agree} of {seen}");
        }
    }
}

#[test]
fn a_view_shows_what_another_view_sees_in_the_same_colour() {
    // Light is diffuse, so a point looks the same from everywhere.
    let scene = Scene::sample(5, 0, 2);
    let (a, b) = (scene.render(0, 128, 128), scene.render(1, 128, 128));
    let mut differences = Vec::new();
    for i in (0..128 * 128).filter(|i| a.valid[*i]) {
        let (u, v, depth) = b.camera.project(point(&a, i % 128, i / 128));
        if depth > 0.05 && (0.0..128.0).contains(&u) && (0.0..128.0).contains(&v) {
            let j = v as usize * 128 + u as usize;
            if (f64::from(b.depth[j]) - depth).abs() < 0.02 * depth {
                differences.extend((0..3).map(|c| a.rgb[i * 3 + c].abs_diff(b.rgb[j * 3 + c])));
            }
        }
    }
    differences.sort_unstable();
    assert!(differences.len() > 3000);
    assert!(differences[differences.len() / 2] <= 4, "median {}", differences[differences.len() / 2]);
}

#[test]
fn scenes_depend_on_seed_and_index_alone() {
    assert_eq!(Scene::sample(1, 2, 3), Scene::sample(1, 2, 3));
    assert_ne!(Scene::sample(1, 2, 3).objects, Scene::sample(1, 3, 3).objects);
    assert_ne!(Scene::sample(1, 2, 3).objects, Scene::sample(2, 2, 3).objects);
    let (few, many) = (Scene::sample(1, 2, 2), Scene::sample(1, 2, 24));
    assert_eq!((&few.objects, &few.views[..]), (&many.objects, &many.views[..2]));
}

#[test]
fn the_bytes_are_the_same_on_every_machine() {
    let mut hash = blake3::Hasher::new();
    for index in 0..4 {
        let scene = Scene::sample(2024, index, 2);
        for view in 0..2 {
            let image = scene.render(view, 70, 56);
            hash.update(&image.rgb);
            for depth in &image.depth {
                hash.update(&depth.to_le_bytes());
            }
        }
    }
    assert_eq!(hash.finalize().to_hex().as_str(), "d1f3ddcf206a8966929785dfc77fe28d2463545dfee2fbccda49d1c8d58f9008");
}

#[test]
fn normalised_views_begin_at_the_identity_and_measure_one() {
    let scene = Scene::sample(3, 1, 4);
    let views: Vec<Rendered> = (0..4).map(|v| scene.render(v, 56, 42)).collect();
    let normal = normalise(&views, 1).unwrap();
    for (row, expect) in normal.cameras[0].extrinsic.iter().zip(&IDENTITY) {
        assert!(row.iter().zip(expect).all(|(a, b)| (a - b).abs() < 1e-12));
    }
    let mut distances = Vec::new();
    for (camera, depths) in normal.cameras.iter().zip(&normal.depths) {
        for (i, depth) in depths.iter().enumerate().filter(|(_, d)| **d > 0.0) {
            distances.push(norm(camera.unproject((i % 56) as f64 + 0.5, (i / 56) as f64 + 0.5, f64::from(*depth))));
        }
    }
    assert!((distances.iter().sum::<f64>() / distances.len() as f64 - 1.0).abs() < 1e-6);
    // Distances between cameras shrink by the same factor as depth.
    let baseline = |a: Vec3, b: Vec3| norm(sub(a, b));
    let before = baseline(views[0].camera.centre(), views[3].camera.centre());
    let after = baseline(normal.cameras[0].centre(), normal.cameras[3].centre());
    assert!((before / after - normal.scale).abs() < 1e-9);
    assert_eq!(normalise(&[], 4).unwrap_err().code, "scenes.normalise");
}

/// Statistics of one view: mean and deviation of the colours, nearest, mean and farthest depth.
fn statistics(rgb: &[u8], depth: &[f32]) -> [f64; 5] {
    let n = rgb.len() as f64;
    let mean = rgb.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let square = rgb.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
    let valid: Vec<f64> = depth.iter().map(|d| f64::from(*d)).filter(|d| *d > 0.0).collect();
    let (low, high) = valid.iter().fold((f64::MAX, 0f64), |(l, h), d| (l.min(*d), h.max(*d)));
    [mean, square.sqrt(), low, valid.iter().sum::<f64>() / valid.len() as f64, high]
}

/// The range of every statistic over 24 scenes.
fn ranges() -> [(f64, f64); 5] {
    let mut ranges = [(f64::MAX, f64::MIN); 5];
    for index in 0..24 {
        let image = Scene::sample(77, index, 1).render(0, 112, 112);
        for (range, value) in ranges.iter_mut().zip(statistics(&image.rgb, &image.depth)) {
            *range = (range.0.min(value), range.1.max(value));
        }
    }
    ranges
}

#[test]
fn cameras_stand_as_the_distribution_says() {
    for index in 0..24 {
        let scene = Scene::sample(78, index, 6);
        let centres: Vec<Vec3> = scene.views.iter().map(|v| v.camera(64, 64).centre()).collect();
        for (view, [x, y, z]) in scene.views.iter().zip(&centres) {
            let radius = x.hypot(*y);
            assert!((3.1 * 0.9..4.5 * 1.15).contains(&radius) && (0.499..3.001).contains(z), "{radius} {z}");
            assert!((39.0..79.0).contains(&view.fov.to_degrees()));
        }
        let flat = |p: Vec3| [p[0], p[1], 0.0];
        let spread = centres.iter().map(|c| direction_angle(flat(centres[0]), flat(*c)).unwrap()).fold(0.0, f64::max);
        assert!(spread < 72.0, "an arc of at most 36 degrees to both sides, not {spread}");
        assert!((4..=12).contains(&scene.objects.len()));
    }
}

#[test]
fn recorded_scenes_lie_within_our_ranges() {
    let root = std::env::var_os("LITE3R_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from)
        .join("teacher/scenes");
    if !root.is_dir() {
        eprintln!("skipped: no recorded scenes at {}", root.display());
        return;
    }
    let ranges = ranges();
    for scene in ["synth_00", "synth_01"] {
        for view in 0..8 {
            let image = image::open(root.join(format!("{scene}/blended_images/{view:08}.jpg"))).unwrap().to_rgb8();
            let pfm = std::fs::read(root.join(format!("{scene}/rendered_depth_maps/{view:08}.pfm"))).unwrap();
            let (body, _) = pfm[pfm.len() - 224 * 224 * 4..].as_chunks::<4>();
            let depth: Vec<f32> = body.iter().map(|b| f32::from_le_bytes(*b)).collect();
            for (i, (value, (low, high))) in statistics(image.as_raw(), &depth).into_iter().zip(ranges).enumerate() {
                let slack = 0.25 * (high - low);
                assert!(
                    (low - slack..high + slack).contains(&value),
                    "{scene}, view {view}: statistic {i} is {value}, ours lie in {low}..{high}"
                );
            }
        }
    }
}
