// The reverse pass of attention on Hopper's tensor cores: bf16 rows of the same WIDTH, f32 sums. With
// P = exp(scale q kᵀ + bias − lse) and dS = P ∘ (do vᵀ − delta): dq = scale dS k, dk = scale dSᵀ q, dv = Pᵀ do. A block
// holds TEAMS of GROUPS warpgroups; a persistent grid of teams walks over tiles of GROUPS * 64 rows of a head that a team
// owns, queries or keys, a warpgroup 64 of them, against rows of the other side, OTHERS at a time, which a warp for every
// team keeps in rings by the copy engine. P and dS become operands in registers. dq on the one hand, dk and dv on the other
// have kernels of their own, so that every sum has one order.
//
// A warpgroup forms dS of a tile while it multiplies the scores of the next one and adds to dv, and the weights of that one
// while it multiplies do vᵀ and adds to dq or dk.
//
// OF_KEYS 0: dq, of queries. OF_KEYS 1: dk and dv, of keys.
//
// LISTED 1: a query sees the keys of the blocks in the list of its query block, and the centroids outside of it, each with
// the logarithm of its number of tokens added to its score. Owned queries are a query block; OTHERS / `block` boxes of
// listed keys make a tile. Owned keys have the transposed lists; with CENTRAL 1 they are centroids, seen by the query
// blocks that those lists leave out. How many tiles there are only the producer knows: one without rows ends them.
//
// Macros: WIDTH 64 or 128; OF_KEYS; LISTED; CENTRAL; GROUPS, 1 where OF_KEYS and LISTED; TEAMS; OTHERS; STAGES of the ring of
// others, OWNS of that of owned tiles; PRODUCER, CONSUMER registers a thread.
#include "activations.cuh"
#include "attention_grad.cuh"
#include "centroids.cuh"
#include "pairs.cuh"
#include "sm90.cuh"
#include "wgmma.cuh"

const u32 PANELS = WIDTH / 64, OWNED = GROUPS * 64, WORKERS = TEAMS * GROUPS, THREADS = 128 * (WORKERS + 1);
// Bytes of 64 columns of a part of owned rows and of others, of such a part: q or do, k or v; of both parts.
const u32 OWN_PANEL = OWNED * 128, PANEL = OTHERS * 128, OWN_PART = OWN_PANEL * PANELS, PART = PANEL * PANELS;
const u32 OWN = 2 * OWN_PART, STAGE = 2 * PART;
// Of a team: bytes of its rings and of its barriers, words that go with its stages, whole 16 bytes of them.
const u32 RINGS = OWNS * OWN + STAGES * STAGE, BARRIERS = 16 * (OWNS + STAGES);
const u32 WORDS = (STAGES * ((OF_KEYS ? 2 : LISTED) * OTHERS + (LISTED ? 1 + 2 * OF_KEYS : 0)) + 3) / 4 * 4;
// What a stage of LISTED is: biases count; there are no rows, and none behind.
const u32 BIASED = 1, ENDS = 2;
// What is added to the score of a row that is not there.
const float MASKED = -1e30f;
const float LOG2_E = 1.44269504f;

