// Attention on the tensor cores of every architecture by `mma.sync`: q, k [heads, tokens, WIDTH] and v of the same
// width in 16 bits, f32 sums, after FlashAttention-2 (Dao 2023). A warp multiplies ATOMS * 16 queries of a head with
// KEYS keys at a time, which the warps of a block share; scores become weights in registers. Two tiles of keys and
// values take turns in shared memory.
//
// LISTED 1: keys are those of the blocks in the list of the query block, gathered row by row, then the centroids
// outside of the list, each with the logarithm of its number of tokens added to its score.
//
// Macros: T bf16_t or half_t; WIDTH 32, 64 or 128; WARPS; ATOMS; KEYS a tile; LISTED; BLOCKS a processor.
#include "activations.cuh"
#include "blocks.cuh"
#include "mma.cuh"
#include "pairs.cuh"
#include "rows.cuh"

const u32 ROWS = ATOMS * 16, QUERIES = WARPS * ROWS, THREADS = WARPS * 32;
// Steps of 16 columns, chunks a row; bytes of a tile of keys, and of one with its values.
const u32 STEPS = WIDTH / 16, CHUNKS = WIDTH / 8, TILE = KEYS * WIDTH * 2, STAGE = 2 * TILE;
// Queries of up to 64 columns stay in registers; they come through the place of the second tile.
const bool RESIDENT = WIDTH <= 64;
// A score that no key has.
const float MASKED = -1e30f;

