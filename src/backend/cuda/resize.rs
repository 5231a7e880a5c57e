//! `cuda/resize.cu`: images at another resolution.

use lite3r_ir::{
    Op,
    ops::{
        Resize,
        resize::{Coordinates, Nearest, ResizeMode},
    },
};

use super::{
    Arch, Kernel, dims,
    floats::{FLOATS, floats},
    launch::{Arg, Launch, Lowered, Module, index_type},
};
use crate::backend::Request;

/// Bytes of a tap: source and weight.
const TAP: usize = 8;

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[Kernel { name: "resize.taps", op: "resize", dtypes: FLOATS, lower }];

/// The operation's attributes, as `cuda/resize.cu` lays them out.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Law {
    mode: i32,
    coordinates: i32,
    rounding: i32,
    antialias: i32,
    exclude_outside: i32,
    unused: i32,
    cubic_a: f64,
}

/// Sizes along an axis, and what counts as their ratio.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct AxisLaw {
    from: i64,
    to: i64,
    scale: f64,
}

impl AxisLaw {
    fn new(op: &Resize, axis: usize, from: usize, to: usize) -> Self {
        let scale = op.scales.get(axis).copied().unwrap_or(to as f64 / from as f64);
        Self { from: from as i64, to: to as i64, scale }
    }

    /// At least as many as any pixel has.
    fn taps(&self, op: &Resize) -> usize {
        let radius = match op.mode {
            ResizeMode::Nearest => return 1,
            ResizeMode::Linear => 1.0,
            ResizeMode::Cubic => 2.0,
        };
        match op.antialias && self.scale < 1.0 {
            true => (2.0 * radius / self.scale).ceil() as usize + 1,
            false => 2 * radius as usize,
        }
    }
}

fn lower(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::Resize(op) = request.op else { return Err("computes resize".into()) };
    floats(request)?;
    let (x, y) = (dims(&request.operands[0])?, dims(&request.results[0])?);
    let (Some(&[h, w]), Some(&[oh, ow])) = (x.last_chunk(), y.last_chunk()) else {
        return Err("takes images".into());
    };
    let elements: usize = y.iter().product();
    if elements > 0 && (h == 0 || w == 0) {
        return Err("takes images with pixels".into());
    }
    let law = Law {
        mode: match op.mode {
            ResizeMode::Nearest => 0,
            ResizeMode::Linear => 1,
            ResizeMode::Cubic => 2,
        },
        coordinates: match op.coordinates {
            Coordinates::HalfPixel => 0,
            Coordinates::AlignCorners => 1,
            Coordinates::Asymmetric => 2,
            Coordinates::PytorchHalfPixel => 3,
        },
        rounding: match op.nearest {
            Nearest::Floor => 0,
            Nearest::Ceil => 1,
            Nearest::RoundPreferFloor => 2,
            Nearest::RoundPreferCeil => 3,
        },
        antialias: i32::from(op.antialias),
        exclude_outside: i32::from(op.exclude_outside),
        unused: 0,
        cubic_a: op.cubic_a,
    };
    let (down, across) = (AxisLaw::new(op, 0, h, oh), AxisLaw::new(op, 1, w, ow));
    let (rows, columns) = (down.taps(op), across.taps(op));
    let module = Module::new("resize.cu")
        .element("TX", request.operands[0].dtype)
        .element("TR", request.results[0].dtype)
        .define("ROWS", rows)
        .define("COLUMNS", columns)
        .define("INDEX", index_type(elements as u64));
    let second = (oh * rows * TAP).next_multiple_of(256);
    let launch = |function, threads: usize, args| Launch::over(module.clone(), function, threads as u64, args);
    let tables = [Arg::scratch(0), Arg::scratch(second)];
    let sizes = [h, w, oh, ow, elements].map(|v| Arg::of(v as i64));
    let taps = tables.iter().cloned().chain([Arg::of(law), Arg::of(down), Arg::of(across)]).collect();
    let gather = [Arg::operand(0), Arg::result(0)].into_iter().chain(tables).chain(sizes).collect();
    let count = if elements == 0 { 0 } else { oh + ow };
    Ok(Lowered {
        launches: vec![launch("taps", count, taps), launch("resize", elements, gather)],
        scratch: second + ow * columns * TAP,
    })
}
