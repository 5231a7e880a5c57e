// y[.., indices[k], ..] += g[.., k, ..] from zero: a thread takes an element of y and goes over all indices in order, so
// that sums are the same every time. Negative indices count from the end; others outside trap.
//
// Macros: TX the elements of g and y; TI the indices' type, i32 or i64; INDEX u32 or u64, which counts elements.
#include "types.cuh"

extern "C" __global__ void __launch_bounds__(256) scatter_add(
    const TX* __restrict__ g, const TI* __restrict__ indices, TX* __restrict__ y, const i64 count, const i64 size,
    const i64 inner, const i64 n)
{
    wait_for_launch_before();
    for (INDEX at = blockIdx.x * 256u + threadIdx.x; at < (INDEX)n; at += (INDEX)gridDim.x * 256u) {
        const INDEX slice = at / (INDEX)inner, outer = slice / (INDEX)size;
        const i64 own = slice - outer * (INDEX)size;
        const TX* from = g + (i64)outer * count * inner + (at - slice * (INDEX)inner);
        float sum = 0.f;
        for (i64 k = 0; k < count; k++) {
            const i64 index = indices[k], row = index < 0 ? index + size : index;
            if ((u64)row >= (u64)size) __trap();
            if (row == own) sum += load(from + k * inner);
        }
        store(y + at, sum);
    }
}
