//! Runs plans on the CPU: one arena, weights where they lie, one kernel after the other, each on all cores.

use std::{sync::Arc, time::Instant};

use lite3r_ir::{Tensor, ValueType};

use super::{AlignedBytes, Arg, ArgMut, Kernel, is_aligned, named};
use crate::{
    Error, Kind, Result,
    backend::{Device, Executable, Probe, Request, StepRun},
    plan::{ALIAS, Buffer, Entry, Place, Plan, Step, weights::Bytes},
    weights::Weight,
};

/// The CPU of this machine.
pub struct CpuDevice {
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl CpuDevice {
    /// With so many threads, or with one per core. Errors: `device.threads`.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        let build = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build();
        let pool = threads.map(build).transpose();
        let pool = pool.map_err(|e| Error::device("device.threads", format!("no pool of threads: {e}")))?;
        Ok(Self { pool: pool.map(Arc::new) })
    }
}

impl Device for CpuDevice {
    fn target(&self) -> &'static str {
        "cpu"
    }

    fn load(&self, plan: Arc<Plan>) -> Result<Box<dyn Executable>> {
        let entries: Vec<Vec<Call>> = prepare(&plan)?;
        let mut weights: Vec<Held> = Vec::with_capacity(plan.header().weights.len());
        plan.weights.stream(&mut |index, bytes| {
            weights.push(match bytes {
                Bytes::Held(weight) if plan.header().weights[index].state => {
                    Held::Own(AlignedBytes::copy(weight.bytes())?)
                }
                Bytes::Held(weight) if is_aligned(weight.bytes()) => Held::Lent(weight.clone()),
                Bytes::Held(weight) => Held::Own(AlignedBytes::copy(weight.bytes())?),
                Bytes::Computed(bytes) => Held::Own(bytes),
            });
            Ok(())
        })?;
        Ok(Box::new(Loaded { plan, entries, weights, arena: AlignedBytes::zeroed(0)?, pool: self.pool.clone() }))
    }
}

enum Held {
    Lent(Weight),
    Own(AlignedBytes),
}

/// A step with what is looked up once.
struct Call {
    /// None: a view, nothing to do.
    kernel: Option<&'static Kernel>,
    operands: Vec<Vec<usize>>,
    results: Vec<Vec<usize>>,
}

/// Kernels of every step. All that are missing, or refuse what the plan asks of them, are reported.
fn prepare(plan: &Plan) -> Result<Vec<Vec<Call>>> {
    let mut problems = Vec::new();
    let mut entries = Vec::new();
    for entry in plan.entries() {
        let types = |all: &[u32]| all.iter().map(|n| entry.buffers[*n as usize].ty.clone()).collect::<Vec<_>>();
        let dims = |all: &[ValueType]| all.iter().map(|t| t.dims().unwrap_or_default()).collect();
        let mut calls = Vec::with_capacity(entry.steps.len());
        for step in &entry.steps {
            let (operands, results) = (types(&step.operands), types(&step.results));
            let kernel = match step.kernel.as_str() {
                ALIAS => None,
                name => match find(name, step, &Request { op: &step.op, operands: &operands, results: &results }) {
                    Ok(kernel) => Some(kernel),
                    Err(problem) => {
                        problems.push(format!("{} at `{}`: {problem}", step.op.name(), step.origin));
                        continue;
                    }
                },
            };
            calls.push(Call { kernel, operands: dims(&operands), results: dims(&results) });
        }
        entries.push(calls);
    }
    match problems.is_empty() {
        true => Ok(entries),
        false => Err(Error::all(crate::Kind::BadFile, "plan.kernel", problems)),
    }
}

