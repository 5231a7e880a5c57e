//! The WGSL kernels on an adapter of this machine: against the reference, and timed on the shapes of the models.
//!
//! ```text
//! cargo bench --bench wgsl -- check [--only NAME] [--device 0]
//! cargo bench --bench wgsl -- time [--only NAME] [--device 0]
//! ```
//!
//! `check` runs every case of every operation on every row that takes it and whose needs the adapter offers; `time` shows
//! every such row on every shape, so that one that stands in for another can be compared with it.

#[path = "gpu/random.rs"]
mod random;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lite3r::{
    Error, Result,
    backend::{
        Request,
        wgsl::{
            self, Kernel,
            adapter::Gpu,
            alone::{self, Alone},
            launch::Lowered,
        },
    },
};
use lite3r_ir::{
    DType, Op, Tensor, ValueType,
    ops::{
        Attention, Case, Conv2d, Linear, MatMul, WeightScaledLinear, activation::Activation, images::ImageLayout,
        quantize::Granularity,
    },
    text,
};
use random::random;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
    /// Only rows, or shapes, whose names contain this
    #[arg(long, default_value = "", global = true)]
    only: String,
    /// The number of the adapter
    #[arg(long, default_value_t = 0, global = true)]
    device: usize,
    /// Given by cargo
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Clone, Copy, Subcommand)]
enum Command {
    /// Hold every row against the reference
    Check,
    /// Time every row on the shapes of the models
    Time,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = Gpu::open(args.device, None).and_then(|gpu| {
        println!("{}: {}", gpu.name(), gpu.offered());
        match args.command {
            Command::Check => Ok(check(&gpu, &args.only)),
            Command::Time => time(&gpu, &args.only),
        }
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => 6.into(),
        Err(error) => {
            eprintln!("{error}");
            error.exit_code().into()
        }
    }
}

/// Every row that takes an operation and that the adapter can run, with what it launches.
fn rows(gpu: &Gpu, op: &Op, operands: &[ValueType], results: &[ValueType]) -> Vec<(&'static Kernel, Lowered)> {
    let request = Request { op, operands, results };
    let offered = wgsl::rows().filter(|k| k.op == op.name() && k.needs.are_in(gpu.offered()));
    offered.filter_map(|kernel| Some((kernel, (kernel.lower)(&request).ok()?))).collect()
}

/// Every case on every row, row by row.
fn check(gpu: &Gpu, only: &str) -> bool {
    let mut found: Vec<(&str, usize, f64, Vec<String>)> =
        wgsl::rows().filter(|k| k.name.contains(only)).map(|k| (k.name, 0, 0.0, Vec::new())).collect();
    for case in Op::all_cases().into_iter().chain(shapes()).chain(attentions_in_f16()) {
        let operands: Vec<ValueType> = case.inputs.iter().map(Tensor::value_type).collect();
        let results = case.op.infer(&operands).unwrap_or_else(|e| panic!("{} {operands:?}: {e}", case.op.name()));
        for (kernel, lowered) in rows(gpu, &case.op, &operands, &results) {
            let Some((_, cases, worst, faults)) = found.iter_mut().find(|(name, ..)| *name == kernel.name) else {
                continue;
            };
            *cases += 1;
            match alone::error(gpu, &lowered, &case) {
                Ok(off) => *worst = worst.max(off),
                Err(fault) => {
                    let types: Vec<String> = operands.iter().map(ToString::to_string).collect();
                    faults.push(format!("{} ({}): {fault}", text::print_op(&case.op), types.join(", ")));
                }
            }
        }
    }
    println!("kernel                           cases   error/allowed");
    for (name, cases, worst, faults) in &found {
        println!("{name:<32} {cases:>5}   {worst:.3}");
        faults.iter().for_each(|fault| println!("WRONG {fault}"));
    }
    let good = found.iter().all(|(.., faults)| faults.is_empty());
    println!("{} rows: {}", found.len(), if good { "all hold" } else { "some do not hold" });
    good
}

/// Cases that the operations do not bring themselves: ragged shapes around the tiles of products.
fn shapes() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |op: Op, dtypes: &[DType], shapes: &[&[usize]]| {
        let inputs = shapes.iter().zip(dtypes).zip(1..).map(|((shape, dtype), seed)| Tensor::wave(*dtype, shape, seed));
        cases.push(Case::new("shapes", op, inputs.collect()));
    };
    let (f, h, e) = (DType::F32, DType::F16, DType::F8E4M3);
    for m in [1, 7, 63, 64, 65, 1374] {
        for (n, k) in [(68, 64), (1024, 592), (192, 200)] {
            let op = |activation, bias, residual, out| Linear { activation, residual, out, ..Linear::new(bias) };
            add(op(Activation::Gelu, true, false, None).into(), &[h, h, h], &[&[m, k], &[n, k], &[n]]);
            add(op(Activation::None, true, true, Some(f)).into(), &[h, h, f, f], &[&[m, k], &[n, k], &[n], &[m, n]]);
            add(op(Activation::None, true, true, None).into(), &[f, f, f, f], &[&[m, k], &[n, k], &[n], &[m, n]]);
            let codes = WeightScaledLinear {
                activation: Activation::Gelu,
                bias: true,
                residual: false,
                w_scale: Granularity::Row,
                out: None,
            };
            add(codes.into(), &[h, e, f, f], &[&[m, k], &[n, k], &[n, 1], &[n]]);
        }
        let conv = Conv2d { layout: ImageLayout::Pixels, residual: true, ..Conv2d::same(1, true) };
        let (x, y): ([usize; 4], [usize; 4]) = ([2, m.min(65), 33, 36], [2, m.min(65), 33, 72]);
        add(conv.clone().into(), &[h, h, f, h], &[&x, &[72, 3, 3, 36], &[72], &y]);
        let strided = Conv2d { strides: vec![2, 2], pads: vec![1, 2, 1, 1], residual: false, ..conv };
        add(strided.into(), &[h, h, h], &[&x, &[72, 3, 3, 36], &[72]]);
        for transpose_b in [false, true] {
            let b: &[usize] = if transpose_b { &[3, 72, 64] } else { &[3, 64, 72] };
            add(MatMul { transpose_b }.into(), &[h, h], &[&[3, m, 64], b]);
        }
    }
    // Large enough for every tile of products and convolutions, ragged on both sides.
    for (m, n) in [(1374, 1500), (2050, 2060)] {
        let op = Linear { activation: Activation::Gelu, ..Linear::new(true) };
        add(op.into(), &[h, h, h], &[&[m, 100], &[n, 100], &[n]]);
        let batch = MatMul { transpose_b: false };
        add(batch.into(), &[h, h], &[&[2, m, 36], &[2, 36, n]]);
    }
    for n in [68, 132] {
        let conv = Conv2d { layout: ImageLayout::Pixels, ..Conv2d::same(1, true) };
        add(conv.into(), &[h, h, h], &[&[1, 128, 130, 12], &[n, 3, 3, 12], &[n]]);
    }
    cases
}

