// Attention through a feature map (Katharopoulos et al. 2020): phi(q) H / (phi(q) z + 1e-6) with H = sum phi(k)ᵀ v and
// z = sum phi(k)ᵀ over all keys. Three launches: H and z over stretches of keys, a tile of 64 x 64 of H a block; their
// sums, multiplied by wᵀ where there is one; rows of the result. And `project`, rows times wᵀ.
//
// A state is H [d, e], then z [d].
//
// Macros: TX elements of q, k, v; TW of w; TY of the result; PROJECT 1 where there is w; SOFTMAX 1 where phi is the
// softmax over the head dimension, 0 where it is elu + 1.
#include "rows.cuh"

// phi of `count` rows of d from global memory, zeros for those that are not there, `stride` floats apart in shared
// memory. Half a warp takes a row.
DEVICE void load_features(float* to, const TX* from, u32 count, i64 there, u32 d, u32 stride) {
    for (u32 row = threadIdx.x / 16; row < count; row += 16) {
        float* x = to + row * stride;
        const bool exists = row < there;
        float most = __uint_as_float(0xff800000), sum = 0.f;
        for (u32 i = threadIdx.x % 16; i < d; i += 16) {
            x[i] = exists ? load(from + (i64)row * d + i) : 0.f;
            most = fmaxf(most, x[i]);
        }
#if SOFTMAX
        most = lanes_max<16>(most);
        for (u32 i = threadIdx.x % 16; i < d; i += 16) sum += x[i] = expf(x[i] - most);
        sum = lanes_sum<16>(sum);
        for (u32 i = threadIdx.x % 16; i < d; i += 16) x[i] = exists ? x[i] / sum : 0.f;
#else
        for (u32 i = threadIdx.x % 16; i < d; i += 16) x[i] = !exists ? 0.f : x[i] > 0.f ? x[i] + 1.f : expf(x[i]);
#endif
    }
}

const u32 KEYS = 32;

// Tile (y, z) of the state of stretch x % stretches of head x / stretches.
extern "C" __global__ void __launch_bounds__(256) sum_states(
    const TX* __restrict__ k, const TX* __restrict__ v, float* __restrict__ states, const u32 stretches,
    const u32 stretch, const u32 m, const u32 d, const u32 e)
{
    wait_for_launch_before();
    extern __shared__ float shared[];
    const u32 stride = d + 1, across = threadIdx.x % 16, down = threadIdx.x / 16;
    float *features = shared, *values = features + KEYS * stride;
    const i64 head = blockIdx.x / stretches;
    const u32 part = blockIdx.x - (u32)head * stretches, first_d = blockIdx.y * 64, first_e = blockIdx.z * 64;
    const u32 end = min(m, (part + 1) * stretch);
    float sums[4][4] = {}, total = 0.f;
    for (u32 start = part * stretch; start < end; start += KEYS) {
        __syncthreads();
        const u32 count = min(KEYS, end - start);
        load_features(features, k + (head * m + start) * d, KEYS, count, d, stride);
        for (u32 i = threadIdx.x; i < KEYS * 64; i += 256) {
            const u32 row = i / 64, column = first_e + i % 64;
            values[i] = row < count && column < e ? load(v + (head * m + start + row) * e + column) : 0.f;
        }
        __syncthreads();
        for (u32 j = 0; j < KEYS; j++) {
            float a[4], b[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 column = first_d + down + 16 * i;
                a[i] = column < d ? features[j * stride + column] : 0.f;
                b[i] = values[j * 64 + across + 16 * i];
            }
#pragma unroll
            for (u32 r = 0; r < 4; r++)
#pragma unroll
                for (u32 c = 0; c < 4; c++) sums[r][c] = fmaf(a[r], b[c], sums[r][c]);
            if (threadIdx.x < 64 && first_d + threadIdx.x < d) total += features[j * stride + first_d + threadIdx.x];
        }
    }
    float* state = states + (i64)blockIdx.x * d * (e + 1);
#pragma unroll
    for (u32 r = 0; r < 4; r++)
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            const u32 row = first_d + down + 16 * r, column = first_e + across + 16 * c;
            if (row < d && column < e) state[row * e + column] = sums[r][c];
        }
    if (first_e == 0 && threadIdx.x < 64 && first_d + threadIdx.x < d) state[d * e + first_d + threadIdx.x] = total;
}

