// y [B, N, H·D] of x [B, N, 3·H·D]: softmax(scale · q kᵀ) v within every head, for few tokens. A warp takes a query and
// a block eight of one head; keys and values pass through shared memory, 32 at a time, with a running softmax (Dao et
// al. 2022).
//
// Macros: TX elements of x and y; PER columns of a head that a lane keeps, every 32nd.
#include "types.cuh"

const u32 WARPS = 8, KEYS = 32, WIDEST = 32 * PER;

extern "C" __global__ void __launch_bounds__(32 * WARPS) self_attention(
    const TX* __restrict__ x, TX* __restrict__ y, const u32 tokens, const u32 heads, const u32 d, const float scale)
{
    wait_for_launch_before();
    // A column more a row, so that lanes read their keys from different banks.
    __shared__ float keys[KEYS][WIDEST + 1], values[KEYS][WIDEST], queries[WARPS][WIDEST];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.x % heads;
    const i64 width = (i64)heads * d, image = (i64)(blockIdx.x / heads) * tokens;
    const u32 query = blockIdx.y * WARPS + warp;
    const TX* from = x + image * 3 * width + (i64)head * d;
    for (u32 c = lane; c < d; c += 32) queries[warp][c] = query < tokens ? load(from + query * 3 * width + c) : 0.f;

    float most = -__int_as_float(0x7f800000), sum = 0.f, result[PER] = {};
    for (u32 first = 0; first < tokens; first += KEYS) {
        const u32 count = min(KEYS, tokens - first);
        __syncthreads();
        for (u32 row = warp; row < count; row += WARPS)
            for (u32 c = lane; c < d; c += 32) {
                keys[row][c] = load(from + (first + row) * 3 * width + width + c);
                values[row][c] = load(from + (first + row) * 3 * width + 2 * width + c);
            }
        __syncthreads();
        float score = -__int_as_float(0x7f800000);
        if (lane < count) {
            score = 0.f;
            for (u32 c = 0; c < d; c++) score = fmaf(queries[warp][c], keys[lane][c], score);
            score *= scale;
        }
        const float before = most;
        most = fmaxf(most, warp_max(score));
        const float share = expf(score - most), kept = expf(before - most);
        sum = sum * kept + warp_sum(share);
#pragma unroll
        for (u32 i = 0; i < PER; i++) result[i] *= kept;
        for (u32 row = 0; row < count; row++) {
            const float weight = __shfl_sync(~0u, share, row);
#pragma unroll
            for (u32 i = 0; i < PER; i++)
                if (i * 32 + lane < d) result[i] = fmaf(weight, values[row][i * 32 + lane], result[i]);
        }
    }
    if (query >= tokens) return;
#pragma unroll
    for (u32 i = 0; i < PER; i++)
        if (i * 32 + lane < d) store(y + (image + query) * width + (i64)head * d + i * 32 + lane, result[i] / sum);
}