// Operands of products: pairs of sums, rounded.
DEVICE void pack(u32 (&to)[OTHERS / 16][4], const float (&from)[OTHERS / 2]) {
#pragma unroll
    for (u32 step = 0; step < OTHERS / 16; step++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) to[step][j] = Pair<bf16_t>::of(from[8 * step + 2 * j], from[8 * step + 2 * j + 1]);
        pin(to[step]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) reverse_wgmma(
    const __grid_constant__ TensorMap map_q, const __grid_constant__ TensorMap map_g,
    const __grid_constant__ TensorMap map_k, const __grid_constant__ TensorMap map_v,
    const __grid_constant__ TensorMap map_centroid_k, const __grid_constant__ TensorMap map_centroid_v,
    const float* __restrict__ pairs, const i32* __restrict__ lists, const i32* __restrict__ counts,
    const Centroid* __restrict__ table, bf16_t* __restrict__ first, bf16_t* __restrict__ second,
    const __grid_constant__ Cut query_cut, const __grid_constant__ Cut key_cut, const __grid_constant__ Cut centroid_cut,
    const u32 heads, const u32 image_heads, const u32 block, const __grid_constant__ Sizes sizes)
{
    extern __shared__ __align__(1024) u8 shared[];
    const u32 warp = warp_index(), group = warpgroup_index(), lane = threadIdx.x % 32;
    const u32 team = group == WORKERS ? warp - 4 * WORKERS : group / GROUPS;
    const u32 owns = shared_address(shared) + team * RINGS, stages = owns + OWNS * OWN;
    const u32 own_full = shared_address(shared) + TEAMS * RINGS + team * BARRIERS, own_empty = own_full + 8 * OWNS;
    const u32 full = own_empty + 8 * OWNS, empty = full + 8 * STAGES;
    // Of the others of each stage, what their scores have added, and their deltas; what the stage is, and which owned rows
    // see it; a bit for every key block of the list.
    float* const biases = (float*)(shared + TEAMS * (RINGS + BARRIERS)) + team * WORDS;
    float* const deltas = biases + STAGES * OTHERS;
    u32* const kinds = (u32*)(biases + STAGES * (1 + OF_KEYS) * OTHERS);
    u32* const seen = kinds + STAGES;
    u32* const taken = (u32*)(shared + TEAMS * (RINGS + BARRIERS + 4 * WORDS)) + team * ((sizes.key_blocks + 31) / 32);
    if (warp >= 4 * WORKERS && team < TEAMS && lane == 0) {
        ring_init(own_full, own_empty, OWNS, 4 * GROUPS);
        ring_init(full, empty, STAGES, 4 * GROUPS * WARP_ARRIVALS, WARP_ARRIVALS);
        barrier_init_done();
    }
    __syncthreads();
    wait_for_launch_before();
    const u32 rows = OF_KEYS ? sizes.m : sizes.n, others = OF_KEYS ? sizes.n : sizes.m;
    const u32 steps = (others + OTHERS - 1) / OTHERS;
    // The last tile of every head, which may be almost empty, comes behind all others: in turn with whole ones it would
    // always meet the same blocks.
    const u32 whole = (LISTED && !OF_KEYS ? sizes.query_blocks : sizes.tiles) - 1;
    const u32 whole_tiles = heads * whole, total = whole_tiles + heads;
    const u32 first_tile = blockIdx.x * TEAMS + team, step_tile = gridDim.x * TEAMS;
    const auto head_of = [&](u32 tile) { return tile < whole_tiles ? tile / whole : tile - whole_tiles; };
    const auto at_of = [&](u32 tile) { return tile < whole_tiles ? tile % whole : whole; };
    // Its rows, and where those that it may have end.
    const auto rows_of = [&](u32 tile) -> Range {
        if (LISTED && !OF_KEYS) return tokens_of(query_cut, at_of(tile));
        return {(i32)(at_of(tile) * OWNED), (i32)rows};
    };

    if (group == WORKERS) {
        registers_lower<PRODUCER>();
        if (team >= TEAMS) return;
        u32 own = 0, own_phase = 0, stage = 0, phase = 0, head = 0;
        const auto copy = [&](u32 to, u32 panel_bytes, const TensorMap* map, u32 barrier, u32 row, u64 keep) {
            const u32 image = head / image_heads;
            for (u32 panel = 0; panel < PANELS; panel++)
                copy_box(to + panel * panel_bytes, map, barrier, panel * 64, row, head - image * image_heads, image, keep);
        };
        // Both parts of others, from those lanes that copy.
        const auto send = [&](const TensorMap* map_first, const TensorMap* map_second, u32 row, u32 offset, bool copies) {
            const u32 to = stages + stage * STAGE + offset, landed = full + 8 * stage;
            __syncwarp();
            warp_expect(landed, STAGE, lane);
            __syncwarp();
            if (copies) {
                copy(to, PANEL, map_first, landed, row, KEEP_LONG);
                copy(to + PART, PANEL, map_second, landed, row, KEEP_LONG);
            }
            if (++stage == STAGES) stage = 0, phase ^= 1;
        };
        // Queries from `from` on, as far as `end`, seen by these owned rows.
        const auto send_queries = [&](u32 from, u32 end, u32 low, u32 high) {
            float2 pair[OTHERS / 32];
#pragma unroll
            for (u32 j = 0; j < OTHERS / 32; j++) {
                const u32 query = from + j * 32 + lane;
                pair[j] = {0.f, 0.f};
                if (query < end) pair[j] = ((const float2*)pairs)[(i64)head * others + query];
            }
            barrier_wait(empty + 8 * stage, phase ^ 1);
#pragma unroll
            for (u32 j = 0; j < OTHERS / 32; j++) {
                const u32 to = stage * OTHERS + j * 32 + lane;
                biases[to] = from + j * 32 + lane < end ? -LOG2_E * pair[j].x : MASKED;
                deltas[to] = pair[j].y;
            }
            if (LISTED && lane == 0) kinds[stage] = 0, seen[2 * stage] = low, seen[2 * stage + 1] = high;
            send(&map_q, &map_g, from, 0, lane == 0);
        };
        for (u32 tile = first_tile; tile < total; tile += step_tile) {
            head = head_of(tile);
            const u32 begin = rows_of(tile).begin;
            barrier_wait(own_empty + 8 * own, own_phase ^ 1);
            if (lane == 0) {
                const u32 to = owns + own * OWN, landed = own_full + 8 * own;
                barrier_expect(landed, OWN);
                copy(to, OWN_PANEL, OF_KEYS ? &map_k : &map_q, landed, begin, KEEP_LITTLE);
                copy(to + OWN_PART, OWN_PANEL, OF_KEYS ? &map_v : &map_g, landed, begin, KEEP_LITTLE);
            }
            if (++own == OWNS) own = 0, own_phase ^= 1;
#if !LISTED
            // The tail of the others comes first, where it is masked.
            for (u32 i = steps; i-- > 0;) {
#if OF_KEYS
                send_queries(i * OTHERS, others, 0, 0);
#else
                barrier_wait(empty + 8 * stage, phase ^ 1);
                send(&map_k, &map_v, i * OTHERS, 0, lane == 0);
#endif
            }
#elif OF_KEYS
            // Of two owned rows a lane: where their lists go on and end, the next query block there.
            const i32* starts = lists + head * (sizes.key_blocks + 1 + (i64)sizes.query_blocks * sizes.longest);
            const i32* blocks = starts + sizes.key_blocks + 1;
            i32 cursors[2] = {0, 0}, ends[2] = {0, 0}, nexts[2];
#pragma unroll
            for (u32 r = 0; r < 2; r++) {
                const u32 token = begin + r * 32 + lane;
                if (token < rows) {
                    const i32 own_block = place_of(key_cut, CENTRAL ? tokens_of(centroid_cut, token).begin : token).block;
                    cursors[r] = starts[own_block];
                    ends[r] = starts[own_block + 1];
                }
                nexts[r] = cursors[r] < ends[r] ? blocks[cursors[r]] : (i32)sizes.query_blocks;
            }
            for (i32 walked = 0;; walked++) {
                const i32 present = CENTRAL ? walked : __reduce_min_sync(~0u, min(nexts[0], nexts[1]));
                if (present >= (i32)sizes.query_blocks) break;
                u32 sees[2];
#pragma unroll
                for (u32 r = 0; r < 2; r++) {
                    const bool holds = nexts[r] == present;
                    sees[r] = __ballot_sync(~0u, holds != (bool)CENTRAL);
                    if (!holds) continue;
                    cursors[r]++;
                    nexts[r] = cursors[r] < ends[r] ? blocks[cursors[r]] : (i32)sizes.query_blocks;
                }
                if (!(sees[0] | sees[1])) continue;
                const Range range = tokens_of(query_cut, present);
                for (i32 from = range.begin; from < range.end; from += OTHERS)
                    send_queries(from, range.end, sees[0], sees[1]);
            }
#else
            const i64 row = (i64)head * sizes.query_blocks + at_of(tile);
            const u32 entries = OTHERS / block, count = counts[row], plain = (count + entries - 1) / entries;
            const i32* list = lists + row * sizes.longest;
            for (u32 i = lane; i < (sizes.key_blocks + 31) / 32; i += 32) taken[i] = 0;
            __syncwarp();
            for (u32 i = 0; i < plain; i++) {
                // Each lane knows the block that it copies, and how many tokens of it there are.
                const u32 entry = i * entries + lane;
                u32 from = others, there = 0;
                if (lane < entries && entry < count) {
                    const u32 listed = list[entry];
                    const Range range = tokens_of(key_cut, listed);
                    from = range.begin;
                    there = range.end - range.begin;
                    atomicOr(taken + listed / 32, 1u << listed % 32);
                }
                const bool mask = __any_sync(~0u, lane < entries && there < block);
                barrier_wait(empty + 8 * stage, phase ^ 1);
                if (lane == 0) kinds[stage] = mask ? BIASED : 0;
#pragma unroll
                for (u32 j = 0; j < OTHERS / 32; j++) {
                    const u32 key = j * 32 + lane;
                    const u32 those = __shfl_sync(~0u, there, key / block);
                    if (mask) biases[stage * OTHERS + key] = key % block < those ? 0.f : MASKED;
                }
                send(&map_k, &map_v, from, lane * block * 128, lane < entries);
            }
            for (u32 from = 0; from < sizes.centroids; from += OTHERS) {
                barrier_wait(empty + 8 * stage, phase ^ 1);
                if (lane == 0) kinds[stage] = BIASED;
#pragma unroll
                for (u32 j = 0; j < OTHERS / 32; j++) {
                    const u32 key = from + j * 32 + lane;
                    float bias = MASKED;
                    if (key < sizes.centroids) {
                        const Centroid centroid = table[key];
                        if (!is_taken(taken, centroid.block)) bias = centroid.bias;
                    }
                    biases[stage * OTHERS + j * 32 + lane] = bias;
                }
                send(&map_centroid_k, &map_centroid_v, from, 0, lane == 0);
            }
            __syncwarp();
#endif
            if (LISTED) {
                barrier_wait(empty + 8 * stage, phase ^ 1);
                if (lane == 0) kinds[stage] = ENDS;
                warp_arrive(full + 8 * stage, lane);
                if (++stage == STAGES) stage = 0, phase ^= 1;
            }
        }
        return;
    }
    registers_raise<CONSUMER>();
    const float scale = sizes.scale * LOG2_E;
    u32 own = 0, own_phase = 0, stage = 0, phase = 0;
    const u32 member = group % GROUPS;
    for (u32 tile = first_tile; tile < total; tile += step_tile) {
        const u32 head = head_of(tile);
        const Range range = rows_of(tile);
        const u32 begin = range.begin + member * 64, end = range.end;
        const auto advance = [&] {
            if (++stage == STAGES) stage = 0, phase ^= 1;
        };
        // Whether the stage, which has come, has rows.
        const auto there = [&] { return !LISTED || !(kinds[stage] & ENDS); };
        barrier_wait(own_full + 8 * own, own_phase);
        if (begin >= end) {
            // No rows of its own: what comes goes back.
            bool more = true;
            for (u32 i = 0; LISTED ? more : i < steps; i++) {
                barrier_wait(full + 8 * stage, phase);
                more = there();
                __syncwarp();
                warp_arrive(empty + 8 * stage, lane);
                advance();
            }
            if (lane == 0) barrier_arrive(own_empty + 8 * own);
            if (++own == OWNS) own = 0, own_phase ^= 1;
            continue;
        }
        const u32 own_row = member * 64 + warp % 4 * 16 + lane / 4, row = range.begin + own_row;
        float own_bias[2] = {0.f, 0.f}, own_delta[2] = {0.f, 0.f};
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            if (row + 8 * r >= end) continue;
            if (CENTRAL) {
                const Range tokens = tokens_of(centroid_cut, row + 8 * r);
                own_bias[r] = log2f((float)(tokens.end - tokens.begin));
            }
            if (OF_KEYS) continue;
            const float2 pair = ((const float2*)pairs)[(i64)head * rows + row + 8 * r];
            own_bias[r] = -LOG2_E * pair.x;
            own_delta[r] = pair.y;
        }
        float scores[OTHERS / 2], slopes[OTHERS / 2], first_sums[WIDTH / 2], second_sums[OF_KEYS ? WIDTH / 2 : 1];
#pragma unroll
        for (u32 i = 0; i < WIDTH / 2; i++) first_sums[i] = second_sums[OF_KEYS ? i : 0] = 0.f;
        u32 weights[OTHERS / 16][4], cotangents[OTHERS / 16][4];
        const u32 mine = owns + own * OWN + member * 64 * 128;
        // Products of one part of both sides.
        const auto multiply = [&](float (&to)[OTHERS / 2], u32 of, u32 part) {
#pragma unroll
            for (u32 step = 0; step < WIDTH / 16; step++)
                Wgmma<OTHERS>::bf16<0>(to, operand_k128(mine + part * OWN_PART + step / 4 * OWN_PANEL) + step % 4 * 2,
                    operand_k128(stages + of * STAGE + part * PART + step / 4 * PANEL) + step % 4 * 2, step != 0);
        };
        // Adds what operands in registers weigh of one part of the others.
        const auto gather = [&](float (&to)[WIDTH / 2], const u32 (&by)[OTHERS / 16][4], u32 of, u32 part) {
            const u64 b = operand_mn128(stages + of * STAGE + part * PART, PANEL);
#pragma unroll
            for (u32 step = 0; step < OTHERS / 16; step++) Wgmma<WIDTH>::bf16<1>(to, by[step], b + step * 128, true);
        };
        const auto weigh = [&](bool tail) {
            if (!OF_KEYS && tail && others % OTHERS) {
                const u32 at = (steps - 1) * OTHERS + lane % 4 * 2;
#pragma unroll
                for (u32 i = 0; i < OTHERS / 2; i++)
                    if (at + i / 4 * 8 + i % 2 >= others) scores[i] = MASKED;
            }
            if (LISTED && !OF_KEYS && kinds[stage] & BIASED) {
#pragma unroll
                for (u32 i = 0; i < OTHERS / 2; i += 4) {
                    const float2 bias = *(const float2*)(biases + stage * OTHERS + i * 2 + lane % 4 * 2);
#pragma unroll
                    for (u32 j = 0; j < 4; j++) scores[i + j] += j % 2 ? bias.y : bias.x;
                }
            }
            float added[2] = {own_bias[0], own_bias[1]};
            if (LISTED && OF_KEYS) {
                const u32 sees = seen[2 * stage + own_row / 32] >> own_row % 32;
#pragma unroll
                for (u32 r = 0; r < 2; r++)
                    if (!(sees >> 8 * r & 1)) added[r] = MASKED;
            }
#pragma unroll
            for (u32 i = 0; i < OTHERS / 2; i += 4) {
                float2 bias = {0.f, 0.f};
                if (OF_KEYS) bias = *(const float2*)(biases + stage * OTHERS + i * 2 + lane % 4 * 2);
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    const float of_other = j % 2 ? bias.y : bias.x;
                    const float both = !OF_KEYS ? added[j / 2] : LISTED ? of_other + added[j / 2] : of_other;
                    scores[i + j] = exp2_fast(fmaf(scores[i + j], scale, both));
                }
            }
        };
        // By the rounded weights: the registers of the others take the next scores meanwhile. Products in flight read the same
        // registers, and nothing writes them.
        const auto incline = [&](u32 of) {
#pragma unroll
            for (u32 i = 0; i < OTHERS / 2; i += 4) {
                float2 delta = {0.f, 0.f};
                if (OF_KEYS) delta = *(const float2*)(deltas + of * OTHERS + i * 2 + lane % 4 * 2);
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    const u32 two = weights[i / 8][(i + j) % 8 / 2];
                    const float weight = __uint_as_float(j % 2 ? two & 0xffff0000 : two << 16);
                    slopes[i + j] = weight * (slopes[i + j] - (OF_KEYS ? j % 2 ? delta.y : delta.x : own_delta[j / 2]));
                }
            }
        };
        barrier_wait(full + 8 * stage, phase);
        if (there()) {
            pin(scores);
            pin(slopes);
            products_fence();
            multiply(scores, stage, 0);
            products_commit();
            multiply(slopes, stage, 1);
            products_commit();
            products_wait<1>();
            pin(scores);
            weigh(true);
            products_wait<0>();
            pin(slopes);
            u32 last = stage;
            advance();
            for (u32 i = 1; LISTED || i < steps; i++) {
                if (LISTED) {
                    barrier_wait(full + 8 * stage, phase);
                    if (!there()) break;
                }
                pack(weights, scores);
                if (!LISTED) barrier_wait(full + 8 * stage, phase);
                pin(scores);
                products_fence();
                multiply(scores, stage, 0);
#if OF_KEYS
                gather(second_sums, weights, last, 1);
#endif
                products_commit();
                incline(last);
                pack(cotangents, slopes);
                products_wait<0>();
                pin(scores);
                pin(second_sums);
                pin(slopes);
                products_fence();
                gather(first_sums, cotangents, last, 0);
                multiply(slopes, stage, 1);
                products_commit();
                weigh(false);
                products_wait<0>();
                pin(first_sums);
                pin(slopes);
                __syncwarp();
                warp_arrive(empty + 8 * last, lane);
                last = stage;
                advance();
            }
            pack(weights, scores);
            products_fence();
#if OF_KEYS
            gather(second_sums, weights, last, 1);
            products_commit();
#endif
            incline(last);
            pack(cotangents, slopes);
            products_fence();
            gather(first_sums, cotangents, last, 0);
            products_commit();
            products_wait<0>();
            pin(first_sums);
            pin(second_sums);
            __syncwarp();
            warp_arrive(empty + 8 * last, lane);
        }
        if (lane == 0) barrier_arrive(own_empty + 8 * own);
        if (++own == OWNS) own = 0, own_phase ^= 1;
        if (LISTED) {
            __syncwarp();
            warp_arrive(empty + 8 * stage, lane);
            advance();
        }
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            const i64 to = ((i64)head * rows + row + 8 * r) * WIDTH + lane % 4 * 8;
            store_sums<WIDTH>(first + to, first_sums, r, sizes.scale, row + 8 * r < end);
            if (OF_KEYS) store_sums<WIDTH>(second + to, second_sums, r, 1.f, row + 8 * r < end);
        }
    }
}
