//! Kernels on the shapes of the models, in CUDA graphs, beside torch on the same device.
//!
//! A case is an operation, a few times in a graph: what one takes is the time of the graph by their number. Peers come
//! from `tools/torch_peers.py`, which times the same shapes under the same names, name, tab and microseconds a line.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Command, Stdio},
};

use lite3r::{
    Error, Result,
    backend::{Trust, cuda::SM_90A},
    eval::depth::median,
    plan::{EntrySource, Meta, Plan, build},
    session::{Options, Session},
    weights,
};
use lite3r_ir::{
    Bindings, Builder, DType, Graph, Tensor, ValueType,
    passes::{self, ALL, pipeline},
    text,
};
use rayon::prelude::*;

use super::{failed, random::random};

/// What is timed, and beside what.
#[derive(clap::Args)]
pub struct Args {
    /// Only cases whose names contain this
    #[arg(long, default_value = "")]
    only: String,
    /// Time the peers too, with this Python
    #[arg(long, value_name = "PYTHON")]
    torch: Option<PathBuf>,
    /// The script that times the peers
    #[arg(long, value_name = "FILE", default_value = "tools/torch_peers.py")]
    peers: PathBuf,
}

/// One line of the table.
struct Case {
    /// The same as the peer's.
    name: String,
    /// Floating-point operations; of dense attention where keys are left out.
    flops: f64,
    /// An operation as IR text writes it.
    op: String,
    inputs: Vec<ValueType>,
    /// Passes that run over the graph.
    passes: String,
    copies: usize,
}

/// Times every case and prints the table.
pub fn main(args: &Args) -> Result<bool> {
    let mut cases = cases();
    cases.retain(|case| case.name.contains(&args.only));
    // Machine code is made by all cores at once, before anything is timed.
    let plans: Vec<Result<Plan>> = cases.par_iter().map(plan).collect();
    let peers = match &args.torch {
        Some(python) => peers(python, args)?,
        None => BTreeMap::new(),
    };
    println!("| case | us | TFLOP/s | torch us | torch / ours |\n| --- | --- | --- | --- | --- |");
    let mut good = true;
    for (case, plan) in cases.iter().zip(plans) {
        match plan.and_then(|plan| seconds(plan, case.copies)) {
            Ok(s) => {
                let us = s * 1e6;
                let peer = peers.get(&case.name).map_or("| ".into(), |p| format!("{p:.1} | {:.2}", p / us));
                println!("| {} | {us:.1} | {:.0} | {peer} |", case.name, case.flops / s / 1e12);
            }
            Err(error) => {
                good = false;
                println!("| {} | {error} | | | |", case.name);
            }
        }
    }
    Ok(good)
}

