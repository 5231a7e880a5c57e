use std::path::Path;

use super::*;
use crate::data::{
    Broken,
    dtu::{LIGHT, scans, scene, truth},
};

/// Scans 1 and 4 with two views, cameras and pairs for three.
fn write(root: &Path) {
    for scan in [1, 4] {
        for (view, light) in [(1, 3), (1, 0), (2, 3)] {
            put_image(&root.join(format!("Rectified/scan{scan}/rect_{view:03}_{light}_r5000.png")), 6, 4);
        }
        put_image(&root.join(format!("Rectified/scan{scan}/rect_001_max.png")), 6, 4);
    }
    for view in 0..3 {
        put(&root.join(format!("Cameras/{view:08}_cam.txt")), cam(f64::from(view), "425 2.5"));
    }
    put(&root.join("Cameras/pair.txt"), "3\n0\n2 2 9 1 8\n1\n2 0 8 2 7\n2\n2 0 9 1 7\n");
}

#[test]
fn views_count_from_one_in_images_and_from_zero_in_cameras() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    assert_eq!(scans(folder.path()).unwrap(), [1, 4]);
    let scan = scene(folder.path(), 4, LIGHT, Broken::Refuse).unwrap();
    assert_eq!((scan.name.as_str(), scan.views.len()), ("scan4", 2));
    assert_eq!(scan.views[1].camera.centre(), [1.0, 0.0, 0.0]);
    assert_eq!(scan.views[1].range, Some([425.0, 425.0 + 2.5 * 191.0]));
    assert_eq!((&scan.views[0].neighbours, &scan.views[1].neighbours), (&vec![(1, 8.0)], &vec![(0, 8.0)]));
    let frames = scan.load(&[1, 0]).unwrap();
    assert!(frames.iter().all(|f| f.depth.is_none() && f.valid.is_empty()));
    assert_eq!(frames[0].picture.name, "rect_002_3_r5000.png");
}

#[test]
fn scans_of_one_light_have_a_folder_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    std::fs::remove_dir_all(folder.path().join("Rectified")).unwrap();
    for name in ["000000.png", "00000002.png", "thumb.png"] {
        put_image(&folder.path().join("scan24/image").join(name), 6, 4);
    }
    assert_eq!(scans(folder.path()).unwrap(), [24]);
    let scan = scene(folder.path(), 24, LIGHT, Broken::Refuse).unwrap();
    assert_eq!(scan.views.iter().map(|v| v.id).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(scan.views[1].camera.centre(), [2.0, 0.0, 0.0]);
    std::fs::remove_dir_all(folder.path().join("scan24/image")).unwrap();
    std::fs::create_dir(folder.path().join("scan24/image")).unwrap();
    let error = scene(folder.path(), 24, LIGHT, Broken::Refuse).unwrap_err();
    assert!(error.to_string().contains("image: no image (000000.png"), "{error}");
}

#[test]
fn depth_and_masks_are_read_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let depths = folder.path().join("Depths/scan1");
    put(&depths.join("depth_map_0000.pfm"), pfm(&[600.0; 24], false));
    put(&depths.join("depth_map_0001.pfm"), pfm(&[700.0; 24], true));
    RgbImage::from_fn(6, 4, |x, _| Rgb([if x < 2 { 0 } else { 10 }; 3]))
        .save(depths.join("depth_visual_0000.png"))
        .unwrap();
    let scan = scene(folder.path(), 1, LIGHT, Broken::Refuse).unwrap();
    let frames = scan.load(&[0, 1]).unwrap();
    let valid = |i: usize| frames[i].valid.iter().filter(|v| **v).count();
    assert_eq!((valid(0), valid(1)), (16, 24));
    RgbImage::new(6, 4).save(depths.join("depth_visual_0000.png")).unwrap();
    assert!(scan.load(&[0]).unwrap_err().to_string().contains("the mask leaves no pixel"));
    std::fs::remove_file(depths.join("depth_map_0001.pfm")).unwrap();
    let error = scene(folder.path(), 1, LIGHT, Broken::Refuse).unwrap_err();
    assert_eq!(error.problems, ["scan1: view 1 has no depth map"]);
}

#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    assert_eq!(scene(folder.path(), 1, 7, Broken::Refuse).unwrap_err().code, "data.usage");
    let error = scene(folder.path(), 1, 5, Broken::Refuse).unwrap_err();
    assert!(error.to_string().contains("no image under light 5"), "{error}");
    assert!(scene(folder.path(), 2, 3, Broken::Refuse).unwrap_err().to_string().contains("scan2"));
    std::fs::remove_file(folder.path().join("Cameras/00000001_cam.txt")).unwrap();
    let error = scene(folder.path(), 1, 3, Broken::Refuse).unwrap_err();
    assert_eq!(error.problems, ["scan1: view 1 has no camera"]);
    put_image(&folder.path().join("Rectified/scan9_train/rect_001_3_r5000.png"), 6, 4);
    assert!(scene(folder.path(), 9, 3, Broken::Refuse).unwrap_err().to_string().contains("640x512"));
    let missing = truth(folder.path(), 1).unwrap_err();
    assert_eq!((missing.code, missing.problems.len()), ("data.scene", 3));
    for name in ["Points/stl/stl001_total.ply", "ObsMask/ObsMask1_10.mat", "ObsMask/Plane1.mat"] {
        put(&folder.path().join(name), "");
    }
    assert_eq!(truth(folder.path(), 1).unwrap().mask, folder.path().join("ObsMask/ObsMask1_10.mat"));
    assert_eq!(scans(&folder.path().join("none")).unwrap_err().code, "data.set");
}
