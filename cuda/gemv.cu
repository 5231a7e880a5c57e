// y = epilogue(x wᵀ) for few rows, where reading the weights is all there is to do: x [M, K], w [N, K].
//
// A block takes 16 columns of y and 8 * TILES rows. Its warps walk along K in turn, weights straight from memory into
// the fragments of mma.sync: 16 bytes a lane of one row of w, and as many columns of x. Which column of K stands where
// in a fragment does not matter as long as both operands agree. Where blocks are few, what comes next is on its way
// while a stage is multiplied; where they are many, one block waits while another multiplies. Elements of f32 are sums of three bf16, and products below 2^-24 are left out. The sums of all warps are
// added in their order.
//
// Macros: TX, TW elements of x and w: MATH or float; MATH bf16_t or half_t, and bf16_t where one of them is float; WARPS,
// TILES; AHEAD 1 to read a stage ahead; TY, TBIAS, TRESIDUAL, ACTIVATION as epilogue.cuh says, XSCALE and WSCALE NONE.
#include "epilogue.cuh"
#include "mma.cuh"
#include "vectors.cuh"

// Columns of K of a lane, of four lanes, of all warps, and of a stage: ROUNDS of them.
const int OWN = 16 / sizeof(TW), STEP = 4 * OWN, ROUND = WARPS * STEP, ROUNDS = AHEAD ? 2 : 4, STAGE = ROUNDS * ROUND;

// How an element is a sum of words of MATH, and OWN elements as they lie in memory as words of two each.
template <class T> struct Terms {
    static const int COUNT = 1;
    static __device__ __forceinline__ void of(u32 (&words)[1][OWN / 2], const Neighbours<T, OWN>& from) {
#pragma unroll
        for (int i = 0; i < OWN / 2; i++) words[0][i] = from.of[2 * i].bits | (u32)from.of[2 * i + 1].bits << 16;
    }
};
template <> struct Terms<float> {
    static const int COUNT = 3;
    static __device__ __forceinline__ void of(u32 (&words)[3][OWN / 2], const Neighbours<float, OWN>& from) {
#pragma unroll
        for (int i = 0; i < OWN / 2; i++) {
            float a = from.of[2 * i], b = from.of[2 * i + 1];
#pragma unroll
            for (int term = 0; term < 3; term++) {
                words[term][i] = Pair<MATH>::of(a, b);
                a -= widen(MATH{(u16)words[term][i]});
                b -= widen(MATH{(u16)(words[term][i] >> 16)});
            }
        }
    }
};

// Neighbours, where the program says: loads do not move behind the products in front of which they stand. What is read
// ONCE is not kept in the L1 cache.
template <bool ONCE, class T> DEVICE Neighbours<T, OWN> load_now(const T* p) {
    union { uint4 bytes[OWN * sizeof(T) / 16]; Neighbours<T, OWN> elements; } to;
#pragma unroll
    for (int i = 0; i < OWN * sizeof(T) / 16; i++) {
        uint4& part = to.bytes[i];
        if (ONCE)
            asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                : "=r"(part.x), "=r"(part.y), "=r"(part.z), "=r"(part.w) : "l"((const uint4*)p + i));
        else
            asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                : "=r"(part.x), "=r"(part.y), "=r"(part.z), "=r"(part.w) : "l"((const uint4*)p + i));
    }
    return to.elements;
}

// What a warp reads at once; x where there is room for it.
struct Stage {
    Neighbours<TW, OWN> w[ROUNDS][2];
    Neighbours<TX, OWN> x[ROUNDS];
};

// Reading ahead takes registers; many blocks share a multiprocessor.
#if AHEAD
#define BOUNDS __launch_bounds__(32 * WARPS, 1)
#else
#define BOUNDS __launch_bounds__(32 * WARPS)
#endif

extern "C" __global__ void BOUNDS product_few(
    const TX* __restrict__ x, const TW* __restrict__ w, TY* __restrict__ y, const TBIAS* __restrict__ bias,
    const TRESIDUAL* __restrict__ residual, const u32 m, const u32 n, const u32 k)
{
    wait_for_launch_before();
    const u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const u32 first_n = blockIdx.x * 16, first_m = blockIdx.y * 8 * TILES;
    const bool holds_x = AHEAD && TILES == 1;
    auto load_x = [&](u32 tile, u32 at) {
        const u32 row = first_m + tile * 8 + g;
        Neighbours<TX, OWN> own = {};
        if (row < m && at < k) {
            const TX* from = x + (i64)row * k + at;
            own = holds_x ? load_now<false>(from) : *(const Neighbours<TX, OWN>*)from;
        }
        return own;
    };
    auto fetch = [&](Stage& stage, u32 first) {
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            const u32 at = first + round * ROUND + t * OWN;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 column = first_n + half * 8 + g;
                stage.w[round][half] = {};
                if (column < n && at < k) stage.w[round][half] = load_now<true>(w + (i64)column * k + at);
            }
            if (holds_x) stage.x[round] = load_x(0, at);
        }
    };
    float sums[TILES][4] = {};
    auto multiply = [&](const Stage& stage, u32 first) {
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            u32 a[2][Terms<TW>::COUNT][OWN / 2];
            Terms<TW>::of(a[0], stage.w[round][0]);
            Terms<TW>::of(a[1], stage.w[round][1]);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                u32 b[Terms<TX>::COUNT][OWN / 2];
                Terms<TX>::of(b, holds_x ? stage.x[round] : load_x(tile, first + round * ROUND + t * OWN));
#pragma unroll
                for (int i = 0; i < Terms<TW>::COUNT; i++)
#pragma unroll
                    for (int j = 0; j < Terms<TX>::COUNT && i + j < 3; j++)
#pragma unroll
                        for (int s = 0; s < OWN / 2; s += 2) {
                            const u32 left[4] = {a[0][i][s], a[1][i][s], a[0][i][s + 1], a[1][i][s + 1]};
                            Mma<MATH>::add(sums[tile], left, b[j][s], b[j][s + 1]);
                        }
            }
        }
    };
    u32 first = warp * STEP;
    Stage even;
#if AHEAD
    // Two stages in turn; one beyond K reads nothing. Synchronising keeps reads in front of products.
    Stage odd;
    fetch(even, first);
    for (; first < k; first += 2 * STAGE) {
        fetch(odd, first + STAGE);
        __syncwarp();
        multiply(even, first);
        if (first + STAGE >= k) break;
        fetch(even, first + 2 * STAGE);
        __syncwarp();
        multiply(odd, first + STAGE);
    }
#else
    for (; first < k; first += STAGE) {
        fetch(even, first);
        multiply(even, first);
    }
#endif

    // Rows padded so that the lanes of a warp write to different banks.
    __shared__ float parts[WARPS][8 * TILES][20];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 4; i++) parts[warp][tile * 8 + t * 2 + i % 2][i / 2 * 8 + g] = sums[tile][i];
    __syncthreads();
    const Epilogue epilogue{nullptr, nullptr, bias, residual};
    for (u32 at = threadIdx.x; at < 8 * TILES * 16; at += 32 * WARPS) {
        const u32 row = first_m + at / 16, column = first_n + at % 16;
        if (row >= m || column >= n) continue;
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < WARPS; i++) sum += parts[i][at / 16][at % 16];
        const i64 place = (i64)row * n + column;
        store(y + place, epilogue.of(sum, row, column, place));
    }
}
