// Attention on Hopper's tensor cores: bf16 q, k [heads, tokens, WIDTH] and v of the same width, f32 sums, after
// FlashAttention-3 (Shah et al. 2024). A block holds TEAMS of GROUPS warpgroups; a persistent grid of teams walks over
// tiles of GROUPS * 64 queries of a head. A warp for every team keeps its rings of key and value tiles filled by the
// copy engine; each warpgroup multiplies 64 queries with a tile of keys while it still adds up the values of the tile
// before.
//
// LISTED 1: a tile is a query block, at most GROUPS * 64 rows; its keys are those of the blocks in its list, KEYS /
// `block` boxes a tile of keys, then the centroids outside of the list, each with the logarithm of its number of tokens
// added to its score. Tiles with ragged blocks, with boxes left over and of centroids have a bias a key.
//
// TURNS 1: the warpgroups of a team start their products one after the other, so that the exponentials of one run
// beside the products of the others.
//
// Macros: WIDTH 64 or 128; GROUPS; TEAMS; TURNS; KEYS a tile; STAGES of the rings; LISTED; BLOCKS a processor;
// PRODUCER, CONSUMER registers a thread.
#include "activations.cuh"
#include "blocks.cuh"
#include "centroids.cuh"
#include "pairs.cuh"
#include "rows.cuh"
#include "sm90.cuh"
#include "wgmma.cuh"

