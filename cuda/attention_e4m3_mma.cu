// Attention over e4m3 codes by `mma.sync`, from Ada on: bf16 q [heads, tokens, WIDTH], codes of keys and values as
// attention_codes.cu makes them; queries, weights and results are those of attention_weights.cuh. A warp multiplies
// ATOMS * 16 queries of a head with KEYS keys at a time, which the warps of a block share; two tiles of keys and values
// take turns in shared memory, where they stand as codes are laid out, so that neither needs a permutation.
//
// BLOCK above 0: keys are those of the blocks in the list of the query block, KEYS / BLOCK a tile (or a block in two
// tiles), then the centroids outside of the list, each with the logarithm of its number of tokens added to its score.
//
// Macros: WIDTH 64 or 128; WARPS; ATOMS; KEYS a tile, 64 or 128; BLOCK, tokens a key block, or 0 for all keys; BLOCKS a
// processor.
#include "attention_weights.cuh"
#include "blocks.cuh"
#include "mma.cuh"
#include "rows.cuh"

#define LISTED (BLOCK > 0)
const u32 ROWS = ATOMS * 16, QUERIES = WARPS * ROWS, THREADS = WARPS * 32;
// Runs of slots that a tile has, all of one block each, and how many a block is.
const u32 RUN = LISTED && BLOCK < KEYS ? BLOCK : KEYS, RUNS = KEYS / RUN, HALVES = LISTED ? BLOCK / RUN : 1;
// Scales a tile: of its runs, and of centroids.
const u32 SCALES = LISTED && RUNS < KEYS / CENTRAL ? KEYS / CENTRAL : RUNS;
static_assert(DENSE % KEYS == 0, "a tile of all keys has one scale");
// Bytes of a tile of keys, and of one with its values.
const u32 KEY_TILE = KEYS * WIDTH, STAGE = KEY_TILE + KEYS * VALUE_ROWS;

// Loads for the products that follow come no earlier: registers do not suffice for those of all columns at once, least
// of all on Hopper, which widens codes to f16 in registers.
DEVICE void hold_back() { __syncwarp(); }

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attend_codes_mma(
    const bf16_t* __restrict__ q, const u8* __restrict__ key_codes, const u8* __restrict__ value_codes,
    const float* __restrict__ key_scales, const u8* __restrict__ central_keys, const u8* __restrict__ central_values,
    const float* __restrict__ central_scales, const float* __restrict__ centres, const float* __restrict__ columns,
    const i32* __restrict__ lists, const i32* __restrict__ counts, const Centroid* __restrict__ table,
    bf16_t* __restrict__ y, float* __restrict__ lse, const __grid_constant__ Cut query_cut, const Rows places,
    const u32 query_blocks, const u32 longest, const u32 key_blocks, const u32 slots, const u32 centroids,
    const u32 central_slots, const u32 tiles, const u32 n, const u32 m, const float scale)
{
    wait_for_launch_before();
    extern __shared__ __align__(1024) u8 shared[];
    __shared__ float scales[2][SCALES];
    __shared__ __align__(4) u16 biases[2][LISTED ? KEYS : 2];
    const u32 stages = shared_address(shared), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 blocks = LISTED ? query_blocks * tiles : tiles;
    const u32 head = blockIdx.x / blocks, at = blockIdx.x - head * blocks;
    Range rows = {(i32)(at * QUERIES), (i32)min(n, (at + 1) * QUERIES)};
    u32 plain = (m + KEYS - 1) / KEYS, central = 0;
    const float* const key_scale = key_scales + (i64)head * key_blocks;
#if LISTED
    // The list, then a bit for every key block in it.
    u32* const listed = (u32*)(shared + 2 * STAGE);
    u32* const taken = listed + longest;
    const u32 query_block = at / tiles, list = head * query_blocks + query_block, count = counts[list];
    const Range whole = tokens_of(query_cut, query_block);
    rows.begin = whole.begin + (at - query_block * tiles) * QUERIES;
    rows.end = min(whole.end, rows.begin + (i32)QUERIES);
    if (rows.begin >= rows.end) return;
    for (u32 i = threadIdx.x; i < (key_blocks + 31) / 32; i += THREADS) taken[i] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        const u32 block = lists[(i64)list * longest + i];
        listed[i] = block;
        atomicOr(taken + block / 32, 1u << block % 32);
    }
    __syncthreads();
    plain = (count * HALVES + RUNS - 1) / RUNS;
    central = (centroids + KEYS - 1) / KEYS;
    // What this thread knows of the next tile of centroids.
    const u32 OWN = (KEYS + THREADS - 1) / THREADS;
    Centroid ahead[OWN];
    auto look = [&](u32 tile) {
        const u32 first = (tile - plain) * KEYS + threadIdx.x;
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
            ahead[i] = {NO_KEY, 0};
            if (tile >= plain && first + i * THREADS < centroids) ahead[i] = table[first + i * THREADS];
        }
    };
