// The reverse pass of attention on the tensor cores of every architecture by `mma.sync`: all rows of the same WIDTH in
// bf16, f32 sums. With P = exp(scale q kᵀ + bias − lse) and dS = P ∘ (do vᵀ − delta): dq = scale dS k, dk = scale dSᵀ q,
// dv = Pᵀ do. A block owns WARPS * 16 rows of a head, queries or keys, a warp 16 of them, and walks over those of the other
// side, OTHERS at a time, of which two tiles take turns in shared memory. P and dS become operands in registers. dq on the
// one hand, dk and dv on the other have kernels of their own, so that every sum has one order.
//
// OF_KEYS 0: dq, of queries of one query block. OF_KEYS 1: dk and dv, of keys wherever blocks end.
//
// LISTED 1: a query sees the keys of the blocks in the list of its query block, and the centroids outside of it, each with
// the logarithm of its number of tokens added to its score. Owned keys have the transposed lists; with CENTRAL 1 they are
// centroids, seen by the query blocks that those lists leave out.
//
// Macros: T bf16_t; WIDTH 32, 64 or 128; WARPS; OTHERS; OF_KEYS; CENTRAL; LISTED; BLOCKS a processor.
#include "activations.cuh"
#include "attention_grad.cuh"
#include "mma.cuh"
#include "pairs.cuh"

const u32 OWNED = WARPS * 16, THREADS = WARPS * 32;
// Steps of 16 columns, chunks a row; bytes of both parts of owned rows, of a part of the others, of both parts.
const u32 STEPS = WIDTH / 16, CHUNKS = WIDTH / 8, OWN = OWNED * WIDTH * 4, TILE = OTHERS * WIDTH * 2, STAGE = 2 * TILE;
// What is added to the score of a row that is not there.
const float MASKED = -1e30f;
const float LOG2_E = 1.44269504f;

// Offset of a chunk in a tile of so many rows: panels of 64 columns.
template <u32 COUNT> DEVICE u32 chunk_at(u32 row, u32 chunk) {
    return WIDTH == 32 ? swizzle_64(row, chunk) : chunk / 8 * (COUNT * 128) + swizzle_128(row, chunk % 8);
}

