//! Pictures from files: PNG, JPEG, WebP and TIFF, upright (EXIF orientation applied), 8-bit RGB with alpha kept apart.

use std::{
    cmp::Ordering,
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use image::{DynamicImage, GrayImage, ImageDecoder, ImageReader, Rgb, RgbImage, metadata::Orientation};
use rayon::prelude::*;

use crate::{Error, Kind, Result};

/// File name endings that a folder is searched for.
const SUPPORTED: [&str; 6] = ["png", "jpg", "jpeg", "webp", "tif", "tiff"];
/// Pictures that other programs know: named in the error rather than passed over.
const FOREIGN: [&str; 13] =
    ["avif", "bmp", "cr2", "dng", "exr", "gif", "heic", "heif", "jp2", "jxl", "nef", "ppm", "tga"];

/// One input image at its original resolution.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// The file's own name, with its ending: what COLMAP calls the image.
    pub name: String,
    /// Names the files written for it: the stem, made unique among the pictures loaded together.
    pub label: String,
    /// Upright pixels, alpha ignored. 16-bit files are rounded to 8 bits; grey is spread to three channels.
    pub rgb: RgbImage,
    /// Opacity, for files that have it.
    pub alpha: Option<GrayImage>,
    /// Zero where a pixel must not become a point.
    pub mask: Option<GrayImage>,
}

impl Picture {
    /// A picture made in memory.
    pub fn new(name: impl Into<String>, rgb: RgbImage) -> Self {
        let name = name.into();
        let label = stem(Path::new(&name));
        Self { name, label, rgb, alpha: None, mask: None }
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.rgb.width()
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.rgb.height()
    }

    /// The picture composited on white, (v a + 255 (255 - a)) / 255 to the nearest: what Pillow's `alpha_composite`
    /// gives.
    pub fn on_white(&self) -> RgbImage {
        let mut out = self.rgb.clone();
        if let Some(alpha) = &self.alpha {
            for (pixel, a) in out.pixels_mut().zip(alpha.pixels()) {
                let a = a.0[0] as u32;
                pixel.0 = pixel.0.map(|v| ((v as u32 * a + 255 * (255 - a) + 127) / 255) as u8);
            }
        }
        out
    }
}

/// Loads pictures from files and folders. A folder gives its PNG, JPEG, WebP and TIFF files in natural order (`2.png`
/// before `10.png`), without its subfolders and hidden files.
///
/// # Errors
/// `recon.images` with every problem: files that are missing, cannot be read, are not images, are empty or have no
/// pixels, folders without images, pictures in formats that are not supported.
pub fn load_images<P: AsRef<Path>>(paths: &[P]) -> Result<Vec<Picture>> {
    let mut problems = Vec::new();
    let mut files = Vec::new();
    for path in paths.iter().map(AsRef::as_ref) {
        match path.is_dir() {
            true => match list(path) {
                Ok(found) => files.extend(found),
                Err(found) => problems.extend(found),
            },
            false => files.push(path.to_path_buf()),
        }
    }
    if files.is_empty() && problems.is_empty() {
        problems.push("no image was given".to_string());
    }
    let loaded: Vec<_> = files.par_iter().map(|f| load(f).map_err(|e| format!("{}: {e}", f.display()))).collect();
    let mut pictures = Vec::new();
    for result in loaded {
        match result {
            Ok(picture) => pictures.push(picture),
            Err(problem) => problems.push(problem),
        }
    }
    if !problems.is_empty() {
        return Err(Error::all(Kind::BadFile, "recon.images", problems));
    }
    make_labels_unique(&mut pictures);
    Ok(pictures)
}

