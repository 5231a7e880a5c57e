//! `cuda/quantize_items.cu`: codes under one scale an item, by two launches: magnitudes, then codes.

use lite3r_ir::{DType, Op, ops::activation::Activation};

use super::{
    Arch, Kernel, dims,
    floats::{FLOATS, only},
    launch::{Arg, Launch, Lowered, Module, PROCESSORS},
    product::activation,
};
use crate::backend::Request;

/// The rows of this file: items of any size.
pub const KERNELS: &[Kernel] = &[Kernel { name: "quantize_items.chunks", op: "quantize_items", dtypes: FLOATS, lower }];

/// Threads a block, and vectors that a thread reads at once.
const THREADS: usize = 256;
const AHEAD: usize = 4;

/// Which largest magnitudes there are of an item, as `cuda/quantize_items.cu` lays them out.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Measures {
    /// What tiles count: pixels of an image, chunks of an item.
    pub units: u32,
    /// Units of a tile; tiles run on from item to item.
    pub tile: u32,
    /// Magnitudes that a tile gives of each item that it reaches into.
    pub per_tile: u32,
    /// Magnitudes that there is room for in an item.
    pub room: u32,
}

impl Measures {
    /// Of items of so many units.
    pub fn new(items: usize, units: usize, tile: usize, per_tile: usize) -> Self {
        let tiles = |item: usize| ((item + 1) * units - 1) / tile - item * units / tile + 1;
        let room = (0..items).map(tiles).max().unwrap_or(1) * per_tile;
        Self { units: units as u32, tile: tile as u32, per_tile: per_tile as u32, room: room as u32 }
    }

    /// Bytes of all of them.
    pub fn bytes(&self, items: usize) -> usize {
        items * self.room as usize * size_of::<f32>()
    }
}

/// Items of x, and how blocks share them.
struct Items {
    module: Module,
    items: usize,
    elements: usize,
    blocks: usize,
}

impl Items {
    fn of(shape: &[usize], dtype: DType, applied: Activation) -> Result<Self, String> {
        let (items, elements) = (shape[0], shape[1..].iter().product::<usize>());
        if items >= 1 << 16 {
            return Err("takes less than 2^16 items".into());
        }
        let whole = 16 / dtype.size();
        let vector = if elements.is_multiple_of(whole) { whole } else { 1 };
        let module = Module::new("quantize_items.cu")
            .element("TX", dtype)
            .define("ACTIVATION", activation(applied, DType::F32, false))
            .define("VECTOR", vector);
        let blocks = elements.div_ceil(THREADS * vector * AHEAD).min((PROCESSORS * 8).div_ceil(items.max(1))).max(1);
        Ok(Self { module, items, elements, blocks })
    }

    fn launch(&self, function: &'static str, args: Vec<Arg>) -> Launch {
        Launch {
            module: self.module.clone(),
            function,
            grid: [self.blocks as u32, self.items as u32, 1],
            block: THREADS as u32,
            shared: 0,
            args,
        }
    }

    fn encode(&self, x: Arg, largest: Arg, measures: Measures) -> Launch {
        let elements = Arg::of(self.elements as i64);
        self.launch("encode_items", vec![x, largest, Arg::result(0), Arg::result(1), elements, Arg::of(measures)])
    }
}

/// Codes and scales as results 0 and 1, of items `x` whose largest magnitudes another kernel has written.
pub fn encode(shape: &[usize], dtype: DType, x: Arg, largest: Arg, measures: Measures) -> Result<Launch, String> {
    Ok(Items::of(shape, dtype, Activation::None)?.encode(x, largest, measures))
}

fn lower(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::QuantizeItems(op) = request.op else { return Err(format!("does not compute {}", request.op.name())) };
    only(request.operands)?;
    let items = Items::of(&dims(&request.operands[0])?, request.operands[0].dtype, op.activation)?;
    let measures = Measures::new(items.items, items.blocks, 1, 1);
    let elements = Arg::of(items.elements as i64);
    let measure = items.launch("measure_items", vec![Arg::operand(0), Arg::scratch(0), elements]);
    let launches = vec![measure, items.encode(Arg::operand(0), Arg::scratch(0), measures)];
    Ok(Lowered { launches, scratch: measures.bytes(items.items) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_has_room() {
        for (items, units, tile) in [(3, 1369, 128), (2, 324, 256), (8, 21904, 128), (1, 1, 1), (5, 7, 1)] {
            let measures = Measures::new(items, units, tile, 1);
            let last = |item: usize| ((item + 1) * units - 1) / tile - item * units / tile;
            assert!((0..items).all(|item| last(item) < measures.room as usize), "{items} {units} {tile}");
            assert!(measures.room as usize <= units.div_ceil(tile) + 1);
        }
    }
}