fn find(name: &str, step: &Step, request: &Request<'_>) -> Result<&'static Kernel, String> {
    let kernel = named(name).ok_or_else(|| format!("this lite3r has no kernel `{name}`: compile the model again"))?;
    if kernel.op != "*" && kernel.op != request.op.name() {
        return Err(format!("kernel `{name}` computes {}", kernel.op));
    }
    (kernel.accepts)(request).map_err(|clause| format!("kernel `{name}` refuses: {clause}"))?;
    let scratch = step.scratch.map_or(0, |s| s.bytes);
    match (kernel.lane)(request) as u64 {
        needs if needs > scratch => Err(format!("kernel `{name}` needs {needs} bytes of scratch, not {scratch}")),
        _ => Ok(kernel),
    }
}

struct Loaded {
    plan: Arc<Plan>,
    entries: Vec<Vec<Call>>,
    weights: Vec<Held>,
    arena: AlignedBytes,
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl Executable for Loaded {
    fn run(&mut self, entry: usize, inputs: &[&Tensor], probe: Probe<'_>) -> Result<Vec<Tensor>> {
        match self.pool.clone() {
            Some(pool) => pool.install(|| self.execute(entry, inputs, probe)),
            None => self.execute(entry, inputs, probe),
        }
    }

    fn state(&mut self, index: u32) -> Result<Tensor> {
        let ty = self.plan.header().weights[index as usize].ty.clone();
        Ok(self.value(&Buffer { ty, place: Place::Weight(index) }))
    }

    fn set_state(&mut self, index: u32, value: &Tensor) -> Result<()> {
        self.weights[index as usize] = Held::Own(AlignedBytes::copy(value.bytes())?);
        Ok(())
    }

    fn allocated_bytes(&self) -> u64 {
        let own = |w: &Held| match w {
            Held::Lent(_) => 0,
            Held::Own(bytes) => bytes.as_slice().len() as u64,
        };
        self.arena.as_slice().len() as u64 + self.weights.iter().map(own).sum::<u64>()
    }
}

impl Loaded {
    fn execute(&mut self, index: usize, inputs: &[&Tensor], mut probe: Probe<'_>) -> Result<Vec<Tensor>> {
        let plan = self.plan.clone();
        let entry = &plan.entries()[index];
        self.reserve(entry)?;
        for (port, tensor) in entry.inputs.iter().zip(inputs) {
            if let Some(range) = range(&entry.buffers[port.buffer as usize]) {
                self.arena.as_mut_slice()[range].copy_from_slice(tensor.bytes());
            }
        }
        for (i, (step, call)) in entry.steps.iter().zip(&self.entries[index]).enumerate() {
            let start = Instant::now();
            if let Some(kernel) = call.kernel {
                Self::call(&mut self.arena, &self.weights, entry, step, call, kernel).map_err(|problem| {
                    let at = format!("{} at `{}`: {problem}", step.op.name(), step.origin);
                    Error::new(Kind::Kernel, "device.kernel", at)
                })?;
            }
            match &mut probe {
                Probe::Nothing => {}
                Probe::Times(seen) => seen(StepRun { index: i, step, time: start.elapsed() }),
                Probe::Values(seen) => {
                    let time = start.elapsed();
                    let tensors = |all: &[u32]| all.iter().map(|n| self.tensor(entry, *n)).collect::<Vec<Tensor>>();
                    seen(StepRun { index: i, step, time }, &tensors(&step.operands), &tensors(&step.results));
                }
            }
        }
        self.update(entry);
        Ok(entry.outputs.iter().map(|port| self.tensor(entry, port.buffer)).collect())
    }

    /// Gives states their new values.
    fn update(&mut self, entry: &Entry) {
        for update in &entry.updates {
            let value = range(&entry.buffers[update.buffer as usize]);
            if let (Some(value), Held::Own(state)) = (value, &mut self.weights[update.state as usize]) {
                state.as_mut_slice()[..value.len()].copy_from_slice(&self.arena.as_slice()[value]);
            }
        }
    }

    /// One arena, large enough for the entry; the old one goes before the new one comes.
    fn reserve(&mut self, entry: &Entry) -> Result<()> {
        let bytes = usize::try_from(entry.arena_bytes).map_err(|_| {
            Error::new(Kind::Memory, "device.memory", format!("an arena of {} bytes", entry.arena_bytes))
        })?;
        if self.arena.as_slice().len() < bytes {
            self.arena = AlignedBytes::zeroed(0)?;
            self.arena = AlignedBytes::zeroed(bytes)?;
        }
        Ok(())
    }

    fn call(
        arena: &mut AlignedBytes,
        weights: &[Held],
        entry: &Entry,
        step: &Step,
        call: &Call,
        kernel: &Kernel,
    ) -> Result<(), String> {
        let arena = arena.as_mut_slice();
        let length = arena.len();
        let base = arena.as_mut_ptr();
        let inside = |range: std::ops::Range<usize>| {
            assert!(range.start <= range.end && range.end <= length, "a checked plan stays inside its arena");
            range
        };
        let args = step.operands.iter().zip(&call.operands).map(|(n, shape)| {
            let buffer = &entry.buffers[*n as usize];
            let bytes: &[u8] = match buffer.place {
                Place::Weight(index) => weight(&weights[index as usize]),
                Place::Arena(_) => match range(buffer).map(inside) {
                    None => &[],
                    // SAFETY: inside the arena, which nothing else borrows during the call: `base` is derived from the
                    // only borrow. The plan passed `plan::check`, so no result and no scratch of this step overlaps an
                    // operand.
                    #[allow(unsafe_code)]
                    Some(range) => unsafe { std::slice::from_raw_parts(base.add(range.start), range.len()) },
                },
            };
            Arg { dtype: buffer.ty.dtype, shape, bytes }
        });
        let args: Vec<Arg<'_>> = args.collect();
        let mutable = |range: Option<std::ops::Range<usize>>| -> &mut [u8] {
            match range.map(inside) {
                None => &mut [],
                // SAFETY: as above; and `plan::check` has found results and scratch of one step disjoint from each
                // other.
                #[allow(unsafe_code)]
                Some(range) => unsafe { std::slice::from_raw_parts_mut(base.add(range.start), range.len()) },
            }
        };
        let results = step.results.iter().zip(&call.results).map(|(n, shape)| {
            let buffer = &entry.buffers[*n as usize];
            ArgMut { dtype: buffer.ty.dtype, shape, bytes: mutable(range(buffer)) }
        });
        let mut results: Vec<ArgMut<'_>> = results.collect();
        let scratch = step.scratch.map(|s| s.offset as usize..(s.offset + s.bytes) as usize);
        (kernel.run)(&step.op, &args, &mut results, mutable(scratch))
    }

    fn tensor(&self, entry: &Entry, buffer: u32) -> Tensor {
        self.value(&entry.buffers[buffer as usize])
    }

    fn value(&self, buffer: &Buffer) -> Tensor {
        let bytes = match buffer.place {
            Place::Weight(index) => weight(&self.weights[index as usize]),
            Place::Arena(_) => range(buffer).map_or(&[][..], |range| &self.arena.as_slice()[range]),
        };
        let shape = buffer.ty.dims().unwrap_or_default();
        Tensor::from_bytes(buffer.ty.dtype, &shape, bytes).expect("a checked plan gives every value its size")
    }
}

fn weight(held: &Held) -> &[u8] {
    match held {
        Held::Lent(weight) => weight.bytes(),
        Held::Own(bytes) => bytes.as_slice(),
    }
}

/// Where a value lies in the arena; `None` for weights and for values without elements.
fn range(buffer: &Buffer) -> Option<std::ops::Range<usize>> {
    match buffer.place {
        Place::Arena(start) if buffer.bytes() > 0 => Some(start as usize..(start + buffer.bytes()) as usize),
        _ => None,
    }
}