// Row blockIdx.x % d of the state of head blockIdx.x / d.
extern "C" __global__ void __launch_bounds__(128) join_states(
    const float* __restrict__ states, const TW* __restrict__ w, float* __restrict__ joined, const u32 stretches,
    const u32 d, const u32 e)
{
    wait_for_launch_before();
    extern __shared__ float shared[];
    const i64 head = blockIdx.x / d, size = d * (e + 1);
    const u32 row = blockIdx.x - (u32)head * d;
    const float* from = states + head * stretches * size;
    float* to = joined + head * size;
    for (u32 column = threadIdx.x; column < e; column += 128) {
        float sum = 0.f;
        for (u32 part = 0; part < stretches; part++) sum += from[part * size + row * e + column];
        shared[column] = sum;
    }
    if (threadIdx.x == 0) {
        float sum = 0.f;
        for (u32 part = 0; part < stretches; part++) sum += from[part * size + d * e + row];
        to[d * e + row] = sum;
    }
    __syncthreads();
    for (u32 column = threadIdx.x; column < e; column += 128) {
        float value = shared[column];
        if (PROJECT) {
            value = 0.f;
            for (u32 i = 0; i < e; i++) value = fmaf(shared[i], load(w + column * e + i), value);
        }
        to[row * e + column] = value;
    }
}

const u32 ROWS = 32;

// ROWS queries of a head, half a warp two of them.
extern "C" __global__ void __launch_bounds__(256) apply_states(
    const TX* __restrict__ q, const float* __restrict__ joined, TY* __restrict__ y, const Rows rows, const u32 tiles,
    const u32 n, const u32 d, const u32 e)
{
    wait_for_launch_before();
    extern __shared__ float shared[];
    const u32 stride = d + 1, across = threadIdx.x % 16, down = threadIdx.x / 16;
    const i64 head = blockIdx.x / tiles;
    const u32 first = (blockIdx.x - (u32)head * tiles) * ROWS, count = min(ROWS, n - first);
    const float* state = joined + head * d * (e + 1);
    load_features(shared, q + (head * n + first) * d, ROWS, count, d, stride);
    __syncthreads();
    const float *one = shared + down * stride, *two = one + 16 * stride;
    float under[2] = {0.f, 0.f};
    for (u32 i = across; i < d; i += 16) {
        under[0] = fmaf(one[i], state[d * e + i], under[0]);
        under[1] = fmaf(two[i], state[d * e + i], under[1]);
    }
    under[0] = lanes_sum<16>(under[0]) + 1e-6f;
    under[1] = lanes_sum<16>(under[1]) + 1e-6f;
    for (u32 column = across; column < e; column += 16) {
        float a = 0.f, b = 0.f;
        for (u32 i = 0; i < d; i++) {
            const float h = state[i * e + column];
            a = fmaf(one[i], h, a);
            b = fmaf(two[i], h, b);
        }
        TY* to = y + row_at(rows, (u32)head, first + down) + column;
        if (down < count) store(to, a / under[0]);
        if (down + 16 < count) store(to + 16 * rows.token, b / under[1]);
    }
}

// y = o wᵀ, a row a block.
extern "C" __global__ void __launch_bounds__(128) project(
    const float* __restrict__ o, const TW* __restrict__ w, TY* __restrict__ y, const Rows rows, const u32 n,
    const u32 e)
{
    wait_for_launch_before();
    extern __shared__ float shared[];
    const i64 row = blockIdx.x;
    const u32 head = blockIdx.x / n;
    for (u32 i = threadIdx.x; i < e; i += 128) shared[i] = o[row * e + i];
    __syncthreads();
    for (u32 column = threadIdx.x; column < e; column += 128) {
        float sum = 0.f;
        for (u32 i = 0; i < e; i++) sum = fmaf(shared[i], load(w + column * e + i), sum);
        store(y + row_at(rows, head, blockIdx.x - head * n) + column, sum);
    }
}