const u32 PANELS = WIDTH / 64, QUERIES = GROUPS * 64, WORKERS = TEAMS * GROUPS, THREADS = 128 * (WORKERS + 1);
// Bytes of 64 columns of a tile, of a tile, of a team's rings and of its barriers.
const u32 QUERY_PANEL = QUERIES * 128, KEY_PANEL = KEYS * 128;
const u32 QUERY_TILE = QUERY_PANEL * PANELS, KEY_TILE = KEY_PANEL * PANELS;
const u32 RINGS = 2 * STAGES * KEY_TILE, BARRIERS = 16 + 32 * STAGES;
// A score that no key has.
const float MASKED = -1e30f;

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attend_wgmma(
    const __grid_constant__ TensorMap map_q, const __grid_constant__ TensorMap map_k,
    const __grid_constant__ TensorMap map_v, const __grid_constant__ TensorMap map_centroid_k,
    const __grid_constant__ TensorMap map_centroid_v, const i32* __restrict__ lists, const i32* __restrict__ counts,
    const Centroid* __restrict__ table, bf16_t* __restrict__ y, float* __restrict__ lse,
    const __grid_constant__ Cut query_cut, const __grid_constant__ Cut key_cut, const Rows places, const u32 block,
    const u32 longest, const u32 key_blocks, const u32 centroids, const u32 tiles, const u32 total,
    const u32 n, const u32 m, const float scale)
{
    extern __shared__ __align__(1024) u8 shared[];
    const u32 warp = warp_index(), group = warpgroup_index(), lane = threadIdx.x % 32;
    const u32 team = group == WORKERS ? warp - 4 * WORKERS : group / GROUPS;
    const u32 queries = shared_address(shared) + team * QUERY_TILE;
    const u32 keys = shared_address(shared) + TEAMS * QUERY_TILE + team * RINGS, values = keys + STAGES * KEY_TILE;
    const u32 barriers = TEAMS * (QUERY_TILE + RINGS);
    const u32 query_full = shared_address(shared) + barriers + team * BARRIERS, query_empty = query_full + 8;
    const u32 key_full = query_full + 16, key_empty = key_full + 8 * STAGES, value_full = key_empty + 8 * STAGES;
    const u32 value_empty = value_full + 8 * STAGES;
    // Biases of the keys of each stage, whether they count, then a bit for every key block of the list.
    float* const biases = (float*)(shared + barriers + TEAMS * BARRIERS) + team * STAGES * KEYS;
    u32* const biased = (u32*)(shared + barriers + TEAMS * (BARRIERS + STAGES * KEYS * 4)) + team * STAGES;
    u32* const taken = (u32*)(shared + barriers + TEAMS * (BARRIERS + STAGES * (KEYS + 1) * 4))
        + team * ((key_blocks + 31) / 32);
    if (warp >= 4 * WORKERS && team < TEAMS && lane == 0) {
        ring_init(query_full, query_empty, 1, 4 * GROUPS);
        ring_init(key_full, key_empty, STAGES, 4 * GROUPS * WARP_ARRIVALS, WARP_ARRIVALS);
        ring_init(value_full, value_empty, STAGES, 4 * GROUPS);
        barrier_init_done();
    }
    __syncthreads();
    wait_for_launch_before();
    const u32 first_tile = blockIdx.x * TEAMS + team, step_tile = gridDim.x * TEAMS;
    const u32 entries = LISTED ? KEYS / block : 1;
    // Tiles of listed blocks, or of all keys, and tiles of centroids.
    auto plain_of = [&](u32 tile) {
        return LISTED ? ((u32)counts[tile] + entries - 1) / entries : (m + KEYS - 1) / KEYS;
    };
    const u32 central = LISTED ? (centroids + KEYS - 1) / KEYS : 0;

    if (group == WORKERS) {
#if PRODUCER
        registers_lower<PRODUCER>();
#endif
        if (team >= TEAMS) return;
        u32 stage = 0, phase = 0, query_phase = 0;
        for (u32 tile = first_tile; tile < total; tile += step_tile, query_phase ^= 1) {
            const u32 head = tile / tiles, at = tile - head * tiles, plain = plain_of(tile);
            const i32* list = lists + (i64)tile * longest;
            const u32 count = LISTED ? counts[tile] : 0;
            const i32 first = LISTED ? tokens_of(query_cut, at).begin : at * QUERIES;
            // What the next tile needs of lists and of the table is on its way while this one waits for its place.
            u32 next_block = 0;
            Centroid next[KEYS / 32];
            auto look_ahead = [&](u32 i) {
                if (i < plain) {
                    if (lane < entries && i * entries + lane < count) next_block = list[i * entries + lane];
                } else {
#pragma unroll
                    for (u32 j = 0; j < KEYS / 32; j++) {
                        const u32 own = (i - plain) * KEYS + j * 32 + lane;
                        if (own < centroids) next[j] = table[own];
                    }
                }
            };
            if (LISTED) look_ahead(0);
            barrier_wait(query_empty, query_phase ^ 1);
            if (lane == 0) {
                barrier_expect(query_full, QUERY_TILE);
                for (u32 panel = 0; panel < PANELS; panel++)
                    copy_box(queries + panel * QUERY_PANEL, &map_q, query_full, panel * 64, first, head, KEEP_LITTLE);
            }
            if (LISTED && central) {
#pragma unroll 1
                for (u32 i = lane; i < (key_blocks + 31) / 32; i += 32) taken[i] = 0;
                __syncwarp();
            }
            for (u32 i = 0; i < plain + central; i++) {
                const bool of_centroids = LISTED && i >= plain;
                // The tail of all keys comes first, where it is masked.
                i32 from = LISTED ? 0 : (plain - 1 - i) * KEYS;
                bool mask = false;
                // Each lane knows the block that it copies, and how many tokens of it there are.
                u32 there = 0;
                if (LISTED) {
                    const u32 entry = i * entries + lane;
                    from = m;
                    if (of_centroids) {
                        from = (i - plain) * KEYS;
                    } else if (lane < entries && entry < count) {
                        const Range range = tokens_of(key_cut, next_block);
                        from = range.begin;
                        there = range.end - range.begin;
                        if (central) atomicOr(taken + next_block / 32, 1u << next_block % 32);
                    }
                    mask = of_centroids || __any_sync(~0u, lane < entries && there < block);
                }
                const u32 full_k = key_full + 8 * stage, full_v = value_full + 8 * stage;
                barrier_wait(key_empty + 8 * stage, phase ^ 1);
                if (LISTED) {
                    if (lane == 0) biased[stage] = mask;
#pragma unroll
                    for (u32 j = 0; j < KEYS / 32; j++) {
                        if (!mask) break;
                        const u32 key = j * 32 + lane;
                        float bias = MASKED;
                        if (of_centroids) {
                            const u32 bit = next[j].block;
                            if ((i - plain) * KEYS + key < centroids && !(taken[bit / 32] >> bit % 32 & 1))
                                bias = next[j].bias;
                        } else if (key % block < __shfl_sync(~0u, there, key / block)) {
                            bias = 0.f;
                        }
                        biases[stage * KEYS + key] = bias;
                    }
                    look_ahead(i + 1);
                    __syncwarp();
                }
                const bool copies = LISTED && !of_centroids ? lane < entries : lane == 0;
                const u32 offset = LISTED && !of_centroids ? lane * block * 128 : 0;
                warp_expect(full_k, KEY_TILE, lane);
                __syncwarp();
                if (copies)
                    for (u32 panel = 0; panel < PANELS; panel++)
                        copy_box(keys + stage * KEY_TILE + panel * KEY_PANEL + offset,
                            of_centroids ? &map_centroid_k : &map_k, full_k, panel * 64, from, head, KEEP_LONG);
                barrier_wait(value_empty + 8 * stage, phase ^ 1);
                if (lane == 0) barrier_expect(full_v, KEY_TILE);
                __syncwarp();
                if (copies)
                    for (u32 panel = 0; panel < PANELS; panel++)
                        copy_box(values + stage * KEY_TILE + panel * KEY_PANEL + offset,
                            of_centroids ? &map_centroid_v : &map_v, full_v, panel * 64, from, head, KEEP_LONG);
                if (++stage == STAGES) stage = 0, phase ^= 1;
            }
        }
        return;
    }
#if PRODUCER
    registers_raise<CONSUMER>();
#endif
    u32 stage = 0, phase = 0, query_phase = 0;
    const u32 member = group % GROUPS, turn = 1 + team * GROUPS + member;
    const u32 next_turn = 1 + team * GROUPS + (member + 1) % GROUPS;
    if (TURNS && member == GROUPS - 1) named_arrive(next_turn, 256);
    for (u32 tile = first_tile; tile < total; tile += step_tile, query_phase ^= 1) {
        const u32 head = tile / tiles, at = tile - head * tiles, key_tiles = plain_of(tile) + central;
        float sums[WIDTH / 2], scores[KEYS / 2], top[2] = {MASKED, MASKED}, under[2] = {0.f, 0.f}, shrink[2];
        u32 weights[KEYS / 16][4];
#pragma unroll
        for (u32 i = 0; i < WIDTH / 2; i++) sums[i] = 0.f;
        barrier_wait(query_full, query_phase);
        const u32 own = queries + member * 64 * 128;
        auto multiply_keys = [&](u32 of) {
#pragma unroll
            for (u32 step = 0; step < WIDTH / 16; step++)
                Wgmma<KEYS>::bf16<0>(scores, operand_k128(own + step / 4 * QUERY_PANEL) + step % 4 * 2,
                    operand_k128(keys + of * KEY_TILE + step / 4 * KEY_PANEL) + step % 4 * 2, step != 0);
            products_commit();
        };
        auto multiply_values = [&](u32 of) {
            const u64 b = operand_mn128(values + of * KEY_TILE, KEY_PANEL);
#pragma unroll
            for (u32 step = 0; step < KEYS / 16; step++)
                Wgmma<WIDTH>::bf16<1>(sums, weights[step], b + step * 128, true);
            products_commit();
        };
        // Masks scores, and gives the keys back.
        auto mask = [&](u32 of, bool tail) {
            if (LISTED) {
                if (biased[of]) {
                    const float* bias = biases + of * KEYS + lane % 4 * 2;
#pragma unroll
                    for (u32 i = 0; i < KEYS / 2; i += 4) {
                        const float2 two = *(const float2*)(bias + i * 2);
#pragma unroll
                        for (u32 j = 0; j < 4; j++) scores[i + j] += j % 2 ? two.y : two.x;
                    }
                }
                __syncwarp();
            } else if (tail && m % KEYS) {
                const u32 first = (key_tiles - 1) * KEYS + lane % 4 * 2;
#pragma unroll
                for (u32 i = 0; i < KEYS / 2; i++)
                    if (first + i / 4 * 8 + i % 2 >= m) scores[i] = MASKED;
            }
            warp_arrive(key_empty + 8 * of, lane);
        };
        // Exponentials of the scores in place; `shrink` is what sums of before are worth under the new maximum.
        auto exponentials = [&] {
            float base[2];
#pragma unroll
            for (u32 row = 0; row < 2; row++) {
                float most[2] = {top[row], MASKED};
#pragma unroll
                for (u32 i = 2 * row; i < KEYS / 2; i += 4) {
                    most[0] = fmaxf(most[0], scores[i]);
                    most[1] = fmaxf(most[1], scores[i + 1]);
                }
                const float now = lanes_max<4>(fmaxf(most[0], most[1]));
                shrink[row] = exp2_fast((top[row] - now) * scale);
                top[row] = now;
                base[row] = now * scale;
            }
#pragma unroll
            for (u32 row = 0; row < 2; row++) {
                float sum[2] = {under[row] * shrink[row], 0.f};
#pragma unroll
                for (u32 i = 2 * row; i < KEYS / 2; i += 4)
#pragma unroll
                    for (u32 j = 0; j < 2; j++) {
                        scores[i + j] = exp2_fast(fmaf(scores[i + j], scale, -base[row]));
                        sum[j] += scores[i + j];
                    }
                under[row] = sum[0] + sum[1];
            }
        };
        auto pack_weights = [&] {
#pragma unroll
            for (u32 step = 0; step < KEYS / 16; step++)
#pragma unroll
                for (u32 j = 0; j < 4; j++)
                    weights[step][j] = Pair<bf16_t>::of(scores[8 * step + 2 * j], scores[8 * step + 2 * j + 1]);
        };
        if (key_tiles > 0) {
            barrier_wait(key_full + 8 * stage, phase);
            pin(scores);
            products_fence();
            multiply_keys(stage);
            products_wait<0>();
            pin(scores);
            mask(stage, true);
            exponentials();
            pack_weights();
            for (u32 i = 1; i < key_tiles; i++) {
                const u32 before = stage, phase_before = phase;
                if (++stage == STAGES) stage = 0, phase ^= 1;
                barrier_wait(key_full + 8 * stage, phase);
                pin(scores);
                pin(sums);
                if (TURNS) named_sync(turn, 256);
                products_fence();
                multiply_keys(stage);
                barrier_wait(value_full + 8 * before, phase_before);
                multiply_values(before);
                if (TURNS) named_arrive(next_turn, 256);
                products_wait<1>();
                pin(scores);
                mask(stage, false);
                exponentials();
                products_wait<0>();
                pin(sums);
                if (lane == 0) barrier_arrive(value_empty + 8 * before);
                pack_weights();
#pragma unroll
                for (u32 j = 0; j < WIDTH / 2; j++) sums[j] *= shrink[j / 2 % 2];
            }
        }
        // Queries have been read by now.
        if (lane == 0) barrier_arrive(query_empty);
        if (key_tiles > 0) {
            barrier_wait(value_full + 8 * stage, phase);
            pin(sums);
            products_fence();
            multiply_values(stage);
            products_wait<0>();
            pin(sums);
            if (lane == 0) barrier_arrive(value_empty + 8 * stage);
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
        Range rows = {(i32)(at * QUERIES), (i32)min(n, (at + 1) * QUERIES)};
        if (LISTED) rows = tokens_of(query_cut, at);
#pragma unroll
        for (u32 row = 0; row < 2; row++) {
            under[row] = lanes_sum<4>(under[row]);
            const float over = under[row] > 0.f ? 1.f / under[row] : 0.f;
            const i32 token = rows.begin + (i32)(member * 64 + warp % 4 * 16 + row * 8 + lane / 4);
            bf16_t* const to = y + row_at(places, head, token) + lane % 4 * 8;
            store_sums<WIDTH>(to, sums, row, over, token < rows.end);
            if (lse && lane % 4 == 0 && token < rows.end)
                lse[(i64)head * n + token] = 0.69314718f * (top[row] * scale + log2f(under[row]));
        }
    }
}
