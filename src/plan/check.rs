//! Whether a plan means something, decided without the planner.
//!
//! Every entry is walked in order with a map from arena bytes to the value that was written there last. A step is
//! sound if each operand still lies where it was written, whole; if results and scratch overlap neither operands nor
//! each other; and if the operation infers exactly the recorded types. Types are static and without f64, places
//! aligned and inside the arena, outputs intact at the end. Devices hand out disjoint slices of one allocation on the
//! strength of this.

use std::collections::{BTreeMap, BTreeSet};

use lite3r_ir::{DType, Op, ValueType};

use super::{ALIAS, ALIGN, Buffer, Entry, Header, Place, Plan, Step, alias};
use crate::{Error, Result, error::Kind};

/// At most this many problems are told.
const TOLD: usize = 50;

/// Every reason why a plan is not sound. Errors: `plan.check`.
pub fn check(plan: &Plan) -> Result<()> {
    check_header(&plan.header)
}

/// As [`check`], for a header that is not a plan yet.
pub(super) fn check_header(header: &Header) -> Result<()> {
    let mut problems = Vec::new();
    for (i, weight) in header.weights.iter().enumerate() {
        if let Err(problem) = sound_type(&weight.ty) {
            problems.push(format!("weight {i} `{}`: {problem}", weight.name));
        }
    }
    for (name, index) in &header.modules {
        if header.weights.get(*index as usize).is_none_or(|w| w.ty.dtype != DType::U8) {
            problems.push(format!("module `{name}`: weight {index} is not its machine code"));
        }
    }
    for (i, entry) in header.entries.iter().enumerate() {
        let mut checker = Checker { header, entry, arena: Arena::default(), problems: Vec::new() };
        checker.run();
        problems.extend(checker.problems.into_iter().map(|p| format!("entry {i}: {p}")));
    }
    problems.truncate(TOLD);
    if problems.is_empty() { Ok(()) } else { Err(Error::all(Kind::BadFile, "plan.check", problems)) }
}

/// Static, of a size that fits, and no f64.
fn sound_type(ty: &ValueType) -> Result<(), String> {
    // Sizes far above any memory would overflow sums; 2^56 bytes are out of reach for all devices, and half of what is
    // addressed for those of 32 bits.
    const MOST: usize = 1 << if usize::BITS == 64 { 56 } else { 31 };
    match ty.bytes() {
        _ if ty.dtype == DType::F64 => Err(format!("{ty}: no device has f64")),
        Some(bytes) if bytes < MOST && ty.shape.iter().all(|d| d.size().is_some_and(|n| n < MOST)) => Ok(()),
        Some(_) => Err(format!("{ty} is too large")),
        None => Err(format!("{ty} is not static, or too large")),
    }
}

/// The bytes of an arena: disjoint ranges by start, each with its end and who wrote it last.
#[derive(Default)]
struct Arena(BTreeMap<u64, (u64, u32)>);

/// Scratch belongs to nobody.
const NOBODY: u32 = u32::MAX;

impl Arena {
    fn write(&mut self, start: u64, end: u64, owner: u32) {
        if start >= end {
            return;
        }
        let touched: Vec<(u64, u64, u32)> =
            self.0.range(..end).rev().map(|(s, (e, o))| (*s, *e, *o)).take_while(|(_, e, _)| *e > start).collect();
        for (s, e, o) in touched {
            self.0.remove(&s);
            if s < start {
                self.0.insert(s, (start, o));
            }
            if e > end {
                self.0.insert(end, (e, o));
            }
        }
        self.0.insert(start, (end, owner));
    }

    /// Whether `owner` wrote every byte of a range last.
    fn holds(&self, start: u64, end: u64, owner: u32) -> bool {
        if start >= end {
            return true;
        }
        match self.0.range(..=start).next_back() {
            Some((_, (e, o))) => *o == owner && *e >= end,
            None => false,
        }
    }
}

struct Checker<'h> {
    header: &'h Header,
    entry: &'h Entry,
    arena: Arena,
    problems: Vec<String>,
}

