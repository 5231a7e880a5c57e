// Attention over e4m3 codes on Hopper's tensor cores: bf16 q [heads, tokens, WIDTH], codes of keys and values as
// attention_codes.cu makes them. A block holds TEAMS of GROUPS warpgroups; a persistent grid of teams walks over tiles
// of GROUPS * 64 queries of a head. A warp for every team keeps its ring of key and value tiles filled by the copy
// engine; each warpgroup makes codes of its own queries, and multiplies them with a tile of keys while it still adds
// up the values of the tile before.
//
// Queries, weights and results are those of attention_weights.cuh.
//
// A tile of weights times values has sums of its own, since those of e4m3 keep 14 bits, and is added in f32. Values
// have eight columns of ones behind them: the sum of the weights, as they were multiplied.
//
// BLOCK above 0: a tile is a query block, at most GROUPS * 64 rows; its keys are those of the key blocks in its list,
// KEYS / BLOCK boxes a tile of keys, then the centroids outside of the list, each with the logarithm of its number of
// tokens added to its score.
//
// Macros: WIDTH 64 or 128; GROUPS; TEAMS; KEYS a tile; STAGES of the ring; BLOCK, tokens a key block, or 0 for all
// keys; PRODUCER, CONSUMER registers a thread.
#include "attention_weights.cuh"
#include "blocks.cuh"
#include "rows.cuh"
#include "sm90.cuh"
#include "wgmma.cuh"

