// The reverse pass of attention of any head dimensions up to 256, any lengths, in f32. With P = exp(scale q kᵀ + bias − lse)
// and dS = P ∘ (do vᵀ − delta): dq = scale dS k, dk = scale dSᵀ q, dv = Pᵀ do. Neither P nor dS is ever stored: a block owns
// ROWS * 16 rows of a head, queries or keys, and walks over those of the other side, COLUMNS * 16 at a time, in shared
// memory; a thread computes ROWS x COLUMNS of P and dS and ROWS x WIDTH / 16 sums of each result. Every sum has one order.
//
// OF_KEYS 0: dq, of queries of one query block. OF_KEYS 1: dk and dv, of keys wherever blocks end.
//
// LISTED 1: a query sees the keys of the blocks in the list of its query block, and the centroids outside of it, each with
// the logarithm of its number of tokens added to its score. Owned keys have the transposed lists; with CENTRAL 1 they are
// centroids, seen by the query blocks that those lists leave out.
//
// Macros: TX elements of q, k, v, do and the results; WIDTH the greater head dimension, rounded up; ROWS; COLUMNS.
#include "attention_grad.cuh"
#include "tiles.cuh"
#include "vectors.cuh"

// The logarithm of a sum of which every weight is zero.
#define NOTHING __uint_as_float(0x7f800000)

// Of every query its logarithm of the sum of exponentials, and the product of its rows of o and do. Eight lanes a query.
extern "C" __global__ void __launch_bounds__(256) deltas(
    const TX* __restrict__ o, const TX* __restrict__ g, const float* __restrict__ lse, float* __restrict__ pairs,
    const __grid_constant__ Rows rows, const u32 total, const u32 n, const u32 e)
{
    wait_for_launch_before();
    const int PIECE = 16 / sizeof(TX);
    const u32 query = blockIdx.x * 32 + threadIdx.x / 8, part = threadIdx.x % 8;
    const bool there = query < total;
    const u32 head = query / n;
    const i64 at = there ? row_at(rows, head, query - head * n) : 0;
    float sum = 0.f;
    if (there && e % PIECE == 0) {
        for (u32 i = part * PIECE; i < e; i += 8 * PIECE) {
            float x[PIECE], y[PIECE];
            load_neighbours(x, o + at + i);
            load_neighbours(y, g + at + i);
#pragma unroll
            for (int j = 0; j < PIECE; j++) sum = fmaf(x[j], y[j], sum);
        }
    } else if (there) {
        for (u32 i = part; i < e; i += 8) sum = fmaf(load(o + at + i), load(g + at + i), sum);
    }
    sum = lanes_sum<8>(sum);
    if (there && part == 0) *(float2*)(pairs + 2 * (i64)query) = {lse[query], sum};
}

#ifdef WIDTH
const u32 OWNED = ROWS * 16, OTHERS = COLUMNS * 16, SUMS = WIDTH / 16;

