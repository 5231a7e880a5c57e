// The mean token of every block of tokens: x [heads, n, d] as y [heads, blocks, d]. f32 sums.
//
// Blocks never cross runs of tokens; the last run of the list is repeated, see `Runs`.
//
// Macros: TX the operand's elements, TR the result's.
#include "types.cuh"

const int WARPS = 8, MAX_RUNS = 32;

// Run i begins with block `first_block[i]` and token `first_token[i]`.
struct Runs { i64 count, first_block[MAX_RUNS], first_token[MAX_RUNS], length[MAX_RUNS]; };

extern "C" __global__ void __launch_bounds__(256) block_mean(
    const TX* __restrict__ x, TR* __restrict__ y, const __grid_constant__ Runs runs, const i64 size, const i64 n,
    const i64 d, const i64 blocks, const i64 total)
{
    wait_for_launch_before();
    __shared__ float parts[WARPS][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (i64 at = blockIdx.x; at < total; at += gridDim.x) {
        const i64 head = at / blocks, block = at - head * blocks;
        int run = 0;
        while (run + 1 < runs.count && runs.first_block[run + 1] <= block) run++;
        const i64 length = runs.length[run], a_run = (length + size - 1) / size, within = block - runs.first_block[run];
        const i64 repeat = within / a_run;
        const i64 start = runs.first_token[run] + repeat * length;
        const i64 first = start + (within - repeat * a_run) * size;
        const i64 last = first + size < start + length ? first + size : start + length;
        for (i64 column = lane; column - lane < d; column += 32) {
            float sum = 0.f;
            if (column < d) {
                for (i64 token = first + warp; token < last; token += WARPS)
                    sum += load(x + (head * n + token) * d + column);
            }
            parts[warp][lane] = sum;
            __syncthreads();
            if (warp == 0 && column < d) {
#pragma unroll
                for (int i = 1; i < WARPS; i++) sum += parts[i][lane];
                store(y + at * d + column, sum / (float)(last - first));
            }
            __syncthreads();
        }
    }
}