#endif
    const u32 total = plain + central;
    // The scale of a tile of all keys, or of one of its blocks.
    auto scale_of = [&](u32 tile) {
        float own = 0.f;
        if (threadIdx.x < SCALES) {
#if LISTED
            if (tile >= plain) {
                const u32 of = (tile - plain) * (KEYS / CENTRAL) + threadIdx.x / (SCALES / (KEYS / CENTRAL));
                const u32 blocks = (centroids + CENTRAL - 1) / CENTRAL;
                own = central_scales[head * blocks + min(of, blocks - 1)];
            } else {
                // What is left over of a tile repeats the first block over values of zero.
                const u32 entry = (tile * RUNS + threadIdx.x / (SCALES / RUNS)) / HALVES;
                own = key_scale[listed[entry < count ? entry : 0]];
            }
#else
            own = key_scale[tile / (DENSE / KEYS)];
#endif
        }
        return own;
    };
    auto fetch = [&](u32 tile) {
        const u32 keys = stages + tile % 2 * STAGE, values = keys + KEY_TILE;
        const bool of_centroids = LISTED && tile >= plain;
        const i64 first = (i64)head * (of_centroids ? central_slots : slots);
        const u8* const from_keys = (of_centroids ? central_keys : key_codes) + first * WIDTH;
        const u8* const from_values = (of_centroids ? central_values : value_codes) + first * VALUE_ROWS;
        // Runs of slots, a block each, or the whole tile.
        auto copy = [&](u32 run, u32 length, u32 key_slot, u32 value_slot) {
            const u32 key_chunks = length * WIDTH / 16, value_chunks = length * VALUE_ROWS / 16;
            for (u32 i = threadIdx.x; i < key_chunks; i += THREADS)
                copy_chunk(keys + (run * key_chunks + i) * 16, from_keys + (i64)key_slot * WIDTH + i * 16, true);
            for (u32 i = threadIdx.x; i < value_chunks; i += THREADS)
                copy_chunk(
                    values + (run * value_chunks + i) * 16, from_values + (i64)value_slot * VALUE_ROWS + i * 16, true);
        };
#if LISTED
        if (tile < plain) {
#pragma unroll
            for (u32 j = 0; j < RUNS; j++) {
                const u32 run = tile * RUNS + j, entry = run / HALVES, inside = run % HALVES * RUN;
                const u32 block = listed[entry < count ? entry : 0];
                copy(j, RUN, block * BLOCK + inside, (entry < count ? block : key_blocks) * BLOCK + inside);
            }
            copies_commit();
            return;
        }
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
            const u32 j = threadIdx.x + i * THREADS;
            const bool counts = !is_taken(taken, ahead[i].block);
            if (j < KEYS) biases[tile % 2][j] = counts ? ahead[i].bias : NO_KEY;
        }
#endif
        copy(0, KEYS, (tile - plain * LISTED) * KEYS, (tile - plain * LISTED) * KEYS);
        copies_commit();
    };

    u32 query[ATOMS][WIDTH / 32][4], bias[ATOMS];
    float slopes[ATOMS][2], sums[ATOMS][WIDTH / 8][4] = {}, under[ATOMS][2] = {};
    // Octaves that centring took from scores wait in `lse`.
    auto token_of = [&](u32 a, u32 row) { return rows.begin + (i32)(warp * ROWS + a * 16 + row * 8 + lane / 4); };