/// The cases of attention and what belongs to it over f16, and some of larger scores and other widths.
fn attentions_in_f16() -> Vec<Case> {
    let family = ["attention", "self_attention", "block_attention", "linear_attention", "block_route", "block_mean"];
    let narrow = |t: Tensor| if matches!(t.dtype(), DType::F32 | DType::BF16) { t.cast(DType::F16) } else { t };
    let of_family = Op::all_cases().into_iter().filter(|case| family.contains(&case.op.name()));
    let mut cases: Vec<Case> =
        of_family.map(|c| Case::new("f16", c.op, c.inputs.into_iter().map(narrow).collect())).collect();
    for (n, m) in [(1, 1), (63, 65), (64, 64), (65, 63), (130, 1374), (1374, 200)] {
        for (d, e, scale) in
            [(64, 64, 0.125), (64, 64, 9.0), (32, 32, 4.0), (128, 128, 2.0), (96, 48, 0.1), (48, 16, 1.0)]
        {
            let op = Attention { lse: true, merged: n % 2 == 0, ..Attention::new(scale) };
            let wave = |tokens, width, seed| Tensor::wave(DType::F16, &[1, 2, tokens, width], seed);
            cases.push(Case::new("shapes", op, vec![wave(n, d, 1), wave(m, d, 2), wave(m, e, 3)]));
        }
    }
    cases
}

