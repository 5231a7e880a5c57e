// Reductions over any axes, and positions of extremes. Every thread takes terms in order, partial results are joined
// in an order that depends on nothing but the shape. Sums of floats carry their rounding error along (Knuth's two-sum),
// products are f64; integers are i64, and saturate where the result is narrower.
//
// Macros: TX the operand's elements, TR the result's; OPERATION one of the partial results below; GROUP the threads that
// share a result: 1, 32 or 256; INDEX u32 or u64, which counts elements of x.
#include "strides.cuh"

// Loads that a thread has on their way at a time.
const int AHEAD = 8;
const int THREADS = 256, WARPS = THREADS / 32;

template <class C> struct Sum;
template <> struct Sum<float> {
    float sum, rest;
    __device__ static Sum start() { return {0.f, 0.f}; }
    __device__ void take(float x, i64) {
        const float total = sum + x, part = total - sum;
        rest += (sum - (total - part)) + (x - part);
        sum = total;
    }
    __device__ void join(const Sum& other) { take(other.sum, 0); rest += other.rest; }
    // Nothing but an infinite sum leaves a remainder that is not finite.
    __device__ float finish(i64) const { return sum - sum == 0.f ? sum + rest : sum; }
};
template <> struct Sum<i64> {
    i64 sum;
    __device__ static Sum start() { return {0}; }
    __device__ void take(i64 x, i64) { sum += x; }
    __device__ void join(const Sum& other) { sum += other.sum; }
    __device__ i64 finish(i64) const { return sum; }
};

template <class C> struct Mean {
    Sum<C> of;
    __device__ static Mean start() { return {Sum<C>::start()}; }
    __device__ void take(C x, i64 at) { of.take(x, at); }
    __device__ void join(const Mean& other) { of.join(other.of); }
    __device__ C finish(i64 n) const { return divided(of.finish(n), n); }
    __device__ static float divided(float sum, i64 n) { return sum / (float)n; }
    __device__ static i64 divided(i64 sum, i64 n) { return n ? sum / n : 0; }
};

template <class C> struct wide { typedef double type; };
template <> struct wide<i64> { typedef i64 type; };
template <class C> struct Product {
    typename wide<C>::type of;
    __device__ static Product start() { return {1}; }
    __device__ void take(C x, i64) { of *= x; }
    __device__ void join(const Product& other) { of *= other.of; }
    __device__ C finish(i64) const { return (C)of; }
};

DEVICE float larger(float a, float b) { return fmaxf(a, b); }
DEVICE i64 larger(i64 a, i64 b) { return a > b ? a : b; }
// Turns the order around; its own inverse.
DEVICE float reversed(float x) { return -x; }
DEVICE i64 reversed(i64 x) { return ~x; }
template <class C> DEVICE C lowest();
template <> __device__ __forceinline__ float lowest<float>() { return __uint_as_float(0xff800000); }
template <> __device__ __forceinline__ i64 lowest<i64>() { return (i64)(1ull << 63); }

template <class C> struct Largest {
    C of;
    __device__ static Largest start() { return {lowest<C>()}; }
    __device__ void take(C x, i64) { of = larger(of, x); }
    __device__ void join(const Largest& other) { take(other.of, 0); }
    __device__ C finish(i64) const { return of; }
};
template <class C> struct Smallest {
    Largest<C> of;
    __device__ static Smallest start() { return {Largest<C>::start()}; }
    __device__ void take(C x, i64) { of.take(reversed(x), 0); }
    __device__ void join(const Smallest& other) { of.join(other.of); }
    __device__ C finish(i64 n) const { return reversed(of.finish(n)); }
};

// A search that begins with the first value and moves on to greater ones: a NaN in front is never left, other NaNs are
// never taken.
template <class C> struct FirstLargest {
    C of;
    i64 at;
    __device__ static FirstLargest start() { return {lowest<C>(), 0x7fffffffffffffff}; }
    __device__ void take(C x, i64 where) {
        if (x != x) x = where == 0 ? reversed(lowest<C>()) : lowest<C>();
        join(FirstLargest{x, where});
    }
    __device__ void join(const FirstLargest& other) {
        if (other.of > of || (other.of == of && other.at < at)) *this = other;
    }
    __device__ i64 finish(i64 n) const { return n ? at : 0; }
};
template <class C> struct FirstSmallest {
    FirstLargest<C> of;
    __device__ static FirstSmallest start() { return {FirstLargest<C>::start()}; }
    __device__ void take(C x, i64 at) { of.take(reversed(x), at); }
    __device__ void join(const FirstSmallest& other) { of.join(other.of); }
    __device__ i64 finish(i64 n) const { return of.finish(n); }
};

