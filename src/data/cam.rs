//! `cam.txt` of MVSNet: one camera and the depths that it sees.
//!
//! ```text
//! extrinsic
//! (4x4, world to camera)
//!
//! intrinsic
//! (3x3, pixels)
//!
//! DEPTH_MIN DEPTH_INTERVAL [DEPTH_NUM [DEPTH_MAX]]
//! ```
//!
//! Law: github.com/YoYo000/MVSNet, "File Formats": axes as in OpenCV; with two or three numbers the largest depth is
//! min + interval (num − 1), num being 192 where it is not given. Files count pixels from the centre of the first one,
//! [`Camera`] from its corner: half a pixel is added to the principal point when a file is read and taken away when one
//! is written.

use std::fmt::Write;

use crate::geometry::{Camera, Mat3, Mat4, cross, dot, rotation};

/// How many depths a range has where a file does not say.
const DEPTHS: f64 = 192.0;
/// How far a rotation may be from one: files carry about six digits.
const ROTATION_TOLERANCE: f64 = 1e-3;

/// What a `cam.txt` says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cam {
    /// The camera, in pixels of the image that it belongs to.
    pub camera: Camera,
    /// DEPTH_MIN.
    pub near: f64,
    /// DEPTH_INTERVAL.
    pub interval: f64,
    /// DEPTH_NUM, where it is given.
    pub count: Option<f64>,
    /// DEPTH_MAX, given or computed.
    pub far: f64,
}

impl Cam {
    /// The least and the largest depth, unless the numbers are none: the data sets have ranges that begin at or below
    /// zero.
    pub fn range(&self) -> Option<[f64; 2]> {
        (self.near > 0.0 && self.far > self.near).then_some([self.near, self.far])
    }

    /// Reads the text of a file, or says everything that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.is_empty() {
            return Err(vec!["is empty".into()]);
        }
        let (Some("extrinsic"), Some(&"intrinsic")) = (words.first().copied(), words.get(17)) else {
            return Err(vec!["is not `extrinsic`, 16 numbers, `intrinsic`, 9 numbers and a range of depth".into()]);
        };
        let tail = words.len().saturating_sub(27);
        if !(2..=4).contains(&tail) {
            return Err(vec![format!("ends with {tail} numbers for the range of depth, which has 2, 3 or 4")]);
        }
        let mut problems = Vec::new();
        let mut number = |word: &str| match word.parse::<f64>() {
            Ok(value) if value.is_finite() => value,
            _ => {
                problems.push(format!("`{word}` is no finite number"));
                0.0
            }
        };
        let values: Vec<f64> = words[1..17].iter().chain(&words[18..]).map(|word| number(word)).collect();
        if !problems.is_empty() {
            return Err(problems);
        }
        let extrinsic: Mat4 = std::array::from_fn(|i| std::array::from_fn(|j| values[4 * i + j]));
        let mut intrinsic: Mat3 = std::array::from_fn(|i| std::array::from_fn(|j| values[16 + 3 * i + j]));
        problems.extend(wrong_extrinsic(&extrinsic));
        problems.extend(wrong_intrinsic(&intrinsic));
        if !problems.is_empty() {
            return Err(problems);
        }
        intrinsic[0][2] += 0.5;
        intrinsic[1][2] += 0.5;
        let (near, interval, count) = (values[25], values[26], values.get(27).copied());
        let far = values.get(28).copied().unwrap_or(near + interval * (count.unwrap_or(DEPTHS) - 1.0));
        Ok(Self { camera: Camera { extrinsic, intrinsic }, near, interval, count, far })
    }

    /// The text of a file: every number in full, so that reading gives the same camera.
    pub fn text(&self) -> String {
        let mut out = String::from("extrinsic\n");
        let line = |numbers: &[f64]| {
            let words: Vec<String> = numbers.iter().map(f64::to_string).collect();
            words.join(" ")
        };
        let k = &self.camera.intrinsic;
        let rows = self.camera.extrinsic.iter().map(|row| line(row)).collect::<Vec<_>>().join("\n");
        let inner = [[k[0][0], k[0][1], k[0][2] - 0.5], [k[1][0], k[1][1], k[1][2] - 0.5], k[2]];
        let inner = inner.iter().map(|row| line(row)).collect::<Vec<_>>().join("\n");
        let tail = [Some(self.near), Some(self.interval), self.count, self.count.map(|_| self.far)];
        let tail = line(&tail.into_iter().flatten().collect::<Vec<_>>());
        // Writing to text cannot fail.
        let _ = write!(out, "{rows}\n\nintrinsic\n{inner}\n\n{tail}\n");
        out
    }
}