/// An operation as text writes it, its operands, and floating-point operations that rates are by.
struct Shape {
    name: String,
    op: String,
    operands: Vec<ValueType>,
    flops: f64,
    /// Key blocks that lists are spread over.
    blocks: usize,
}

fn timed() -> Vec<Shape> {
    let mut shapes = Vec::new();
    let of = |dtype: DType, shape: &[usize]| ValueType::new(dtype, shape.iter().copied());
    let (f, h, e) = (DType::F32, DType::F16, DType::F8E4M3);
    for m in [8, 2748, 10_992] {
        for (k, n) in [(1024, 1024), (1024, 3072), (1024, 4096), (4096, 1024)] {
            let mut add = |what: &str, op: &str, operands: Vec<ValueType>| {
                let (name, flops) = (format!("linear {what} {m}x{k}->{n}"), 2.0 * (m * k * n) as f64);
                shapes.push(Shape { name, op: op.into(), operands, flops, blocks: 0 });
            };
            add("f32", "linear {bias=true}", vec![of(f, &[m, k]), of(f, &[n, k]), of(f, &[n])]);
            add("f16", "linear {bias=true}", vec![of(h, &[m, k]), of(h, &[n, k]), of(f, &[n])]);
            let codes = vec![of(h, &[m, k]), of(e, &[n, k]), of(f, &[n, 1]), of(f, &[n])];
            add("e4m3 weights", "weight_scaled_linear {bias=true}", codes);
        }
    }
    for (size, input, output) in [(148, 256, 256), (296, 256, 128), (518, 128, 32), (37, 1024, 256)] {
        let flops = 36.0 * (size * size * input * output) as f64;
        for (dtype, what) in [(f, "f32"), (h, "f16")] {
            let layouts = [
                ("pixels", ",layout=nhwc", [2, size, size, input], [output, 3, 3, input]),
                ("planes", "", [2, input, size, size], [output, input, 3, 3]),
            ];
            for (where_, layout, x, w) in layouts {
                let name = format!("conv 3x3 {what} {where_} {input}->{output} 2x{size}x{size}");
                let op = format!("conv2d {{pads=[1,1,1,1]{layout},bias=true}}");
                let operands = vec![of(dtype, &x), of(dtype, &w), of(f, &[output])];
                shapes.push(Shape { name, op, operands, flops, blocks: 0 });
            }
        }
    }
    shapes.extend(attentions());
    shapes
}

