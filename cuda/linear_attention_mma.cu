// Attention through a feature map, as in linear_attention.cu, for bf16 heads of 64 columns by `mma.sync`: features
// and states are rounded to bf16 as operands, sums are f32. Three launches: states H [64, 64], z [64] of blocks of keys;
// then either their sums a head, or for every query block the sums of those that its list leaves out, both times
// multiplied by wᵀ; rows of the result.
//
// Macros: TW elements of w; PROJECT 1 where there is w; SOFTMAX 1 where phi is the softmax over the head dimension, 0
// where it is elu + 1; RESIDUAL 1 where something is added to the result.
#include "activations.cuh"
#include "blocks.cuh"
#include "mma.cuh"
#include "pairs.cuh"
#include "rows.cuh"

const u32 WIDTH = 64, STATE = WIDTH * WIDTH + WIDTH;

// Eight neighbouring elements, exactly, and rounded again.
DEVICE void unpack(float (&x)[8], const uint4& chunk) {
    const u32 words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        x[2 * i] = widen(bf16_t{(u16)words[i]});
        x[2 * i + 1] = widen(bf16_t{(u16)(words[i] >> 16)});
    }
}

// phi of COUNT elements a lane of rows that LANES neighbouring lanes share.
template <u32 LANES, u32 COUNT> DEVICE void map_features(float (&x)[COUNT]) {
#if SOFTMAX
    float most = x[0], sum = 0.f;
#pragma unroll
    for (u32 i = 1; i < COUNT; i++) most = fmaxf(most, x[i]);
    most = lanes_max<LANES>(most);
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) sum += x[i] = exp2_fast((x[i] - most) * 1.44269504f);
    const float over = 1.f / lanes_sum<LANES>(sum);
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) x[i] *= over;
#else
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) x[i] = x[i] > 0.f ? x[i] + 1.f : exp2_fast(x[i] * 1.44269504f);
#endif
}

const u32 TOKENS = 64;

// The state of a block of keys of a head; warp w sums rows 16w to 16w + 15 of H.
extern "C" __global__ void __launch_bounds__(128, 4) sum_states(
    const bf16_t* __restrict__ k, const bf16_t* __restrict__ v, float* __restrict__ states,
    const __grid_constant__ Cut cut, const u32 blocks, const u32 m)
{
    wait_for_launch_before();
    __shared__ __align__(1024) u8 tiles[2 * TOKENS * 128];
    __shared__ float totals[16][WIDTH];
    const u32 features = shared_address(tiles), values = features + TOKENS * 128;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = threadIdx.x / 8, chunk = threadIdx.x % 8;
    const u32 head = blockIdx.x / blocks;
    const Range range = tokens_of(cut, blockIdx.x - head * blocks);
    const u64 from = (u64)head * m * WIDTH + chunk * 8;
    uint4 next_k[4], next_v[4];
    auto fetch = [&](i32 start) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const i32 token = start + row + 16 * i;
            const bool there = token < range.end;
            next_k[i] = there ? *(const uint4*)(k + from + (u64)token * WIDTH) : uint4{};
            next_v[i] = there ? *(const uint4*)(v + from + (u64)token * WIDTH) : uint4{};
        }
    };
    float sums[8][4] = {}, total[8] = {};
    fetch(range.begin);
    for (i32 start = range.begin; start < range.end; start += TOKENS) {
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            float x[8];
            unpack(x, next_k[i]);
            map_features<8>(x);
            const bool there = start + (i32)(row + 16 * i) < range.end;
            u32 words[4];
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                words[j] = there ? Pair<bf16_t>::of(x[2 * j], x[2 * j + 1]) : 0;
                total[2 * j] += widen(bf16_t{(u16)words[j]});
                total[2 * j + 1] += widen(bf16_t{(u16)(words[j] >> 16)});
            }
            store_chunk(features + swizzle_128(row + 16 * i, chunk), words);
            const u32 value[4] = {next_v[i].x, next_v[i].y, next_v[i].z, next_v[i].w};
            store_chunk(values + swizzle_128(row + 16 * i, chunk), value);
        }
        __syncthreads();
        fetch(start + TOKENS);
#pragma unroll
        for (u32 step = 0; step < TOKENS / 16; step++) {
            u32 a[4];
            load_matrices_transposed(
                a, features + swizzle_128(step * 16 + lane % 8 + lane / 16 * 8, 2 * warp + lane / 8 % 2));
#pragma unroll
            for (u32 pair = 0; pair < 4; pair++) {
                u32 b[4];
                load_matrices_transposed(b, values + swizzle_128(step * 16 + lane % 16, 2 * pair + lane / 16));
                Mma<bf16_t>::add(sums[2 * pair], a, b[0], b[1]);
                Mma<bf16_t>::add(sums[2 * pair + 1], a, b[2], b[3]);
            }
        }
    }
    float* state = states + (u64)blockIdx.x * STATE;