#define LISTED (BLOCK > 0)
const u32 ENTRIES = LISTED ? KEYS / (LISTED ? BLOCK : 1) : 0;
// Scales a tile: of key blocks, and of centroids.
const u32 SCALES = LISTED ? (ENTRIES < KEYS / CENTRAL ? KEYS / CENTRAL : ENTRIES) : KEYS / DENSE;
const u32 QUERIES = GROUPS * 64, WORKERS = TEAMS * GROUPS, THREADS = 128 * (WORKERS + 1);
// Bytes of a tile of keys, of values, and of a team's ring and its barriers.
const u32 KEY_TILE = KEYS * WIDTH, VALUE_TILE = KEYS * VALUE_ROWS;
const u32 RING = STAGES * (KEY_TILE + VALUE_TILE), BARRIERS = 16 * STAGES;
// Fills a tile of keys and one of values, a part each from the slots that begin there, once what the warp has written
// beside them stands.
template <u32 PARTS> DEVICE void fill(
    u32 keys, u32 values, u32 full, const u8* key_codes, const u8* value_codes, const u32 (&key_slots)[PARTS],
    const u32 (&value_slots)[PARTS])
{
    const u32 part = KEYS / PARTS;
    __syncwarp();
    if (elect_one()) {
        barrier_expect(full, KEY_TILE + VALUE_TILE);
#pragma unroll
        for (u32 i = 0; i < PARTS; i++) {
            copy_bytes(keys + i * part * WIDTH, key_codes + (i64)key_slots[i] * WIDTH, full, part * WIDTH);
            copy_bytes(values + i * part * VALUE_ROWS, value_codes + (i64)value_slots[i] * VALUE_ROWS, full,
                part * VALUE_ROWS);
        }
    } else if (EVERY_LANE) {
        barrier_arrive(full);
    }
    __syncwarp();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) attend_codes(
    const bf16_t* __restrict__ q, const u8* __restrict__ key_codes, const u8* __restrict__ value_codes,
    const float* __restrict__ key_scales, const u8* __restrict__ central_keys, const u8* __restrict__ central_values,
    const float* __restrict__ central_scales, const float* __restrict__ centres, const float* __restrict__ columns,
    const i32* __restrict__ lists, const i32* __restrict__ counts, const Centroid* __restrict__ table,
    bf16_t* __restrict__ y, float* __restrict__ lse, const __grid_constant__ Cut query_cut, const Rows places,
    const u32 longest, const u32 key_blocks, const u32 slots, const u32 centroids, const u32 central_slots,
    const u32 tiles, const u32 total, const u32 n, const u32 m, const float scale)
{
    extern __shared__ __align__(1024) u8 shared[];
    const u32 warp = warp_index(), group = warpgroup_index(), lane = threadIdx.x % 32;
    const u32 team = group == WORKERS ? warp - 4 * WORKERS : group / GROUPS;
    const u32 keys = shared_address(shared) + team * RING, values = keys + STAGES * KEY_TILE;
    const u32 full = shared_address(shared) + TEAMS * RING + team * BARRIERS, empty = full + 8 * STAGES;
    // Scales of the blocks of each stage, and biases of its keys where they are centroids.
    u8* const notes = shared + TEAMS * (RING + BARRIERS);
    float* const scales = (float*)notes + team * STAGES * SCALES;
    u16* const biases = (u16*)(notes + TEAMS * STAGES * SCALES * 4) + team * STAGES * KEYS;
    if (warp >= 4 * WORKERS && team < TEAMS && lane == 0) {
        ring_init(full, empty, STAGES, 4 * GROUPS * WARP_ARRIVALS, WARP_ARRIVALS);
        barrier_init_done();
    }
    __syncthreads();
    wait_for_launch_before();
    const u32 first_tile = blockIdx.x * TEAMS + team, step_tile = gridDim.x * TEAMS;
    // Tiles of listed blocks, or of all keys, and tiles of centroids.
    auto plain_of = [&](u32 tile) {
        return LISTED ? ((u32)counts[tile] + ENTRIES - 1) / max(ENTRIES, 1) : (m + KEYS - 1) / KEYS;
    };
    const u32 central = LISTED ? (centroids + KEYS - 1) / KEYS : 0;

    if (group == WORKERS) {
        registers_lower<PRODUCER>();
        if (team >= TEAMS) return;
        u32 stage = 0, phase = 0;
        auto next_stage = [&] { if (++stage == STAGES) stage = 0, phase ^= 1; };
        for (u32 tile = first_tile; tile < total; tile += step_tile) {
            const u32 head = tile / tiles, plain = plain_of(tile);
            const u8* const head_keys = key_codes + (i64)head * slots * WIDTH;
            const u8* const head_values = value_codes + (i64)head * slots * VALUE_ROWS;
#if LISTED
            const i32* list = lists + (i64)tile * longest;
            const float* key_scale = key_scales + (i64)head * key_blocks;
            const u32 count = counts[tile];
            // A bit for every key block of the list.
            u32* const taken =
                (u32*)(notes + TEAMS * STAGES * (SCALES * 4 + KEYS * 2)) + team * ((key_blocks + 31) / 32);
            if (central) {
#pragma unroll 1
                for (u32 i = lane; i < (key_blocks + 31) / 32; i += 32) taken[i] = 0;
                __syncwarp();
#pragma unroll 4
                for (u32 i = lane; i < count; i += 32) {
                    const u32 bit = (u32)list[i];
                    atomicOr(taken + bit / 32, 1u << bit % 32);
                }
                __syncwarp();
            }
            // A lane knows an entry of the list; the next 32 are known, and those after them on their way, while these
            // are copied. A box left over repeats the first block over values of zero.
            const u32 nothing = key_blocks, fallback = count ? list[0] : 0;
            auto entry_of = [&](u32 i) { return i < count ? (u32)list[i] : nothing; };
            auto scale_of = [&](u32 of) { return key_scale[of == nothing ? fallback : of]; };
            u32 of = 0, next_of = entry_of(lane), ahead = entry_of(lane + 32);
            float own = 0.f, next_own = scale_of(next_of);
            for (u32 i = 0; i < plain; i++) {
                const u32 first = i * ENTRIES % 32;
                if (first == 0) {
                    of = next_of, own = next_own;
                    next_of = ahead, next_own = scale_of(ahead);
                    ahead = entry_of(i * ENTRIES + lane + 64);
                }
                u32 key_slots[ENTRIES], value_slots[ENTRIES];
#pragma unroll
                for (u32 j = 0; j < ENTRIES; j++) {
                    const u32 entry = __shfl_sync(~0u, of, first + j);
                    value_slots[j] = entry * BLOCK;
                    key_slots[j] = (entry == nothing ? fallback : entry) * BLOCK;
                }
                barrier_wait(empty + 8 * stage, phase ^ 1);
                if (lane - first < ENTRIES)
#pragma unroll
                    for (u32 j = 0; j < SCALES; j += ENTRIES) scales[stage * SCALES + lane - first + j] = own;
                fill(keys + stage * KEY_TILE, values + stage * VALUE_TILE, full + 8 * stage, head_keys, head_values,
                    key_slots, value_slots);
                next_stage();
            }
            // A lane knows four centroids.
            struct Four { uint4 low, high; float scale; } four;
            auto look = [&](u32 i) {
                const u32 blocks = (centroids + CENTRAL - 1) / CENTRAL;
                const u32 of = i * (KEYS / CENTRAL) + lane / (SCALES * CENTRAL / KEYS);
                four.scale = central_scales[head * blocks + min(of, blocks - 1)];
                const uint4* from = (const uint4*)(table + min(i * KEYS + lane * 4, (centroids + 3) / 4 * 4 - 4));
                four.low = from[0], four.high = from[1];
            };
            if (central) look(0);
            for (u32 i = 0; i < central; i++) {
                barrier_wait(empty + 8 * stage, phase ^ 1);
                if (lane < SCALES) scales[stage * SCALES + lane] = four.scale;
                const u32 left = centroids - min(centroids, i * KEYS + lane * 4);
                const Centroid four_of[4] = {{(u16)four.low.x, four.low.y}, {(u16)four.low.z, four.low.w},
                    {(u16)four.high.x, four.high.y}, {(u16)four.high.z, four.high.w}};
                u32 bias[4];
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    const u32 of = four_of[j].block;
                    bias[j] = j < left && !(taken[of / 32] >> of % 32 & 1) ? four_of[j].bias : NO_KEY;
                }
                *(uint2*)(biases + stage * KEYS + lane * 4) = {bias[0] | bias[1] << 16, bias[2] | bias[3] << 16};
                const u32 from[1] = {head * central_slots + i * KEYS};
                fill(keys + stage * KEY_TILE, values + stage * VALUE_TILE, full + 8 * stage, central_keys,
                    central_values, from, from);
                if (i + 1 < central) look(i + 1);
                next_stage();
            }
#else
            auto look = [&](u32 i) {
                const u32 of = i * SCALES + lane;
                return lane < SCALES ? key_scales[(i64)head * key_blocks + min(of, key_blocks - 1)] : 0.f;
            };
            float scale_of = look(0);
            for (u32 i = 0; i < plain; i++) {
                barrier_wait(empty + 8 * stage, phase ^ 1);
                if (lane < SCALES) scales[stage * SCALES + lane] = scale_of;
                const u32 from[1] = {i * KEYS};
                fill(keys + stage * KEY_TILE, values + stage * VALUE_TILE, full + 8 * stage, head_keys, head_values,
                    from, from);
                if (i + 1 < plain) scale_of = look(i + 1);
                next_stage();
            }
#endif
        }
        return;
    }
    registers_raise<CONSUMER>();
    u32 stage = 0, phase = 0;
    const u32 member = group % GROUPS;
    // Two queries of a tile, 8 tokens apart, of which a lane has COLUMNS from there on.
    struct Queries { u32 head; i32 token, end; const bf16_t* from; };
    auto queries_of = [&](u32 tile) {
        const u32 head = tile / tiles, at = tile - head * tiles;
        Range rows = {(i32)(at * QUERIES), (i32)min(n, (at + 1) * QUERIES)};
        if (LISTED) rows = tokens_of(query_cut, at);
        const i32 token = rows.begin + (i32)(member * 64 + warp % 4 * 16 + lane / 4);
        return Queries{head, token, rows.end, q + ((i64)head * n + token) * WIDTH + lane % 4 * COLUMNS};
    };
    for (u32 tile = first_tile; tile < total; tile += step_tile) {
        const Queries own = queries_of(tile);
        const u32 head = own.head, plain = plain_of(tile), key_tiles = plain + central;
        const i32 token = own.token;
        auto is_there = [&](u32 row) { return token + 8 * (i32)row < own.end; };
        uint4 raw[2][COLUMNS / 8];
#pragma unroll
        for (u32 row = 0; row < 2; row++)
#pragma unroll
            for (u32 i = 0; i < COLUMNS / 8; i++)
                raw[row][i] = is_there(row) ? *(const uint4*)(own.from + 8 * row * WIDTH + 8 * i) : uint4{0, 0, 0, 0};
        // Codes of the queries, and spans of octaves a unit of their scores. Octaves that centring took from these
        // wait in `lse`.
        u32 query[WIDTH / 32][4];
        float slopes[2];
        auto writes_lse = [&](u32 row) { return lse && lane % 4 == 0 && is_there(row); };
        float* const own_lse = lse + (i64)head * n + token;
#pragma unroll
        for (u32 row = 0; row < 2; row++) {
            slopes[row] = code_query(query, raw[row], row) * scale;
            if (lse) {
                const float lost = octaves_lost(raw[row], centres + head * WIDTH, scale);
                if (writes_lse(row)) own_lse[8 * row] = lost;
            }
        }
        float sums[WIDTH / 2], part[VALUE_ROWS / 2], under[2] = {0.f, 0.f}, shrink[2] = {0.f, 0.f}, held[2];
        u32 scores[KEYS / 4], weights[KEYS / 32][4], bias = UNSEEN;
#pragma unroll
        for (u32 i = 0; i < WIDTH / 2; i++) sums[i] = 0.f;
        auto multiply_keys = [&](u32 of) {
            const u64 b = operand_chunks(keys + of * KEY_TILE, 128, 8 * WIDTH);
#pragma unroll
            for (u32 step = 0; step < WIDTH / 32; step++)
                HalfWgmma<KEYS>::e4m3(scores, query[step], b + step * 16, step != 0);
            products_commit();
        };
        auto multiply_values = [&](u32 of) {
            const u64 b = operand_chunks(values + of * VALUE_TILE, 16 * VALUE_ROWS, 128);
#pragma unroll
            for (u32 step = 0; step < KEYS / 32; step++)
                Wgmma<VALUE_ROWS>::e4m3(part, weights[step], b + step * 2 * VALUE_ROWS, step != 0);
            products_commit();
        };
        // `shrink` is what sums of before are worth under the new bias.
        auto exponentials = [&](u32 of, bool of_centroids) {
            const bool central = LISTED && of_centroids;
            weigh<SCALES>(scores, bias, shrink, slopes, scales + of * SCALES, biases + of * KEYS, central);
        };
        auto add_values = [&](const float (&worth)[2]) {
#pragma unroll
            for (u32 i = 0; i < WIDTH / 2; i++) sums[i] = fmaf(sums[i], worth[i / 2 % 2], part[i]);
#pragma unroll
            for (u32 row = 0; row < 2; row++) under[row] = fmaf(under[row], worth[row], part[WIDTH / 2 + 2 * row]);
        };
        if (key_tiles > 0) {
            barrier_wait(full + 8 * stage, phase);
            pin(scores);
            products_fence();
            multiply_keys(stage);
            products_wait<0>();
            pin(scores);
            exponentials(stage, plain == 0);
            pack_codes(weights, scores);
            for (u32 i = 1; i < key_tiles; i++) {
                const u32 before = stage;
                if (++stage == STAGES) stage = 0, phase ^= 1;
                barrier_wait(full + 8 * stage, phase);
                pin(scores);
                pin(part);
                products_fence();
                multiply_keys(stage);
                multiply_values(before);
                held[0] = shrink[0], held[1] = shrink[1];
                products_wait<1>();
                pin(scores);
                exponentials(stage, i >= plain);
                products_wait<0>();
                pin(part);
                __syncwarp();
                warp_arrive(empty + 8 * before, lane);
                pack_codes(weights, scores);
                add_values(held);
            }
        }
        // On their way meanwhile: scales of the columns, what waits, and the next queries.
        float2 units[WIDTH / 8];
        float lost[2];
#pragma unroll
        for (u32 row = 0; row < 2; row++)
            if (writes_lse(row)) lost[row] = own_lse[8 * row];
#pragma unroll
        for (u32 i = 0; i < WIDTH / 8; i++)
            units[i] = *(const float2*)(columns + head * WIDTH + 8 * i + lane % 4 * 2);
        if (tile + step_tile < total) {
            const Queries next = queries_of(tile + step_tile);
#pragma unroll
            for (u32 row = 0; row < 2; row++)
                if (next.token + 8 * (i32)row < next.end) prefetch(next.from + 8 * row * WIDTH);
        }
        if (key_tiles > 0) {
            pin(part);
            products_fence();
            multiply_values(stage);
            products_wait<0>();
            pin(part);
            __syncwarp();
            warp_arrive(empty + 8 * stage, lane);
            add_values(shrink);
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
        const float2 last = half_widen(bias);
#pragma unroll
        for (u32 row = 0; row < 2; row++) {
            const float over = under[row] > 0.f ? 1.f / under[row] : 0.f;
            bf16_t* const to = y + row_at(places, head, token + 8 * row) + lane % 4 * 8;
#pragma unroll
            for (u32 part = 0; part < WIDTH / 32; part++) {
                u32 words[4];
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    const u32 i = 16 * part + 4 * j + 2 * row;
                    const float2 unit = units[4 * part + j];
                    words[j] = Pair<bf16_t>::of(sums[i] * over * unit.x, sums[i + 1] * over * unit.y);
                }
                transpose_words(words);
                if (is_there(row)) *(uint4*)(to + part * 32) = {words[0], words[1], words[2], words[3]};
            }
            if (writes_lse(row)) {
                own_lse[8 * row] = logarithm(under[row], row ? last.y : last.x, lost[row]);
            }
        }
    }
}
