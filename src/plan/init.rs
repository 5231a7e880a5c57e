//! What a param starts as where no checkpoint names it.

use lite3r_ir::{Tensor, ops::Param};

use crate::rng::Stream;

/// The value of `init`: `normal:STD` (the same for the same name), `identity` (of the last two dimensions), `fill:X`.
pub fn value(param: &Param) -> Result<Tensor, String> {
    let shape = param.ty.dims().ok_or("needs a static shape")?;
    let count = param.ty.elements().ok_or("is too large")?;
    let (kind, number) = param.init.split_once(':').unwrap_or((&param.init, ""));
    let number = || number.parse::<f64>().map_err(|_| format!("`{}` lacks its number", param.init));
    let values: Vec<f64> = match kind {
        "fill" => vec![number()?; count],
        "normal" => {
            let deviation = number()?;
            normal(&param.name, count).map(|x| x * deviation).collect()
        }
        "identity" => match shape.as_slice() {
            [.., rows, columns] if rows == columns => {
                (0..count).map(|i| f64::from(i / columns % rows == i % columns)).collect()
            }
            _ => return Err(format!("an identity is square, not {}", param.ty)),
        },
        _ => return Err(format!("`{}` is no start: known are normal:STD, identity, fill:X", param.init)),
    };
    Ok(Tensor::from_f64(param.ty.dtype, &shape, &values))
}

/// Standard normal values of a stream that belongs to the name.
fn normal(name: &str, count: usize) -> impl Iterator<Item = f64> {
    let words: Vec<u64> = name.bytes().map(u64::from).collect();
    let mut stream = Stream::new(&words);
    (0..count).map(move |_| stream.normal())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(init: &str, ty: &str) -> Result<Tensor, String> {
        value(&Param { name: "w".into(), ty: ty.parse().unwrap(), init: init.into(), state: false })
    }

    #[test]
    fn starts_are_what_they_say() {
        assert_eq!(start("fill:0.5", "f32[2]").unwrap().to_f64(), [0.5, 0.5]);
        assert_eq!(start("identity", "f32[2,2]").unwrap().to_f64(), [1.0, 0.0, 0.0, 1.0]);
        let values = start("normal:2", "f32[100,100]").unwrap().to_f64();
        let mean = values.iter().sum::<f64>() / 1e4;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 1e4;
        assert!(mean.abs() < 0.08 && (variance - 4.0).abs() < 0.25, "{mean} {variance}");
        assert_eq!(start("normal:2", "f32[100,100]").unwrap().to_f64(), values);
        for (init, ty) in [("identity", "f32[2,3]"), ("fill:", "f32[1]"), ("zeros", "f32[1]")] {
            assert!(start(init, ty).is_err(), "{init}");
        }
    }
}
