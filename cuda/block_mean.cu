// The mean token of every block of tokens: x [heads, n, d] as y [heads, blocks, d]. f32 sums. A block a warp.
//
// Macros: TX the operand's elements, TR the result's; LANES threads a token, each with 8 neighbouring columns (LANES =
// d/8, a power of two up to 32), or 0 for any d: then a lane takes every 32nd column.
#include "blocks.cuh"
#include "vectors.cuh"

extern "C" __global__ void __launch_bounds__(256) block_mean(
    const TX* __restrict__ x, TR* __restrict__ y, const __grid_constant__ Cut cut, const u32 blocks, const u32 total,
    const u32 n, const u32 d)
{
    wait_for_launch_before();
    const u32 at = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (at >= total) return;
    const u32 head = at / blocks;
    const Range range = tokens_of(cut, at - head * blocks);
    const float count = range.end - range.begin;
    const TX* from = x + (i64)head * n * d;
    TR* to = y + (i64)at * d;
#if LANES
    const u32 column = lane % LANES * 8;
    float sums[8] = {};
#pragma unroll 4
    for (i32 token = range.begin + lane / LANES; token < range.end; token += 32 / LANES) {
        float own[8];
        load_neighbours(own, from + (i64)token * d + column);
#pragma unroll
        for (u32 i = 0; i < 8; i++) sums[i] += own[i];
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
#pragma unroll
        for (u32 step = LANES; step < 32; step *= 2) sums[i] += __shfl_xor_sync(~0u, sums[i], step);
        sums[i] /= count;
    }
    if (lane < LANES) store_neighbours(to + column, sums);
#else
    for (u32 column = lane; column < d; column += 32) {
        float sum = 0.f;
        for (i32 token = range.begin; token < range.end; token++) sum += load(from + (i64)token * d + column);
        store(to + column, sum / count);
    }
#endif
}
