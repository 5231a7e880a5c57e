//! What a backend is: a [`Target`] at compile time, a [`Device`] at run time.
//!
//! **Architecture Invariant:** a target is pure data about kernels and works without the hardware; a device sees plans,
//! never graphs. Selection happens before any weight is converted or kernel compiled, and reports every gap at once.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod gpu;
#[cfg(feature = "wgpu")]
pub mod wgsl;

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use lite3r_ir::{DType, Op, Tensor, ValueType};

use crate::{
    Error, Result,
    plan::{Plan, Step},
};

/// The environment variable that, set to 1, makes a device run the steps of a plan one by one, so that one that fails is
/// named.
pub const STEPWISE: &str = "LITE3R_SYNC";

/// One operation on concrete types, as a target is asked about it. Shapes are static.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What is to be computed.
    pub op: &'a Op,
    /// The types of the operands.
    pub operands: &'a [ValueType],
    /// The types of the results.
    pub results: &'a [ValueType],
}

/// The kernel that a target takes for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The row of the target's table: `linear.f32`.
    pub kernel: &'static str,
    /// Bytes of scratch memory that one call needs.
    pub scratch: usize,
}

/// Why no kernel of a target takes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The row that came nearest, if the operation has any.
    pub nearest: Option<&'static str>,
    /// The clause of that row that refused.
    pub clause: String,
}

/// How a target likes the convolutions of dense heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DenseHeads {
    /// Whether the channels of a pixel lie side by side: what tensor cores read.
    pub channels_last: bool,
    /// How many frames they take at a time; all of them if not given.
    pub frames: Option<usize>,
}

/// The compile side of a backend.
pub trait Target {
    /// As `--target` and plan headers write it: `cpu`, `cuda:sm_90a`, `wgsl`.
    fn name(&self) -> &'static str;

    /// What a machine must offer to run such a plan for this target, by the target's own names.
    fn limits(&self, _entries: &[crate::plan::Entry]) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }

    /// The type of 16 bits that products are best computed in where nobody says: tensor cores have no f32.
    fn prefers(&self) -> Option<DType> {
        None
    }

    /// Whether products of 8-bit codes of activations exist; where not, only weights are stored as codes.
    fn multiplies_codes(&self) -> bool {
        true
    }

    /// What is best for dense heads.
    fn dense_heads(&self) -> DenseHeads {
        DenseHeads::default()
    }

    /// Options of the pass `fuse_qkv` for joint projections that write the heads of their attention themselves; none if
    /// no product does.
    fn joint_heads(&self) -> Option<&'static str> {
        None
    }

    /// Options of the pass `fp8_attention` for the attentions that are best computed over e4m3 codes beside FP8 linear
    /// layers; none if there are none.
    fn coded_attention(&self) -> Option<&'static str> {
        None
    }

    /// The kernel for a request, or why there is none.
    fn select(&self, request: &Request<'_>) -> Result<Choice, Gap>;

    /// The rows that may run a step in place of the one that it names, each with what it needs of a device.
    fn stands_in(&self, _entry: &crate::plan::Entry, _step: &Step) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Machine code that the steps of these entries launch, by name. Errors: the compiler of kernels is missing or fails.
    fn modules(&self, _entries: &[crate::plan::Entry]) -> Result<Vec<(String, Vec<u8>)>> {
        Ok(Vec::new())
    }

    /// The best that its devices reach, where that is known.
    fn ceilings(&self) -> Option<Ceilings> {
        None
    }

    /// (operation, element types) pairs for the coverage table: every row of the kernel table.
    fn coverage(&self) -> Vec<(&'static str, &'static str, Vec<DType>)>;
}

/// The best rates of a device: floating-point operations and bytes of memory, a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Tensor cores on 8-bit floats; where there are none, those on 16-bit ones.
    pub fp8: f64,
    /// Tensor cores on 16-bit floats.
    pub half: f64,
    /// Fused multiply-add in f32.
    pub f32: f64,
    /// Memory.
    pub bytes: f64,
    /// Where the figures are from.
    pub source: &'static str,
}

