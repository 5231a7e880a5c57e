// Attention of any head dimensions up to 256, any lengths, in f32: softmax(scale q kᵀ) v by the online softmax (Milakov,
// Gimelshein 2018; Dao et al. 2022), so that no row of scores is ever stored. A block takes ROWS * 16 queries of a head
// and walks over keys, COLUMNS * 16 at a time, in shared memory; a thread computes ROWS x COLUMNS scores and ROWS x
// WIDTH / 16 sums of values.
//
// LISTED 1: keys are those of the blocks in the list of the query block, and the centroids outside of it, each one more
// key whose score has the logarithm of its number of tokens added; the logarithm of the sum of exponentials is a result.
//
// LINEAR 1: weights are phi(q) phi(k) of the keys outside the list, over their sum + 1e-6; phi is elu + 1, or the
// softmax over the head dimension with SOFTMAX 1.
//
// Macros: TX elements of q, k, v; TY of the result; WIDTH the greater head dimension, rounded up; ROWS; COLUMNS.
#include "blocks.cuh"
#include "rows.cuh"
#include "tiles.cuh"

// Minus infinity: the score of no key.
#define NOTHING __uint_as_float(0xff800000)

const u32 QUERIES = ROWS * 16, KEYS = COLUMNS * 16, SUMS = WIDTH / 16;

// phi of rows in shared memory, `stride` floats apart; all threads call it.
DEVICE void map_features(float* rows, u32 count, u32 stride, u32 d) {
#if LINEAR
    __syncthreads();
    for (u32 row = threadIdx.x / 16; row < count; row += 16) {
        float* x = rows + row * stride;
#if SOFTMAX
        float most = NOTHING, sum = 0.f;
        for (u32 i = threadIdx.x % 16; i < d; i += 16) most = fmaxf(most, x[i]);
        most = lanes_max<16>(most);
        for (u32 i = threadIdx.x % 16; i < d; i += 16) sum += x[i] = expf(x[i] - most);
        sum = lanes_sum<16>(sum);
        for (u32 i = threadIdx.x % 16; i < d; i += 16) x[i] /= sum;
#else
        for (u32 i = threadIdx.x % 16; i < d; i += 16) x[i] = x[i] > 0.f ? x[i] + 1.f : expf(x[i]);
#endif
    }
#endif
}

extern "C" __global__ void __launch_bounds__(256) attend(
    const TX* __restrict__ q, const TX* __restrict__ k, const TX* __restrict__ v, const i32* __restrict__ lists,
    const i32* __restrict__ counts, const TX* __restrict__ centroid_keys, const TX* __restrict__ centroid_values,
    TY* __restrict__ y, float* __restrict__ lse, const __grid_constant__ Cut query_cut,
    const __grid_constant__ Cut key_cut, const __grid_constant__ Cut centroid_cut, const __grid_constant__ Rows rows,
    const u32 query_blocks, const u32 key_blocks, const u32 longest, const u32 centroids, const u32 tiles, const u32 n,
    const u32 m, const u32 d, const u32 e, const float scale)
{
    wait_for_launch_before();
    extern __shared__ float shared[];
    const u32 stride = d + 1;
    float* queries = shared;
    float* keys = queries + QUERIES * stride;
    float* values = keys + KEYS * stride;
    float* weights = values + KEYS * e;
    float* biases = weights + QUERIES * (KEYS + 1);
    i32* tokens = (i32*)(biases + KEYS);
    u32* taken = (u32*)(tokens + KEYS);

    const u32 across = threadIdx.x % 16, down = threadIdx.x / 16;
    const u32 blocks = LISTED || LINEAR ? query_blocks * tiles : tiles;
    const i64 head = blockIdx.x / blocks;
    const u32 at = blockIdx.x - (u32)head * blocks;
    i32 first = at * QUERIES, last = min(n, (at + 1) * QUERIES);
    u32 listed = 0;
    const i32* list = 0;
    if (LISTED || LINEAR) {
        const u32 block = at / tiles;
        const Range range = tokens_of(query_cut, block);
        first = range.begin + (at - block * tiles) * QUERIES;
        last = min(range.end, first + (i32)QUERIES);
        if (first >= range.end) return;
        const i64 row = head * query_blocks + block;
        listed = counts[row];
        list = lists + row * longest;
        // Which key blocks the list holds, a bit each.
        const u32 words = (key_blocks + 31) / 32;
        for (u32 i = threadIdx.x; i < words; i += 256) taken[i] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < listed; i += 256) atomicOr(taken + list[i] / 32, 1u << (list[i] % 32));
    }
    for (u32 i = threadIdx.x; i < QUERIES * d; i += 256) {
        const u32 row = i / d;
        const i32 token = first + row;
        queries[row * stride + i - row * d] = token < last ? load(q + (head * n + token) * d + (i - row * d)) : 0.f;
    }
    map_features(queries, QUERIES, stride, d);

    float sums[ROWS][SUMS], top[ROWS], total[ROWS];
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
        top[r] = NOTHING;
        total[r] = 0.f;
