// Sums that were computed in parts, added up in their order: y[i] = parts[0][i] + parts[1][i] + ...
//
// Macros: TY the elements of y.
#include "types.cuh"

extern "C" __global__ void __launch_bounds__(256) add_parts(
    const float* __restrict__ parts, TY* __restrict__ y, const u32 count, const u32 n)
{
    wait_for_launch_before();
    for (u32 at = blockIdx.x * 256u + threadIdx.x; at < n; at += gridDim.x * 256u) {
        float sum = 0.f;
        // Loads of many parts are on their way at once; they are added in order.
#pragma unroll 16
        for (u32 part = 0; part < count; part++) sum += parts[(i64)part * n + at];
        store(y + at, sum);
    }
}