impl Ceilings {
    /// The least seconds for a step by a kernel: the longer of computing and moving. `dtype` is what is multiplied.
    pub fn seconds(&self, kernel: &str, dtype: DType, flops: f64, bytes: f64) -> f64 {
        let tensor_cores = kernel.ends_with("mma");
        let rate = match dtype {
            DType::F8E4M3 | DType::F8E5M2 if tensor_cores => self.fp8,
            DType::F16 | DType::BF16 if tensor_cores => self.half,
            _ => self.f32,
        };
        (flops / rate).max(bytes / self.bytes)
    }
}

/// What is remarkable about the elements of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All of them.
    pub elements: u64,
    /// Not a number.
    pub nan: u64,
    /// Infinite.
    pub infinite: u64,
    /// FP8 codes of the largest magnitude: what was larger is cut off there.
    pub saturated: u64,
}

impl Tally {
    /// Of a tensor; of other elements than floats only their number.
    pub fn of(tensor: &Tensor) -> Self {
        let mut tally = Self { elements: tensor.len() as u64, ..Self::default() };
        let largest = match tensor.dtype() {
            DType::F8E4M3 => 448.0,
            DType::F8E5M2 => 57344.0,
            dtype if dtype.is_float() => f64::NAN,
            _ => return tally,
        };
        for value in tensor.to_f64() {
            tally.nan += u64::from(value.is_nan());
            tally.infinite += u64::from(value.is_infinite());
            tally.saturated += u64::from(value.abs() == largest);
        }
        tally
    }
}

/// The run side of a backend: one device of this machine.
pub trait Device: Send {
    /// The target whose plans it runs.
    fn target(&self) -> &'static str;

    /// Gets ready to run a plan for [`Device::target`]: looks up kernels, brings the weights to where they are read.
    fn load(&self, plan: Arc<Plan>) -> Result<Box<dyn Executable>>;
}

/// Whose machine code is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// What this machine has compiled itself, as its cache remembers.
    #[default]
    Own,
    /// Whatever the plan carries.
    Plan,
    /// Nobody's: compiled anew from the sources in this program.
    Nobody,
}

/// A plan on a device.
pub trait Executable: Send {
    /// Runs one entry. Inputs stand in the order of the entry and have its types: [`crate::session`] has checked them.
    fn run(&mut self, entry: usize, inputs: &[&Tensor], probe: Probe<'_>) -> Result<Vec<Tensor>>;

    /// As [`Executable::run`], where nothing may wait.
    fn run_async<'a>(
        &'a mut self,
        entry: usize,
        inputs: &'a [&'a Tensor],
    ) -> Pin<Box<dyn Future<Output = Result<Vec<Tensor>>> + 'a>> {
        Box::pin(std::future::ready(self.run(entry, inputs, Probe::Nothing)))
    }

    /// How long runs take, each without what the host does around it: transfers of inputs and outputs.
    fn time(&mut self, entry: usize, inputs: &[&Tensor], runs: usize) -> Result<Vec<Duration>> {
        let mut times = Vec::with_capacity(runs);
        for _ in 0..runs {
            let start = std::time::Instant::now();
            self.run(entry, inputs, Probe::Nothing)?;
            times.push(start.elapsed());
        }
        Ok(times)
    }

    /// Runs one entry and shows every step with the tally of each of its results.
    fn check(
        &mut self,
        entry: usize,
        inputs: &[&Tensor],
        seen: &mut (dyn FnMut(StepRun<'_>, &[Tally]) + Send),
    ) -> Result<Vec<Tensor>> {
        let mut values = |step: StepRun<'_>, _: &[Tensor], results: &[Tensor]| {
            seen(step, &results.iter().map(Tally::of).collect::<Vec<_>>());
        };
        self.run(entry, inputs, Probe::Values(&mut values))
    }

    /// The parts of loading with the time that each took.
    fn load_times(&self) -> &[(&'static str, Duration)] {
        &[]
    }

    /// The row that runs a step of an entry in place of the one that the plan names, if another does.
    fn stand_in(&self, _entry: usize, _step: usize) -> Option<&'static str> {
        None
    }

    /// The value of a state: a weight of the plan that runs change.
    fn state(&mut self, weight: u32) -> Result<Tensor>;

    /// Gives a state another value of its type.
    fn set_state(&mut self, weight: u32, value: &Tensor) -> Result<()>;

    /// Memory that it has allocated on the device, in bytes: the arena, and weights that cannot be read where they lie.
    fn allocated_bytes(&self) -> u64;
}