#pragma unroll
    for (u32 a = 0; a < ATOMS; a++) {
        bias[a] = UNSEEN;
#pragma unroll
        for (u32 row = 0; row < 2; row++) {
            const i32 token = token_of(a, row);
            const uint4* from = (const uint4*)(q + ((i64)head * n + token) * WIDTH + lane % 4 * COLUMNS);
            uint4 raw[COLUMNS / 8];
#pragma unroll
            for (u32 i = 0; i < COLUMNS / 8; i++) raw[i] = token < rows.end ? from[i] : uint4{0, 0, 0, 0};
            slopes[a][row] = code_query(query[a], raw, row) * scale;
            if (lse) {
                const float lost = octaves_lost(raw, centres + head * WIDTH, scale);
                if (lane % 4 == 0 && token < rows.end) lse[(i64)head * n + token] = lost;
            }
        }
    }
    float next_scale = 0.f;
    if (total > 0) {
#if LISTED
        look(0);
#endif
        next_scale = scale_of(0);
        fetch(0);
        if (threadIdx.x < SCALES) scales[0][threadIdx.x] = next_scale;
        if (total > 1) next_scale = scale_of(1);
#if LISTED
        look(1);
#endif
    }
    for (u32 tile = 0; tile < total; tile++) {
        copies_wait<0>();
        __syncthreads();
        if (tile + 1 < total) {
            fetch(tile + 1);
            if (threadIdx.x < SCALES) scales[(tile + 1) % 2][threadIdx.x] = next_scale;
            if (tile + 2 < total) next_scale = scale_of(tile + 2);
#if LISTED
            look(tile + 2);
#endif
        }
        const u32 keys = stages + tile % 2 * STAGE, values = keys + KEY_TILE;
        u32 weights[ATOMS][KEYS / 32][4];
        float shrink[ATOMS][2];
        {
            u32 scores[ATOMS][KEYS / 4] = {};
#pragma unroll
            for (u32 octet = 0; octet < KEYS / 8; octet++)
#pragma unroll
                for (u32 part = 0; part < WIDTH / 64; part++) {
                    u32 b[4];
                    hold_back();
                    load_matrices(b, keys + octet * 8 * WIDTH + part * 512 + lane * 16);
#pragma unroll
                    for (u32 step = 0; step < 2; step++)
#pragma unroll
                        for (u32 a = 0; a < ATOMS; a++)
                            add_halves(scores[a][2 * octet], scores[a][2 * octet + 1], query[a][2 * part + step],
                                b[2 * step], b[2 * step + 1]);
                }
#pragma unroll
            for (u32 a = 0; a < ATOMS; a++) {
                weigh<SCALES>(scores[a], bias[a], shrink[a], slopes[a], scales[tile % 2], biases[LISTED ? tile % 2 : 0],
                    LISTED && tile >= plain);
                pack_codes(weights[a], scores[a]);
            }
        }
        // Columns of values by eights, those of ones last.
#pragma unroll
        for (u32 octet = 0; octet < VALUE_ROWS / 8; octet++) {
            float part[ATOMS][4] = {};
            hold_back();
#pragma unroll
            for (u32 step = 0; step < KEYS / 32; step += 2) {
                u32 b[4];
                load_matrices(b, values + (step * 2 + lane / 8) * 16 * VALUE_ROWS + octet * 128 + lane % 8 * 16);
#pragma unroll
                for (u32 i = 0; i < 2; i++)
#pragma unroll
                    for (u32 a = 0; a < ATOMS; a++)
                        Mma<e4m3_t>::add(part[a], weights[a][step + i], b[2 * i], b[2 * i + 1]);
            }
#pragma unroll
            for (u32 a = 0; a < ATOMS; a++) {
                if (octet < WIDTH / 8)
#pragma unroll
                    for (u32 c = 0; c < 4; c++)
                        sums[a][octet][c] = fmaf(sums[a][octet][c], shrink[a][c / 2], part[a][c]);
                else
#pragma unroll
                    for (u32 row = 0; row < 2; row++)
                        under[a][row] = fmaf(under[a][row], shrink[a][row], part[a][2 * row]);
            }
        }
    }
#pragma unroll
    for (u32 a = 0; a < ATOMS; a++) {
        const float2 last = half_widen(bias[a]);
#pragma unroll
        for (u32 row = 0; row < 2; row++) {
            const float over = under[a][row] > 0.f ? 1.f / under[a][row] : 0.f;
            const i32 token = token_of(a, row);
            bf16_t* const to = y + row_at(places, head, token) + lane % 4 * 8;
#pragma unroll
            for (u32 part = 0; part < WIDTH / 32; part++) {
                u32 words[4];
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    const float* two = sums[a][4 * part + j] + 2 * row;
                    const float2 unit =
                        *(const float2*)(columns + head * WIDTH + 8 * (4 * part + j) + lane % 4 * 2);
                    words[j] = Pair<bf16_t>::of(two[0] * over * unit.x, two[1] * over * unit.y);
                }
                transpose_words(words);
                if (token < rows.end) *(uint4*)(to + part * 32) = {words[0], words[1], words[2], words[3]};
            }
            if (lse && lane % 4 == 0 && token < rows.end) {
                float* const own = lse + (i64)head * n + token;
                *own = logarithm(under[a][row], row ? last.y : last.x, *own);
            }
        }
    }
}