fn wrong_extrinsic(m: &Mat4) -> Vec<String> {
    let mut problems = Vec::new();
    if m[3].iter().zip([0.0, 0.0, 0.0, 1.0]).any(|(a, b)| (a - b).abs() > 1e-6) {
        problems.push(format!("the last row of the extrinsic is {:?} and not 0 0 0 1", m[3]));
    }
    let r = rotation(m);
    let off = (0..9).map(|i| (dot(r[i / 3], r[i % 3]) - f64::from(i / 3 == i % 3)).abs()).fold(0.0, f64::max);
    if off > ROTATION_TOLERANCE {
        problems.push(format!("the extrinsic holds no rotation (off by {off:.3})"));
    } else if dot(cross(r[0], r[1]), r[2]) < 0.0 {
        problems.push("the extrinsic holds a reflection".into());
    }
    problems
}

fn wrong_intrinsic(k: &Mat3) -> Vec<String> {
    let mut problems = Vec::new();
    if !(k[0][0] > 0.0 && k[1][1] > 0.0) {
        problems.push(format!("the focal lengths, {} and {}, are not positive", k[0][0], k[1][1]));
    }
    if k[2] != [0.0, 0.0, 1.0] || k[1][0] != 0.0 {
        problems.push("the intrinsic is no matrix of a pinhole camera".into());
    }
    if k[0][1].abs() > 1e-6 * k[0][0].abs() {
        problems.push(format!("the intrinsic has a skew of {}, which is not supported", k[0][1]));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A quarter turn about z, and a range to fill in.
    fn file(tail: &str) -> String {
        format!(
            "extrinsic\r\n0 -1 0 1.5\r\n1 0 0 -2e-1\r\n0 0 1 3\r\n0 0 0 1\r\n\r\nintrinsic\n500 0 383.5\n0 510 287.5 \n\
             0 0 1\n\n{tail}\n"
        )
    }

    #[test]
    fn two_three_and_four_depths_are_read() {
        let far = |tail: &str| Cam::parse(&file(tail)).unwrap().range();
        assert_eq!(far("425 2.5"), Some([425.0, 425.0 + 2.5 * 191.0]));
        assert_eq!(far("425.0 2.5 128"), Some([425.0, 425.0 + 2.5 * 127.0]));
        // The third number is a count and no depth.
        assert_eq!(far("2.5 0.05 128 8.85"), Some([2.5, 8.85]));
        assert_eq!(far("2.5 0.05 128.0 8.85").map(|r| r[1]), Some(8.85));
    }

    #[test]
    fn ranges_that_are_none_are_kept_and_not_used() {
        for tail in ["0 0.1 128 5", "-1.5 0.1 128 5", "3 0.1 128 3", "3 -0.1", "-5 0.1 128 -1"] {
            let cam = Cam::parse(&file(tail)).unwrap();
            assert_eq!((cam.range(), cam.near.to_string().as_str()), (None, tail.split(' ').next().unwrap()));
        }
    }

    #[test]
    fn cameras_map_world_to_pixels_from_the_corner() {
        let camera = Cam::parse(&file("1 1")).unwrap().camera;
        assert_eq!(camera.extrinsic[0], [0.0, -1.0, 0.0, 1.5]);
        assert_eq!([camera.intrinsic[0][2], camera.intrinsic[1][2]], [384.0, 288.0]);
        let (u, v, depth) = camera.project([0.2, 1.5, 2.0]);
        assert_eq!((u, v, depth), (384.0, 288.0, 5.0));
    }

    #[test]
    fn text_comes_back() {
        for tail in ["425 2.5", "2.5 0.05 128 8.85", "0 0.1 128 5"] {
            let cam = Cam::parse(&file(tail)).unwrap();
            assert_eq!(Cam::parse(&cam.text()).unwrap(), cam);
        }
    }

    #[test]
    fn everything_wrong_is_said() {
        let problems = |text: &str| Cam::parse(text).unwrap_err();
        assert_eq!(problems(" \n"), ["is empty"]);
        assert!(problems("extrinsic 1 2 3")[0].contains("16 numbers"));
        assert!(problems(&file("1"))[0].contains("1 numbers"));
        assert!(problems(&file("1 2 3 4 5"))[0].contains("5 numbers"));
        assert_eq!(problems(&file("nan x")), ["`nan` is no finite number", "`x` is no finite number"]);
        let text = file("1 1");
        assert!(problems(&text.replace("0 -1 0 1.5", "0 1 0 1.5"))[0].contains("reflection"));
        assert!(problems(&text.replace("0 -1 0 1.5", "0 -2 0 1.5"))[0].contains("no rotation"));
        assert!(problems(&text.replace("500 0", "500 2"))[0].contains("skew"));
        let two = text.replace("500 0", "-500 0").replace("0 0 0 1", "0 0 0 2");
        assert_eq!(problems(&two).len(), 2);
    }
}
