// Elements and slices picked or replaced by index; sequences. Elements are known by their size alone, and where slices
// allow it, an "element" is a chunk of up to 16 bytes. Negative indices count from the end; others outside trap.
//
// scatter_*: a table has for every slot of x the last update that goes there, found by atomic maximum, which does not
// depend on the order of threads. Then every slot takes its update or stays.
//
// Macros: ELEMENT u8, u16, u32, u64 or uint4; TI the indices' type, i32 or i64; INDEX u32 or u64, which counts elements.
#include "strides.cuh"

DEVICE i64 wrapped(i64 index, i64 size) {
    if (index < 0) index += size;
    if (index < 0 || index >= size) __trap();
    return index;
}

// What tuples of indices address: sizes of the dimensions and strides in slices.
struct Target { i64 tuple, size[MAX_RANK], stride[MAX_RANK]; };

DEVICE i64 slot_of(const TI* tuple, const Target& target) {
    i64 slot = 0;
    for (int k = 0; k < target.tuple; k++) slot += wrapped(tuple[k], target.size[k]) * target.stride[k];
    return slot;
}

// y [rows, inner]: row r is the slice of x that its tuple names, within batch r / per_batch, `batch` slices apart.
// All batches read the same `per_batch` tuples if `shared`.
extern "C" __global__ void __launch_bounds__(256) gather_slices(
    const ELEMENT* __restrict__ x, const TI* __restrict__ indices, ELEMENT* __restrict__ y,
    const __grid_constant__ Target target, const i64 per_batch, const i64 batch, const i64 shared, const i64 inner,
    const i64 n)
{
    wait_for_launch_before();
    for (INDEX at = blockIdx.x * 256u + threadIdx.x; at < (INDEX)n; at += (INDEX)gridDim.x * 256u) {
        const INDEX row = at / (INDEX)inner, within = at - row * (INDEX)inner;
        const INDEX outer = row / (INDEX)per_batch;
        const i64 tuple = shared ? row - outer * (INDEX)per_batch : row;
        const i64 slot = (i64)outer * batch + slot_of(indices + tuple * target.tuple, target);
        y[at] = x[slot * inner + within];
    }
}

// Every element picks along one axis: `strides` are those of x, zero on the axis.
extern "C" __global__ void __launch_bounds__(256) gather_elements(
    const ELEMENT* __restrict__ x, const TI* __restrict__ indices, ELEMENT* __restrict__ y, const Shape shape,
    const Strides strides, const i64 size, const i64 stride, const i64 n)
{
    wait_for_launch_before();
    for (INDEX at = blockIdx.x * 256u + threadIdx.x; at < (INDEX)n; at += (INDEX)gridDim.x * 256u)
        y[at] = x[offset(at, shape, strides) + wrapped(indices[at], size) * stride];
}

extern "C" __global__ void __launch_bounds__(256) clear(i32* __restrict__ last, const i64 n) {
    wait_for_launch_before();
    for (i64 at = blockIdx.x * 256ll + threadIdx.x; at < n; at += gridDim.x * 256ll) last[at] = -1;
}

extern "C" __global__ void __launch_bounds__(256) mark_slices(
    const TI* __restrict__ indices, i32* __restrict__ last, const __grid_constant__ Target target, const i64 n)
{
    wait_for_launch_before();
    for (i64 at = blockIdx.x * 256ll + threadIdx.x; at < n; at += gridDim.x * 256ll)
        atomicMax(last + slot_of(indices + at * target.tuple, target), (i32)at);
}

extern "C" __global__ void __launch_bounds__(256) mark_elements(
    const TI* __restrict__ indices, i32* __restrict__ last, const Shape shape, const Strides strides, const i64 size,
    const i64 stride, const i64 n)
{
    wait_for_launch_before();
    for (u32 at = blockIdx.x * 256u + threadIdx.x; at < (u32)n; at += gridDim.x * 256u)
        atomicMax(last + offset(at, shape, strides) + wrapped(indices[at], size) * stride, (i32)at);
}

// y = x with the slices that have an update replaced.
extern "C" __global__ void __launch_bounds__(256) replace(
    const ELEMENT* __restrict__ x, const ELEMENT* __restrict__ updates, const i32* __restrict__ last,
    ELEMENT* __restrict__ y, const i64 inner, const i64 n)
{
    wait_for_launch_before();
    for (INDEX at = blockIdx.x * 256u + threadIdx.x; at < (INDEX)n; at += (INDEX)gridDim.x * 256u) {
        const INDEX slot = at / (INDEX)inner;
        const i32 update = last[slot];
        const ELEMENT* from = update < 0 ? x + at : updates + update * inner + (at - slot * (INDEX)inner);
        y[at] = *from;
    }
}

// start, start + step, ...; wrapping.
extern "C" __global__ void __launch_bounds__(256) range(
    i64* __restrict__ y, const u64 start, const u64 step, const i64 n)
{
    wait_for_launch_before();
    for (i64 at = blockIdx.x * 256ll + threadIdx.x; at < n; at += gridDim.x * 256ll) y[at] = start + step * at;
}
