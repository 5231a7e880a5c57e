//! Pictures through a plan: which frames it takes, and whose outputs it gives.

use std::collections::BTreeMap;

use lite3r_ir::{Tensor, attr::AttrField};

use crate::{
    Error, Result,
    plan::{self, ImageInput, Plan},
    recon::{Da3Method, Family, Fit, Method, Picture, Prepared, Preprocess, VggtMode, preprocess},
};

/// The input that takes pictures. Errors: `run.images` where a plan has none.
pub fn image_input(plan: &Plan) -> Result<ImageInput> {
    plan.meta().images.clone().ok_or_else(|| {
        Error::unsupported("run.images", "the plan has no input for images; give tensors with `--input NAME=@FILE.npy`")
    })
}

/// How outputs are read: as the plan says, or by their names. Errors: `recon.outputs` without cameras.
pub fn family(plan: &Plan, outputs: &BTreeMap<String, Tensor>) -> Result<Family> {
    match plan.meta().family {
        plan::Family::Vggt => Ok(Family::Vggt),
        plan::Family::Da3 => Ok(Family::Da3),
        plan::Family::Other => Family::detect(outputs),
    }
}

/// Pictures as the plan takes them, by a mode or the plan's own. Errors: `run.preprocess` for an unknown mode,
/// `run.size` with what would make them fit, and those of [`preprocess()`].
pub fn frames(pictures: &[Picture], input: &ImageInput, mode: Option<&str>) -> Result<Prepared> {
    let mode = mode.unwrap_or(&input.preprocess);
    let how = Preprocess { method: method(mode, input.size)?, normalise: !input.normalised_in_graph };
    let prepared = preprocess(pictures, &how)?;
    let ([width, height], (wanted_height, wanted_width)) = (prepared.size(), input.size);
    if (height as usize, width as usize) != (wanted_height, wanted_width) {
        return Err(Error::usage(
            "run.size",
            format!(
                "`{mode}` makes frames of {height}x{width} pixels (height x width) from these pictures; the plan takes \
                 {wanted_height}x{wanted_width}: compile a plan of that size, or fit the pictures with `--preprocess \
                 plain_crop`, plain_pad or plain_stretch"
            ),
        ));
    }
    Ok(prepared)
}

fn method(mode: &str, (height, width): (usize, usize)) -> Result<Method> {
    let parsed = mode.split_once('_').and_then(|(family, rest)| {
        let word = lite3r_ir::attr::Attr::Word(rest.into());
        let long = height.max(width) as u32;
        match family {
            "vggt" => VggtMode::take(&word).map(|mode| Method::Vggt { mode, size: width as u32 }),
            "da3" => Da3Method::take(&word).map(|method| Method::Da3 { method, resolution: long }),
            "plain" => Fit::take(&word).map(|fit| Method::Plain { fit, width: width as u32, height: height as u32 }),
            _ => None,
        }
    });
    parsed.ok_or_else(|| {
        let words =
            |family: &str, all: Vec<&'static str>| all.iter().map(|w| format!("{family}_{w}")).collect::<Vec<_>>();
        let known = [
            words("vggt", VggtMode::WORDS.iter().map(|(w, _)| *w).collect()),
            words("da3", Da3Method::WORDS.iter().map(|(w, _)| *w).collect()),
            words("plain", Fit::WORDS.iter().map(|(w, _)| *w).collect()),
        ];
        Error::usage(
            "run.preprocess",
            format!("`{mode}` is no way to make frames; there are {}", known.concat().join(", ")),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(size: (usize, usize), preprocess: &str) -> ImageInput {
        ImageInput { name: "images".into(), size, normalised_in_graph: true, preprocess: preprocess.into() }
    }

    #[test]
    fn frames_must_have_the_size_of_the_plan() {
        let picture = Picture::new("a.png", image::RgbImage::new(640, 480));
        let fits = frames(std::slice::from_ref(&picture), &input((392, 518), "vggt_crop"), None).unwrap();
        assert_eq!(fits.size(), [518, 392]);
        let error = frames(std::slice::from_ref(&picture), &input((518, 518), "vggt_crop"), None).unwrap_err();
        assert!(error.to_string().contains("frames of 392x518 pixels"), "{error}");
        assert!(frames(&[picture], &input((518, 518), "vggt_crop"), Some("vggt_pad")).is_ok());
    }

    #[test]
    fn unknown_modes_are_named() {
        let error = method("vggt_squash", (518, 518)).unwrap_err();
        assert!(error.to_string().contains("vggt_crop, vggt_pad, da3_upper_bound_resize"), "{error}");
    }
}
