// y = q * s: e4m3 codes [rows, columns] times the scales of their rows, of groups of columns, or of everything.
//
// Macros: TY elements of the result; INDEX u32 or u64.
#include "types.cuh"

// `groups` scales a row; 0: one for everything.
extern "C" __global__ void __launch_bounds__(256) dequantize(
    const e4m3_t* __restrict__ q, const float* __restrict__ s, TY* __restrict__ y, const i64 n, const u32 columns,
    const u32 group, const u32 groups)
{
    wait_for_launch_before();
    for (INDEX at = blockIdx.x * 256u + threadIdx.x; at < (INDEX)n; at += (INDEX)gridDim.x * 256u) {
        const INDEX row = at / columns;
        const u32 column = (u32)(at - row * columns);
        store(y + at, load(q + at) * s[groups ? (i64)row * groups + column / group : 0]);
    }
}