#pragma unroll
        for (u32 c = 0; c < SUMS; c++) sums[r][c] = 0.f;
    }
    // Slots, some empty: tokens of the listed blocks, or of everything; then all centroids.
    const u32 plain = LISTED ? listed * key_cut.size : m, slots = plain + (LISTED ? centroids : 0);
    for (u32 start = 0; start < slots;) {
        const bool central = start >= plain;
        const u32 end = central ? slots : plain;
        __syncthreads();
        if (threadIdx.x < KEYS) {
            const u32 slot = start + threadIdx.x;
            i32 token = -1;
            float bias = 0.f;
            if (slot < end) {
                if (central) {
                    const Range range = tokens_of(centroid_cut, slot - plain);
                    if (!is_taken(key_cut, taken, range.begin)) token = slot - plain;
                    bias = logf((float)(range.end - range.begin));
                } else if (LISTED) {
                    token = listed_token(key_cut, list, slot);
                } else if (LINEAR) {
                    if (!is_taken(key_cut, taken, slot)) token = slot;
                } else {
                    token = slot;
                }
            }
            tokens[threadIdx.x] = token;
            biases[threadIdx.x] = bias;
        }
        __syncthreads();
        const TX* from_keys = central ? centroid_keys + head * centroids * d : k + head * m * d;
        const TX* from_values = central ? centroid_values + head * centroids * e : v + head * m * e;
        for (u32 i = threadIdx.x; i < KEYS * d; i += 256) {
            const u32 row = i / d;
            const i32 token = tokens[row];
            keys[row * stride + i - row * d] = token < 0 ? 0.f : load(from_keys + (i64)token * d + (i - row * d));
        }
        for (u32 i = threadIdx.x; i < KEYS * e; i += 256) {
            const u32 row = i / e;
            const i32 token = tokens[row];
            values[i] = token < 0 ? 0.f : load(from_values + (i64)token * e + (i - row * e));
        }
        map_features(keys, KEYS, stride, d);
        __syncthreads();

        float scores[ROWS][COLUMNS];
#pragma unroll
        for (u32 r = 0; r < ROWS; r++)
#pragma unroll
            for (u32 c = 0; c < COLUMNS; c++) scores[r][c] = 0.f;
        add_dots(scores, queries + down * ROWS * stride, keys + across * stride, stride, d);
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            float most = NOTHING, sum = 0.f, factor = 1.f;
#pragma unroll
            for (u32 c = 0; c < COLUMNS; c++) {
                const bool there = tokens[across + 16 * c] >= 0;
                if (LINEAR) scores[r][c] = there ? scores[r][c] : 0.f;
                else scores[r][c] = there ? fmaf(scores[r][c], scale, biases[across + 16 * c]) : NOTHING;
                most = fmaxf(most, scores[r][c]);
            }
            if (!LINEAR) {
                most = fmaxf(top[r], lanes_max<16>(most));
                const float base = most == NOTHING ? 0.f : most;
                factor = expf(top[r] - base);
                top[r] = most;
#pragma unroll
                for (u32 c = 0; c < COLUMNS; c++) scores[r][c] = expf(scores[r][c] - base);
            }
#pragma unroll
            for (u32 c = 0; c < COLUMNS; c++) {
                sum += scores[r][c];
                weights[(down * ROWS + r) * (KEYS + 1) + across + 16 * c] = scores[r][c];
            }
            total[r] = fmaf(total[r], factor, lanes_sum<16>(sum));
#pragma unroll
            for (u32 c = 0; c < SUMS; c++) sums[r][c] *= factor;
        }
        // The sixteen threads of a row share a warp.
        __syncwarp();
        for (u32 j = 0; j < KEYS; j++) {
            float a[ROWS];
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) a[r] = weights[(down * ROWS + r) * (KEYS + 1) + j];
#pragma unroll
            for (u32 c = 0; c < SUMS; c++) {
                const float b = across + 16 * c < e ? values[j * e + across + 16 * c] : 0.f;
#pragma unroll
                for (u32 r = 0; r < ROWS; r++) sums[r][c] = fmaf(a[r], b, sums[r][c]);
            }
        }
        start = min(start + KEYS, end);
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
        const i32 token = first + down * ROWS + r;
        if (token >= last) continue;
        TY* const to = y + row_at(rows, (u32)head, token);
        const float under = LINEAR ? total[r] + 1e-6f : slots == 0 ? 1.f : total[r];
#pragma unroll
        for (u32 c = 0; c < SUMS; c++)
            if (across + 16 * c < e) store(to + across + 16 * c, sums[r][c] / under);
        if (!LINEAR && lse && across == 0) lse[head * n + token] = top[r] + logf(total[r]);
    }
}
