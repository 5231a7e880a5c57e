//! `cuda/resize.cu`, `cuda/resize_pixels.cu` and `cuda/resize_grad.cu`: images at another resolution, what is added to
//! them, and what they get back.

use lite3r_ir::{
    DType, Op,
    ops::{
        Resize,
        images::ImageLayout,
        resize::{Coordinates, Nearest, ResizeMode},
        shape_rules::strides_for,
    },
};

use super::{
    Arch, Kernel, dims,
    floats::{FLOATS, floats},
    launch::{Arg, Launch, Lowered, Module, PROCESSORS, THREADS, index_type},
    movement::chunk,
    product::activation,
};
use crate::backend::Request;

/// Bytes of a tap: source and weight.
const TAP: usize = 8;

/// Rows of pixels that a thread makes, and blocks that fill a device.
const ROWS: usize = 4;
const MANY_BLOCKS: usize = 4 * PROCESSORS;

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "resize.pixels", op: "resize", dtypes: &[DType::F16, DType::BF16], lower: pixels },
    Kernel { name: "resize.taps", op: "resize", dtypes: FLOATS, lower: taps },
    Kernel { name: "resize_grad.lists", op: "resize_grad", dtypes: FLOATS, lower: back },
];

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

impl Law {
    fn of(op: &Resize) -> Self {
        Self {
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
        }
    }
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

/// From one image, row, column, channel of an addend to the next, in elements; 0 where it is stretched.
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Steps {
    image: i64,
    row: i64,
    column: i64,
    channel: i64,
}

/// See `cuda/resize.cu`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Sizes {
    channels: i64,
    from: [i64; 2],
    to: [i64; 2],
    elements: i64,
}

/// See `cuda/resize_pixels.cu`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct ChunkSteps {
    image: u32,
    row: u32,
    column: u32,
}

/// See `cuda/resize_pixels.cu`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct ChunkSizes {
    chunks: u32,
    from: [u32; 2],
    to: [u32; 2],
}

/// Operands behind x that a kernel adds, at most.
const ADDENDS: usize = 2;

/// A resize with its sizes: images, channels, rows, columns.
struct Parts<'r> {
    op: &'r Resize,
    from: [usize; 4],
    to: [usize; 4],
    /// Of what is added.
    steps: [Steps; ADDENDS],
}

fn parts<'r>(request: &Request<'r>) -> Result<Parts<'r>, String> {
    let Op::Resize(op) = request.op else { return Err("computes resize".into()) };
    floats(request)?;
    let (x, y) = (dims(&request.operands[0])?, dims(&request.results[0])?);
    let (from, to) = (op.sizes(&x)?, op.sizes(&y)?);
    if to.iter().product::<usize>() > 0 && (from[2] == 0 || from[3] == 0) {
        return Err("takes images with pixels".into());
    }
    if op.addends > ADDENDS || op.addends > 0 && y.len() != 4 {
        return Err(format!("adds up to {ADDENDS} operands to images of four dimensions"));
    }
    let mut steps = [Steps::default(); ADDENDS];
    for (steps, addend) in steps.iter_mut().zip(&request.operands[1..]) {
        let strides = strides_for(&dims(addend)?, &y);
        let [image, channel, row, column] = op.layout.planes(&strides).ok_or("takes images")?.map(|s| s as i64);
        *steps = Steps { image, row, column, channel };
    }
    // What stands before rows and columns of planes counts as channels: an addend tells them apart.
    let (from, to) = match (op.layout, y.as_slice()) {
        (ImageLayout::Planes, &[n, c, ..]) if y.len() == 4 => ([n, c, from[2], from[3]], [n, c, to[2], to[3]]),
        _ => (from, to),
    };
    Ok(Parts { op, from, to, steps })
}