/// Attention of 16 heads of 64, dense, and sparse-linear with what it is made of.
fn attentions() -> Vec<Shape> {
    let mut shapes = Vec::new();
    let of = |dtype: DType, shape: &[usize]| ValueType::new(dtype, shape.iter().copied());
    for (dtype, what) in [(DType::F32, "f32"), (DType::F16, "f16")] {
        for (images, n) in [(2, 1374), (1, 2748), (1, 10_992), (1, 43_968)] {
            let qkv = vec![of(dtype, &[images, 16, n, 64]); 3];
            let dense = 4.0 * (images * 16 * n * n * 64) as f64;
            let mut add = |name: String, op: String, operands: &[ValueType], flops: f64, blocks: usize| {
                let operands = operands.to_vec();
                shapes.push(Shape { name: format!("{name} {what} {images}x{n}"), op, operands, flops, blocks });
            };
            if n < 40_000 || dtype == DType::F16 {
                add("attention".into(), "attention {scale=0.125,merged=true}".into(), &qkv, dense, 0);
            }
            if n < 10_000 {
                continue;
            }
            let states = 4.0 * (16 * n * 64 * 64) as f64;
            let linear = "linear_attention {map=softmax,proj=true,merged=true,residual=true}";
            let behind = [of(dtype, &[64, 64]), of(dtype, &[1, n, 1024])];
            add("linear branch".into(), linear.into(), &[&qkv[..], &behind].concat(), states, 0);
            for (block_k, router, centroid) in [(64, "pooled", 0), (16, "sub16", 16)] {
                let (lists, blocks) = (n.div_ceil(64), n.div_ceil(block_k));
                let kept = blocks / 10;
                let routing = 2.0 * (16 * blocks * blocks.min(n.div_ceil(16)) * 64) as f64;
                let route =
                    format!("block_route {{block_q=64,block_k={block_k},router={router},kept={kept},scale=0.125}}");
                add(format!("routing 64x{block_k}"), route, &qkv[..2], routing, 0);
                let mut operands = qkv.clone();
                operands.push(of(DType::I32, &[1, 16, lists, kept]));
                operands.push(of(DType::I32, &[1, 16, lists]));
                let mut keys = kept * block_k;
                if centroid > 0 {
                    let mean = format!("block_mean {{block={centroid}}}");
                    add(format!("means of {centroid}"), mean, &qkv[..1], (16 * n * 64) as f64, 0);
                    operands.extend(vec![of(dtype, &[1, 16, n.div_ceil(centroid), 64]); 2]);
                    keys += n.div_ceil(centroid);
                }
                let op = format!(
                    "block_attention {{block_q=64,block_k={block_k},scale=0.125,centroid={centroid},merged=true}}"
                );
                let name = format!("lists 64x{block_k} keep 0.1");
                add(name, op, &operands, dense * keys as f64 / n as f64, blocks);
            }
        }
    }
    shapes
}

/// Every shape on every row that takes it.
fn time(gpu: &Gpu, only: &str) -> Result<bool> {
    println!("| shape | row | us | TFLOP/s |\n| --- | --- | --- | --- |");
    let failed = |e: &dyn std::fmt::Display| Error::unsupported("bench.case", e.to_string());
    let mut good = true;
    for Shape { name, op, operands, flops, blocks } in timed().into_iter().filter(|shape| shape.name.contains(only)) {
        let op = text::parse_op(&op).map_err(|e| failed(&e))?;
        let results = op.infer(&operands).map_err(|e| failed(&e))?;
        let inputs: Vec<Tensor> = operands.iter().zip(1..).map(|(ty, seed)| operand(ty, seed, blocks)).collect();
        for (kernel, lowered) in rows(gpu, &op, &operands, &results) {
            let times = if flops > 1e12 {
                2
            } else if flops > 1e10 {
                8
            } else {
                64
            };
            let alone = Alone::new(gpu, &lowered, &inputs, &results);
            match alone.and_then(|alone| alone.time(times)) {
                Ok(time) => {
                    let seconds = time.as_secs_f64();
                    println!("| {name} | {} | {:.1} | {:.1} |", kernel.name, seconds * 1e6, flops / seconds / 1e12);
                }
                Err(error) => {
                    good = false;
                    println!("| {name} | {} | {error} | |", kernel.name);
                }
            }
        }
    }
    Ok(good)
}

/// Random numbers; lists are spread over `blocks`, and full.
fn operand(ty: &ValueType, seed: u64, blocks: usize) -> Tensor {
    let shape = ty.dims().expect("cases have fixed shapes");
    if let (DType::I32, &[_, heads, lists, kept]) = (ty.dtype, &shape[..]) {
        let spread = |i: usize| ((i % kept * blocks + i / kept * 7 % blocks) / kept) as i64;
        return Tensor::from_i64(DType::I32, &shape, &(0..heads * lists * kept).map(spread).collect::<Vec<_>>());
    }
    if ty.dtype == DType::I32 {
        return Tensor::from_i64(DType::I32, &shape, &vec![i64::from(i32::MAX); shape.iter().product()]);
    }
    random(ty, seed)
}