extern "C" __global__ void __launch_bounds__(256, 2) reverse(
    const TX* __restrict__ q, const TX* __restrict__ k, const TX* __restrict__ v, const TX* __restrict__ g,
    const float* __restrict__ pairs, const i32* __restrict__ lists, const i32* __restrict__ counts,
    const TX* __restrict__ centroid_keys, const TX* __restrict__ centroid_values, TX* __restrict__ first,
    TX* __restrict__ second, const __grid_constant__ Cut query_cut, const __grid_constant__ Cut key_cut,
    const __grid_constant__ Cut centroid_cut, const __grid_constant__ Rows rows, const __grid_constant__ Sizes sizes)
{
    wait_for_launch_before();
    extern __shared__ float shared[];
    const u32 n = sizes.n, m = sizes.m, d = sizes.d, e = sizes.e, stride_d = d + 1, stride_e = e + 1;
    float* own_first = shared;
    float* own_second = own_first + OWNED * stride_d;
    float* other_first = own_second + OWNED * stride_e;
    float* other_second = other_first + OTHERS * stride_d;
    float* weights = other_second + OTHERS * stride_e;
    float* slopes = weights + OWNED * (OTHERS + 1);
    // Of slots: what is added to scores, or their lse; delta; which row, -1 where there is none.
    float* biases = slopes + OWNED * (OTHERS + 1);
    float* deltas_there = biases + OTHERS;
    i32* tokens = (i32*)(deltas_there + OTHERS);
    // Of owned keys: where their lists go on and end, the next query block there, and whether the present one sees them.
    i32* cursors = tokens + OTHERS;
    i32* ends = cursors + OWNED;
    i32* nexts = ends + OWNED;
    u32* seen = (u32*)(nexts + OWNED);
    // A bit a key block that the list holds.
    u32* taken = seen + OWNED;
    __shared__ i32 agreed;

    const u32 across = threadIdx.x % 16, down = threadIdx.x / 16;
    const u32 blocks = LISTED && !OF_KEYS ? sizes.query_blocks * sizes.tiles : sizes.tiles;
    const i64 head = blockIdx.x / blocks;
    const u32 at = blockIdx.x - (u32)head * blocks;
    i32 begin = at * OWNED, last = min(OF_KEYS ? m : n, (at + 1) * OWNED);
    u32 listed = 0;
    const i32* list = 0;
    if (LISTED && !OF_KEYS) {
        const u32 block = at / sizes.tiles;
        const Range range = tokens_of(query_cut, block);
        begin = range.begin + (at - block * sizes.tiles) * OWNED;
        last = min(range.end, begin + (i32)OWNED);
        if (begin >= range.end) return;
        const i64 row = head * sizes.query_blocks + block;
        listed = counts[row];
        list = lists + row * sizes.longest;
        for (u32 i = threadIdx.x; i < (sizes.key_blocks + 31) / 32; i += 256) taken[i] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < listed; i += 256) atomicOr(taken + list[i] / 32, 1u << (list[i] % 32));
    }
    if (LISTED && OF_KEYS) {
        const i64 words = sizes.key_blocks + 1 + (i64)sizes.query_blocks * sizes.longest;
        lists += head * words;
        for (u32 row = threadIdx.x; row < OWNED; row += 256) {
            const i32 token = begin + row;
            cursors[row] = ends[row] = 0;
            if (token >= last) continue;
            const i32 block = place_of(key_cut, CENTRAL ? tokens_of(centroid_cut, token).begin : token).block;
            cursors[row] = lists[block];
            ends[row] = lists[block + 1];
        }
        lists += sizes.key_blocks + 1;
    }
    const auto load_query = [&](float* to_first, float* to_second, u32 row, i32 token, u32 i) {
        if (i < d) to_first[row * stride_d + i] = token < 0 ? 0.f : load(q + (head * n + token) * d + i);
        if (i < e) to_second[row * stride_e + i] = token < 0 ? 0.f : load(g + row_at(rows, (u32)head, token) + i);
    };
    const auto load_key = [&](float* to_first, float* to_second, u32 row, i32 token, u32 i, bool central) {
        const TX* from_first = central ? centroid_keys + head * sizes.centroids * d : k + head * m * d;
        const TX* from_second = central ? centroid_values + head * sizes.centroids * e : v + head * m * e;
        if (i < d) to_first[row * stride_d + i] = token < 0 ? 0.f : load(from_first + (i64)token * d + i);
        if (i < e) to_second[row * stride_e + i] = token < 0 ? 0.f : load(from_second + (i64)token * e + i);
    };
    for (u32 i = threadIdx.x; i < OWNED * WIDTH; i += 256) {
        const u32 row = i / WIDTH;
        const i32 token = begin + (i32)row < last ? begin + (i32)row : -1;
        if (OF_KEYS) load_key(own_first, own_second, row, token, i % WIDTH, false);
        else load_query(own_first, own_second, row, token, i % WIDTH);
    }
    float first_sums[ROWS][SUMS], second_sums[OF_KEYS ? ROWS : 1][SUMS], own_lse[ROWS], own_delta[ROWS], own_bias[ROWS];
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
        const i32 token = begin + down * ROWS + r;
        const bool there = token < last;
        own_lse[r] = there ? OF_KEYS ? 0.f : pairs[2 * (head * n + token)] : NOTHING;
        own_delta[r] = there && !OF_KEYS ? pairs[2 * (head * n + token) + 1] : 0.f;
        own_bias[r] = 0.f;
        if (CENTRAL && there) {
            const Range range = tokens_of(centroid_cut, token);
            own_bias[r] = logf((float)(range.end - range.begin));
        }
#pragma unroll
        for (u32 c = 0; c < SUMS; c++) first_sums[r][c] = 0.f;