/// Gives every picture the mask of the same name in `folder`: `x.png`, or `x.jpg.png`, for the picture `x.jpg`. Black
/// drops a pixel, anything else keeps it. A picture without a mask is kept whole. Returns how many pictures got one.
///
/// # Errors
/// `recon.masks` with every problem: unreadable files, a mask whose size is not that of its picture, no mask that fits.
pub fn load_masks(folder: &Path, pictures: &mut [Picture]) -> Result<usize> {
    let fail = |problems| Error::all(Kind::BadFile, "recon.masks", problems);
    let files = list(folder).map_err(fail)?;
    let mut problems = Vec::new();
    let mut count = 0;
    for picture in pictures.iter_mut() {
        let own = stem(Path::new(&picture.name));
        let Some(file) = files.iter().find(|f| [&own, &picture.name].contains(&&stem(f))) else { continue };
        match load(file) {
            Err(e) => problems.push(format!("{}: {e}", file.display())),
            Ok(m) if m.rgb.dimensions() != picture.rgb.dimensions() => problems.push(format!(
                "{}: the mask has {}x{} pixels, its picture {} {}x{}",
                file.display(),
                m.width(),
                m.height(),
                picture.name,
                picture.width(),
                picture.height()
            )),
            Ok(m) => {
                picture.mask = Some(GrayImage::from_fn(m.width(), m.height(), |x, y| {
                    let Rgb(v) = m.rgb.get_pixel(x, y);
                    image::Luma([if v.iter().any(|v| *v > 0) { 255 } else { 0 }])
                }));
                count += 1;
            }
        }
    }
    if count == 0 && problems.is_empty() {
        problems.push(format!("{}: no mask has the name of a picture", folder.display()));
    }
    if problems.is_empty() { Ok(count) } else { Err(fail(problems)) }
}

/// The pictures in a folder in natural order, or every problem.
fn list(folder: &Path) -> Result<Vec<PathBuf>, Vec<String>> {
    let entries = fs::read_dir(folder).and_then(|e| e.collect::<Result<Vec<_>, _>>());
    let entries = entries.map_err(|e| vec![format!("{}: cannot list the folder: {e}", folder.display())])?;
    let mut files: Vec<PathBuf> = entries.iter().map(|e| e.path()).filter(|p| p.is_file()).collect();
    files.retain(|p| p.file_name().is_some_and(|n| !n.to_string_lossy().starts_with('.')));
    let ending = |p: &PathBuf| p.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let foreign: Vec<String> = files
        .iter()
        .filter(|p| FOREIGN.contains(&ending(p).as_str()))
        .map(|p| format!("{}: {} is not supported; PNG, JPEG, WebP and TIFF are", p.display(), ending(p)))
        .collect();
    files.retain(|p| SUPPORTED.contains(&ending(p).as_str()));
    if !foreign.is_empty() {
        return Err(foreign);
    }
    if files.is_empty() {
        return Err(vec![format!("{}: no PNG, JPEG, WebP or TIFF file in the folder", folder.display())]);
    }
    files.sort_by(|a, b| natural_order(&a.to_string_lossy(), &b.to_string_lossy()));
    Ok(files)
}

/// Width and height of the picture in a file, upright, without decoding its pixels.
///
/// # Errors
/// What is wrong with the file, without its name.
pub fn image_size(path: &Path) -> Result<[u32; 2], String> {
    let mut decoder = open(path)?;
    let (width, height) = decoder.dimensions();
    let turned = decoder.orientation().unwrap_or(Orientation::NoTransforms).to_exif() >= 5;
    Ok(if turned { [height, width] } else { [width, height] })
}

/// The decoder of a picture that has pixels.
fn open(path: &Path) -> Result<impl ImageDecoder, String> {
    let size = fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size == 0 {
        return Err("the file is empty".into());
    }
    // What a file is says its content; the ending may lie.
    let reader = ImageReader::open(path).and_then(|r| r.with_guessed_format()).map_err(|e| e.to_string())?;
    if reader.format().is_none() {
        return Err("not a PNG, JPEG, WebP or TIFF image".into());
    }
    let decoder = reader.into_decoder().map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(format!("the image has {width}x{height} pixels"));
    }
    Ok(decoder)
}