/// Linear layers, attention dense and sparse with its gradient, convolutions.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let of = |dtype: DType, shape: &[usize]| ValueType::new(dtype, shape.iter().copied());
    let (e, b, f) = (DType::F8E4M3, DType::BF16, DType::F32);
    for m in [1374, 2748, 10992, 43968] {
        for (k, n) in [(1024, 1024), (1024, 3072), (1024, 4096), (4096, 1024)] {
            let mut add = |what: &str, op: &str, inputs: Vec<ValueType>| {
                let (name, flops) = (format!("linear {what} {m}x{k}->{n}"), 2.0 * (m * k * n) as f64);
                let copies = if m > 10_000 { 4 } else { 16 };
                cases.push(Case { name, flops, op: op.into(), inputs, passes: String::new(), copies });
            };
            let codes = || vec![of(e, &[m, k]), of(f, &[m, 1]), of(e, &[n, k]), of(f, &[n, 1]), of(f, &[n])];
            let residual = |dtype| [codes(), vec![of(dtype, &[m, n])]].concat();
            add("e4m3", "scaled_linear {bias=true,out=bf16}", codes());
            if n == 4096 {
                let op = "scaled_linear {activation=gelu,bias=true,out=bf16,quantize=columns256}";
                add("e4m3 GELU to e4m3", op, codes());
            }
            if n == 1024 {
                add("e4m3 + bf16 residual", "scaled_linear {bias=true,residual=true,out=bf16}", residual(b));
                add("e4m3 + f32 residual", "scaled_linear {bias=true,residual=true,out=f32}", residual(f));
            }
            add("bf16", "linear {bias=true}", vec![of(b, &[m, k]), of(b, &[n, k]), of(f, &[n])]);
        }
    }
    for (dtype, codes) in [("bf16", ""), ("e4m3", ",codes=e4m3")] {
        let attention = |name: String, items: usize, n: usize, passes: String| Case {
            name,
            flops: 4.0 * (items * 16 * n * n * 64) as f64,
            op: format!("attention {{scale=0.125,kind=global{codes}}}"),
            inputs: vec![of(b, &[items, 16, n, 64]); 3],
            passes,
            copies: if n > 10_000 { 1 } else { 8 },
        };
        for (items, n) in [(2, 1374), (1, 2748), (1, 10_992), (1, 43_968)] {
            cases.push(attention(format!("attention {dtype} {items}x{n}"), items, n, String::new()));
        }
        for n in [10_992, 43_968] {
            for (what, options) in [
                ("64x64 pooled + linear", "block_k=64,form=add"),
                ("64x64 pooled", "block_k=64,form=sparse"),
                ("64x16 sub16 centroids", "block_k=16,router=sub16,form=centroid"),
            ] {
                for keep in ["0.3", "0.2", "0.1", "0.05"] {
                    let pass = format!("sla{{keep={keep},{options}}},fuse,dce");
                    cases.push(attention(format!("SLA {dtype} {what} {n} keep {keep}"), 1, n, pass));
                }
            }
        }
    }
    for (items, n) in [(2, 1374), (1, 2748), (1, 10_992), (1, 43_968)] {
        let (heads, sums) = (of(b, &[items, 16, n, 64]), of(f, &[items, 16, n]));
        cases.push(Case {
            name: format!("gradient of attention bf16 {items}x{n}"),
            flops: 10.0 * (items * 16 * n * n * 64) as f64,
            op: "attention_grad {scale=0.125}".into(),
            inputs: [vec![heads.clone(); 4], vec![sums, heads]].concat(),
            passes: String::new(),
            copies: if n > 10_000 { 1 } else { 8 },
        });
    }
    let sizes = [(148, 256, 256), (296, 256, 128), (518, 128, 32), (74, 256, 256), (37, 256, 256), (37, 1024, 256)];
    for (size, input, output) in sizes {
        let (x, w) = ([2, size, size, input], [output, 3, 3, input]);
        let mut add = |what: &str, op: &str, inputs: Vec<ValueType>| {
            let name = format!("conv {what} {input}->{output} 2x{size}x{size}");
            let flops = if inputs.len() > 1 { 36.0 * (size * size * input * output) as f64 } else { 0.0 };
            cases.push(Case { name, flops, op: op.into(), inputs, passes: String::new(), copies: 8 });
        };
        let wide = vec![of(b, &x), of(b, &w), of(f, &[output])];
        let codes = || vec![of(e, &x), of(f, &x[..1]), of(e, &w), of(f, &w[..1]), of(f, &[output])];
        add("bf16 3x3", "conv2d {pads=[1,1,1,1],layout=nhwc,bias=true}", wide);
        add("e4m3 3x3", "scaled_conv2d {pads=[1,1,1,1],bias=true,out=bf16}", codes());
        add("e4m3 to e4m3 3x3", "scaled_conv2d {pads=[1,1,1,1],bias=true,out=bf16,quantize=true}", codes());
        let back = "conv2d_weight_grad {kernel=[3,3],pads=[1,1,1,1],layout=nhwc}";
        add("bf16 3x3 weights", back, vec![of(b, &x), of(b, &[2, size, size, output])]);
        add("codes of ReLU", "quantize_items {activation=relu}", vec![of(b, &x)]);
    }
    // Of the head of a small model, many images at a time.
    for (size, input, output) in [(224, 32, 32), (128, 64, 32), (64, 64, 64)] {
        let (images, pixels) = (120, 120 * size * size);
        cases.push(Case {
            name: format!("conv bf16 3x3 weights {input}->{output} {images}x{size}x{size}"),
            flops: 18.0 * (pixels * input * output) as f64,
            op: "conv2d_weight_grad {kernel=[3,3],pads=[1,1,1,1],layout=nhwc}".into(),
            inputs: [input, output].map(|channels| of(b, &[images, size, size, channels])).to_vec(),
            passes: String::new(),
            copies: 8,
        });
    }
    cases
}

fn plan(case: &Case) -> Result<Plan> {
    let op = text::parse_op(&case.op).map_err(|e| failed(&e))?;
    let mut graph = Graph::new("case");
    let inputs: Vec<_> =
        case.inputs.iter().enumerate().map(|(i, ty)| graph.input(format!("x{i}"), ty.clone())).collect();
    for copy in 0..case.copies {
        let results = Builder::new(&mut graph, format!("copy{copy}")).ops(op.clone(), &inputs);
        for (i, value) in results.map_err(|e| failed(&e))?.into_iter().enumerate() {
            graph.output(format!("y{copy}_{i}"), value);
        }
    }
    for selected in pipeline::select(&case.passes, ALL).map_err(|e| failed(&e))? {
        passes::run(selected.pass, &mut graph, &selected.options).map_err(|e| failed(&e))?;
    }
    let weights = weights::random(&graph, 1);
    let source = EntrySource { bindings: Bindings::new(), graph };
    build(&[source], &weights, &SM_90A, Meta::default())
}

/// The median of what one copy takes.
fn seconds(plan: Plan, copies: usize) -> Result<f64> {
    let mut session = Session::new(plan, &Options { trust: Trust::Plan, ..Options::default() })?;
    let entry = &session.plan().entries()[0];
    let ports = entry.inputs.iter().zip(1..);
    let inputs: BTreeMap<String, Tensor> =
        ports.map(|(port, seed)| (port.name.clone(), random(&entry.buffers[port.buffer as usize].ty, seed))).collect();
    session.time(0, &inputs, 2)?;
    let times = session.time(0, &inputs, 9)?;
    Ok(median(times.iter().map(|t| t.as_secs_f64())) / copies as f64)
}

/// What the peers take, in microseconds.
fn peers(python: &PathBuf, args: &Args) -> Result<BTreeMap<String, f64>> {
    let missing = |e: std::io::Error| Error::device("bench.peers", format!("{}: {e}", python.display()));
    let mut command = Command::new(python);
    command.arg(&args.peers).args(["--only", &args.only]).stderr(Stdio::inherit());
    let output = command.output().map_err(missing)?;
    if !output.status.success() {
        let text = format!("{} {} failed: {}", python.display(), args.peers.display(), output.status);
        return Err(Error::device("bench.peers", text));
    }
    let line = |line: &str| line.split_once('\t').and_then(|(name, us)| Some((name.to_string(), us.parse().ok()?)));
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(line).collect())
}
