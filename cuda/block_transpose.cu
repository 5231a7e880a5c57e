// For every key block the query blocks whose lists hold it: idx [heads, query_blocks, longest] and cnt as, of every head,
// where the lists of key blocks begin and end, then all of them, -1 behind the last. A block takes a head, list by list: a
// list holds a key block once, so that no two threads meet.
#include "types.cuh"

const u32 THREADS = 1024;

extern "C" __global__ void __launch_bounds__(1024) block_transpose(
    const i32* __restrict__ idx, const i32* __restrict__ cnt, i32* y, const u32 query_blocks, const u32 key_blocks,
    const u32 longest)
{
    wait_for_launch_before();
    __shared__ i32 sums[THREADS / 32];
    const i64 head = blockIdx.x, words = (i64)query_blocks * longest;
    // Lengths, then where a list goes on while it is written: one place further than where it begins.
    i32* starts = y + head * (key_blocks + 1 + words);
    i32* rows = starts + key_blocks + 1;
    idx += head * words;
    cnt += head * query_blocks;
    for (u32 j = threadIdx.x; j <= key_blocks; j += THREADS) starts[j] = 0;
    for (i64 i = threadIdx.x; i < words; i += THREADS) rows[i] = -1;
    for (u32 list = 0; list < query_blocks; list++) {
        __syncthreads();
        for (u32 place = threadIdx.x; place < (u32)cnt[list]; place += THREADS)
            starts[idx[(i64)list * longest + place] + 1] += 1;
    }
    __syncthreads();
    const u32 stretch = (key_blocks + THREADS - 1) / THREADS;
    const u32 first = min(threadIdx.x * stretch, key_blocks), last = min(first + stretch, key_blocks);
    i32 own = 0;
    for (u32 j = first; j < last; j++) own += starts[j + 1];
    // What stands before the stretch of this thread.
    i32 before = own;
#pragma unroll
    for (u32 step = 1; step < 32; step *= 2) {
        const i32 other = __shfl_up_sync(~0u, before, step);
        if (threadIdx.x % 32 >= step) before += other;
    }
    if (threadIdx.x % 32 == 31) sums[threadIdx.x / 32] = before;
    before -= own;
    __syncthreads();
    for (u32 warp = 0; warp < threadIdx.x / 32; warp++) before += sums[warp];
    for (u32 j = first; j < last; j++) {
        const i32 length = starts[j + 1];
        starts[j + 1] = before;
        before += length;
    }
    for (u32 list = 0; list < query_blocks; list++) {
        __syncthreads();
        for (u32 place = threadIdx.x; place < (u32)cnt[list]; place += THREADS) {
            i32* const at = starts + idx[(i64)list * longest + place] + 1;
            rows[*at] = list;
            *at += 1;
        }
    }
}