fn load(path: &Path) -> Result<Picture, String> {
    let mut decoder = open(path)?;
    // Orientation is a hint; a file whose EXIF block is damaged is shown as it is stored, as viewers do.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| e.to_string())?;
    image.apply_orientation(orientation);
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut picture = Picture::new(name, RgbImage::new(0, 0));
    if image.color().has_alpha() {
        let rgba = image.to_rgba8();
        picture.rgb = RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
            let [r, g, b, _] = rgba.get_pixel(x, y).0;
            Rgb([r, g, b])
        });
        let alpha = GrayImage::from_fn(rgba.width(), rgba.height(), |x, y| image::Luma([rgba.get_pixel(x, y).0[3]]));
        picture.alpha = Some(alpha);
    } else {
        picture.rgb = image.into_rgb8();
    }
    Ok(picture)
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Stems where they differ; otherwise every label starts with the index of its picture.
fn make_labels_unique(pictures: &mut [Picture]) {
    let labels: BTreeSet<String> = pictures.iter().map(|p| p.label.to_lowercase()).collect();
    if labels.len() < pictures.len() {
        for (i, p) in pictures.iter_mut().enumerate() {
            p.label = format!("{i:04}_{}", p.label);
        }
    }
}

/// Runs of digits compare as numbers, everything else by character; equal so far, the shorter comes first.
fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (Some(x), Some(y)) = (a.chars().next(), b.chars().next()) else { return a.len().cmp(&b.len()) };
        if x.is_ascii_digit() && y.is_ascii_digit() {
            let (n, rest_a) = number(a);
            let (m, rest_b) = number(b);
            let order = n.len().cmp(&m.len()).then_with(|| n.cmp(m));
            if order != Ordering::Equal {
                return order;
            }
            (a, b) = (rest_a, rest_b);
        } else if x != y {
            return x.cmp(&y);
        } else {
            (a, b) = (&a[x.len_utf8()..], &b[y.len_utf8()..]);
        }
    }
}

/// The digits that `text` starts with, without leading zeros, and what follows them.
fn number(text: &str) -> (&str, &str) {
    let (digits, rest) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
    (digits.trim_start_matches('0'), rest)
}

#[cfg(test)]
mod tests {
    use image::{ImageEncoder, codecs::jpeg::JpegEncoder};