#pragma unroll
    for (u32 j = 0; j < 8; j++) {
        float* to = state + (warp * 16 + lane / 4) * WIDTH + j * 8 + lane % 4 * 2;
        *(float2*)to = {sums[j][0], sums[j][1]};
        *(float2*)(to + 8 * WIDTH) = {sums[j][2], sums[j][3]};
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) totals[row][chunk * 8 + i] = total[i];
    __syncthreads();
    if (threadIdx.x < WIDTH) {
        float sum = 0.f;
        for (u32 i = 0; i < 16; i++) sum += totals[i][threadIdx.x];
        state[WIDTH * WIDTH + threadIdx.x] = sum;
    }
}

// H transposed and rounded, times w where there is one; behind it z in f32.
struct Joined { bf16_t h[WIDTH * WIDTH]; float z[WIDTH]; };

const u32 LISTS = 32, ROWS_A_BLOCK = 4, JOINERS = ROWS_A_BLOCK * WIDTH;

// Rows of H in shared memory, and w transposed; rows of w are a bank apart.
struct Joint { float rows[ROWS_A_BLOCK][WIDTH], weights[WIDTH][WIDTH + 1]; };

// All JOINERS threads call it, and wait for one another before they put rows.
DEVICE void load_weights(Joint& joint, const TW* w) {
#if PROJECT
    for (u32 i = threadIdx.x; i < WIDTH * WIDTH; i += JOINERS) joint.weights[i % WIDTH][i / WIDTH] = load(w + i);
#endif
}

// Row `at` of H, where `part` of the block has it, to where it belongs; 64 threads, thread i has column i. Row 64 is z.
DEVICE void put_row(Joined* to, const Joint& joint, u32 part, u32 at, u32 i) {
    float value = joint.rows[part][i];
    if (at == WIDTH) {
        to->z[i] = value;
        return;
    }
    if (PROJECT) {
        value = 0.f;
#pragma unroll 16
        for (u32 j = 0; j < WIDTH; j++) value = fmaf(joint.rows[part][j], joint.weights[j][i], value);
    }
    store(to->h + i * WIDTH + at, value);
}

// Four rows of the state of a head.
extern "C" __global__ void __launch_bounds__(JOINERS) join_states(
    const float* __restrict__ states, const TW* __restrict__ w, Joined* __restrict__ joined, const u32 blocks)
{
    wait_for_launch_before();
    __shared__ Joint joint;
    const u32 parts = (WIDTH + ROWS_A_BLOCK) / ROWS_A_BLOCK, part = threadIdx.x / WIDTH, column = threadIdx.x % WIDTH;
    const u32 head = blockIdx.x / parts, at = (blockIdx.x - head * parts) * ROWS_A_BLOCK + part;
    load_weights(joint, w);
    const float* from = states + (u64)head * blocks * STATE + min(at, WIDTH) * WIDTH + column;
    float sum = 0.f;
#pragma unroll 16
    for (u32 block = 0; block < blocks; block++) sum += from[(u64)block * STATE];
    joint.rows[part][column] = sum;
    __syncthreads();
    if (at <= WIDTH) put_row(joined + head, joint, part, at, column);
}

// Rows blockIdx.y * 4 and the next three of the states of LISTS query blocks of a head: sums over the key blocks that
// their lists leave out.
extern "C" __global__ void __launch_bounds__(JOINERS) rest_states(
    const float* __restrict__ states, const i32* __restrict__ lists, const i32* __restrict__ counts,
    const TW* __restrict__ w, Joined* __restrict__ joined, const u32 key_blocks, const u32 query_blocks,
    const u32 longest, const u32 groups)
{
    wait_for_launch_before();
    // For every key block, which of the lists hold it.
    extern __shared__ u32 listed[];
    __shared__ Joint joint;
    const u32 head = blockIdx.x / groups, first = (blockIdx.x - head * groups) * LISTS;
    const u32 count = min(LISTS, query_blocks - first), part = threadIdx.x / WIDTH, column = threadIdx.x % WIDTH;
    const u32 at = blockIdx.y * ROWS_A_BLOCK + part;
    const u64 list = (u64)head * query_blocks + first;
    for (u32 i = threadIdx.x; i < key_blocks; i += JOINERS) listed[i] = 0;
    load_weights(joint, w);
    __syncthreads();
    for (u32 i = 0; i < count; i++)
        for (u32 j = threadIdx.x; j < counts[list + i]; j += JOINERS)
            atomicOr(listed + lists[(list + i) * longest + j], 1u << i);
    __syncthreads();
    float sums[LISTS] = {};
    const float* from = states + (u64)head * key_blocks * STATE + min(at, WIDTH) * WIDTH + column;
#pragma unroll 4
    for (u32 block = 0; block < key_blocks; block++) {
        const float value = from[(u64)block * STATE];
        const u32 bits = listed[block];
#pragma unroll
        for (u32 i = 0; i < LISTS; i++) sums[i] += bits >> i & 1 ? 0.f : value;
    }
#pragma unroll
    for (u32 i = 0; i < LISTS; i++) {
        if (i >= count) break;
        __syncthreads();
        joint.rows[part][column] = sums[i];
        __syncthreads();
        if (at <= WIDTH) put_row(joined + list + i, joint, part, at, column);
    }
}