impl Checker<'_> {
    fn run(&mut self) {
        let entry = self.entry;
        if !entry.arena_bytes.is_multiple_of(ALIGN) || entry.arena_bytes >= 1 << 56 {
            self.problems.push(format!("an arena of {} bytes", entry.arena_bytes));
        }
        let buffers = entry.buffers.iter().enumerate();
        let unsound: Vec<String> =
            buffers.filter_map(|(i, b)| Some(format!("buffer {i}: {}", self.buffer(b).err()?))).collect();
        self.problems.extend(unsound);
        self.numbers();
        if !self.problems.is_empty() {
            return; // what follows relies on sizes, places and numbers
        }
        // Which buffer wrote the bytes of a buffer: itself, or what it is a view of.
        let mut root: Vec<Option<u32>> = vec![None; entry.buffers.len()];
        for (i, buffer) in entry.buffers.iter().enumerate() {
            if matches!(buffer.place, Place::Weight(_)) {
                root[i] = Some(i as u32);
            }
        }
        let mut given: Vec<(u64, u64)> = Vec::new();
        for port in &entry.inputs {
            self.fill(port.buffer, &mut root, &format!("input `{}`", port.name));
            given.extend(self.range(port.buffer));
        }
        if overlapping(&mut given) {
            self.problems.push("two inputs overlap".into());
        }
        for (i, step) in entry.steps.iter().enumerate() {
            let before = self.problems.len();
            self.step(step, &mut root);
            let at = format!("step {i} `{}`", step.op.name());
            self.problems[before..].iter_mut().for_each(|p| *p = format!("{at}: {p}"));
        }
        for port in &entry.outputs {
            self.read(port.buffer, &root, &format!("output `{}`", port.name));
        }
        self.updates(&root);
    }

    fn buffer(&self, buffer: &Buffer) -> Result<(), String> {
        sound_type(&buffer.ty)?;
        match buffer.place {
            Place::Arena(offset) => {
                let fits = offset.checked_add(buffer.bytes()).is_some_and(|end| end <= self.entry.arena_bytes);
                match (offset % ALIGN, fits) {
                    (0, true) => Ok(()),
                    (0, false) => Err(format!("{} at {offset} lies outside the arena", buffer.ty)),
                    _ => Err(format!("{} at {offset} is not aligned", buffer.ty)),
                }
            }
            Place::Weight(index) => match self.header.weights.get(index as usize) {
                Some(w) if w.ty.dtype == buffer.ty.dtype && w.ty.bytes() == buffer.ty.bytes() => Ok(()),
                Some(w) => Err(format!("{} cannot be weight {index}, which is {}", buffer.ty, w.ty)),
                None => Err(format!("there is no weight {index}")),
            },
        }
    }

    /// Every number names a buffer, every name is its own.
    fn numbers(&mut self) {
        let count = self.entry.buffers.len();
        let ports = self.entry.inputs.iter().chain(&self.entry.outputs).map(|p| p.buffer);
        let ports = ports.chain(self.entry.updates.iter().map(|u| u.buffer));
        let all = self.entry.steps.iter().flat_map(|s| s.operands.iter().chain(&s.results)).copied().chain(ports);
        let wrong: BTreeSet<u32> = all.filter(|n| *n as usize >= count).collect();
        self.problems.extend(wrong.into_iter().map(|n| format!("there is no buffer {n}")));
        for ports in [&self.entry.inputs, &self.entry.outputs] {
            let mut names = BTreeSet::new();
            for port in ports {
                if !names.insert(&port.name) {
                    self.problems.push(format!("two are named `{}`", port.name));
                }
            }
        }
    }

    fn step(&mut self, step: &Step, root: &mut [Option<u32>]) {
        if matches!(step.op, Op::Input(_) | Op::Param(_) | Op::Constant(_)) {
            return self.problems.push("is no computation".into());
        }
        let types = |all: &[u32]| all.iter().map(|n| self.entry.buffers[*n as usize].ty.clone()).collect::<Vec<_>>();
        let (operands, results) = (types(&step.operands), types(&step.results));
        match step.op.infer(&operands) {
            Ok(inferred) if inferred == results => {}
            Ok(inferred) => {
                let text = |all: &[ValueType]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                return self.problems.push(format!("computes {}, not {}", text(&inferred), text(&results)));
            }
            Err(problem) => return self.problems.push(problem),
        }
        for operand in &step.operands {
            self.read(*operand, root, &format!("operand {operand}"));
        }
        if step.kernel == ALIAS {
            return self.view(step, &operands, &results, root);
        }
        let reads: Vec<(u64, u64)> = step.operands.iter().filter_map(|n| self.range(*n)).collect();
        let mut writes: Vec<(u64, u64)> = step.results.iter().filter_map(|n| self.range(*n)).collect();
        if let Some(scratch) = step.scratch {
            match scratch.offset.checked_add(scratch.bytes).filter(|end| *end <= self.entry.arena_bytes) {
                Some(end) if scratch.offset % ALIGN == 0 => writes.push((scratch.offset, end)),
                _ => return self.problems.push("scratch lies outside the arena or is not aligned".into()),
            }
        }
        if reads.iter().any(|r| writes.iter().any(|w| r.0 < w.1 && w.0 < r.1)) {
            self.problems.push("writes over an operand".into());
        }
        if overlapping(&mut writes) {
            self.problems.push("results or scratch overlap".into());
        }
        if let Some(scratch) = step.scratch {
            self.arena.write(scratch.offset, scratch.offset + scratch.bytes, NOBODY);
        }
        for result in &step.results {
            self.fill(*result, root, &format!("result {result}"));
        }
    }

    /// A view lies where the operation says within its operand.
    fn view(&mut self, step: &Step, operands: &[ValueType], results: &[ValueType], root: &mut [Option<u32>]) {
        let Some(offsets) = alias::offsets(&step.op, operands, results) else {
            return self.problems.push("moves something and cannot be a view".into());
        };
        let operand = step.operands[0] as usize;
        for (result, offset) in step.results.iter().zip(offsets) {
            let expected = match self.entry.buffers[operand].place {
                Place::Arena(start) => Place::Arena(start + offset),
                weight => weight,
            };
            if self.entry.buffers[*result as usize].place != expected {
                self.problems.push(format!("view {result} does not lie within its operand"));
            }
            if root[*result as usize].is_some() {
                self.problems.push(format!("buffer {result} is written twice"));
            }
            root[*result as usize] = root[operand];
        }
    }

    /// Every update gives a state of its own a value of its size that a step has computed.
    fn updates(&mut self, root: &[Option<u32>]) {
        let mut updated = BTreeSet::new();
        for update in &self.entry.updates {
            let what = format!("the update of weight {}", update.state);
            let buffer = &self.entry.buffers[update.buffer as usize];
            match self.header.weights.get(update.state as usize) {
                Some(w) if w.state && w.ty.dtype == buffer.ty.dtype && w.ty.bytes() == buffer.ty.bytes() => {}
                Some(w) if w.state => self.problems.push(format!("{what} is {}, the state {}", buffer.ty, w.ty)),
                Some(_) => self.problems.push(format!("{what}: it is no state")),
                None => self.problems.push(format!("{what}: there is none")),
            }
            if matches!(buffer.place, Place::Weight(_)) {
                self.problems.push(format!("{what} is no value that a step computes"));
            }
            if !updated.insert(update.state) {
                self.problems.push(format!("weight {} is updated twice", update.state));
            }
            self.read(update.buffer, root, &what);
        }
    }

    /// The bytes of a buffer in the arena, where it has any.
    fn range(&self, buffer: u32) -> Option<(u64, u64)> {
        let buffer = &self.entry.buffers[buffer as usize];
        match buffer.place {
            Place::Arena(start) if buffer.bytes() > 0 => Some((start, start + buffer.bytes())),
            _ => None,
        }
    }

    fn fill(&mut self, buffer: u32, root: &mut [Option<u32>], what: &str) {
        if matches!(self.entry.buffers[buffer as usize].place, Place::Weight(_)) {
            return self.problems.push(format!("{what} would write over a weight"));
        }
        if root[buffer as usize].replace(buffer).is_some() {
            self.problems.push(format!("{what}: buffer {buffer} is written twice"));
        }
        if let Some((start, end)) = self.range(buffer) {
            self.arena.write(start, end, buffer);
        }
    }

    fn read(&mut self, buffer: u32, root: &[Option<u32>], what: &str) {
        let Some(owner) = root[buffer as usize] else {
            return self.problems.push(format!("{what} was never written"));
        };
        if let Some((start, end)) = self.range(buffer)
            && !self.arena.holds(start, end, owner)
        {
            self.problems.push(format!("{what} was written over"));
        }
    }
}

/// Whether two of some ranges share a byte.
fn overlapping(ranges: &mut [(u64, u64)]) -> bool {
    ranges.sort_unstable();
    ranges.windows(2).any(|pair| pair[1].0 < pair[0].1)
}