// Offset of a chunk in a tile of so many rows: panels of 64 columns.
template <u32 COUNT> DEVICE u32 chunk_at(u32 row, u32 chunk) {
    return WIDTH == 32 ? swizzle_64(row, chunk) : chunk / 8 * (COUNT * 128) + swizzle_128(row, chunk % 8);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attend_mma(
    const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v, const i32* __restrict__ lists,
    const i32* __restrict__ counts, const T* __restrict__ centroid_keys, const T* __restrict__ centroid_values,
    T* __restrict__ y, float* __restrict__ lse, const __grid_constant__ Cut query_cut,
    const __grid_constant__ Cut key_cut, const __grid_constant__ Cut centroid_cut, const Rows places,
    const u32 query_blocks, const u32 key_blocks, const u32 longest, const u32 centroids, const u32 tiles, const u32 n,
    const u32 m, const float scale)
{
    wait_for_launch_before();
    extern __shared__ __align__(1024) u8 shared[];
    const u32 stages = shared_address(shared), queries = stages + (RESIDENT ? STAGE : 2 * STAGE);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 blocks = LISTED ? query_blocks * tiles : tiles;
    const u32 head = blockIdx.x / blocks, at = blockIdx.x - head * blocks;
    Range rows = {(i32)(at * QUERIES), (i32)min(n, (at + 1) * QUERIES)};
    // Tiles of all keys or of listed blocks; with those of centroids.
    u32 plain = (m + KEYS - 1) / KEYS, total = plain;
#if LISTED
    // Tokens and biases of the keys of three tiles, and whether a bias counts; tokens of the listed blocks, then a bit
    // for every key block in the list.
    __shared__ i32 tokens[3][KEYS];
    __shared__ float biases[3][KEYS];
    __shared__ u32 biased[3][KEYS / 32];
    Range* const listed = (Range*)(shared + max(2 * STAGE, queries - stages + QUERIES * WIDTH * 2));
    u32* const taken = (u32*)(listed + longest);
    const u32 query_block = at / tiles, list = head * query_blocks + query_block, count = counts[list];
    const Range whole = tokens_of(query_cut, query_block);
    rows.begin = whole.begin + (at - query_block * tiles) * QUERIES;
    rows.end = min(whole.end, rows.begin + (i32)QUERIES);
    if (rows.begin >= rows.end) return;
    for (u32 i = threadIdx.x; i < (key_blocks + 31) / 32; i += THREADS) taken[i] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        const u32 block = lists[(u64)list * longest + i];
        listed[i] = tokens_of(key_cut, block);
        atomicOr(taken + block / 32, 1u << block % 32);
    }
    __syncthreads();
    plain = (count * key_cut.size + KEYS - 1) / KEYS;
    total = plain + (centroids + KEYS - 1) / KEYS;
    // Which keys a tile has.
    auto prepare = [&](u32 tile) {
        for (u32 j = threadIdx.x; j < KEYS; j += THREADS) {
            i32 token = -1;
            float bias = MASKED;
            if (tile < plain) {
                const u32 slot = tile * KEYS + j, entry = slot / key_cut.size;
                if (entry < count) {
                    const i32 own = listed[entry].begin + (slot - entry * key_cut.size);
                    if (own < listed[entry].end) token = own, bias = 0.f;
                }
            } else {
                const u32 own = (tile - plain) * KEYS + j;
                if (own < centroids) {
                    const Range range = tokens_of(centroid_cut, own);
                    if (!is_taken(key_cut, taken, range.begin)) {
                        token = own;
                        bias = log2f((float)(range.end - range.begin)) / scale;
                    }
                }
            }
            tokens[tile % 3][j] = token;
            biases[tile % 3][j] = bias;
            const bool counts = __any_sync(~0u, bias != 0.f);
            if (lane == 0) biased[tile % 3][j / 32] = counts;
        }
    };
    if (total > 0) prepare(0);
    if (total > 1) prepare(1);
    __syncthreads();
#endif
    auto fetch = [&](u32 tile) {
        const bool central = LISTED && tile >= plain;
        const u64 base = (u64)head * (central ? centroids : m) * WIDTH;
        const T* from_keys = (central ? centroid_keys : k) + base;
        const T* from_values = (central ? centroid_values : v) + base;
        const u32 to = stages + tile % 2 * STAGE;
#pragma unroll
        for (u32 i = threadIdx.x; i < KEYS * CHUNKS; i += THREADS) {
            const u32 row = i / CHUNKS, chunk = i % CHUNKS;
#if LISTED
            const i32 token = tokens[tile % 3][row];
#else
            // The tail of all keys comes first, where it is masked.
            const i32 own = (total - 1 - tile) * KEYS + row, token = own < (i32)m ? own : -1;
#endif
            const u32 offset = token < 0 ? 0 : token * WIDTH + chunk * 8;
            copy_chunk(to + chunk_at<KEYS>(row, chunk), from_keys + offset, token >= 0);
            copy_chunk(to + TILE + chunk_at<KEYS>(row, chunk), from_values + offset, token >= 0);
        }
        copies_commit();
    };

    for (u32 i = threadIdx.x; i < QUERIES * CHUNKS; i += THREADS) {
        const i32 token = rows.begin + (i32)(i / CHUNKS);
        const bool there = token < rows.end;
        const u64 row = (u64)head * n + (there ? token : rows.begin);
        copy_chunk(queries + chunk_at<QUERIES>(i / CHUNKS, i % CHUNKS), q + row * WIDTH + i % CHUNKS * 8, there);
    }
    if (total > 0) fetch(0);
    copies_wait<0>();
    __syncthreads();
    u32 left[RESIDENT ? STEPS : 1][ATOMS][4];
    auto load_queries = [&](u32 (&to)[ATOMS][4], u32 step) {
#pragma unroll
        for (u32 a = 0; a < ATOMS; a++)
            load_matrices(
                to[a], queries + chunk_at<QUERIES>(warp * ROWS + a * 16 + lane % 16, step * 2 + lane / 16));
    };
    if (RESIDENT)
#pragma unroll
        for (u32 step = 0; step < STEPS; step++) load_queries(left[step], step);

    float sums[ATOMS][WIDTH / 8][4] = {}, top[ATOMS][2], under[ATOMS][2] = {};
#pragma unroll
    for (u32 a = 0; a < ATOMS; a++) top[a][0] = top[a][1] = MASKED;
    for (u32 tile = 0; tile < total; tile++) {
        copies_wait<0>();
        __syncthreads();
        if (tile + 1 < total) fetch(tile + 1);
#if LISTED
        if (tile + 2 < total) prepare(tile + 2);
#endif
        const u32 keys = stages + tile % 2 * STAGE, values = keys + TILE;
        float scores[ATOMS][KEYS / 8][4] = {};
#pragma unroll
        for (u32 step = 0; step < STEPS; step++) {
            auto& own = left[RESIDENT ? step : 0];
            if (!RESIDENT) load_queries(own, step);
#pragma unroll
            for (u32 pair = 0; pair < KEYS / 16; pair++) {
                u32 b[4];
                load_matrices(
                    b, keys + chunk_at<KEYS>(pair * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
#pragma unroll
                for (u32 a = 0; a < ATOMS; a++) {
                    Mma<T>::add(scores[a][2 * pair], own[a], b[0], b[1]);
                    Mma<T>::add(scores[a][2 * pair + 1], own[a], b[2], b[3]);
                }
            }
        }
#if LISTED
        bool masked = biased[tile % 3][0];
        if (KEYS > 32) masked |= biased[tile % 3][KEYS / 32 - 1];
        if (masked) {
#pragma unroll
            for (u32 j = 0; j < KEYS / 8; j++) {
                const float2 bias = *(const float2*)(biases[tile % 3] + j * 8 + lane % 4 * 2);
#pragma unroll
                for (u32 a = 0; a < ATOMS; a++)
#pragma unroll
                    for (u32 c = 0; c < 4; c++) scores[a][j][c] += c % 2 ? bias.y : bias.x;
            }
        }
#else
        if (tile == 0 && m % KEYS) {
            const u32 first = (total - 1) * KEYS + lane % 4 * 2;
#pragma unroll
            for (u32 a = 0; a < ATOMS; a++)
#pragma unroll
                for (u32 j = 0; j < KEYS / 8; j++)
#pragma unroll
                    for (u32 c = 0; c < 4; c++)
                        if (first + j * 8 + c % 2 >= m) scores[a][j][c] = MASKED;
        }
#endif
#pragma unroll
        for (u32 a = 0; a < ATOMS; a++)
#pragma unroll
            for (u32 row = 0; row < 2; row++) {
                float most = top[a][row], sum = 0.f;
#pragma unroll
                for (u32 j = 0; j < KEYS / 8; j++)
                    most = fmaxf(most, fmaxf(scores[a][j][2 * row], scores[a][j][2 * row + 1]));
                most = lanes_max<4>(most);
                // What sums of before are worth under the new maximum.
                const float shrink = exp2_fast((top[a][row] - most) * scale), base = most * scale;
                top[a][row] = most;
#pragma unroll
                for (u32 j = 0; j < KEYS / 8; j++)
#pragma unroll
                    for (u32 c = 2 * row; c < 2 * row + 2; c++) {
                        scores[a][j][c] = exp2_fast(fmaf(scores[a][j][c], scale, -base));
                        sum += scores[a][j][c];
                    }
                under[a][row] = fmaf(under[a][row], shrink, sum);
#pragma unroll
                for (u32 j = 0; j < WIDTH / 8; j++) {
                    sums[a][j][2 * row] *= shrink;
                    sums[a][j][2 * row + 1] *= shrink;
                }
            }
#pragma unroll
        for (u32 step = 0; step < KEYS / 16; step++) {
            u32 weights[ATOMS][4];
#pragma unroll
            for (u32 a = 0; a < ATOMS; a++)
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    const float* two = scores[a][2 * step + i / 2] + i % 2 * 2;
                    weights[a][i] = Pair<T>::of(two[0], two[1]);
                }
#pragma unroll
            for (u32 pair = 0; pair < STEPS; pair++) {
                u32 b[4];
                load_matrices_transposed(b, values + chunk_at<KEYS>(step * 16 + lane % 16, pair * 2 + lane / 16));
#pragma unroll
                for (u32 a = 0; a < ATOMS; a++) {
                    Mma<T>::add(sums[a][2 * pair], weights[a], b[0], b[1]);
                    Mma<T>::add(sums[a][2 * pair + 1], weights[a], b[2], b[3]);
                }
            }
        }
    }
#pragma unroll
    for (u32 a = 0; a < ATOMS; a++)
#pragma unroll
        for (u32 row = 0; row < 2; row++) {
            const float all = lanes_sum<4>(under[a][row]), over = all > 0.f ? 1.f / all : 0.f;
            const i32 token = rows.begin + (i32)(warp * ROWS + a * 16 + row * 8 + lane / 4);
            T* const to = y + row_at(places, head, token) + lane % 4 * 8;
#pragma unroll
            for (u32 part = 0; part < WIDTH / 32; part++) {
                u32 words[4];
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    const float* two = sums[a][4 * part + j] + 2 * row;
                    words[j] = Pair<T>::of(two[0] * over, two[1] * over);
                }
                transpose_words(words);
                if (token < rows.end) *(uint4*)(to + part * 32) = {words[0], words[1], words[2], words[3]};
            }
            if (lse && lane % 4 == 0 && token < rows.end)
                lse[(i64)head * n + token] = 0.69314718f * (top[a][row] * scale + log2f(all));
        }
}