// Sixteen owned rows times all others of a tile, one part of each.
DEVICE void products(float (&sums)[OTHERS / 8][4], u32 own, u32 others, u32 warp, u32 lane) {
#pragma unroll
    for (u32 step = 0; step < STEPS; step++) {
        u32 a[4];
        load_matrices(a, own + chunk_at<OWNED>(warp * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
        for (u32 pair = 0; pair < OTHERS / 16; pair++) {
            u32 b[4];
            load_matrices(b, others + chunk_at<OTHERS>(pair * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
            Mma<T>::add(sums[2 * pair], a, b[0], b[1]);
            Mma<T>::add(sums[2 * pair + 1], a, b[2], b[3]);
        }
    }
}

// Adds weights of sixteen owned rows times one part of all others.
DEVICE void gather(float (&sums)[WIDTH / 8][4], const float (&weights)[OTHERS / 8][4], u32 others, u32 lane) {
#pragma unroll
    for (u32 step = 0; step < OTHERS / 16; step++) {
        u32 a[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const float* two = weights[2 * step + i / 2] + i % 2 * 2;
            a[i] = Pair<T>::of(two[0], two[1]);
        }
#pragma unroll
        for (u32 pair = 0; pair < STEPS; pair++) {
            u32 b[4];
            load_matrices_transposed(b, others + chunk_at<OTHERS>(step * 16 + lane % 16, pair * 2 + lane / 16));
            Mma<T>::add(sums[2 * pair], a, b[0], b[1]);
            Mma<T>::add(sums[2 * pair + 1], a, b[2], b[3]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) reverse_mma(
    const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v, const T* __restrict__ g,
    const float* __restrict__ pairs, const i32* __restrict__ lists, const i32* __restrict__ counts,
    const T* __restrict__ centroid_keys, const T* __restrict__ centroid_values, T* __restrict__ first,
    T* __restrict__ second, const __grid_constant__ Cut query_cut, const __grid_constant__ Cut key_cut,
    const __grid_constant__ Cut centroid_cut, const __grid_constant__ Rows rows, const __grid_constant__ Sizes sizes)
{
    wait_for_launch_before();
    extern __shared__ __align__(1024) u8 shared[];
    // Of the rows of three tiles: which they are, -1 where there is none; what their scores have added; their deltas. And
    // which of the owned rows see them.
    __shared__ i32 tokens[3][OTHERS];
    __shared__ float biases[3][OTHERS], deltas[3][OTHERS];
    __shared__ u32 seen[3][OWNED];
    __shared__ i32 nexts[WARPS];
    const u32 own = shared_address(shared), stages = own + OWN;
    // A bit a key block that the list holds.
    u32* const taken = (u32*)(shared + OWN + 2 * STAGE);
    const u32 n = sizes.n, m = sizes.m, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 blocks = LISTED && !OF_KEYS ? sizes.query_blocks * sizes.tiles : sizes.tiles;
    const i64 head = blockIdx.x / blocks;
    const u32 at = blockIdx.x - (u32)head * blocks;
    i32 begin = at * OWNED, last = min(OF_KEYS ? m : n, (at + 1) * OWNED);
    u32 listed = 0;
    const i32* list = 0;
    // Of the owned key of this thread: where its list goes on and ends, and whether the present query block sees it.
    i32 cursor = 0, end = 0;
    bool present_sees = true;
    if (LISTED && !OF_KEYS) {
        const u32 block = at / sizes.tiles;
        const Range range = tokens_of(query_cut, block);
        begin = range.begin + (at - block * sizes.tiles) * OWNED;
        last = min(range.end, begin + (i32)OWNED);
        if (begin >= range.end) return;
        const i64 row = head * sizes.query_blocks + block;
        listed = counts[row];
        list = lists + row * sizes.longest;
        for (u32 i = threadIdx.x; i < (sizes.key_blocks + 31) / 32; i += THREADS) taken[i] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < listed; i += THREADS) atomicOr(taken + list[i] / 32, 1u << (list[i] % 32));
        __syncthreads();
    }
    if (LISTED && OF_KEYS) {
        lists += head * (sizes.key_blocks + 1 + (i64)sizes.query_blocks * sizes.longest);
        const i32 token = begin + threadIdx.x;
        if (threadIdx.x < OWNED && token < last) {
            const i32 block = place_of(key_cut, CENTRAL ? tokens_of(centroid_cut, token).begin : token).block;
            cursor = lists[block];
            end = lists[block + 1];
        }
        lists += sizes.key_blocks + 1;
    }
    const auto copy_query = [&](u32 to_first, u32 to_second, i32 token, u32 chunk) {
        const u32 there = max(token, 0);
        copy_chunk(to_first, q + (head * n + there) * WIDTH + chunk * 8, token >= 0);
        copy_chunk(to_second, g + row_at(rows, (u32)head, there) + chunk * 8, token >= 0);
    };
    const auto copy_key = [&](u32 to_first, u32 to_second, i32 token, u32 chunk, bool central) {
        const i64 row = (head * (central ? sizes.centroids : m) + max(token, 0)) * WIDTH + chunk * 8;
        copy_chunk(to_first, (central ? centroid_keys : k) + row, token >= 0);
        copy_chunk(to_second, (central ? centroid_values : v) + row, token >= 0);
    };
#pragma unroll
    for (u32 i = threadIdx.x; i < OWNED * CHUNKS; i += THREADS) {
        const i32 token = begin + (i32)(i / CHUNKS) < last ? begin + (i32)(i / CHUNKS) : -1;
        const u32 to = own + chunk_at<OWNED>(i / CHUNKS, i % CHUNKS);
        if (OF_KEYS) copy_key(to, to + OWN / 2, token, i % CHUNKS, false);
        else copy_query(to, to + OWN / 2, token, i % CHUNKS);
    }
    float own_bias[2], own_delta[2];
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        const i32 token = begin + (i32)(warp * 16 + r * 8 + lane / 4);
        own_bias[r] = token < last ? 0.f : MASKED;
        own_delta[r] = 0.f;
        if (token >= last) continue;
        if (!OF_KEYS) {
            own_bias[r] = -LOG2_E * pairs[2 * (head * n + token)];
            own_delta[r] = pairs[2 * (head * n + token) + 1];
        } else if (CENTRAL) {
            const Range range = tokens_of(centroid_cut, token);
            own_bias[r] = log2f((float)(range.end - range.begin));
        }
    }

    // Slots, some empty: queries of a block; tokens of the listed blocks, or of everything, then all centroids.
    const u32 plain = LISTED ? listed * key_cut.size : m;
    const u32 slots = OF_KEYS ? n : plain + (LISTED ? sizes.centroids : 0);
    const bool walks = LISTED && OF_KEYS;
    i32 block = 0;
    u32 start = 0, stop = walks ? 0 : slots;
    bool central = false;
    // Which rows the next tile has; all threads call it. None if there is no next tile.
    const auto next = [&](u32 place) -> bool {
        if (walks && start >= stop) {
            i32 own_next = cursor < end ? lists[cursor] : (i32)sizes.query_blocks, least = own_next;
#pragma unroll
            for (u32 step = 16; step; step /= 2) least = min(least, __shfl_xor_sync(~0u, least, step));
            if (lane == 0) nexts[warp] = least;
            __syncthreads();
#pragma unroll
            for (u32 i = 0; i < WARPS; i++) least = min(least, nexts[i]);
            const i32 present = CENTRAL ? block : least;
            if (present >= (i32)sizes.query_blocks) return false;
            const bool holds = own_next == present;
            present_sees = holds != (bool)CENTRAL;
            cursor += holds;
            block = present + 1;
            const Range range = tokens_of(query_cut, present);
            start = range.begin;
            stop = range.end;
        }
        if (start >= stop) return false;
        if (walks && threadIdx.x < OWNED) seen[place][threadIdx.x] = present_sees;
        central = LISTED && !OF_KEYS && start >= plain;
        const u32 behind = OF_KEYS || central ? stop : plain;
        for (u32 j = threadIdx.x; j < OTHERS; j += THREADS) {
            const u32 slot = start + j;
            i32 token = -1;
            float bias = MASKED, delta = 0.f;
            if (slot < behind) {
                if (OF_KEYS) {
                    token = slot;
                    bias = -LOG2_E * pairs[2 * (head * n + slot)];
                    delta = pairs[2 * (head * n + slot) + 1];
                } else if (central) {
                    const Range range = tokens_of(centroid_cut, slot - plain);
                    if (!is_taken(key_cut, taken, range.begin)) {
                        token = slot - plain;
                        bias = log2f((float)(range.end - range.begin));
                    }
                } else if (LISTED) {
                    token = listed_token(key_cut, list, slot);
                    if (token >= 0) bias = 0.f;
                } else {
                    token = slot;
                    bias = 0.f;
                }
            }
            tokens[place][j] = token;
            biases[place][j] = bias;
            deltas[place][j] = delta;
        }
        start = min(start + OTHERS, behind);
        return true;
    };
    const auto fetch = [&](u32 tile) {
        const u32 to = stages + tile % 2 * STAGE;
#pragma unroll
        for (u32 i = threadIdx.x; i < OTHERS * CHUNKS; i += THREADS) {
            const u32 row = i / CHUNKS, chunk = i % CHUNKS, there = to + chunk_at<OTHERS>(row, chunk);
            if (OF_KEYS) copy_query(there, there + TILE, tokens[tile % 3][row], chunk);
            else copy_key(there, there + TILE, tokens[tile % 3][row], chunk, central);
        }
        copies_commit();
    };

    float first_sums[WIDTH / 8][4] = {}, second_sums[OF_KEYS ? WIDTH / 8 : 1][4] = {};
    bool more = next(0);
    __syncthreads();
    if (more) fetch(0);
    const float scale = sizes.scale * LOG2_E;
    for (u32 tile = 0; more; tile++) {
        more = next((tile + 1) % 3);
        copies_wait<0>();
        __syncthreads();
        if (more) fetch(tile + 1);
        const u32 place = tile % 3, others = stages + tile % 2 * STAGE;
        float scores[OTHERS / 8][4] = {}, slopes[OTHERS / 8][4] = {};
        products(scores, own, others, warp, lane);
        products(slopes, own + OWN / 2, others + TILE, warp, lane);
        bool sees[2] = {true, true};
        if (walks)
#pragma unroll
            for (u32 r = 0; r < 2; r++) sees[r] = seen[place][warp * 16 + r * 8 + lane / 4];
#pragma unroll
        for (u32 j = 0; j < OTHERS / 8; j++) {
            const float2 bias = *(const float2*)(biases[place] + j * 8 + lane % 4 * 2);
            float2 delta = {0.f, 0.f};
            if (OF_KEYS) delta = *(const float2*)(deltas[place] + j * 8 + lane % 4 * 2);
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                const float added = own_bias[c / 2] + (c % 2 ? bias.y : bias.x);
                const float weight = sees[c / 2] ? exp2_fast(fmaf(scores[j][c], scale, added)) : 0.f;
                scores[j][c] = weight;
                slopes[j][c] = weight * (slopes[j][c] - (OF_KEYS ? c % 2 ? delta.y : delta.x : own_delta[c / 2]));
            }
        }
#if OF_KEYS
        gather(second_sums, scores, others + TILE, lane);
#endif
        gather(first_sums, slopes, others, lane);
    }
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        const i32 token = begin + (i32)(warp * 16 + r * 8 + lane / 4);
        const i64 to = (head * (OF_KEYS ? m : n) + token) * WIDTH + lane % 4 * 8;
        store_sums<WIDTH>(first + to, first_sums[0], r, sizes.scale, token < last);
        if (OF_KEYS) store_sums<WIDTH>(second + to, second_sums[0], r, 1.f, token < last);
    }
}