// Rows of a block of queries, sixteen at a time a warp, the next ones on their way. A lane loads eight neighbouring
// columns of a row: columns of features and of H are multiplied in an order of their own.
extern "C" __global__ void __launch_bounds__(128) apply_states(
    const bf16_t* __restrict__ q, const Joined* __restrict__ joined, const bf16_t* __restrict__ residual,
    bf16_t* __restrict__ y, const __grid_constant__ Cut cut, const Rows places, const u32 blocks,
    const u32 state_blocks, const u32 n)
{
    wait_for_launch_before();
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.x / blocks;
    const u32 block = blockIdx.x - head * blocks, column = lane % 4 * 8;
    const Range range = tokens_of(cut, block);
    const Joined& state = joined[state_blocks == 1 ? head : blockIdx.x];
    // Of two rows, two pieces of 32 columns each.
    uint4 next[2][2], added[2][2];
    auto fetch = [&](i32 first) {
#pragma unroll
        for (u32 row = 0; row < 2; row++) {
            const u32 token = min(first + (i32)(lane / 4 + 8 * row), range.end - 1);
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                next[row][half] = *(const uint4*)(q + ((u64)head * n + token) * WIDTH + half * 32 + column);
                if (RESIDUAL)
                    added[row][half] = *(const uint4*)(residual + row_at(places, head, token) + half * 32 + column);
            }
        }
    };
    if (range.begin + (i32)warp * 16 >= range.end) return;
    fetch(range.begin + warp * 16);
    uint4 b[8][2];
    float z[16];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
#pragma unroll
        for (u32 j = 0; j < 8; j++)
            b[j][half] = *(const uint4*)(state.h + (j * 8 + lane / 4) * WIDTH + half * 32 + column);
#pragma unroll
        for (u32 i = 0; i < 8; i++) z[half * 8 + i] = state.z[half * 32 + column + i];
    }
    for (i32 first = range.begin + warp * 16; first < range.end; first += 64) {
        u32 a[4][4];
        float over[2], sums[8][4] = {};
        u32 others[2][2][4];
#pragma unroll
        for (u32 row = 0; row < 2; row++) {
            float x[16], half[8], under = 0.f;
            unpack(half, next[row][0]);
#pragma unroll
            for (u32 i = 0; i < 8; i++) x[i] = half[i];
            unpack(half, next[row][1]);
#pragma unroll
            for (u32 i = 0; i < 8; i++) x[8 + i] = half[i];
            map_features<4>(x);
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                const u32 both = Pair<bf16_t>::of(x[2 * i], x[2 * i + 1]);
                under = fmaf(widen(bf16_t{(u16)both}), z[2 * i], under);
                under = fmaf(widen(bf16_t{(u16)(both >> 16)}), z[2 * i + 1], under);
                a[i / 2][row + i % 2 * 2] = both;
            }
            over[row] = 1.f / (lanes_sum<4>(under) + 1e-6f);
            if (RESIDUAL)
#pragma unroll
                for (u32 piece = 0; piece < 2; piece++) {
                    const uint4& own = added[row][piece];
                    u32 words[4] = {own.x, own.y, own.z, own.w};
                    transpose_words(words);
#pragma unroll
                    for (u32 j = 0; j < 4; j++) others[row][piece][j] = words[j];
                }
        }
        if (first + 64 < range.end) fetch(first + 64);
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            Mma<bf16_t>::add(sums[j], a[0], b[j][0].x, b[j][0].y);
            Mma<bf16_t>::add(sums[j], a[1], b[j][0].z, b[j][0].w);
            Mma<bf16_t>::add(sums[j], a[2], b[j][1].x, b[j][1].y);
            Mma<bf16_t>::add(sums[j], a[3], b[j][1].z, b[j][1].w);
        }
#pragma unroll
        for (u32 row = 0; row < 2; row++)
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32 words[4];
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    const float* two = sums[half * 4 + j] + 2 * row;
                    float left = two[0] * over[row], right = two[1] * over[row];
                    if (RESIDUAL) {
                        left += widen(bf16_t{(u16)others[row][half][j]});
                        right += widen(bf16_t{(u16)(others[row][half][j] >> 16)});
                    }
                    words[j] = Pair<bf16_t>::of(left, right);
                }
                transpose_words(words);
                const i32 own = first + (i32)(lane / 4 + 8 * row);
                if (own < range.end)
                    *(uint4*)(y + row_at(places, head, own) + half * 32 + column) =
                        {words[0], words[1], words[2], words[3]};
            }
    }
}
