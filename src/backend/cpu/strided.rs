//! Copies between dense tensors under any strides: what transposition, slicing, joining and expansion have in common.

#![allow(unsafe_code)] // tasks write their own parts of one result

use bytemuck::Pod;

use super::lanes::{self, CHUNK, Shared};

/// Rows and columns of a block in which contiguous reads and contiguous writes cross.
const BLOCK: usize = 16;

/// A dimension of a copy: its size and the distance of neighbours in source and destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Axis {
    size: usize,
    from: usize,
    to: usize,
}

/// A copy of a box of elements.
#[derive(Clone, Debug)]
pub struct Copy {
    axes: Vec<Axis>,
    /// Where the box starts in the source.
    from: usize,
    /// Where the box starts in the destination.
    to: usize,
}

impl Copy {
    /// A box of `shape` that starts at `from` and `to`, with strides in elements. Distinct elements of the box must
    /// have distinct places in the destination, as in any part of a dense tensor.
    pub fn new(shape: &[usize], (from, from_strides): (usize, &[usize]), (to, to_strides): (usize, &[usize])) -> Self {
        let mut axes: Vec<Axis> = Vec::with_capacity(shape.len() + 2);
        for ((&size, &f), &t) in shape.iter().zip(from_strides).zip(to_strides).filter(|((size, _), _)| **size != 1) {
            match axes.last_mut() {
                // The dimension before advances by exactly this whole one: they are one.
                Some(before) if before.from == size * f && before.to == size * t => {
                    *before = Axis { size: before.size * size, from: f, to: t };
                }
                _ => axes.push(Axis { size, from: f, to: t }),
            }
        }
        // Two at least, so that the innermost pair can be a block.
        while axes.len() < 2 {
            axes.insert(0, Axis { size: 1, from: 0, to: 0 });
        }
        Self { axes, from, to }
    }

    /// Copies on all cores.
    pub fn run<T: Pod + Send + Sync>(mut self, source: &[T], destination: &mut [T]) -> Result<(), String> {
        if self.axes.iter().any(|a| a.size == 0) {
            return Ok(());
        }
        // Reads run along the axis that is contiguous in the source: it becomes the second to last.
        let last = self.axes.len() - 1;
        if self.axes[last].from > 1
            && let Some(fast) = self.axes[..last].iter().position(|a| a.from == 1)
        {
            let axis = self.axes.remove(fast);
            self.axes.insert(last - 1, axis);
        }
        let (outer, pair) = self.axes.split_at(last - 1);
        let [rows, columns] = *pair else { return Err("a copy has two axes at least".into()) };
        let height = (CHUNK / columns.size).max(BLOCK).min(rows.size);
        let strips = rows.size.div_ceil(height);
        let boxes: usize = outer.iter().map(|a| a.size).product();
        // Small planes are handled several a task.
        let planes = (CHUNK / (rows.size * columns.size)).max(1);
        let out = Shared::new(destination);
        lanes::run((boxes * strips).div_ceil(planes), 0, &mut [], |task, _| {
            for unit in task * planes..((task + 1) * planes).min(boxes * strips) {
                let (mut plane, first) = (unit / strips, unit % strips * height);
                let (mut from, mut to) = (self.from + first * rows.from, self.to + first * rows.to);
                for axis in outer.iter().rev() {
                    let at = plane % axis.size;
                    plane /= axis.size;
                    from += at * axis.from;
                    to += at * axis.to;
                }
                let rows = Axis { size: height.min(rows.size - first), ..rows };
                // SAFETY: the elements of the box have distinct places, and every one belongs to one strip of one
                // plane.
                unsafe { plane_copy(rows, columns, source, from, &out, to) };
            }
            Ok(())
        })
    }
}

/// # Safety
/// Nobody else may access the elements of this plane in `out`.
unsafe fn plane_copy<T: Pod>(rows: Axis, columns: Axis, source: &[T], from: usize, out: &Shared<'_, T>, to: usize) {
    if columns.to == 1 && columns.from <= 1 {
        for row in 0..rows.size {
            // SAFETY: a part of this plane.
            let line = unsafe { out.slice(to + row * rows.to, columns.size) };
            let start = from + row * rows.from;
            match columns.from {
                1 => line.copy_from_slice(&source[start..start + columns.size]),
                _ => line.fill(source[start]),
            }
        }
        return;
    }
    for block in (0..rows.size).step_by(BLOCK) {
        let height = BLOCK.min(rows.size - block);
        for start in (0..columns.size).step_by(BLOCK) {
            let width = BLOCK.min(columns.size - start);
            for row in block..block + height {
                for column in start..start + width {
                    let value = source[from + row * rows.from + column * columns.from];
                    // SAFETY: a part of this plane.
                    unsafe { out.slice(to + row * rows.to + column * columns.to, 1)[0] = value };
                }
            }
        }
    }
}