typedef OPERATION<compute<TX>::type> Partial;
static_assert(sizeof(Partial) <= 16, "scratch memory of pieces has 16 bytes a partial result");

// The partial result of the lane `step` further on.
DEVICE Partial shifted(const Partial& own, int step) {
    union { Partial whole; u32 words[sizeof(Partial) / 4]; } both;
    both.whole = own;
#pragma unroll
    for (int i = 0; i < (int)(sizeof(Partial) / 4); i++) both.words[i] = __shfl_down_sync(~0u, both.words[i], step);
    return both.whole;
}

DEVICE i64 clamped(i64 x, i64 low, i64 high) { return x < low ? low : x > high ? high : x; }
DEVICE void put(i64* y, i64 x) { store(y, x); }
DEVICE void put(i32* y, i64 x) { store(y, clamped(x, -2147483648ll, 2147483647ll)); }
DEVICE void put(u8* y, i64 x) { store(y, clamped(x, 0, 255)); }
DEVICE void put(bool_t* y, i64 x) { store(y, x); }
template <class R> DEVICE void put(R* y, float x) { store(y, x); }

DEVICE i64 place(INDEX at, const Shape& shape, const Strides& strides) {
    return shape.rank == 1 ? (i64)at * strides.of[0] : offset(at, shape, strides);
}

// Takes every STEP-th term of begin..end; several loads are on their way at a time.
template <int STEP>
DEVICE void take(
    Partial& partial, const TX* __restrict__ from, INDEX begin, INDEX end, const Shape& gone, const Strides& gone_strides)
{
    INDEX i = begin;
    for (; i + (AHEAD - 1) * STEP < end; i += AHEAD * STEP) {
        compute<TX>::type ahead[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) ahead[k] = load(from + place(i + k * STEP, gone, gone_strides));
#pragma unroll
        for (int k = 0; k < AHEAD; k++) partial.take(ahead[k], i + k * STEP);
    }
    for (; i < end; i += STEP) partial.take(load(from + place(i, gone, gone_strides)), i);
}

// Terms begin..end of a result as the lanes of a group take them in turn; lane 0 of the group has all of them.
DEVICE Partial row(
    const TX* __restrict__ from, INDEX begin, INDEX end, const Shape& gone, const Strides& gone_strides,
    Partial (&parts)[WARPS])
{
    Partial partial = Partial::start();
    take<GROUP>(partial, from, begin + threadIdx.x % GROUP, end, gone, gone_strides);
#pragma unroll
    for (int step = GROUP > 1 ? 16 : 0; step; step >>= 1) partial.join(shifted(partial, step));
    if (GROUP > 32) {
        __syncthreads();
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = partial;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int warp = 1; warp < WARPS; warp++) partial.join(parts[warp]);
        }
    }
    return partial;
}

// The same with a result a lane, whose terms the warps of a block share; warp 0 has all of them.
DEVICE Partial column(
    const TX* __restrict__ from, INDEX begin, INDEX end, const Shape& gone, const Strides& gone_strides,
    Partial (&parts)[WARPS][32])
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Partial partial = Partial::start();
    take<WARPS>(partial, from, begin + warp, end, gone, gone_strides);
    parts[warp][lane] = partial;
    __syncthreads();
    if (warp == 0) {
        for (int i = 1; i < WARPS; i++) partial.join(parts[i][lane]);
    }
    __syncthreads();
    return partial;
}

// The terms of a result lie side by side, or results are few. All threads of a block take the same number of turns,
// whether or not their result exists.
extern "C" __global__ void __launch_bounds__(256) reduce_rows(
    const TX* __restrict__ x, TR* __restrict__ y, const Shape kept, const Strides kept_strides, const Shape gone,
    const Strides gone_strides, const i64 results, const i64 terms)
{
    wait_for_launch_before();
    __shared__ Partial parts[WARPS];
    for (i64 first = blockIdx.x * (i64)(THREADS / GROUP); first < results; first += gridDim.x * (i64)(THREADS / GROUP)) {
        const i64 result = first + threadIdx.x / GROUP;
        const TX* from = x + place((INDEX)result, kept, kept_strides);
        const Partial all = row(from, 0, result < results ? terms : 0, gone, gone_strides, parts);
        if (threadIdx.x % GROUP == 0 && result < results) put(y + result, all.finish(terms));
    }
}

