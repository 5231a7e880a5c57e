// y = exp(x - max) / sum of exp(x - max) along one axis of x [outer, n, inner], in f32.
//
// Macros: TX the operand's elements, TR the result's; GROUP the threads that share a row where inner is 1: 32 or 256.
#include "types.cuh"

const int THREADS = 256;

// Over GROUP threads, for all of them; `scratch` has a value for every warp of the block.
template <class Join> DEVICE float over_group(float x, float* scratch, Join join) {
#pragma unroll
    for (int step = 16; step; step >>= 1) x = join(x, __shfl_xor_sync(~0u, x, step));
    if (GROUP > 32) {
        __syncthreads();
        if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
        __syncthreads();
        x = scratch[0];
#pragma unroll
        for (int warp = 1; warp < THREADS / 32; warp++) x = join(x, scratch[warp]);
    }
    return x;
}

extern "C" __global__ void __launch_bounds__(256) softmax_rows(
    const TX* __restrict__ x, TR* __restrict__ y, const i64 rows, const i64 n)
{
    wait_for_launch_before();
    __shared__ float scratch[THREADS / 32];
    const int lane = threadIdx.x % GROUP;
    const i64 groups = THREADS / GROUP;
    // All threads of a block take the same number of turns, whether or not their row exists.
    for (i64 first = blockIdx.x * groups; first < rows; first += gridDim.x * groups) {
        const i64 row = first + threadIdx.x / GROUP;
        const i64 width = row < rows ? n : 0;
        const TX* from = x + row * n;
        float top = __uint_as_float(0xff800000);
        for (i64 i = lane; i < width; i += GROUP) top = fmaxf(top, load(from + i));
        top = over_group(top, scratch, [](float a, float b) { return fmaxf(a, b); });
        float sum = 0.f;
        for (i64 i = lane; i < width; i += GROUP) sum += expf(load(from + i) - top);
        sum = over_group(sum, scratch, [](float a, float b) { return a + b; });
        for (i64 i = lane; i < width; i += GROUP) store(y + row * n + i, expf(load(from + i) - top) / sum);
    }
}

// Neighbouring columns lie in a warp; the warps of a block share the rows.
extern "C" __global__ void __launch_bounds__(256) softmax_columns(
    const TX* __restrict__ x, TR* __restrict__ y, const i64 n, const i64 inner, const i64 columns)
{
    wait_for_launch_before();
    const int WARPS = THREADS / 32;
    __shared__ float parts[WARPS][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (i64 first = blockIdx.x * 32ll; first < columns; first += gridDim.x * 32ll) {
        const i64 column = first + lane;
        const i64 height = column < columns ? n : 0;
        const i64 start = column / inner * n * inner + column % inner;
        float top = __uint_as_float(0xff800000);
        for (i64 i = warp; i < height; i += WARPS) top = fmaxf(top, load(x + start + i * inner));
        parts[warp][lane] = top;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < WARPS; i++) top = fmaxf(top, parts[i][lane]);
        __syncthreads();
        float sum = 0.f;
        for (i64 i = warp; i < height; i += WARPS) sum += expf(load(x + start + i * inner) - top);
        parts[warp][lane] = sum;
        __syncthreads();
        sum = 0.f;
#pragma unroll
        for (int i = 0; i < WARPS; i++) sum += parts[i][lane];
        __syncthreads();
        for (i64 i = warp; i < height; i += WARPS)
            store(y + start + i * inner, expf(load(x + start + i * inner) - top) / sum);
    }
}
