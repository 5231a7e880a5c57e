// The reverse pass of attention on Hopper's tensor cores: bf16 rows of the same WIDTH, f32 sums. With
// P = exp(scale q kᵀ − lse) and dS = P ∘ (do vᵀ − delta): dq = scale dS k, dk = scale dSᵀ q, dv = Pᵀ do. A persistent grid
// walks over tiles of GROUPS * 64 rows of a head that a block owns, queries or keys, a warpgroup 64 of them, against all
// rows of the other side, OTHERS at a time, kept in rings by the copy engine. P and dS become operands in registers. dq on
// the one hand, dk and dv on the other have kernels of their own, so that every sum has one order.
//
// A warpgroup forms dS of a tile while it multiplies the scores of the next one and adds to dv, and the weights of that one
// while it multiplies do vᵀ and adds to dq or dk.
//
// OF_KEYS 0: dq, of queries. OF_KEYS 1: dk and dv, of keys.
//
// Macros: WIDTH 64 or 128; OF_KEYS; GROUPS; OTHERS; STAGES of the ring of others, OWNS of that of owned tiles; PRODUCER,
// CONSUMER registers a thread.
#include "activations.cuh"
#include "attention_grad.cuh"
#include "pairs.cuh"
#include "sm90.cuh"
#include "wgmma.cuh"

const u32 PANELS = WIDTH / 64, OWNED = GROUPS * 64, THREADS = 128 * (GROUPS + 1);
// Bytes of 64 columns of a part of owned rows and of others, of such a part: q or do, k or v; of both parts.
const u32 OWN_PANEL = OWNED * 128, PANEL = OTHERS * 128, OWN_PART = OWN_PANEL * PANELS, PART = PANEL * PANELS;
const u32 OWN = 2 * OWN_PART, STAGE = 2 * PART;
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
    const __grid_constant__ TensorMap map_k, const __grid_constant__ TensorMap map_v, const float* __restrict__ pairs,
    bf16_t* __restrict__ first, bf16_t* __restrict__ second, const u32 heads, const u32 image_heads,
    const __grid_constant__ Sizes sizes)
{
    extern __shared__ __align__(1024) u8 shared[];
    const u32 warp = warp_index(), group = warpgroup_index(), lane = threadIdx.x % 32;
    const u32 owns = shared_address(shared), stages = owns + OWNS * OWN;
    const u32 own_full = stages + STAGES * STAGE, own_empty = own_full + 8 * OWNS;
    const u32 full = own_empty + 8 * OWNS, empty = full + 8 * STAGES;
    // Of the queries of each stage, what their scores have added, and their deltas.
    float* const biases = (float*)(shared + OWNS * OWN + STAGES * STAGE + 16 * (OWNS + STAGES));
    float* const deltas = biases + STAGES * OTHERS;
    if (threadIdx.x == 0) {
        ring_init(own_full, own_empty, OWNS, 4 * GROUPS);
        ring_init(full, empty, STAGES, 4 * GROUPS);
        barrier_init_done();
    }
    __syncthreads();
    wait_for_launch_before();
    const u32 rows = OF_KEYS ? sizes.m : sizes.n, others = OF_KEYS ? sizes.n : sizes.m;
    const u32 steps = (others + OTHERS - 1) / OTHERS;
    // The last tile of every head, which may be almost empty, comes behind all others: in turn with whole ones it would
    // always meet the same blocks.
    const u32 whole = sizes.tiles - 1, whole_tiles = heads * whole, total = whole_tiles + heads;
    const auto head_of = [&](u32 tile) { return tile < whole_tiles ? tile / whole : tile - whole_tiles; };
    const auto begin_of = [&](u32 tile) { return (tile < whole_tiles ? tile % whole : whole) * OWNED; };

    if (group == GROUPS) {
        registers_lower<PRODUCER>();
        if (warp != 4 * GROUPS) return;
        u32 own = 0, own_phase = 0, stage = 0, phase = 0;
        const auto copy = [&](u32 to, u32 panel_bytes, const TensorMap* map, u32 barrier, u32 head, u32 row, u64 keep) {
            const u32 image = head / image_heads;
            for (u32 panel = 0; panel < PANELS; panel++)
                copy_box(to + panel * panel_bytes, map, barrier, panel * 64, row, head - image * image_heads, image, keep);
        };
        for (u32 tile = blockIdx.x; tile < total; tile += gridDim.x) {
            const u32 head = head_of(tile);
            barrier_wait(own_empty + 8 * own, own_phase ^ 1);
            if (lane == 0) {
                const u32 to = owns + own * OWN, landed = own_full + 8 * own;
                barrier_expect(landed, OWN);
                copy(to, OWN_PANEL, OF_KEYS ? &map_k : &map_q, landed, head, begin_of(tile), KEEP_LITTLE);
                copy(to + OWN_PART, OWN_PANEL, OF_KEYS ? &map_v : &map_g, landed, head, begin_of(tile), KEEP_LITTLE);
            }
            if (++own == OWNS) own = 0, own_phase ^= 1;
            // The tail of the others comes first, where it is masked.
            for (u32 i = steps; i-- > 0;) {
                float2 pair[OTHERS / 32];
#pragma unroll
                for (u32 j = 0; j < OTHERS / 32; j++) {
                    const u32 query = i * OTHERS + j * 32 + lane;
                    pair[j] = {0.f, 0.f};
                    if (OF_KEYS && query < others) pair[j] = ((const float2*)pairs)[(i64)head * others + query];
                }
                barrier_wait(empty + 8 * stage, phase ^ 1);
#pragma unroll
                for (u32 j = 0; j < OTHERS / 32; j++) {
                    const u32 to = stage * OTHERS + j * 32 + lane;
                    if (!OF_KEYS) continue;
                    biases[to] = i * OTHERS + j * 32 + lane < others ? -LOG2_E * pair[j].x : MASKED;
                    deltas[to] = pair[j].y;
                }
                __syncwarp();
                if (lane == 0) {
                    const u32 to = stages + stage * STAGE, landed = full + 8 * stage;
                    barrier_expect(landed, STAGE);
                    copy(to, PANEL, OF_KEYS ? &map_q : &map_k, landed, head, i * OTHERS, KEEP_LONG);
                    copy(to + PART, PANEL, OF_KEYS ? &map_g : &map_v, landed, head, i * OTHERS, KEEP_LONG);
                }
                if (++stage == STAGES) stage = 0, phase ^= 1;
            }
        }
        return;
    }
    registers_raise<CONSUMER>();
    const float scale = sizes.scale * LOG2_E;
    u32 own = 0, own_phase = 0, stage = 0, phase = 0;
    for (u32 tile = blockIdx.x; tile < total; tile += gridDim.x) {
        const u32 head = head_of(tile), begin = begin_of(tile) + group * 64;
        barrier_wait(own_full + 8 * own, own_phase);
        if (begin >= rows) {
            // No rows of its own: what comes goes back.
            for (u32 i = 0; i < steps; i++) {
                barrier_wait(full + 8 * stage, phase);
                if (lane == 0) barrier_arrive(empty + 8 * stage);
                if (++stage == STAGES) stage = 0, phase ^= 1;
            }
            if (lane == 0) barrier_arrive(own_empty + 8 * own);
            if (++own == OWNS) own = 0, own_phase ^= 1;
            continue;
        }
        const u32 row = begin + warp % 4 * 16 + lane / 4;
        float own_bias[2] = {0.f, 0.f}, own_delta[2] = {0.f, 0.f};
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            if (OF_KEYS || row + 8 * r >= rows) continue;
            const float2 pair = ((const float2*)pairs)[(i64)head * rows + row + 8 * r];
            own_bias[r] = -LOG2_E * pair.x;
            own_delta[r] = pair.y;
        }
        float scores[OTHERS / 2], slopes[OTHERS / 2], first_sums[WIDTH / 2], second_sums[OF_KEYS ? WIDTH / 2 : 1];
#pragma unroll
        for (u32 i = 0; i < WIDTH / 2; i++) first_sums[i] = second_sums[OF_KEYS ? i : 0] = 0.f;
        u32 weights[OTHERS / 16][4], cotangents[OTHERS / 16][4];
        const u32 mine = owns + own * OWN + group * 64 * 128;
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
#pragma unroll
            for (u32 i = 0; i < OTHERS / 2; i += 4) {
                float2 bias = {0.f, 0.f};
                if (OF_KEYS) bias = *(const float2*)(biases + stage * OTHERS + i * 2 + lane % 4 * 2);
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    const float added = OF_KEYS ? j % 2 ? bias.y : bias.x : own_bias[j / 2];
                    scores[i + j] = exp2_fast(fmaf(scores[i + j], scale, added));
                }
            }
        };
        // By the rounded weights: the registers of the others take the next scores meanwhile.
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
        for (u32 i = 1; i < steps; i++) {
            const u32 before = stage;
            if (++stage == STAGES) stage = 0, phase ^= 1;
            pack(weights, scores);
            barrier_wait(full + 8 * stage, phase);
            pin(scores);
            products_fence();
            multiply(scores, stage, 0);
#if OF_KEYS
            gather(second_sums, weights, before, 1);
#endif
            products_commit();
            incline(before);
            pack(cotangents, slopes);
            products_wait<0>();
            pin(scores);
            pin(second_sums);
            pin(slopes);
            products_fence();
            gather(first_sums, cotangents, before, 0);
            multiply(slopes, stage, 1);
            products_commit();
            weigh(false);
            products_wait<0>();
            pin(first_sums);
            pin(slopes);
            if (lane == 0) barrier_arrive(empty + 8 * before);
        }
        if (lane == 0) barrier_arrive(own_empty + 8 * own);
        if (++own == OWNS) own = 0, own_phase ^= 1;
        pack(weights, scores);
        products_fence();
