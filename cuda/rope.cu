// Rotary position embedding (Su et al. 2021): in every stretch of `width` columns, y = x cos + rot(x) sin with
// rot(x)[j] = -x[j + width / 2] and rot(x)[j + width / 2] = x[j]. The tables are broadcast.
//
// Macros: TX elements of x and y, TT of the tables; INDEX u32 or u64.
#include "strides.cuh"

extern "C" __global__ void __launch_bounds__(256) rope(
    const TX* __restrict__ x, const TT* __restrict__ cosines, const TT* __restrict__ sines, TX* __restrict__ y,
    const Shape shape, const Strides table, const i64 n, const u32 width)
{
    wait_for_launch_before();
    for (INDEX at = blockIdx.x * 256u + threadIdx.x; at < (INDEX)n; at += (INDEX)gridDim.x * 256u) {
        const i64 from = offset(at, shape, table);
        const bool low = (u32)(at % width) < width / 2;
        const float other = low ? -load(x + at + width / 2) : load(x + at - width / 2);
        store(y + at, fmaf(load(x + at), load(cosines + from), other * load(sines + from)));
    }
}
