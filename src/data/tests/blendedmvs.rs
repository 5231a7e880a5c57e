use std::{fs, path::Path};

use super::*;
use crate::data::{Broken, blendedmvs::scene};

/// Depth that differs from pixel to pixel, with one hole.
fn depth() -> Vec<f32> {
    (0..24).map(|i| if i == 7 { 0.0 } else { 2.0 + i as f32 / 16.0 }).collect()
}

/// Three views: two, three and four numbers of depth, both orders of bytes, pairs of every length.
fn write(folder: &Path) {
    for (id, tail) in [(0, "1 0.05"), (2, "1 0.05 128"), (5, "-0.5 0.05 128 6.5")] {
        put_image(&folder.join(format!("blended_images/{id:08}.jpg")), 6, 4);
        put_image(&folder.join(format!("blended_images/{id:08}_masked.jpg")), 6, 4);
        put(&folder.join(format!("cams/{id:08}_cam.txt")), cam(f64::from(id) / 10.0, tail));
        put(&folder.join(format!("rendered_depth_maps/{id:08}.pfm")), pfm(&depth(), id == 2));
    }
    put(&folder.join("cams/pair.txt"), "3\n0\n2 5 31.5 2 7\n2\n1 0 7\n5\n0 \n");
}

#[test]
fn a_scene_is_read_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("5b7a3890fc8fcf6781e2593a");
    write(&root);
    let scene = scene(&root, Broken::Refuse).unwrap();
    assert_eq!(scene.name, "5b7a3890fc8fcf6781e2593a");
    assert_eq!(scene.views.iter().map(|v| v.id).collect::<Vec<_>>(), [0, 2, 5]);
    assert!(scene.views.iter().all(|v| v.size == [6, 4]));
    let ranges: Vec<_> = scene.views.iter().map(|v| v.range).collect();
    assert_eq!(ranges, [Some([1.0, 1.0 + 0.05 * 191.0]), Some([1.0, 1.0 + 0.05 * 127.0]), None]);
    assert_eq!(scene.views[0].neighbours, [(2, 31.5), (1, 7.0)], "places, not numbers");
    assert_eq!((scene.views[1].neighbours.len(), scene.views[2].neighbours.len()), (1, 0));
    // The camera of view 5 stands half a unit to the right.
    assert_eq!(scene.views[2].camera.centre(), [0.5, 0.0, 0.0]);
    for frame in scene.load(&[0, 1, 2]).unwrap() {
        assert_eq!(frame.depth.as_deref(), Some(depth().as_slice()), "rows stand bottom up in the file");
        assert_eq!(frame.valid.iter().filter(|v| !**v).count(), 1);
        assert!(!frame.valid[7] && frame.picture.rgb.dimensions() == (6, 4));
    }
}

#[test]
fn all_problems_of_a_scene_come_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("scene");
    write(&root);
    let path = |name: &str| root.join(name);
    fs::remove_file(path("blended_images/00000000.jpg")).unwrap();
    put(&path("cams/00000002_cam.txt"), cam(0.0, "1 2").replace("5 0 2.5", "-5 0 2.5"));
    put(&path("rendered_depth_maps/00000002.pfm"), "");
    put(&path("rendered_depth_maps/00000009.pfm"), pfm(&depth(), false));
    put(&path("cams/pair.txt"), "1\n0\n1 8 3\n");
    let error = scene(&root, Broken::Refuse).unwrap_err();
    assert_eq!((error.code, error.exit_code()), ("data.scene", 4));
    for words in [
        "scene: view 0 has no image",
        "00000002_cam.txt: the focal lengths, -5 and 5, are not positive",
        "00000002.pfm: the file is empty",
        "view 9 has no camera",
        "view 9 has no image",
        "names views that the scene lacks: 8",
    ] {
        assert!(error.problems.iter().any(|p| p.contains(words)), "{words} in {error}");
    }
    assert_eq!(error.problems.len(), 6, "{error}");
    let left = scene(&root, Broken::LeaveOut).unwrap();
    assert_eq!((left.views.len(), left.views[0].id, left.left_out.len()), (1, 5, 6));
}

#[test]
fn folders_that_are_no_scenes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = scene(&folder.path().join("missing"), Broken::LeaveOut).unwrap_err();
    assert_eq!((error.code, error.problems.len()), ("data.scene", 4), "{error}");
    for sub in ["blended_images", "cams", "rendered_depth_maps"] {
        fs::create_dir_all(folder.path().join("empty").join(sub)).unwrap();
    }
    put(&folder.path().join("empty/cams/pair.txt"), "0\n");
    let error = scene(&folder.path().join("empty"), Broken::Refuse).unwrap_err();
    assert_eq!(error.problems, ["empty: there are no views"]);
    put(&folder.path().join("empty/cams/00000000_cam.txt"), "extrinsic");
    assert!(scene(&folder.path().join("empty"), Broken::LeaveOut).unwrap_err().problems[0].contains("every view"));
}

#[test]
fn pixels_that_cannot_be_right_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("scene");
    let cases: [(&str, Vec<u8>, &str); 5] = [
        ("rendered_depth_maps/00000000.pfm", pfm(&[0.0; 24], false), "the depth is zero everywhere"),
        ("rendered_depth_maps/00000000.pfm", pfm(&[-1.0; 24], true), "24 pixels have a depth behind the camera"),
        ("rendered_depth_maps/00000000.pfm", pfm(&[f32::NAN; 24], false), "not finite"),
        ("rendered_depth_maps/00000000.pfm", [b"PF".as_slice(), &pfm(&depth(), false)[2..]].concat(), "header"),
        ("blended_images/00000000.jpg", b"no picture".to_vec(), "decoding Jpeg"),
    ];
    for (name, bytes, words) in cases {
        write(&root);
        put(&root.join(name), bytes);
        // What headers show is found when the scene is read, the rest when its pixels are.
        let error = scene(&root, Broken::Refuse).and_then(|s| s.load(&[0, 1, 2]).map(drop)).unwrap_err();
        assert!(error.to_string().contains(words) && error.to_string().contains("00000000."), "{error}");
        let left = scene(&root, Broken::LeaveOut).unwrap();
        assert_eq!((left.views.len(), left.left_out.len()), (2, 1), "{:?}", left.left_out);
        assert_eq!(left.views[0].neighbours, [], "places of views that are left");
    }
    write(&root);
    put_image(&root.join("blended_images/00000002.jpg"), 8, 4);
    let error = scene(&root, Broken::Refuse).unwrap_err();
    assert!(error.to_string().contains("has 6x4 pixels, its view has 8x4"), "{error}");
}