#if OF_KEYS
        gather(second_sums, weights, stage, 1);
        products_commit();
#endif
        incline(stage);
        pack(cotangents, slopes);
        products_fence();
        gather(first_sums, cotangents, stage, 0);
        products_commit();
        products_wait<0>();
        pin(first_sums);
        pin(second_sums);
        if (lane == 0) barrier_arrive(empty + 8 * stage);
        if (++stage == STAGES) stage = 0, phase ^= 1;
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            const i64 to = ((i64)head * rows + row + 8 * r) * WIDTH + lane % 4 * 8;
            const auto put = [&](bf16_t* result, const float* sums, float factor) {
#pragma unroll
                for (u32 part = 0; part < WIDTH / 32; part++) {
                    u32 words[4];
#pragma unroll
                    for (u32 j = 0; j < 4; j++) {
                        const u32 i = 16 * part + 4 * j + 2 * r;
                        words[j] = Pair<bf16_t>::of(sums[i] * factor, sums[i + 1] * factor);
                    }
                    transpose_words(words);
                    if (row + 8 * r < rows)
                        *(uint4*)(result + to + part * 32) = {words[0], words[1], words[2], words[3]};
                }
            };
            put(first, first_sums, sizes.scale);
            if (OF_KEYS) put(second, second_sums, 1.f);
        }
    }
}