/// Bilinear with corners on corners, eight channels at a time.
fn pixels(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Parts { op, from, to, steps } = parts(request)?;
    let [images, channels, oh, ow] = to;
    let dtype = request.operands[0].dtype;
    if op.layout != ImageLayout::Pixels || !channels.is_multiple_of(8) {
        return Err("takes multiples of eight channels side by side".into());
    }
    if op.mode != ResizeMode::Linear || op.coordinates != Coordinates::AlignCorners || op.antialias {
        return Err("interpolates linearly between aligned corners".into());
    }
    let whole = |s: &Steps| s.channel == 1;
    if dtype.size() != 2 || request.operands.iter().any(|t| t.dtype != dtype) || !steps[..op.addends].iter().all(whole)
    {
        return Err("takes f16 or bf16, addends of the same type with all channels".into());
    }
    let chunks = channels / 8;
    let most = |n: usize, limit: usize| n < limit;
    let products = (from[2] * oh).max(from[3] * ow).max(images * from[2]).max(images * oh);
    if !most(products, 1 << 31) || !most(ow * chunks, 1 << 31) || !most(oh.max(images), 1 << 16) {
        return Err("takes images of fewer than 2^16 rows".into());
    }
    let narrow = |s: &Steps| -> Result<ChunkSteps, String> {
        let chunks = |n: i64| u32::try_from(n / 8).map_err(|_| "takes addends of less than 2^35 elements".to_string());
        Ok(ChunkSteps { image: chunks(s.image)?, row: chunks(s.row)?, column: chunks(s.column)? })
    };
    // Threads that make several rows blend those of x less often, where there are threads enough.
    let across = (ow * chunks).div_ceil(THREADS as usize);
    let rows = if across * images * oh >= MANY_BLOCKS * ROWS { ROWS } else { 1 };
    let module = Module::new("resize_pixels.cu")
        .element("TX", dtype)
        .define("ROWS", rows)
        .define("RECTIFIED", i32::from(op.rectified))
        .define("ADDENDS", op.addends)
        .define("ACTIVATION", activation(op.activation, request.results[0].dtype, false));
    let two = |pair: &[usize]| [pair[0] as u32, pair[1] as u32];
    let sizes = ChunkSizes { chunks: chunks as u32, from: two(&from[2..]), to: two(&to[2..]) };
    let addend = |i: usize| Arg::maybe((i < op.addends).then_some(1 + i));
    Ok(Launch {
        module,
        function: "resize_pixels",
        grid: [across as u32, oh.div_ceil(rows) as u32, images as u32],
        block: THREADS,
        shared: 0,
        args: vec![
            Arg::operand(0),
            addend(0),
            addend(1),
            Arg::result(0),
            if op.rectified { Arg::result(1) } else { Arg::Null },
            Arg::of(sizes),
            Arg::of(narrow(&steps[0])?),
            Arg::of(narrow(&steps[1])?),
        ],
    }
    .into())
}

