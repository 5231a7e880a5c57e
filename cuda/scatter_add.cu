// y[.., indices[k], ..] += g[.., k, ..] from zero: a first kernel chains the indices of every slice of y in order, a second
// one adds along the chains, an element a thread, so that sums are the same every time. Negative indices count from the
// end; others outside trap.
//
// Macros: TX the elements of g and y; TI the indices' type, i32 or i64; INDEX u32 or u64, which counts elements.
#include "types.cuh"

const i32 NONE = -1;

// The first k of every slice, and behind every k the next one of the same slice.
extern "C" __global__ void __launch_bounds__(256) chains(
    const TI* __restrict__ indices, i32* __restrict__ first, i32* __restrict__ next, const i64 count, const i64 size)
{
    wait_for_launch_before();
    for (i64 own = blockIdx.x * 256ll + threadIdx.x; own < size; own += gridDim.x * 256ll) {
        i32 last = NONE;
        for (i64 k = 0; k < count; k++) {
            const i64 index = indices[k], slice = index < 0 ? index + size : index;
            if ((u64)slice >= (u64)size) __trap();
            if (slice == own) {
                (last == NONE ? first[own] : next[last]) = (i32)k;
                last = (i32)k;
            }
        }
        (last == NONE ? first[own] : next[last]) = NONE;
    }
}

extern "C" __global__ void __launch_bounds__(256) scatter_add(
    const TX* __restrict__ g, TX* __restrict__ y, const i32* __restrict__ first, const i32* __restrict__ next,
    const i64 count, const i64 size, const i64 inner, const i64 n)
{
    wait_for_launch_before();
    for (INDEX at = blockIdx.x * 256u + threadIdx.x; at < (INDEX)n; at += (INDEX)gridDim.x * 256u) {
        const INDEX slice = at / (INDEX)inner, outer = slice / (INDEX)size;
        const TX* from = g + (i64)outer * count * inner + (at - slice * (INDEX)inner);
        float sum = 0.f;
        for (i32 k = first[slice - outer * (INDEX)size]; k != NONE; k = next[k]) sum += load(from + k * inner);
        store(y + at, sum);
    }
}
