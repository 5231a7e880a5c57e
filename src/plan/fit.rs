//! Memory of a device against what a plan needs there, and how many views would fit where it is too little.

use super::{ALIAS, ALIGN, Entry, Header, Place, Plan, memory, schedule::Lifetime};
use crate::{Error, Kind};

/// The weights in one block of memory: where each begins, and how large the block is. Machine code takes no place.
pub fn weights(header: &Header) -> (Vec<u64>, u64) {
    let mut is_code = vec![false; header.weights.len()];
    header.modules.values().for_each(|index| is_code[*index as usize] = true);
    let (mut offsets, mut end) = (Vec::with_capacity(is_code.len()), 0u64);
    for (weight, is_code) in header.weights.iter().zip(is_code) {
        offsets.push(end);
        let bytes = if is_code { 0 } else { weight.ty.bytes().map_or(0, |b| b as u64) };
        end += bytes.next_multiple_of(ALIGN);
    }
    (offsets, end)
}

impl Plan {
    /// What a device with memory of its own allocates, in bytes: the weights, and the arena of the largest entry.
    pub fn device_bytes(&self) -> u64 {
        weights(&self.header).1 + self.largest().map_or(0, |e| e.arena_bytes)
    }

    fn largest(&self) -> Option<&Entry> {
        self.entries().iter().max_by_key(|e| e.arena_bytes)
    }

    /// Whether so many free bytes suffice. Errors: `memory.predicted`, with the number of views that would fit.
    pub fn check_memory(&self, free: u64) -> Result<(), Error> {
        let needs = self.device_bytes();
        let Some(entry) = self.largest().filter(|_| needs > free) else { return Ok(()) };
        let weights = needs - entry.arena_bytes;
        let mut problem = format!("the plan needs {needs} bytes, {weights} of them for weights, and {free} are free");
        if let Some(views) = self.views(entry).filter(|views| *views > 1) {
            let fits = |fewer: usize| weights + arena_of_views(entry, views, fewer) <= free;
            // More views never need less, as far as the estimate goes.
            let (mut low, mut high) = (0, views);
            while high - low > 1 {
                let middle = (low + high) / 2;
                if fits(middle) { low = middle } else { high = middle }
            }
            problem += &match low {
                0 => format!("; it is for {views} views, and not even one would fit"),
                _ => format!("; it is for {views} views, and about {low} would fit: compile a plan for fewer views"),
            };
        }
        Err(Error::new(Kind::Memory, "memory.predicted", problem))
    }

    /// The pictures that an entry takes at a time.
    fn views(&self, entry: &Entry) -> Option<usize> {
        let name = &self.meta().images.as_ref()?.name;
        let port = entry.inputs.iter().find(|port| port.name == *name)?;
        let dims = entry.buffers[port.buffer as usize].ty.dims()?;
        Some(dims[..dims.len().checked_sub(3)?].iter().product())
    }
}

/// About the arena of an entry for `views` if it were for `fewer`: the same steps with every value that counts views
/// smaller in proportion. A value counts views if a dimension in front of the last is a multiple of their number.
fn arena_of_views(entry: &Entry, views: usize, fewer: usize) -> u64 {
    let scaled = |bytes: u64| (u128::from(bytes) * fewer as u128).div_ceil(views as u128) as u64;
    // Views of a buffer count as the buffer.
    let mut root: Vec<usize> = (0..entry.buffers.len()).collect();
    let mut lives: Vec<Option<Lifetime>> = vec![None; entry.buffers.len()];
    let mut used = |buffer: usize, at: usize| {
        let life = lives[buffer].get_or_insert(Lifetime { first: at, last: at });
        life.last = life.last.max(at);
    };
    entry.inputs.iter().for_each(|port| used(port.buffer as usize, 0));
    for (at, step) in entry.steps.iter().enumerate() {
        step.operands.iter().for_each(|n| used(root[*n as usize], at));
        for result in step.results.iter().map(|n| *n as usize) {
            match step.kernel == ALIAS {
                true => root[result] = root[step.operands[0] as usize],
                false => used(result, at),
            }
        }
    }
    let end = entry.steps.len().saturating_sub(1);
    entry.outputs.iter().for_each(|port| used(root[port.buffer as usize], end));
    let values = entry.buffers.iter().zip(lives).filter_map(|(buffer, life)| {
        let Place::Arena(_) = buffer.place else { return None };
        let dims = buffer.ty.dims().unwrap_or_default();
        let counts = dims.iter().rev().skip(1).any(|d| d % views == 0);
        let bytes = if counts { scaled(buffer.bytes()) } else { buffer.bytes() };
        Some(memory::Request { life: life?, bytes })
    });
    let scratch = entry.steps.iter().enumerate().filter_map(|(at, step)| {
        Some(memory::Request { life: Lifetime { first: at, last: at }, bytes: scaled(step.scratch?.bytes) })
    });
    memory::assign(&values.chain(scratch).collect::<Vec<_>>()).bytes
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{Bindings, text::parse};

    use super::*;
    use crate::{
        backend::cpu::Cpu,
        plan::{EntrySource, ImageInput, Meta, build},
        weights::Weights,
    };

    fn plan(views: usize) -> Plan {
        let text = format!(
            "graph @g(%x: f32[1,{views},3,16,16]) -> (y: f32[1,{views},3,16,16]) {{
  %a = exp(%x)
  %b = sin(%a)
  %y = mul(%a, %b)
  return y=%y
}}"
        );
        let size = (16, 16);
        let images = ImageInput { name: "x".into(), size, normalised_in_graph: true, preprocess: "plain_crop".into() };
        let source = EntrySource { bindings: Bindings::new(), graph: parse(&text).unwrap() };
        let meta = Meta { images: Some(images), ..Meta::default() };
        build(&[source], &Weights::default(), &Cpu, meta).unwrap()
    }

    #[test]
    fn too_little_memory_is_told_with_the_views_that_fit() {
        let plan = plan(10);
        let (needs, fewer) = (plan.device_bytes(), self::plan(7).device_bytes());
        assert!(plan.check_memory(needs).is_ok());
        let error = plan.check_memory(fewer).unwrap_err();
        assert_eq!((error.code, error.exit_code()), ("memory.predicted", 14));
        assert!(error.to_string().contains("for 10 views, and about 7 would fit"), "{error}");
        let error = plan.check_memory(needs / 100).unwrap_err();
        assert!(error.to_string().contains("not even one"), "{error}");
    }

    #[test]
    fn an_estimate_for_fewer_views_is_the_arena_of_a_plan_for_them() {
        let entry = &plan(10).entries()[0].clone();
        for fewer in [1, 3, 10] {
            assert_eq!(arena_of_views(entry, 10, fewer), plan(fewer).entries()[0].arena_bytes);
        }
    }
}