fn taps(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Parts { op, from: [_, channels, h, w], to, steps } = parts(request)?;
    if op.rectified {
        return super::rectified_behind(&Resize { rectified: false, ..op.clone() }.into(), request, arch);
    }
    let [.., oh, ow] = to;
    let elements: usize = to.iter().product();
    let law = Law::of(op);
    let (down, across) = (AxisLaw::new(op, 0, h, oh), AxisLaw::new(op, 1, w, ow));
    let (rows, columns) = (down.taps(op), across.taps(op));
    let addend = |i: usize| (i < op.addends).then_some(1 + i);
    let added = |i: usize| addend(i).map_or(DType::F32, |i| request.operands[i].dtype);
    let module = Module::new("resize.cu")
        .element("TX", request.operands[0].dtype)
        .element("TR", request.results[0].dtype)
        .element("TA", added(0))
        .element("TB", added(1))
        .define("ADDENDS", op.addends)
        .define("PIXELS", i32::from(op.layout == ImageLayout::Pixels))
        .define("ACTIVATION", activation(op.activation, request.results[0].dtype, false))
        .define("ROWS", rows)
        .define("COLUMNS", columns)
        .define("INDEX", index_type(elements as u64));
    let second = (oh * rows * TAP).next_multiple_of(256);
    let launch = |function, threads: usize, args| Launch::over(module.clone(), function, threads as u64, args);
    let tables = [Arg::scratch(0), Arg::scratch(second)];
    let two = |h: usize, w: usize| [h as i64, w as i64];
    let sizes = Sizes { channels: channels as i64, from: two(h, w), to: two(oh, ow), elements: elements as i64 };
    let taps = tables.iter().cloned().chain([Arg::of(law), Arg::of(down), Arg::of(across)]).collect();
    let images = [Arg::operand(0), Arg::maybe(addend(0)), Arg::maybe(addend(1)), Arg::result(0)];
    let values = [Arg::of(sizes), Arg::of(steps[0]), Arg::of(steps[1])];
    let gather = images.into_iter().chain(tables).chain(values).collect();
    let count = if elements == 0 { 0 } else { oh + ow };
    Ok(Lowered {
        launches: vec![launch("taps", count, taps), launch("resize", elements, gather)],
        scratch: second + ow * columns * TAP,
    })
}

/// The taps of the resize, lists of who sees each row and column, and the sums.
fn back(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::ResizeGrad(op) = request.op else { return Err("computes resize_grad".into()) };
    floats(request)?;
    let (g, dx) = (dims(&request.operands[0])?, dims(&request.results[0])?);
    let resize = op.resize([]);
    let ([_, channels, h, w], [.., oh, ow]) = (resize.sizes(&dx)?, resize.sizes(&g)?);
    let elements: usize = dx.iter().product();
    if elements == 0 {
        return Ok(Lowered::default());
    }
    let (down, across) = (AxisLaw::new(&resize, 0, h, oh), AxisLaw::new(&resize, 1, w, ow));
    let taps = [down.taps(&resize), across.taps(&resize)];
    let most = |axis, from, to| op.weights(axis, from, to).iter().map(Vec::len).max().unwrap_or(0).max(1);
    let most = [most(0, h, oh), most(1, w, ow)];
    let (dtype, pixels) = (request.operands[0].dtype, op.layout == ImageLayout::Pixels);
    let chunk = if pixels { chunk(dtype.size(), |n| channels.is_multiple_of(n)) / dtype.size() } else { 1 };
    let module = Module::new("resize_grad.cu")
        .element("TX", dtype)
        .define("CHUNK", chunk)
        .define("ROWS", taps[0])
        .define("COLUMNS", taps[1])
        .define("PIXELS", i32::from(pixels))
        .define("INDEX", index_type(elements as u64));
    let mut scratch = 0;
    let tables = [oh * taps[0], ow * taps[1], h * most[0], w * most[1]].map(|count| {
        let at = scratch;
        scratch = (at + count * TAP).next_multiple_of(256);
        Arg::scratch(at)
    });
    let counts = most.map(|n| Arg::of(n as u32));
    let laws = [Arg::of(down), Arg::of(across)];
    let two = |h: usize, w: usize| [h as i64, w as i64];
    let sizes = Sizes { channels: channels as i64, from: two(oh, ow), to: two(h, w), elements: elements as i64 };
    let launch = |function, threads: usize, args: &[&[Arg]]| {
        Launch::over(module.clone(), function, threads as u64, args.concat())
    };
    Ok(Lowered {
        launches: vec![
            launch("taps", oh + ow, &[&tables[..2], &[Arg::of(Law::of(&resize))], &laws]),
            launch("lists", h + w, &[&tables, &laws, &counts]),
            launch(
                "resize_grad",
                elements / chunk,
                &[&[Arg::operand(0), Arg::result(0)], &tables[2..], &counts, &[Arg::of(sizes)]],
            ),
        ],
        scratch,
    })
}
