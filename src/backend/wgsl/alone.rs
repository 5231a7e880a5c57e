//! A row by itself on tensors, held against the reference and timed: for the tests of conformance and for benchmarks.

use std::time::{Duration, Instant};

use lite3r_ir::{Tensor, ValueType, ops::Case};

use super::{
    adapter::{Gpu, padded},
    bind::{Uniforms, bound},
    exec::{Ready, blocking},
    launch::{Base, Lowered},
    pipelines::Pipelines,
};
use crate::{Error, Result};

/// What a row launches, with every value in a buffer of its own; results and scratch memory begin full of ones.
pub struct Alone<'g> {
    gpu: &'g Gpu,
    results: Vec<(wgpu::Buffer, ValueType)>,
    launches: Vec<Ready>,
}

impl<'g> Alone<'g> {
    /// Of operands and the types of results. Errors: `wgsl.memory`, `wgsl.limit`, `wgsl.shader`.
    pub fn new(gpu: &'g Gpu, lowered: &Lowered, inputs: &[Tensor], results: &[ValueType]) -> Result<Self> {
        let poisoned = |bytes: usize, what: &str| {
            let buffer = blocking(gpu.buffer(bytes as u64, what))?;
            gpu.write(&buffer, 0, &vec![0xff; padded(bytes as u64) as usize]);
            Ok::<_, Error>(buffer)
        };
        let mut operands = Vec::new();
        for tensor in inputs {
            let buffer = poisoned(tensor.bytes().len(), "operand")?;
            gpu.write(&buffer, 0, tensor.bytes());
            operands.push(buffer);
        }
        let result = |ty: &ValueType| Ok::<_, Error>((poisoned(ty.bytes().unwrap_or(0), "result")?, ty.clone()));
        let results = results.iter().map(result).collect::<Result<Vec<_>>>()?;
        let scratch = poisoned(lowered.scratch, "scratch")?;
        let place = |base: Base| {
            Ok(match base {
                Base::Operand(index) => (&operands[index], 0),
                Base::Result(index) => (&results[index].0, 0),
                Base::Scratch => (&scratch, 0),
            })
        };
        let all = || lowered.launches.iter().filter(|l| l.groups.iter().all(|n| *n > 0));
        let (pipelines, uniforms) = (blocking(Pipelines::new(gpu, all()))?, Uniforms::new(gpu, all())?);
        let launches =
            all().map(|launch| bound(gpu, (&pipelines, &uniforms), launch, &place)).collect::<Result<_>>()?;
        Ok(Self { gpu, results, launches })
    }

    fn submit(&self, times: usize) {
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            (0..times).for_each(|_| self.launches.iter().for_each(|ready| ready.dispatch(&mut pass)));
        }
        self.gpu.queue().submit([encoder.finish()]);
    }

    /// Runs it. Errors: `wgsl.lost`.
    pub fn run(&self) -> Result<Vec<Tensor>> {
        self.submit(1);
        let size = |ty: &ValueType| ty.bytes().unwrap_or(0) as u64;
        let parts: Vec<_> = self.results.iter().map(|(buffer, ty)| (buffer, 0, size(ty))).collect();
        let bytes = self.gpu.read(&parts)?;
        let tensor = |((_, ty), bytes): (&(_, ValueType), Vec<u8>)| {
            Tensor::from_bytes(ty.dtype, &ty.dims().unwrap_or_default(), &bytes)
                .expect("buffers have the size of types")
        };
        Ok(self.results.iter().zip(bytes).map(tensor).collect())
    }

    /// What one of `times` runs in a row takes, the best of five rows. Errors: `wgsl.lost`.
    pub fn time(&self, times: usize) -> Result<Duration> {
        let mut best = Duration::MAX;
        for _ in 0..6 {
            self.gpu.wait()?;
            let begun = Instant::now();
            self.submit(times);
            self.gpu.wait()?;
            best = best.min(begun.elapsed() / times.max(1) as u32);
        }
        Ok(best)
    }
}

/// How far a row is from the evaluation of a case in f64, as a part of what the operation allows. Errors: what is wrong.
pub fn error(gpu: &Gpu, lowered: &Lowered, case: &Case) -> std::result::Result<f64, String> {
    let operands: Vec<ValueType> = case.inputs.iter().map(Tensor::value_type).collect();
    let results = case.op.infer(&operands).map_err(|e| e.to_string())?;
    let run = || Alone::new(gpu, lowered, &case.inputs, &results)?.run();
    let (got, again) = (run().map_err(|e| e.to_string())?, run().map_err(|e| e.to_string())?);
    let want = match &case.expect {
        Some(want) => want.clone(),
        None => case.op.eval(&case.inputs.iter().collect::<Vec<_>>(), &results).map_err(|e| e.to_string())?,
    };
    let mut worst = 0f64;
    for (n, ((got, again), want)) in got.iter().zip(&again).zip(&want).enumerate() {
        if got.bytes() != again.bytes() {
            return Err(format!("result {n} is another the second time"));
        }
        let tolerance = case.op.tolerance(got.dtype());
        let (got, want) = (got.to_f64(), want.to_f64());
        let scale = want.iter().filter(|v| v.is_finite()).fold(0f64, |m, v| m.max(v.abs()));
        let allowed = tolerance.absolute + tolerance.relative * scale;
        let off = |g: f64, w: f64| match g == w || g.is_nan() && w.is_nan() {
            true => 0.0,
            false => (g - w).abs() / allowed,
        };
        let wrong: Vec<usize> =
            (0..got.len()).filter(|i| off(got[*i], want[*i]).is_nan() || off(got[*i], want[*i]) > 1.0).collect();
        if let Some(i) = wrong.first() {
            let count = wrong.len();
            return Err(format!("result {n} [{i}]: {} for {}, ±{allowed:e}; {count} wrong", got[*i], want[*i]));
        }
        worst = got.iter().zip(&want).fold(worst, |worst, (g, w)| worst.max(off(*g, *w)));
    }
    Ok(worst)
}