// Results lie side by side: neighbours in a warp, and the warps of a block share the terms.
extern "C" __global__ void __launch_bounds__(256) reduce_columns(
    const TX* __restrict__ x, TR* __restrict__ y, const Shape kept, const Strides kept_strides, const Shape gone,
    const Strides gone_strides, const i64 results, const i64 terms)
{
    wait_for_launch_before();
    __shared__ Partial parts[WARPS][32];
    for (i64 first = blockIdx.x * 32ll; first < results; first += gridDim.x * 32ll) {
        const i64 result = first + threadIdx.x % 32;
        const TX* from = x + place((INDEX)result, kept, kept_strides);
        const Partial all = column(from, 0, result < results ? terms : 0, gone, gone_strides, parts);
        if (threadIdx.x < 32 && result < results) put(y + result, all.finish(terms));
    }
}

// The same of pieces of the terms where results are few: partial results [pieces, results].
extern "C" __global__ void __launch_bounds__(256) reduce_rows_pieces(
    const TX* __restrict__ x, Partial* __restrict__ to, const Shape kept, const Strides kept_strides, const Shape gone,
    const Strides gone_strides, const i64 results, const i64 terms, const i64 pieces)
{
    wait_for_launch_before();
    __shared__ Partial parts[WARPS];
    const i64 all = results * pieces, span = (terms + pieces - 1) / pieces;
    for (i64 first = blockIdx.x * (i64)(THREADS / GROUP); first < all; first += gridDim.x * (i64)(THREADS / GROUP)) {
        const i64 at = first + threadIdx.x / GROUP, result = at % results, begin = at / results * span;
        const TX* from = x + place((INDEX)result, kept, kept_strides);
        const i64 end = at < all ? min(terms, begin + span) : begin;
        const Partial partial = row(from, begin, max(begin, end), gone, gone_strides, parts);
        if (threadIdx.x % GROUP == 0 && at < all) to[at] = partial;
    }
}

extern "C" __global__ void __launch_bounds__(256) reduce_columns_pieces(
    const TX* __restrict__ x, Partial* __restrict__ to, const Shape kept, const Strides kept_strides, const Shape gone,
    const Strides gone_strides, const i64 results, const i64 terms, const i64 pieces)
{
    wait_for_launch_before();
    __shared__ Partial parts[WARPS][32];
    const i64 across = (results + 31) / 32, span = (terms + pieces - 1) / pieces;
    for (i64 tile = blockIdx.x; tile < across * pieces; tile += gridDim.x) {
        const i64 result = tile % across * 32 + threadIdx.x % 32, piece = tile / across, begin = piece * span;
        const TX* from = x + place((INDEX)result, kept, kept_strides);
        const i64 end = result < results ? min(terms, begin + span) : begin;
        const Partial partial = column(from, begin, max(begin, end), gone, gone_strides, parts);
        if (threadIdx.x < 32 && result < results) to[piece * results + result] = partial;
    }
}

// Joins pieces in their order: eight lanes a result take them in turn.
extern "C" __global__ void __launch_bounds__(256) join_pieces(
    const Partial* __restrict__ from, TR* __restrict__ y, const i64 results, const i64 terms, const i64 pieces)
{
    wait_for_launch_before();
    const int lanes = 8, lane = threadIdx.x % lanes;
    for (i64 first = blockIdx.x * (i64)(THREADS / lanes); first < results; first += gridDim.x * (i64)(THREADS / lanes)) {
        const i64 result = first + threadIdx.x / lanes;
        Partial all = Partial::start();
        for (i64 piece = lane; piece < pieces && result < results; piece += lanes) all.join(from[piece * results + result]);
#pragma unroll
        for (int step = lanes / 2; step; step >>= 1) all.join(shifted(all, step));
        if (lane == 0 && result < results) put(y + result, all.finish(terms));
    }
}