#pragma unroll
        for (u32 c = 0; c < SUMS; c++)
            if (OF_KEYS) second_sums[r][c] = 0.f;
    }
    // Slots, some empty: queries of a block; tokens of the listed blocks, or of everything, then all centroids.
    const u32 plain = LISTED ? listed * key_cut.size : m;
    const u32 slots = OF_KEYS ? n : plain + (LISTED ? sizes.centroids : 0);
    const bool walks = LISTED && OF_KEYS;
    i32 block = 0;
    u32 start = 0, stop = walks ? 0 : slots;
    while (true) {
        if (walks && start >= stop) {
            // The next query block that sees any of the owned keys, and which of them it sees.
            __syncthreads();
            for (u32 row = threadIdx.x; row < OWNED; row += 256)
                nexts[row] = cursors[row] < ends[row] ? lists[cursors[row]] : (i32)sizes.query_blocks;
            __syncthreads();
            if (threadIdx.x < 32) {
                i32 least = sizes.query_blocks;
                for (u32 row = threadIdx.x; row < OWNED; row += 32) least = min(least, nexts[row]);
#pragma unroll
                for (u32 step = 16; step; step /= 2) least = min(least, __shfl_xor_sync(~0u, least, step));
                if (threadIdx.x == 0) agreed = CENTRAL ? block : least;
            }
            __syncthreads();
            const i32 present = agreed;
            if (present >= (i32)sizes.query_blocks) break;
            for (u32 row = threadIdx.x; row < OWNED; row += 256) {
                const bool holds = nexts[row] == present;
                seen[row] = holds != (bool)CENTRAL;
                cursors[row] += holds;
            }
            block = present + 1;
            const Range range = tokens_of(query_cut, present);
            start = range.begin;
            stop = range.end;
        }
        if (start >= stop) break;
        const bool central = !OF_KEYS && start >= plain;
        const u32 end = OF_KEYS || central ? stop : plain;
        __syncthreads();
        if (threadIdx.x < OTHERS) {
            const u32 slot = start + threadIdx.x;
            i32 token = -1;
            float bias = OF_KEYS ? NOTHING : 0.f, delta = 0.f;
            if (slot < end) {
                if (OF_KEYS) {
                    token = slot;
                    bias = pairs[2 * (head * n + slot)];
                    delta = pairs[2 * (head * n + slot) + 1];
                } else if (central) {
                    const Range range = tokens_of(centroid_cut, slot - plain);
                    if (!is_taken(key_cut, taken, range.begin)) token = slot - plain;
                    bias = logf((float)(range.end - range.begin));
                } else if (LISTED) {
                    token = listed_token(key_cut, list, slot);
                } else {
                    token = slot;
                }
            }
            tokens[threadIdx.x] = token;
            biases[threadIdx.x] = bias;
            deltas_there[threadIdx.x] = delta;
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < OTHERS * WIDTH; i += 256) {
            const u32 row = i / WIDTH;
            if (OF_KEYS) load_query(other_first, other_second, row, tokens[row], i % WIDTH);
            else load_key(other_first, other_second, row, tokens[row], i % WIDTH, central);
        }
        __syncthreads();
        float scores[ROWS][COLUMNS], products[ROWS][COLUMNS];
#pragma unroll
        for (u32 r = 0; r < ROWS; r++)
#pragma unroll
            for (u32 c = 0; c < COLUMNS; c++) scores[r][c] = products[r][c] = 0.f;
        add_dots(scores, own_first + down * ROWS * stride_d, other_first + across * stride_d, stride_d, d);
        add_dots(products, own_second + down * ROWS * stride_e, other_second + across * stride_e, stride_e, e);
#pragma unroll
        for (u32 r = 0; r < ROWS; r++)
#pragma unroll
            for (u32 c = 0; c < COLUMNS; c++) {
                const u32 slot = across + 16 * c, row = down * ROWS + r;
                const bool there = tokens[slot] >= 0 && (!walks || seen[row]);
                const float bias = OF_KEYS ? own_bias[r] : biases[slot];
                const float lse = OF_KEYS ? biases[slot] : own_lse[r];
                const float delta = OF_KEYS ? deltas_there[slot] : own_delta[r];
                const float weight = there ? expf(fmaf(scores[r][c], sizes.scale, bias) - lse) : 0.f;
                if (OF_KEYS) weights[row * (OTHERS + 1) + slot] = weight;
                slopes[row * (OTHERS + 1) + slot] = weight * (products[r][c] - delta);
            }
        // The sixteen threads of a row share a warp.
        __syncwarp();
        for (u32 j = 0; j < OTHERS; j++) {
            float slope[ROWS], weight[ROWS];
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                slope[r] = slopes[(down * ROWS + r) * (OTHERS + 1) + j];
                if (OF_KEYS) weight[r] = weights[(down * ROWS + r) * (OTHERS + 1) + j];
            }
#pragma unroll
            for (u32 c = 0; c < SUMS; c++) {
                const u32 column = across + 16 * c;
                const float b = column < d ? other_first[j * stride_d + column] : 0.f;
#pragma unroll
                for (u32 r = 0; r < ROWS; r++) first_sums[r][c] = fmaf(slope[r], b, first_sums[r][c]);
                if (OF_KEYS) {
                    const float b = column < e ? other_second[j * stride_e + column] : 0.f;
#pragma unroll
                    for (u32 r = 0; r < ROWS; r++) second_sums[r][c] = fmaf(weight[r], b, second_sums[r][c]);
                }
            }
        }
        start = min(start + OTHERS, end);
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
        const i32 token = begin + down * ROWS + r;
        if (token >= last) continue;
        const i64 row = head * (OF_KEYS ? m : n) + token;
#pragma unroll
        for (u32 c = 0; c < SUMS; c++) {
            const u32 column = across + 16 * c;
            if (column < d) store(first + row * d + column, sizes.scale * first_sums[r][c]);
            if (OF_KEYS && column < e) store(second + row * e + column, second_sums[r][c]);
        }
    }
}
#endif