    use super::*;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn folders_load_in_natural_order_and_every_format_reads() {
        let d = dir();
        let image = RgbImage::from_fn(5, 3, |x, y| Rgb([x as u8 * 50, y as u8 * 100, 9]));
        for name in ["v10.png", "v2.tiff", "v1.webp", "v002.png"] {
            image.save(d.path().join(name)).unwrap();
        }
        fs::write(d.path().join("notes.txt"), "x").unwrap();
        fs::write(d.path().join(".hidden.png"), "x").unwrap();
        let pictures = load_images(&[d.path()]).unwrap();
        let names: Vec<_> = pictures.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["v1.webp", "v002.png", "v2.tiff", "v10.png"]);
        assert!(pictures.iter().all(|p| p.rgb == image && p.alpha.is_none()));
        assert_eq!(pictures[3].label, "v10");
    }

    #[test]
    fn orientation_in_exif_is_applied() {
        let d = dir();
        let image = RgbImage::from_fn(16, 8, |x, _| Rgb([if x < 8 { 0 } else { 255 }; 3]));
        // TIFF header, one entry: orientation (0x0112), SHORT, count 1, value 6 (turn by 90 degrees clockwise).
        let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
        let mut bytes = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
        encoder.set_exif_metadata(exif).unwrap();
        encoder.encode_image(&image).unwrap();
        fs::write(d.path().join("x.jpg"), bytes).unwrap();
        let picture = &load_images(&[d.path().join("x.jpg")]).unwrap()[0];
        assert_eq!((picture.width(), picture.height()), (8, 16));
        assert!(picture.rgb.get_pixel(4, 2).0[0] < 20 && picture.rgb.get_pixel(4, 13).0[0] > 235);
    }

    #[test]
    fn all_problems_come_at_once() {
        let d = dir();
        let p = |n: &str| d.path().join(n);
        fs::write(p("text.png"), "not an image at all").unwrap();
        fs::write(p("empty.jpg"), "").unwrap();
        let mut png = Vec::new();
        image::codecs::png::PngEncoder::new(&mut png)
            .write_image(&[0; 300], 10, 10, image::ExtendedColorType::Rgb8)
            .unwrap();
        fs::write(p("cut.png"), &png[..png.len() / 2]).unwrap();
        let mut zero = png.clone();
        zero[16..20].fill(0);
        fs::write(p("zero.png"), zero).unwrap();
        fs::create_dir(p("none")).unwrap();
        fs::create_dir(p("foreign")).unwrap();
        fs::write(p("foreign/x.HEIC"), "x").unwrap();
        let all = ["text.png", "empty.jpg", "cut.png", "zero.png", "none", "foreign", "missing.png"].map(p);
        let error = load_images(&all).unwrap_err();
        assert_eq!((error.code, error.exit_code(), error.problems.len()), ("recon.images", 4, 7), "{error}");
        for name in ["text.png", "empty.jpg", "cut.png", "zero.png", "none", "x.HEIC", "missing.png"] {
            assert!(error.problems.iter().any(|p| p.contains(name)), "{name} in {error}");
        }
        assert_eq!(load_images::<&Path>(&[]).unwrap_err().problems, ["no image was given"]);
    }

    #[test]
    fn equal_stems_get_numbered_labels() {
        let d = dir();
        for name in ["a.png", "a.webp"] {
            RgbImage::new(2, 2).save(d.path().join(name)).unwrap();
        }
        let pictures = load_images(&[d.path()]).unwrap();
        assert_eq!(pictures.iter().map(|p| p.label.as_str()).collect::<Vec<_>>(), ["0000_a", "0001_a"]);
    }

    #[test]
    fn alpha_is_composited_on_white() {
        let d = dir();
        image::RgbaImage::from_fn(3, 1, |x, _| image::Rgba([100, 0, 255, [0, 128, 255][x as usize]]))
            .save(d.path().join("a.png"))
            .unwrap();
        let picture = &load_images(&[d.path()]).unwrap()[0];
        assert_eq!(picture.rgb.get_pixel(0, 0).0, [100, 0, 255]);
        // 100 * 128 + 255 * 127 = 45185, / 255 = 177.2; 255 * 127 / 255 = 127.
        assert_eq!(picture.on_white().into_raw(), [255, 255, 255, 177, 127, 255, 100, 0, 255]);
    }

    #[test]
    fn masks_go_by_name_and_must_fit() {
        let d = dir();
        let masks = d.path().join("masks");
        fs::create_dir(&masks).unwrap();
        let mut pictures: Vec<Picture> =
            ["a.jpg", "b.jpg", "c.jpg"].map(|n| Picture::new(n, RgbImage::new(2, 1))).to_vec();
        assert_eq!(load_masks(&masks, &mut pictures).unwrap_err().code, "recon.masks");
        GrayImage::from_raw(2, 1, vec![0, 9]).unwrap().save(masks.join("a.png")).unwrap();
        GrayImage::from_raw(2, 1, vec![255, 0]).unwrap().save(masks.join("b.jpg.png")).unwrap();
        assert_eq!(load_masks(&masks, &mut pictures).unwrap(), 2);
        assert_eq!(pictures[0].mask.as_ref().unwrap().as_raw(), &[0, 255]);
        assert_eq!(pictures[1].mask.as_ref().unwrap().as_raw(), &[255, 0]);
        assert!(pictures[2].mask.is_none());
        GrayImage::new(3, 1).save(masks.join("c.png")).unwrap();
        let error = load_masks(&masks, &mut pictures).unwrap_err();
        assert!(error.to_string().contains("3x1") && error.to_string().contains("c.jpg 2x1"), "{error}");
    }

    #[test]
    fn natural_order_of_names() {
        let mut names = ["b1", "a10", "a2", "a02b", "a", "a1b", "00012", "12x"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["00012", "12x", "a", "a1b", "a2", "a02b", "a10", "b1"]);
    }
}