/// Sees a step with its operands and results.
pub type WatchValues<'w> = dyn FnMut(StepRun<'_>, &[Tensor], &[Tensor]) + Send + 'w;

/// What a caller wants to see of each step. Watching makes a run slower on devices that work ahead.
pub enum Probe<'p> {
    /// Nothing.
    Nothing,
    /// How long it took.
    Times(&'p mut (dyn FnMut(StepRun<'_>) + Send)),
    /// How long it took, what it read and what it computed.
    Values(&'p mut WatchValues<'p>),
}

/// A step that has run.
#[derive(Clone, Copy, Debug)]
pub struct StepRun<'s> {
    /// Its position in the entry.
    pub index: usize,
    /// What ran.
    pub step: &'s Step,
    /// Wall time.
    pub time: Duration,
}

/// The operations by targets as a Markdown table: each kernel with the element types of the first floating-point
/// operand for which it is the first choice. What a row refuses beside the type falls to the next.
pub fn coverage_table(targets: &[&dyn Target]) -> String {
    use std::fmt::Write;
    let mut table = String::from("| operation |");
    targets.iter().for_each(|t| _ = write!(table, " {} |", t.name()));
    table.push_str("\n|---|");
    targets.iter().for_each(|_| table.push_str("---|"));
    let rows: Vec<_> = targets.iter().map(|t| t.coverage()).collect();
    for op in Op::NAMES.iter().filter(|n| !matches!(**n, "input" | "param" | "constant")) {
        _ = write!(table, "\n| `{op}` |");
        for rows in &rows {
            let mut seen: Vec<DType> = Vec::new();
            let mut cells = Vec::new();
            for (_, kernel, dtypes) in rows.iter().filter(|(name, ..)| name == op || *name == "*") {
                let new: Vec<DType> = dtypes.iter().copied().filter(|t| !seen.contains(t)).collect();
                if !new.is_empty() {
                    let names: Vec<&str> = new.iter().map(|t| t.name()).collect();
                    cells.push(format!("`{kernel}`: {}", names.join(" ")));
                }
                seen.extend(new);
            }
            _ = write!(table, " {} |", if cells.is_empty() { "none".to_string() } else { cells.join("; ") });
        }
    }
    table.push('\n');
    table
}

/// Every target of this build.
pub const TARGETS: &[&dyn Target] = &[
    &cpu::Cpu,
    #[cfg(feature = "cuda")]
    &cuda::SM_90A,
    #[cfg(feature = "cuda")]
    &cuda::SM_89,
    #[cfg(feature = "cuda")]
    &cuda::SM_80,
    #[cfg(feature = "wgpu")]
    &wgsl::PORTABLE,
];

/// The target of that name; `cuda` is Hopper, `wgsl:binding=2GiB` one whose shaders see so much of a buffer at once. Errors: `device.target`, which says what this build has.
pub fn target(name: &str) -> Result<&'static dyn Target> {
    let known = || TARGETS.iter().map(|t| t.name()).collect::<Vec<_>>().join(", ");
    let missing = |feature: &str, how: &str| {
        let problem = format!("target `{name}`: this lite3r has no {feature} backend{how}; it has: {}", known());
        Err(Error::unsupported("device.target", problem))
    };
    let full = if name == "cuda" { "cuda:sm_90a" } else { name };
    if let Some(target) = TARGETS.iter().find(|t| t.name() == full) {
        return Ok(*target);
    }
    #[cfg(feature = "wgpu")]
    if name.starts_with("wgsl:") {
        let target = wgsl::target(name).map_err(|e| Error::usage("device.target", e))?;
        // A few bytes for each name that a command line gives.
        return Ok(Box::leak(Box::new(target)));
    }
    match name {
        _ if (name == "cuda" || name.starts_with("cuda:")) && cfg!(not(feature = "cuda")) => {
            missing("CUDA", " (build it with `--features cuda`)")
        }
        _ if name == "wgsl" || name.starts_with("wgsl:") => missing("WGSL", " (build it with `--features wgpu`)"),
        _ => Err(Error::usage("device.target", format!("there is no target `{name}`; this build has: {}", known()))),
    }
}
